/** Locks on a server, here Redis, from Node.js. */
import assert from 'node:assert/strict'
import { execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFile, readdir } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const at = (file) => new URL(`../../target/js/${file}`, import.meta.url)
const { LockFactory } = await import(at('node.js'))
const { CommandStoreError, serverStore } = await import(at('server-store.js'))

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))

/** Longer than any of these tests takes, even on a busy machine. */
const options = {
  timeout: 120_000,
  skip: spawnSync('redis-server', ['--version']).error && 'there is no redis-server in PATH',
}

const PASSWORD = 's3cret'

/**
 * Makes a server for one test, and returns functions that start it, open a store there and run commands. Unless it is
 * `late`, it is started.
 */
async function redis(t, late = false) {
  const port = await freePort()
  const words = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--requirepass', PASSWORD]
  const stores = []
  let server
  t.after(async () => {
    await Promise.allSettled(stores.map((store) => store.close()))
    server?.kill('SIGKILL')
  })
  const start = async () => {
    server = spawn('redis-server', words, { stdio: 'ignore' })
    while (!(await answers(port))) await pause(10)
  }
  if (!late) await start()
  const url = `redis://:${PASSWORD}@127.0.0.1:${port}`
  return {
    start,
    /** Returns the number after `field` in the reply to the command `INFO` of the server. */
    async info(field) {
      const env = { ...process.env, REDISCLI_AUTH: PASSWORD }
      const { stdout } = await promisify(execFile)('redis-cli', ['-p', port, 'info'], { env })
      return Number(stdout.split(`${field}:`)[1].split('\r')[0])
    },
    open(options) {
      const store = serverStore(url, options)
      stores.push(store)
      return store
    },
    /** Ends the server. */
    async end() {
      const ended = once(server, 'exit')
      server.kill('SIGKILL')
      await ended
    },
    async verrou(...args) {
      const env = { ...process.env, VERROU_STORE: url }
      const { stdout } = await promisify(execFile)(process.env.VERROU_COMMAND, args, { env })
      return stdout.trim()
    },
  }
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  return String(port)
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = connect(Number(port), '127.0.0.1')
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false))
    socket.on('connect', () => socket.destroy())
  })
}

test('a lock on a server excludes programs in other languages', options, async (t) => {
  const { open, verrou } = await redis(t)
  const lock = new LockFactory(open()).createLock('shared', '1m')
  const other = new LockFactory(open()).createLock('shared', '1m')
  await lock.acquire()
  assert.equal(await other.acquireImmediately(), false)
  assert.match(await verrou('show', 'shared'), /verrou serve/)
  const ended = verrou('run', 'shared', '--no-wait', '--', 'true')
  await assert.rejects(ended, { code: 75 })

  // The waiter acquires the lock after the release.
  let had = false
  const waiting = other.acquire().then(() => (had = true))
  await pause(300)
  assert.equal(had, false)
  await lock.release()
  await waiting
  assert.equal(await lock.isLocked(), true)
  await other.release()
  assert.equal(await verrou('run', 'shared', '--', 'echo', 'had'), 'had')
})

test('a lock is acquired when its server starts within the time limit', options, async (t) => {
  const { open, start } = await redis(t, true)
  const lock = new LockFactory(open()).createLock('late', '1m')
  const acquired = lock.acquire({ retry: { timeout: '60s' } })
  await pause(500)
  await start()
  await acquired
  await lock.release()
})

test('waits for twenty locks are notified over one connection', options, async (t) => {
  const { open, info } = await redis(t)
  const [holder, waiter] = [open(), open()].map((store) => new LockFactory(store))
  const names = Array.from({ length: 20 }, (_, i) => `lock ${i}`)
  const held = names.map((name) => holder.createLock(name, '10m'))
  for (const lock of held) await lock.acquire()
  let had = 0
  const waiting = names.map(async (name) => {
    const lock = waiter.createLock(name, '10m')
    await lock.acquire()
    had += 1
    await lock.release()
  })
  await pause(1_000) // all have their tickets
  // Of the holder, of the waiter, and of this request.
  assert.equal(await info('connected_clients'), 3)
  const before = await info('total_commands_processed')
  await pause(5_000)
  const during = (await info('total_commands_processed')) - before
  // A ticket is renewed every 3.3 s, and the server is asked once in 10 s. A script is counted with its commands.
  assert.ok(during < 20 * 20, `${during} commands`)
  t.diagnostic(`${during} commands in 5 s`)
  assert.equal(had, 0)
  for (const lock of held) await lock.release()
  await Promise.all(waiting)
})

test('the holder of a lock has its fencing token and remaining time', options, async (t) => {
  const { open } = await redis(t)
  const lock = new LockFactory(open()).createLock('described', '1m')
  await lock.acquire()
  const { fence, remaining } = await new LockFactory(open()).createLock('described').holder()
  assert.equal(fence, lock.fence)
  assert.ok(remaining > 0 && remaining <= 60_000, `${remaining}`)
})

test('a force-released holder cannot extend', options, async (t) => {
  const { open, verrou } = await redis(t)
  const lock = new LockFactory(open()).createLock('evicted', '1m')
  await lock.acquire()
  await verrou('force-release', 'evicted')
  await assert.rejects(lock.extend(), { code: 'E_LOCK_NOT_OWNER' })
})

test('closing a store releases its locks, except for detached ones', options, async (t) => {
  const { open } = await redis(t)
  const other = new LockFactory(open())
  const isLocked = (name) => other.createLock(name).isLocked()
  const store = open()
  const factory = new LockFactory(store)
  const locks = ['held', 'released', 'serialized'].map((name) => factory.createLock(name, '1h'))
  for (const lock of locks) await lock.acquire()
  await locks[1].release()
  const later = other.createLock('released', '1h')
  await later.acquire()
  await locks[2].handOver()
  // This grant arrives while the store is being closed.
  const granted = factory.createLock('last', '1h').acquire()
  const closing = store.close()
  await granted
  await store[Symbol.asyncDispose]()
  await closing
  assert.deepEqual(await Promise.all(['held', 'released', 'serialized', 'last'].map(isLocked)), [false, true, true, false])
  await later.release()
  await assert.rejects(factory.createLock('x').acquire(), { code: 'E_LOCK_STORAGE_ERROR' })
})

test('closing a store whose command was killed releases its locks', options, async (t) => {
  const { open } = await redis(t)
  const store = open()
  const lock = new LockFactory(store).createLock('held', '1h')
  await lock.acquire()
  for (const pid of await children()) process.kill(pid, 'SIGKILL')
  await store.close()
  assert.equal(await new LockFactory(open()).createLock('held').isLocked(), false)
})

test('closing a store that cannot release a lock names it', options, async (t) => {
  const { open, end } = await redis(t)
  const store = open()
  await new LockFactory(store).createLock('held', '1h').acquire()
  await end()
  await assert.rejects(store.close(), (error) => {
    assert.ok(error instanceof CommandStoreError)
    assert.match(error.message, /could not release `held`; each stays held until its ttl/)
    return true
  })
})

/** Returns the process IDs of the children of this process that serve a store. */
async function children() {
  const found = []
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (status.includes(`\nPPid:\t${process.pid}\n`) && command.includes('\0serve\0')) found.push(Number(pid))
  }
  return found
}

test('the password is in no command line', options, async (t) => {
  const store = (await redis(t)).open()
  await store.save('lock', '0'.repeat(32), 60_000)
  const processes = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
  for (const id of processes) {
    const words = await readFile(`/proc/${id}/cmdline`, 'utf8').catch(() => '')
    if (words.includes('serve')) assert.ok(!words.includes(PASSWORD), words)
  }
})

test('errors name the fault without the password', options, async (t) => {
  for (const url of ['', 'redis', null, 7]) assert.throws(() => serverStore(url), { code: 'E_INVALID_ARGUMENT' })
  const absent = serverStore(`redis://:${PASSWORD}@127.0.0.1:${await freePort()}`)
  t.after(() => absent.close())
  await assert.rejects(absent.exists('lock'), (error) => {
    assert.ok(error instanceof CommandStoreError)
    assert.match(error.message, /connection/)
    assert.ok(!error.message.includes(PASSWORD), error.message)
    return true
  })
})

test('the password of a malformed URL is not repeated', options, async (t) => {
  for (const url of [
    `redis//app:${PASSWORD}@h://`,
    `app:${PASSWORD}@redis://h`,
    `lease:redis://app:${PASSWORD}@h`,
    `redis://app%3A${PASSWORD}@h`,
    `redis://app%3A${PASSWORD}%40h`,
    `redis://h/app:${PASSWORD}%40x`,
    `redis://app:x@${PASSWORD}@h?wrong`,
  ]) {
    const store = serverStore(url)
    t.after(() => store.close())
    await assert.rejects(store.exists('lock'), (error) => {
      for (let it = error; it; it = it.cause) {
        assert.ok(!`${it.stack} ${JSON.stringify(it)}`.includes(PASSWORD), it.stack)
      }
      return true
    })
  }
})
