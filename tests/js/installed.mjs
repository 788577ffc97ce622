/** The package as npm packs and installs it, in a project without other dependencies. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

/** The directory of the built package. */
export const built = resolve(import.meta.dirname, '../../target/js')

/** Installs the package in a new project. Returns the project's directory, and the name of the tarball in it. */
export function install() {
  const directory = mkdtempSync(join(tmpdir(), 'verrou-wasm-'))
  execFileSync('npm', ['pack', built, '--pack-destination', directory, '--loglevel=error'])
  const [tarball] = readdirSync(directory).filter((name) => name.endsWith('.tgz'))
  writeFileSync(join(directory, 'package.json'), '{"type":"module","private":true}')
  execFileSync('npm', ['install', `./${tarball}`, '--no-audit', '--no-fund', '--offline', '--loglevel=error'], { cwd: directory })
  return { directory, tarball, remove: () => rmSync(directory, { recursive: true }) }
}

/** Returns the environment for a nested test runner, which would otherwise report to the outer one. */
export function outside() {
  const { NODE_TEST_CONTEXT, ...env } = process.env
  return env
}
