/** The installed package in bundlers and test runners, and in CommonJS. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { install, outside } from './installed.mjs'

const run = promisify(execFile)
const require = createRequire(import.meta.url)

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))

/** Longer than any of these tests takes, even on a busy machine. */
const options = { timeout: 300_000 }

/** A program that uses all entries for Node.js. Its argument is the directory of a store. */
const IMPORTS = `
import { LockFactory, Verrou, errors, memoryStore } from 'verrou-wasm'
import { fileStore } from 'verrou-wasm/file-store'
import { serverStore } from 'verrou-wasm/server-store'
import { Verrou as Compat, driver } from 'verrou-wasm/compat'
import { memoryStore as compatMemory } from 'verrou-wasm/compat/drivers/memory'
`
const USES = `
async function main() {
  const said = []
  const verrou = new Verrou({ default: 'memory', stores: { memory: memoryStore() } })
  said.push(await verrou.createLock('x').run(() => 'memory'))
  try {
    verrou.createLock('')
  } catch (error) {
    said.push(error instanceof errors.E_INVALID_NAME)
  }
  const files = fileStore(process.argv[2])
  said.push(await new LockFactory(files).createLock('x').run(() => 'files'))
  const compat = new Compat({
    default: 'memory',
    stores: { memory: { driver: compatMemory() }, files: { driver: driver(files) } },
  })
  said.push(await compat.createLock('x').run(() => 'compat'))
  said.push(await compat.use('files').createLock('x').run(() => 'compat in files'))
  await files.close()
  await serverStore('redis://localhost').close()
  console.log(JSON.stringify(said))
}
main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
`
const SAID = '["memory",true,"files",[true,"compat"],[true,"compat in files"]]\n'

/** The imports as CommonJS. */
const REQUIRES = IMPORTS.replaceAll(/import \{(.*)\} from (.*)/g, (_, names, from) => `const {${names.replaceAll(' as ', ': ')}} = require(${from})`)

let project
let elsewhere

before(() => {
  project = install()
  writeFileSync(join(project.directory, 'app.mjs'), IMPORTS + USES)
  writeFileSync(join(project.directory, 'app.cjs'), REQUIRES + USES)
  // Bundles run outside of the project, where no package is installed.
  elsewhere = mkdtempSync(join(tmpdir(), 'verrou-bundles-'))
})

after(() => {
  project.remove()
  rmSync(elsewhere, { recursive: true })
})

async function assertRuns(program, ...flags) {
  const { stdout } = await run(process.execPath, [...flags, program, join(elsewhere, 'locks')], { cwd: elsewhere })
  assert.equal(stdout, SAID)
}

/** Writes `code` to a file of a directory of its own, and runs it. */
async function assertBundleRuns(name, code) {
  const directory = join(elsewhere, name)
  mkdirSync(directory)
  const file = join(directory, name.endsWith('cjs') ? 'app.cjs' : 'app.mjs')
  writeFileSync(file, code)
  await assertRuns(file)
}

test('the program runs without a bundler', options, () => assertRuns(join(project.directory, 'app.mjs')))

test('CommonJS programs can require every entry', options, async () => {
  await assertRuns(join(project.directory, 'app.cjs'))
})

test('without the loading of modules by require, CommonJS programs load the CommonJS form', options, async (t) => {
  if (!process.allowedNodeEnvironmentFlags.has('--experimental-require-module')) {
    t.skip('this version of Node.js always loads the CommonJS form')
    return
  }
  const flag = '--no-experimental-require-module'
  await assertRuns(join(project.directory, 'app.cjs'), flag)
  const where = `console.log(require.resolve('verrou-wasm'))`
  const { stdout } = await run(process.execPath, [flag, '--eval', where], { cwd: project.directory })
  assert.match(stdout, /verrou-wasm\/cjs\/node\.js\n$/)
})

test('where require loads modules, both forms of a program use one core', options, async (t) => {
  if (!process.features.require_module) {
    t.skip('this version of Node.js does not load modules by require')
    return
  }
  writeFileSync(
    join(project.directory, 'both.mjs'),
    `import { createRequire } from 'node:module'
     import * as imported from 'verrou-wasm'
     const required = createRequire(import.meta.url)('verrou-wasm')
     console.log(required.errors.E_LOCK_TIMEOUT === imported.errors.E_LOCK_TIMEOUT)
     console.log(await new required.LockFactory(imported.memoryStore()).createLock('x').run(() => 'one core'))`
  )
  const { stdout } = await run(process.execPath, ['both.mjs'], { cwd: project.directory })
  assert.equal(stdout, 'true\none core\n')
})

/** Returns webpack's errors and warnings. */
function problems(stats) {
  const { errors, warnings } = stats.toJson({ all: false, errors: true, warnings: true })
  return [...errors, ...warnings].map(({ message }) => message)
}

for (const format of ['esm', 'cjs']) {
  test(`esbuild bundles it for Node.js as ${format}`, options, async () => {
    const { build } = await import('esbuild')
    const { outputFiles } = await build({
      absWorkingDir: project.directory,
      entryPoints: ['app.mjs'],
      bundle: true,
      platform: 'node',
      format,
      write: false,
      logLevel: 'error',
    })
    await assertBundleRuns(`esbuild-${format}`, outputFiles[0].contents)
  })

  test(`Rollup bundles it for Node.js as ${format}`, options, async () => {
    const { rollup } = await import('rollup')
    const { nodeResolve } = await import('@rollup/plugin-node-resolve')
    const bundle = await rollup({
      input: join(project.directory, 'app.mjs'),
      plugins: [nodeResolve({ exportConditions: ['node'] })],
      external: /^node:/,
      onLog: (level, log) => assert.fail(log.message),
    })
    const { output } = await bundle.generate({ format })
    assert.equal(output.length, 1)
    await assertBundleRuns(`rollup-${format}`, output[0].code)
  })

  test(`webpack bundles it for Node.js as ${format}`, options, async () => {
    const { default: webpack } = await import('webpack')
    const path = join(elsewhere, `webpack-${format}`)
    const module = format === 'esm'
    const stats = await promisify(webpack)({
      context: project.directory,
      entry: './app.mjs',
      mode: 'production',
      target: 'node20',
      output: { path, filename: module ? 'app.mjs' : 'app.cjs', module, chunkFormat: module ? 'module' : 'commonjs' },
      experiments: { outputModule: module },
      performance: { hints: false },
    })
    assert.deepEqual(problems(stats), [])
    await assertRuns(join(path, module ? 'app.mjs' : 'app.cjs'))
  })
}

test('webpack bundles a CommonJS program', options, async () => {
  const { default: webpack } = await import('webpack')
  const path = join(elsewhere, 'webpack-of-cjs')
  const stats = await promisify(webpack)({
    context: project.directory,
    entry: './app.cjs',
    mode: 'production',
    target: 'node20',
    output: { path, filename: 'app.cjs' },
    performance: { hints: false },
  })
  assert.deepEqual(problems(stats), [])
  await assertRuns(join(path, 'app.cjs'))
})

test('Vite bundles it for a server', options, async () => {
  const { build } = await import('vite')
  const { output } = await build({
    root: project.directory,
    logLevel: 'error',
    build: { ssr: 'app.mjs', write: false, target: 'node20' },
    ssr: { noExternal: true },
  })
  assert.equal(output.length, 1)
  await assertBundleRuns('vite-esm', output[0].code)
})

/** A specification of Jest and of Vitest. */
const SPEC = `
import { LockFactory, memoryStore } from 'verrou-wasm'
import { Verrou } from 'verrou-wasm/compat'
import { memoryStore as compatMemory } from 'verrou-wasm/compat/drivers/memory'

class MapStore {
  held = new Map()
  async save(key, owner) {
    if (this.held.has(key)) return false
    this.held.set(key, owner)
    return true
  }
  async delete(key) {
    this.held.delete(key)
  }
  async forceDelete(key) {
    this.held.delete(key)
  }
  async exists(key) {
    return this.held.has(key)
  }
  async extend() {}
}

beforeEach(() => timers.useFakeTimers())
afterEach(() => timers.useRealTimers())

test('a store that returns promises works under fake timers', async () => {
  const lock = new LockFactory(new MapStore()).createLock('x')
  expect(await lock.run(() => 'done')).toBe('done')
})

test('leases and time limits follow the fake clock', async () => {
  for (const store of [memoryStore(), new MapStore()]) {
    const factory = new LockFactory(store)
    const lock = factory.createLock('x', '10s')
    await lock.acquire()
    const waiting = factory.createLock('x').acquire({ retry: { timeout: '1s' } }).catch(({ code }) => code)
    await timers.advanceTimersByTimeAsync(2_000)
    expect(await waiting).toBe('E_LOCK_TIMEOUT')
    expect(lock.isExpired()).toBe(false)
    await timers.advanceTimersByTimeAsync(8_001)
    expect(lock.isExpired()).toBe(true)
  }
})

test('compat works', async () => {
  const verrou = new Verrou({ default: 'm', stores: { m: { driver: compatMemory() } } })
  expect(await verrou.createLock('x').run(() => 'done')).toEqual([true, 'done'])
})
`

test('Jest runs specifications that Babel compiles', options, async () => {
  writeFileSync(join(project.directory, 'app.jest.js'), `const timers = jest\n${SPEC}`)
  const babel = [require.resolve('babel-jest'), { plugins: [require.resolve('@babel/plugin-transform-modules-commonjs')], configFile: false, babelrc: false }]
  writeFileSync(
    join(project.directory, 'jest.config.json'),
    JSON.stringify({ testMatch: ['**/*.jest.js'], transform: { '\\.js$': babel }, cacheDirectory: join(elsewhere, 'jest') })
  )
  const jest = join(require.resolve('jest/package.json'), '../bin/jest.js')
  const ran = run(process.execPath, [jest, '--config', 'jest.config.json', '--ci', '--json', '--runInBand'], { cwd: project.directory, env: outside() })
  const { stdout } = await ran.catch((error) => assert.fail(error.stderr))
  const { numPassedTests, success } = JSON.parse(stdout)
  assert.deepEqual({ numPassedTests, success }, { numPassedTests: 3, success: true })
})

test('Vitest runs specifications', options, async () => {
  writeFileSync(
    join(project.directory, 'app.vitest.js'),
    `import { afterEach, beforeEach, expect, test, vi as timers } from ${JSON.stringify(import.meta.resolve('vitest'))}\n${SPEC}`
  )
  const vitest = join(require.resolve('vitest/package.json'), '../vitest.mjs')
  writeFileSync(join(project.directory, 'vitest.config.js'), `export default { test: { include: ['*.vitest.js'] } }`)
  const ran = run(process.execPath, [vitest, 'run', '--root', '.', '--reporter=json'], { cwd: project.directory, env: outside() })
  const { stdout } = await ran.catch((error) => assert.fail(error.stdout + error.stderr))
  const { numPassedTests, success } = JSON.parse(stdout)
  assert.deepEqual({ numPassedTests, success }, { numPassedTests: 3, success: true })
})

test('webpack bundles it for a browser, with the core in a file', options, async () => {
  const { default: webpack } = await import('webpack')
  writeFileSync(join(project.directory, 'web.mjs'), "import { Verrou } from 'verrou-wasm'\nconsole.log(Verrou)\n")
  const path = join(elsewhere, 'webpack-web')
  const stats = await promisify(webpack)({
    context: project.directory,
    entry: './web.mjs',
    mode: 'production',
    target: 'web',
    output: { path },
    performance: { hints: false },
  })
  assert.deepEqual(problems(stats), [])
  assert.deepEqual(readdirSync(path).map((name) => name.replace(/^[0-9a-f]{16,}/, 'core')).sort(), ['core.wasm', 'main.js'])
})

test('the bundle for a browser has no module of Node.js', options, async () => {
  const { build } = await import('vite')
  writeFileSync(join(project.directory, 'page.mjs'), "export { Verrou, memoryStore } from 'verrou-wasm'\nexport { webStore } from 'verrou-wasm/web-store'\nexport { Verrou as Compat } from 'verrou-wasm/compat'\n")
  const { output } = await build({
    root: project.directory,
    logLevel: 'error',
    build: { target: 'esnext', write: false, assetsInlineLimit: 0, rollupOptions: { input: join(project.directory, 'page.mjs'), preserveEntrySignatures: 'strict' } },
  })
  const code = output.map(({ code }) => code ?? '').join('\n')
  assert.match(code, /E_LOCK_TIMEOUT/)
  assert.doesNotMatch(code, /node:/)
  // The bytes are a file of their own there, which is loaded while it is compiled.
  const core = readFileSync(join(project.directory, 'node_modules/verrou-wasm/core/verrou_bg.wasm')).toString('base64')
  assert.ok(!code.includes(core.slice(0, 1_000)))
})
