/** The package as npm packs it, in projects without other dependencies. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'

import { built, install, outside } from './installed.mjs'

const run = promisify(execFile)
const here = import.meta.dirname
const compiler = (name) => join(here, 'node_modules', name, 'bin/tsc')
const bin = (name) => join(here, 'node_modules/.bin', name)

let directory
let tarball
let remove

before(() => {
  ;({ directory, tarball, remove } = install())
})

after(() => remove())

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
    await assertCompiles(compiler('typescript'), 'types', resolution, ['--lib', 'es2022,esnext.disposable,dom', '--types', 'node'])
  }
})

test('the types compile in TypeScript 5.0, with checks of the declarations', async () => {
  cpSync(join(here, 'types-5.0'), join(directory, 'types-5.0'), { recursive: true })
  // In CommonJS, too.
  cpSync(join(here, 'types-5.0/main.ts'), join(directory, 'types-5.0/main.cts'))
  for (const resolution of ['nodenext', 'bundler', 'node10']) {
    await assertCompiles(compiler('typescript-5.0'), 'types-5.0', resolution, ['--lib', 'es2022,dom', '--typeRoots', 'types-5.0'])
  }
})

/** Asserts that `tsc` compiles the programs in `directory`, with modules found by the method `resolution`. */
async function assertCompiles(tsc, programs, resolution, args) {
  const compiled = run(
    process.execPath,
    [
      tsc,
      ...['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--skipLibCheck', 'false', '--target', 'es2022'],
      ...['--module', resolution === 'nodenext' ? 'nodenext' : 'esnext', '--moduleResolution', resolution],
      ...args,
      ...readdirSync(join(directory, programs)).map((name) => join(programs, name)),
    ],
    { cwd: directory }
  )
  await compiled.catch((error) => assert.fail(error.stdout))
}

test('the linters of packages report nothing', async () => {
  const linted = run(bin('publint'), ['run', built, '--strict'])
  await linted.catch((error) => assert.fail(error.stdout))
  const resolved = run(bin('attw'), [join(directory, tarball), '--no-color', '--no-emoji'])
  await resolved.catch((error) => assert.fail(error.stdout))
})
