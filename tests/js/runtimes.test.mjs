/** The tests of this directory, and a program with a store in files, in Bun and Deno. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { outside } from './installed.mjs'

const run = promisify(execFile)
const here = import.meta.dirname

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))

const packages = join(here, 'node_modules')
const RUNTIMES = {
  // Their install scripts, which link these programs, are not run.
  Bun: {
    program: join(packages, '@oven/bun-linux-x64/bin/bun'),
    run: ['run'],
    test: ['test', '--timeout', '300000'],
    files: ['arguments', 'events', 'fake-timers', 'file-store', 'locks'],
  },
  // The other files start Node.js with flags that Deno does not have.
  Deno: {
    program: join(packages, '@deno/linux-x64-glibc/deno'),
    run: ['run', '--allow-all'],
    test: ['test', '--allow-all', '--no-check'],
    files: ['arguments', 'events', 'fake-timers', 'locks'],
  },
}

/** Prints what the locks of a store in files do. It does not close the store, and has to end nevertheless. */
const PROGRAM = `
  import { LockFactory } from 'PACKAGE/node.js'
  import { fileStore } from 'PACKAGE/file-store.js'
  const [directory] = process.argv.slice(2)
  const [one, two] = [1, 2].map(() => new LockFactory(fileStore(directory)).createLock('x', '1h'))
  const said = [await one.run(({ fence }) => typeof fence)]
  await one.acquire()
  said.push(await two.acquire({ retry: { attempts: 1 } }).catch(({ code }) => code))
  const waiting = two.acquire({ retry: { delay: '1h' } })
  await one.release()
  said.push((await waiting) === two)
  const absent = fileStore(directory, { command: directory + '/absent' })
  said.push(await absent.exists('x').catch(({ message }) => message.startsWith('there is no command')))
  console.log(JSON.stringify(said))
`

const SAID = '["bigint","E_LOCK_TIMEOUT",true,true]\n'

/** Returns the options of tests that need `runtime`. */
const optionsFor = (name, { program }) => ({
  timeout: 600_000,
  skip: !existsSync(program) && `npm has no ${name} for this machine`,
})

/** Makes a directory for one test, and writes the program to a file in it. */
function place(t) {
  const directory = mkdtempSync(join(tmpdir(), 'verrou-runtime-'))
  t.after(() => rmSync(directory, { recursive: true }))
  const program = join(directory, 'program.mjs')
  writeFileSync(program, PROGRAM.replaceAll('PACKAGE', resolve(here, '../../target/js')))
  return { directory, program }
}

test('Bun compiles the program to an executable file', optionsFor('Bun', RUNTIMES.Bun), async (t) => {
  const { directory, program } = place(t)
  const compiled = join(directory, 'compiled')
  await run(RUNTIMES.Bun.program, ['build', '--compile', program, '--outfile', compiled], { cwd: directory })
  const { stdout } = await run(compiled, [join(directory, 'locks')], { cwd: directory })
  assert.equal(stdout, SAID)
})

for (const [name, runtime] of Object.entries(RUNTIMES)) {
  const options = optionsFor(name, runtime)

  test(`${name} runs a program with a store in files, which ends`, options, async (t) => {
    const { directory, program } = place(t)
    const { stdout } = await run(runtime.program, [...runtime.run, program, join(directory, 'locks')])
    assert.equal(stdout, SAID)
  })

  for (const file of runtime.files) {
    test(`${name} passes the tests of ${file}`, options, async () => {
      const tested = run(runtime.program, [...runtime.test, `./${file}.test.mjs`], { cwd: here, env: outside() })
      await tested.catch((error) => assert.fail(error.stdout + error.stderr))
    })
  }
}
