/** Programs in JavaScript, shell and Rust increment one number, under one lock. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const PACKAGE = new URL('../../target/js/', import.meta.url)
const { Verrou } = await import(new URL('node.js', PACKAGE))
const { fileStore } = await import(new URL('file-store.js', PACKAGE))

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))
const COUNT = join(dirname(process.env.VERROU_COMMAND), 'examples', 'count')

/** How often each program increments the number. */
const TIMES = 60

const HOUR = 3_600_000

/** Increments the number `TIMES` times, some of them concurrently. `fence` has the latest fencing token. */
const IN_NODE = `
  import assert from 'node:assert/strict'
  import { appendFile, readFile, writeFile } from 'node:fs/promises'
  const { Verrou } = await import(process.env.PACKAGE + 'node.js')
  const { fileStore } = await import(process.env.PACKAGE + 'file-store.js')
  const stores = { files: { driver: fileStore('locks') } }
  const verrou = new Verrou({ default: 'files', stores })
  const add = async ({ fence }) => {
    const number = Number(await readFile('number', 'utf8'))
    assert.ok(Number(fence) > Number(await readFile('fence', 'utf8')))
    await writeFile('fence', String(fence))
    await writeFile('number', String(number + 1))
  }
  await appendFile('begun', '.')
  let left = ${TIMES}
  const lane = async () => {
    while (left-- > 0) await verrou.createLock('number', '1m').run(add)
  }
  await Promise.all([lane(), lane(), lane(), lane(), lane()])
`

/** Acquires the lock, and is killed. */
const KILLED = `
  import { appendFile } from 'node:fs/promises'
  const { Verrou } = await import(process.env.PACKAGE + 'node.js')
  const { fileStore } = await import(process.env.PACKAGE + 'file-store.js')
  const verrou = new Verrou({ default: 'files', stores: { files: { driver: fileStore('locks') } } })
  await appendFile('begun', '.')
  await verrou.createLock('number', '1h').acquire()
  process.kill(process.pid, 'SIGKILL')
`

const IN_SHELL = `
  printf . >> begun
  for time in $(seq ${TIMES}); do
    "$VERROU_COMMAND" run number --ttl 1m -- sh -euc '
      number=$(cat number)
      test "$VERROU_FENCE" -gt "$(cat fence)"
      echo "$VERROU_FENCE" > fence
      echo $((number + 1)) > number
    '
  done
`

const IN_RUST = `
  printf . >> begun
  exec "$@"
`

test('programs of three languages lose no increment when some are killed', { timeout: 600_000 }, async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'verrou-'))
  const locks = join(directory, 'locks')
  const number = join(directory, 'number')
  await writeFile(number, '0')
  await writeFile(join(directory, 'fence'), '0')
  await writeFile(join(directory, 'begun'), '')
  const store = fileStore(locks)
  const children = []
  const ended = (yes) =>
    children.filter(({ exitCode, signalCode }) => yes === ((exitCode ?? signalCode) !== null))
  const start = (command, ...args) => {
    const child = spawn(command, args, {
      cwd: directory,
      detached: true, // so that its children can be ended with it
      env: { ...process.env, PACKAGE: PACKAGE.href, VERROU_STORE: `lease:${locks}` },
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    children.push(child)
    return once(child, 'exit')
  }
  t.after(async () => {
    for (const child of ended(false)) process.kill(-child.pid, 'SIGKILL')
    await store.close()
    await rm(directory, { recursive: true })
  })

  // This lock keeps every program from its end until all have begun.
  const verrou = new Verrou({ default: 'files', stores: { files: { driver: store } } })
  const lock = verrou.createLock('number', '1h')
  await lock.acquire()
  const first = Number(lock.fence)
  const counting = []
  const killed = []
  for (let i = 0; i < 3; i += 1) {
    counting.push(start(process.execPath, '--input-type=module', '--eval', IN_NODE))
    counting.push(start('sh', '-euc', IN_SHELL))
    const count = [COUNT, locks, 'number', number, String(TIMES)]
    counting.push(start('sh', '-euc', IN_RUST, 'sh', ...count))
    killed.push(start(process.execPath, '--input-type=module', '--eval', KILLED))
  }
  const begun = async () => (await readFile(join(directory, 'begun'), 'utf8')).length
  while ((await begun()) < children.length) {
    assert.deepEqual(ended(true), [], 'no program has ended yet')
    await pause(10)
  }
  assert.equal(await readFile(number, 'utf8'), '0')
  await lock.release()

  for (const end of await Promise.all(killed)) assert.deepEqual(end, [null, 'SIGKILL'])
  for (const end of await Promise.all(counting)) assert.deepEqual(end, [0, null])
  assert.equal(Number(await readFile(number, 'utf8')), 9 * TIMES)
  const last = Number(await readFile(join(directory, 'fence'), 'utf8'))
  assert.ok(first < last && last <= first + 9 * TIMES + 3, 'one grant for each increment')
  await store.wait('number', HOUR)
  assert.equal(await store.exists('number'), false)
})
