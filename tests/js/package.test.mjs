/** The package as npm packs it, in projects without other dependencies. */
import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'

const run = promisify(execFile)
const here = import.meta.dirname
const built = resolve(here, '../../target/js')
const bin = (name) => join(here, 'node_modules/.bin', name)

let directory
let tarball

before(() => {
  directory = mkdtempSync(join(tmpdir(), 'verrou-wasm-'))
  execFileSync('npm', ['pack', built, '--pack-destination', directory, '--loglevel=error'])
  ;[tarball] = readdirSync(directory).filter((name) => name.endsWith('.tgz'))
  writeFileSync(join(directory, 'package.json'), '{"type":"module","private":true}')
  execFileSync('npm', ['install', `./${tarball}`, '--no-audit', '--no-fund', '--offline', '--loglevel=error'], { cwd: directory })
})

after(() => rmSync(directory, { recursive: true }))

test('the tarball contains all files, and no path of this machine', async () => {
  const { stdout } = await run('tar', ['-tf', join(directory, tarball)])
  const files = stdout.trim().split('\n').map((path) => path.replace('package/', ''))
  const wanted = readdirSync(built, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(built.length + 1))
  assert.deepEqual(files.sort(), wanted.sort())
  for (const name of ['LICENSE-APACHE', 'LICENSE-MIT', 'README.md', 'core/verrou_bg.wasm', 'index.d.ts']) {
    assert.ok(files.includes(name), name)
  }
  for (const file of files) {
    const bytes = readFileSync(join(built, file), 'latin1')
    for (const path of [resolve(here, '../..'), process.env.CARGO_HOME ?? join(homedir(), '.cargo')]) {
      assert.ok(!bytes.includes(path), `${file} names ${path}`)
    }
  }
})

test('it has no dependency', () => {
  assert.deepEqual(readdirSync(join(directory, 'node_modules')).filter((name) => !name.startsWith('.')), ['verrou-wasm'])
})

test('the snippets of the page on usage run', async () => {
  for (const file of ['usage.test.mjs', 'verrou.mjs']) {
    const text = readFileSync(join(here, file), 'utf8')
    writeFileSync(join(directory, file), text.replaceAll('../../target/js/node.js', 'verrou-wasm'))
  }
  const { stdout } = await run(process.execPath, ['--test', '--test-reporter=tap', 'usage.test.mjs'], { cwd: directory, env: outside() })
  assert.match(stdout, /^# pass 10$/m)
  assert.match(stdout, /^# fail 0$/m)
})

/** Returns the environment for a nested test runner, which would otherwise report to the outer one. */
function outside() {
  const { NODE_TEST_CONTEXT, ...env } = process.env
  return env
}

test('the program in the README runs', async () => {
  const readme = readFileSync(join(built, 'README.md'), 'utf8')
  const [snippet] = readme.split('```js\n')[1].split('```')
  writeFileSync(join(directory, 'readme.mjs'), `${snippet}\nconsole.log(answer)`)
  const { stdout } = await run(process.execPath, ['readme.mjs'], { cwd: directory })
  assert.equal(stdout, '42\n')
})

test('the types compile in strict mode', async () => {
  cpSync(join(here, 'types'), join(directory, 'types'), { recursive: true })
  cpSync(join(here, 'node_modules/@types'), join(directory, 'node_modules/@types'), { recursive: true })
  cpSync(join(here, 'node_modules/undici-types'), join(directory, 'node_modules/undici-types'), { recursive: true })
  for (const resolution of ['nodenext', 'bundler']) {
    const compiled = run(
      bin('tsc'),
      [
        ...['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--target', 'es2022'],
        ...['--lib', 'es2022,esnext.disposable,dom', '--types', 'node'],
        ...['--module', resolution === 'bundler' ? 'esnext' : 'nodenext', '--moduleResolution', resolution],
        ...readdirSync(join(directory, 'types')).map((name) => join('types', name)),
      ],
      { cwd: directory }
    )
    await compiled.catch((error) => assert.fail(error.stdout))
  }
})

test('the linters of packages report nothing', async () => {
  const linted = run(bin('publint'), ['run', built, '--strict'])
  await linted.catch((error) => assert.fail(error.stdout))
  const resolved = run(bin('attw'), [join(directory, tarball), '--profile', 'esm-only', '--no-color', '--no-emoji'])
  await resolved.catch((error) => assert.fail(error.stdout))
})

test('a bundler bundles it for a browser, and for Node.js', async () => {
  writeFileSync(join(directory, 'app.mjs'), "export { Verrou, memoryStore } from 'verrou-wasm'\n")
  const { build } = await import('vite')
  const built = await build({
    root: directory,
    logLevel: 'error',
    build: { target: 'esnext', write: false, assetsInlineLimit: 0, lib: { entry: 'app.mjs', formats: ['es'], fileName: 'app' } },
  })
  const output = built[0].output.map(({ fileName, code }) => [fileName, code])
  assert.ok(output.some(([, code]) => code?.includes('E_LOCK_TIMEOUT')))
  const bundle = output.find(([name]) => name.endsWith('.js'))[1]
  assert.doesNotMatch(bundle, /node:fs/)

  const { build: bundled } = await import('esbuild')
  const outfile = join(directory, 'out/node.mjs')
  await bundled({ absWorkingDir: directory, entryPoints: ['app.mjs'], bundle: true, platform: 'node', format: 'esm', outfile, logLevel: 'error' })
  cpSync(join(directory, 'node_modules/verrou-wasm/core/verrou_bg.wasm'), join(directory, 'out/core/verrou_bg.wasm'))
  writeFileSync(
    join(directory, 'out/use.mjs'),
    "import { Verrou, memoryStore } from './node.mjs'\nconst lock = new Verrou({ default: 'm', stores: { m: memoryStore() } }).createLock('x')\nconsole.log(await lock.run(() => 'bundled'))"
  )
  const { stdout } = await run(process.execPath, ['out/use.mjs'], { cwd: directory })
  assert.equal(stdout, 'bundled\n')
})
