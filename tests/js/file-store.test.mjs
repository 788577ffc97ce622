/** The store in the lease files of this machine, by its own methods. */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'

const MODULE = new URL('../../target/js/file-store.js', import.meta.url)
const { CommandStoreError, fileStore } = await import(MODULE)

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))

const HOUR = 3_600_000
const NOT_OWNER = { name: 'CommandStoreError', code: 'E_LOCK_NOT_OWNER', temporary: false }

/** Longer than any of these tests takes, even on a busy machine. */
const options = { timeout: 120_000 }

const newOwner = () => randomBytes(16).toString('hex')

/** Makes a temporary directory for one test, and helpers that use it. */
async function place(t) {
  const temp = await mkdtemp(join(tmpdir(), 'verrou-'))
  const dir = join(temp, 'locks')
  const stores = []
  t.after(async () => {
    await Promise.all(stores.map((store) => store.close()))
    await rm(temp, { recursive: true })
  })
  return {
    temp,
    dir,
    open(options) {
      const store = fileStore(dir, options)
      stores.push(store)
      return store
    },
    /** Runs the command `verrou` with these arguments, and returns its output. */
    async verrou(...args) {
      const { stdout } = await promisify(execFile)(process.env.VERROU_COMMAND, args, {
        env: { ...process.env, VERROU_STORE: `lease:${dir}` },
      })
      return stdout.trim()
    },
    /** Starts a Node.js process that runs `script`, in a process group of its own. */
    node(script) {
      const opened = `
        import { fileStore } from ${JSON.stringify(MODULE.href)}
        const store = fileStore(${JSON.stringify(dir)})
        const owner = ${JSON.stringify(newOwner())}
      `
      const child = spawn(process.execPath, ['--input-type=module', '--eval', opened + script], {
        stdio: ['ignore', 'pipe', 'inherit'],
        detached: true,
      })
      child.stdout.setEncoding('utf8')
      const ended = once(child, 'close')
      t.after(async () => {
        child.kill('SIGKILL')
        await ended
      })
      return Object.assign(child, {
        said: async () => (await once(child.stdout, 'data'))[0].trim(),
        ended,
      })
    },
    servers: () => servers(dir),
  }
}

/** Returns the processes that serve the store in `dir`. */
async function servers(dir) {
  const found = []
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    // A process that has ended meanwhile has no command line.
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (command.split('\0').includes(`lease:${dir}`) && command.includes('\0serve\0')) {
      found.push(Number(pid))
    }
  }
  return found
}

async function eventually(what) {
  while (!(await what())) await pause(10)
}

test('a lease can be acquired, inspected, extended and released', options, async (t) => {
  const { open } = await place(t)
  const [one, two] = [open(), open()]
  const [mine, other] = [newOwner(), newOwner()]
  assert.equal(await one.exists('x'), false)
  assert.equal(await one.fence('x', mine), null)
  assert.equal(await one.save('x', mine, HOUR), true)
  const fence = await one.fence('x', mine)
  assert.ok(Number.isSafeInteger(fence) && fence > 0, `${fence}`)
  assert.equal(await one.fence('x', mine), fence, 'at every call')
  assert.equal(await two.fence('x', mine), fence, 'for every store')
  assert.equal(await two.fence('x', other), null)
  assert.equal(await two.exists('x'), true)
  assert.equal(await two.exists('y'), false)

  assert.equal(await two.save('x', other, HOUR), false)
  assert.equal(await one.save('x', mine, HOUR), true, 'the reply may have been lost')
  assert.equal(await one.fence('x', mine), fence)
  await assert.rejects(two.extend('x', other, HOUR), NOT_OWNER)
  await assert.rejects(two.delete('x', other), NOT_OWNER)
  await one.extend('x', mine, null)
  await two.delete('x', mine) // any store with the owner token

  assert.equal(await one.exists('x'), false)
  await assert.rejects(one.delete('x', mine), NOT_OWNER)
  await assert.rejects(one.extend('x', mine, HOUR), NOT_OWNER)
  assert.equal(await two.save('x', other, null), true)
  assert.equal(await two.fence('x', other), fence + 1)
  await one.forceDelete('x')
  await one.forceDelete('x')
  assert.equal(await two.exists('x'), false)
  await assert.rejects(two.delete('x', other), NOT_OWNER)
})

test('owners and keys with spaces are distinguished', options, async (t) => {
  const { open, verrou } = await place(t)
  const store = open()
  const pairs = [['a b', 'c'], ['a', 'b c'], ['["a', 'b"]'], ['1', '0 x'], ['1 0', 'x']]
  for (const [owner, key] of pairs) assert.equal(await store.save(key, owner, HOUR), true)
  const fences = []
  for (const [owner, key] of pairs) {
    const fence = await store.fence(key, owner)
    assert.equal(fence, JSON.parse(await verrou('show', '--name', key, '--json')).fence, `${owner}, ${key}`)
    fences.push(fence)
  }
  assert.equal(new Set(fences).size, pairs.length)
})

test('the holder of a lock has its fencing token and remaining time', options, async (t) => {
  const { open } = await place(t)
  const { LockFactory } = await import('../../target/js/node.js')
  const lock = new LockFactory(open()).createLock('x', '1h')
  const other = new LockFactory(open()).createLock('x')
  assert.equal(await other.holder(), null)
  await lock.acquire()
  const { fence, remaining } = await other.holder()
  assert.equal(fence, lock.fence)
  assert.ok(remaining > 0 && remaining <= HOUR, `${remaining}`)
  await lock.extend(null)
  assert.deepEqual(await other.holder(), { fence, remaining: null })
})

test('no reply contains the owner token', options, async (t) => {
  const { open, verrou } = await place(t)
  const [one, two] = [open(), open()]
  const owner = newOwner()
  await one.save('x', owner, HOUR)
  const { LockFactory } = await import('../../target/js/node.js')
  const replies = [
    await new LockFactory(two).createLock('x').holder(),
    await two.exists('x'),
    await two.fence('x', newOwner()),
    await two.save('x', newOwner(), HOUR),
    await verrou('show', 'x', '--json'),
    await verrou('list', '--json'),
    await verrou('list'),
  ]
  const text = (_, value) => (typeof value === 'bigint' ? String(value) : value)
  assert.doesNotMatch(JSON.stringify(replies, text), new RegExp(owner))
  await assert.rejects(two.delete('x', replies[0].owner ?? newOwner()), NOT_OWNER)
  assert.equal(await one.exists('x'), true)
})

test('the command shares the leases', options, async (t) => {
  const { open, verrou } = await place(t)
  const store = open()
  const owner = newOwner()
  await store.save('x', owner, HOUR)
  const seen = JSON.parse(await verrou('show', 'x', '--json'))
  assert.equal(seen.name, 'x')
  const fence = await store.fence('x', owner)
  assert.equal(seen.fence, fence)
  const expires = Date.now() + HOUR
  const mine = JSON.stringify({ version: 1, name: 'x', owner, ttl: HOUR, expires, fence })
  await verrou('extend', mine)
  await verrou('release', mine)
  assert.equal(await store.exists('x'), false)
  await assert.rejects(store.delete('x', owner), NOT_OWNER)

  const lock = JSON.parse(await verrou('acquire', 'x', '--ttl', '1h'))
  assert.equal(await store.save('x', owner, HOUR), false)
  assert.equal(await store.fence('x', lock.owner), fence + 1)
  await store.delete('x', lock.owner)
  assert.equal(await verrou('run', 'x', '--no-wait', '--', 'echo', 'free'), 'free')
})

test('the label is shown as the purpose of a lock', options, async (t) => {
  const { open, verrou } = await place(t)
  const label = async () => JSON.parse(await verrou('show', 'x', '--json')).process.command
  const owner = newOwner()
  for (const [options, said] of [[{ label: '--nightly report' }, '--nightly report'], [{}, 'verrou serve']]) {
    const store = open(options)
    await store.save('x', owner, HOUR)
    assert.equal(await label(), said)
    await store.delete('x', owner)
  }
  assert.throws(() => open({ label: 7 }), { code: 'E_INVALID_ARGUMENT' })
})

test('a lease expires after its ttl', options, async (t) => {
  const { open } = await place(t)
  const [one, two] = [open(), open()]
  const [mine, other] = [newOwner(), newOwner()]
  await one.save('x', mine, 1)
  await eventually(async () => !(await two.exists('x')))
  await assert.rejects(one.extend('x', mine, HOUR), NOT_OWNER)
  assert.equal(await two.save('x', other, null), true)
  await assert.rejects(one.delete('x', mine), NOT_OWNER)
  assert.equal(await one.exists('x'), true)
  await two.extend('x', other, 0.5)
  await eventually(async () => !(await one.exists('x')))
})

test('the ttl is passed to the command', options, async (t) => {
  const { open, verrou } = await place(t)
  const store = open()
  const owner = newOwner()
  const left = async () => JSON.parse(await verrou('show', 'x', '--json')).remaining
  await store.save('x', owner, 400 * 24 * HOUR)
  const year = await left()
  assert.ok(year > 399 * 24 * HOUR && year <= 400 * 24 * HOUR, `${year}`)
  await store.extend('x', owner, HOUR)
  const hour = await left()
  assert.ok(hour > 0 && hour <= HOUR, `${hour}`)
  await store.extend('x', owner, null)
  assert.equal(await left(), null)
})

test('an invalid ttl is refused and acquires nothing', options, async (t) => {
  const { open } = await place(t)
  const store = open()
  const owner = newOwner()
  for (const ttl of [0, -1, NaN, Infinity, undefined, '1s']) {
    await assert.rejects(store.save('x', owner, ttl), { code: 'E_INVALID_TTL' })
  }
  await assert.rejects(store.save('x', owner, 1e300), CommandStoreError)
  assert.equal(await store.exists('x'), false)
  await store.save('x', owner, HOUR)
  await assert.rejects(store.extend('x', owner, NaN), { code: 'E_INVALID_TTL' })
})

test('an unknown option is refused', () => {
  for (const wrong of [{ ttl: 1 }, { dir: 'x' }, { anyFilesystem: true }]) {
    const [name] = Object.keys(wrong)
    assert.throws(() => fileStore('locks', wrong), (error) => error.code === 'E_INVALID_ARGUMENT' && error.message.includes(`\`${name}\``))
  }
})

test('a name is any text of 1 to 1,024 bytes, and an invalid name affects no other request', options, async (t) => {
  const { open } = await place(t)
  const store = open()
  const owner = newOwner()
  const names = ['a b', 'line\nline', '{"x":1}', 'é', '\u0000', '\u2028', 'x'.repeat(1_024)]
  for (const name of names) assert.equal(await store.save(name, owner, HOUR), true, name)
  for (const name of names) assert.ok((await store.fence(name, owner)) > 0, name)
  assert.equal(await store.exists('e\u0301'), false)
  const wrong = ['', 'x'.repeat(1_025), 'é'.repeat(513), '\ud800', undefined, null, {}]
  for (const name of [...wrong, 'x'.repeat(64 * 1024), '\n'.repeat(40_000)]) {
    const asked = [store.save(name, owner, HOUR), store.exists(name), store.wait(name, HOUR)]
    asked.push(store.exists('a b'))
    const answers = await Promise.allSettled(asked)
    assert.deepEqual(answers.pop(), { status: 'fulfilled', value: true })
    for (const { reason } of answers) {
      assert.equal(reason.code, 'E_INVALID_NAME', `${reason} for ${name}`)
    }
  }
})

test('owners of another form are distinguished, too', options, async (t) => {
  const { open } = await place(t)
  const [one, two] = [open(), open()]
  assert.equal(await one.save('x', 'k3j9x', HOUR), true)
  assert.equal(await two.save('x', 'k3j9y', HOUR), false)
  assert.ok((await two.fence('x', 'k3j9x')) > 0)
  await assert.rejects(two.delete('x', 'k3j9y'), NOT_OWNER)
  await two.delete('x', 'k3j9x')
  await assert.rejects(one.save('x', '', HOUR), { code: 'E_INVALID_ARGUMENT' })
  await assert.rejects(one.save('x', undefined, HOUR), { code: 'E_INVALID_ARGUMENT' })
})

test('concurrent requests are answered in order', options, async (t) => {
  const { open, servers } = await place(t)
  const store = open()
  const owners = Array.from({ length: 500 }, newOwner)
  const every = (ask) => Promise.all(owners.map((owner, i) => ask(`name ${i}`, owner)))
  const before = every((name) => store.exists(name))
  const taken = every((name, owner) => store.save(name, owner, HOUR))
  const refused = every((name) => store.save(name, newOwner(), HOUR))
  const after = every((name) => store.exists(name))
  assert.ok((await before).every((exists) => exists === false))
  assert.ok((await taken).every((granted) => granted === true))
  assert.ok((await refused).every((granted) => granted === false))
  assert.ok((await after).every((exists) => exists === true))
  assert.equal((await servers()).length, 1)
})

test('the leases end with the child, and the next request starts another child', options, async (t) => {
  const { open, servers } = await place(t)
  const [store, elsewhere] = [open(), open()]
  const owner = newOwner()
  await store.save('x', owner, HOUR)
  const [child] = await servers()
  process.kill(child, 'SIGKILL')
  await eventually(async () => !(await elsewhere.exists('x')))
  await eventually(async () => !(await servers()).includes(child))
  await assert.rejects(store.delete('x', owner), NOT_OWNER)
  assert.equal(await store.save('x', newOwner(), HOUR), true)
  assert.ok((await elsewhere.exists('x')) === true)
})

test('requests that a dead child did not answer can be retried', options, async (t) => {
  const { open, servers } = await place(t)
  const store = open()
  await store.exists('x')
  const [child] = await servers()
  process.kill(child, 'SIGSTOP')
  const asked = [store.exists('x'), store.save('x', newOwner(), HOUR), store.wait('x', HOUR)]
  const killed = { name: 'CommandStoreError', temporary: true, message: /has ended: SIGKILL/ }
  const refused = asked.map((answer) => assert.rejects(answer, killed))
  process.kill(child, 'SIGKILL')
  await Promise.all(refused)
  assert.equal(await store.exists('x'), false)
})

test('the error for a missing command says how to install it', options, async (t) => {
  const { open, temp } = await place(t)
  const absent = open({ command: join(temp, 'verrou') })
  const missing = {
    name: 'CommandStoreError',
    temporary: false,
    message: /no command .*cargo install.*`command`.*VERROU_COMMAND/,
  }
  await assert.rejects(absent.save('x', newOwner(), HOUR), missing)
  await assert.rejects(absent.exists('x'), missing)
  await assert.rejects(absent.wait('x', HOUR), missing)
  await symlink(process.env.VERROU_COMMAND, join(temp, 'verrou'))
  assert.equal(await absent.exists('x'), false, 'the command exists now')
})

test('the command is found by its variable or in the PATH', options, async (t) => {
  const { open, temp } = await place(t)
  const { PATH, VERROU_COMMAND } = process.env
  t.after(() => Object.assign(process.env, { PATH, VERROU_COMMAND }))
  process.env.PATH = temp
  assert.equal(await open().exists('x'), false)
  process.env.VERROU_COMMAND = ''
  await assert.rejects(open().exists('x'), /no command `verrou`/)
  await symlink(VERROU_COMMAND, join(temp, 'verrou'))
  assert.equal(await open().exists('x'), false)
})

test('no request is sent to a command that does not speak the protocol', options, async (t) => {
  const { temp, open } = await place(t)
  const received = join(temp, 'received')
  const script = async (name, text) => {
    const path = join(temp, name)
    await writeFile(path, `#!/bin/sh\n${text}\n`, { mode: 0o755 })
    return open({ command: path })
  }
  const greeting = (version) => JSON.stringify({ protocol: 'verrou serve', version })
  const listening = `timeout 0.2 head -n 1 > '${received}'`
  const newer = await script('newer', `${listening}; echo '${greeting(2)}'; exec cat`)
  const babble = "head -c 200000 /dev/zero | tr '\\0' x"
  const babbling = await script('babbling', `${listening}; ${babble}; exec cat`)
  const other = await script('other', `${listening}; echo hello; exec cat`)
  for (const store of [newer, babbling, other]) {
    const language = { temporary: false, message: /does not speak version 1/ }
    await assert.rejects(store.save('x', newOwner(), HOUR), language)
    assert.equal(await readFile(received, 'utf8'), '')
  }
  const failing = await script('failing', 'echo "no luck today" >&2; exit 3')
  const unlucky = { temporary: false, message: /did not start: no luck today/ }
  await assert.rejects(failing.save('x', newOwner(), HOUR), unlucky)
  const chatty = await script('chatty', `echo '${greeting(1)}'; echo '{"waited":true}'; exec cat`)
  await assert.rejects(chatty.exists('x'), /does not speak version 1/)
})

test('a path that is not a directory is refused', options, async (t) => {
  const { temp } = await place(t)
  const file = join(temp, 'file')
  await writeFile(file, '')
  const store = fileStore(file)
  const refused = { temporary: false, message: /did not start: .*cannot open this directory: not a directory/ }
  await assert.rejects(store.save('x', newOwner(), HOUR), refused)
  await assert.rejects(store.exists('x'), refused)
  await assert.rejects(store.wait('x', HOUR), refused)
  for (const dir of ['', undefined, null, 7]) assert.throws(() => fileStore(dir), { code: 'E_INVALID_ARGUMENT' })
  assert.throws(() => fileStore(new URL('https://example.org/')), { code: 'E_INVALID_ARGUMENT' })
  const byUrl = fileStore(new URL(`file://${temp}/by%20url`))
  assert.equal(await byUrl.save('x', newOwner(), HOUR), true)
  await byUrl.close()
  assert.ok((await readdir(join(temp, 'by url'))).includes('fences'))
})

test('a waiter is woken by a release, a death, an expiry, or a signal', options, async (t) => {
  const { open, node } = await place(t)
  const store = open()
  const owner = newOwner()
  await store.save('x', owner, HOUR)
  const released = store.wait('x', HOUR)
  await store.delete('x', owner)
  await released
  await store.wait('x', HOUR) // the key is free

  const holder = node(`
    console.log(await store.save('x', owner, ${HOUR}))
    setInterval(() => {}, 1000)
  `)
  assert.equal(await holder.said(), 'true')
  const died = store.wait('x', HOUR)
  await store.wait('x', 5)
  assert.equal(await store.exists('x'), true)
  holder.kill('SIGKILL')
  await died

  await store.save('x', owner, HOUR)
  const controller = new AbortController()
  const aborted = store.wait('x', HOUR, controller.signal)
  controller.abort()
  await aborted
  await store.wait('x', HOUR, controller.signal)
  await store.wait('x', 0)
  assert.equal(await store.exists('x'), true)

  await store.extend('x', owner, 20)
  await store.wait('x', HOUR) // the lease expires
})

test('1,000 waiters for one key share a child, and acquire it one after the other', options, async (t) => {
  const { open, servers } = await place(t)
  const store = open()
  const first = newOwner()
  await store.save('x', first, HOUR)
  const before = await store.fence('x', first)
  let [inside, most, turns] = [0, 0, 0]
  const fences = []
  const all = Array.from({ length: 1_000 }, async () => {
    const owner = newOwner()
    while (!(await store.save('x', owner, HOUR))) await store.wait('x', HOUR, undefined, owner)
    inside += 1
    most = Math.max(most, inside)
    turns += 1
    fences.push(await store.fence('x', owner))
    inside -= 1
    await store.delete('x', owner)
  })
  await store.exists('x') // all have been refused
  assert.equal((await servers()).length, 1)
  await store.delete('x', first)
  await Promise.all(all)
  assert.deepEqual([most, turns], [1, 1_000])
  assert.deepEqual(fences, Array.from({ length: 1_000 }, (_, i) => before + i + 1))
  assert.equal((await servers()).length, 1)
})

test('waits for 1,000 names share one child', options, async (t) => {
  const { open, servers } = await place(t)
  const [store, other] = [open(), open()]
  const owner = newOwner()
  const names = Array.from({ length: 1_000 }, (_, i) => `name ${i}`)
  await Promise.all(names.map((name) => other.save(name, owner, HOUR)))
  let had = 0
  const all = names.map(async (name) => {
    const own = newOwner()
    while (!(await store.save(name, own, HOUR))) await store.wait(name, HOUR, undefined, own)
    had += 1
  })
  const gone = names.map(() => [newOwner(), new AbortController()])
  const never = names.map((name, i) => store.wait(name, HOUR, gone[i][1].signal, gone[i][0]))
  for (const [, one] of gone) one.abort()
  await Promise.all(never)
  names.forEach((name, i) => store.giveUp(name, gone[i][0]))
  await store.exists('x') // all requests before have been answered
  assert.equal((await servers()).length, 2)
  assert.equal(had, 0)
  await Promise.all(names.toReversed().map((name) => other.delete(name, owner)))
  await Promise.all(all)
})

test('a woken waiter that does not acquire the lock does not delay the next one', options, async (t) => {
  const { open } = await place(t)
  const store = open()
  const owner = newOwner()
  await store.save('x', owner, HOUR)
  const waits = Array.from({ length: 20 }, () => store.wait('x', HOUR))
  await store.delete('x', owner)
  await Promise.all(waits)
})

test('a waiting child that is killed is replaced', options, async (t) => {
  const { open, servers } = await place(t)
  const [store, other] = [open(), open()]
  const [holder, owner] = [newOwner(), newOwner()]
  await other.save('x', holder, HOUR)
  const [steps] = await servers()
  // A wait may end without a reason.
  const failed = (async () => {
    for (;;) await store.wait('x', HOUR, undefined, owner)
  })()
  await eventually(async () => (await servers()).length === 2)
  const waiting = (await servers()).find((pid) => pid !== steps)
  const rejected = assert.rejects(failed, { temporary: true })
  process.kill(waiting, 'SIGKILL')
  await rejected
  const again = store.wait('x', HOUR, undefined, owner)
  await other.delete('x', holder)
  await again
})

test('the end of the child aborts the signal of its leases at once', options, async (t) => {
  const { open, servers } = await place(t)
  const { LockFactory } = await import(new URL('node.js', MODULE))
  const lock = new LockFactory(open()).createLock('x', '1h')
  const ended = lock.run(
    async ({ signal }) => {
      const [child] = await servers()
      process.kill(child, 'SIGKILL')
      await once(signal, 'abort')
      assert.equal(signal.reason.code, 'E_LOCK_LOST')
    },
    { renew: true }
  )
  await assert.rejects(ended, { code: 'E_LOCK_LOST' })
})

test('a lock is waited for in the queue, and not asked for again before it is free', options, async (t) => {
  const { open, dir } = await place(t)
  const { LockFactory } = await import(new URL('node.js', MODULE))
  const [one, two] = [open(), open()]
  let attempts = 0
  const counted = Object.assign(Object.create(null), { notifies: true })
  for (const method of ['save', 'delete', 'forceDelete', 'exists', 'extend', 'renew', 'fence', 'wait', 'giveUp', 'detach', 'watch']) {
    counted[method] = (...args) => {
      if (method === 'save') attempts += 1
      return two[method](...args)
    }
  }
  const held = new LockFactory(one).createLock('x', '1h')
  const waiting = new LockFactory(counted, { retry: { delay: 2 } }).createLock('x', '1h')
  await held.acquire()
  const acquired = waiting.acquire()
  await pause(1_000)
  // The head waiter looks a few times in the first 50 ms; by the delay, it would be some hundred attempts.
  assert.ok(attempts <= 50, `${attempts} attempts`)
  await held.release()
  await acquired
  await waiting.release()
})

test('the locks of a killed process are free at once', options, async (t) => {
  const { node, servers, verrou } = await place(t)
  const holder = node(`
    console.log(await store.save('x', owner, ${HOUR}))
    setInterval(() => {}, 1000)
  `)
  assert.equal(await holder.said(), 'true')
  await assert.rejects(verrou('run', 'x', '--no-wait', '--', 'true'), { code: 75 })
  holder.kill('SIGKILL')
  // The lease would expire only after an hour.
  assert.equal(await verrou('run', 'x', '--', 'echo', 'in'), 'in')
  await eventually(async () => (await servers()).length === 0)
})

test('a process ends when it has nothing to do, and leaves no child', options, async (t) => {
  const { node, servers, open } = await place(t)
  const ways = {
    'at its end': '',
    'by exit': 'process.exit()',
    'by an error': 'console.error = () => {}; process.on("uncaughtException", () => process.exit())\nthrow 1',
    'while it waits': `await Promise.race([store.wait('x', ${HOUR}), store.exists('x')]); process.exit()`,
  }
  const store = open()
  for (const [way, script] of Object.entries(ways)) {
    const process = node(`await store.save('x', owner, ${HOUR})\n${script}`)
    const [code] = await process.ended
    assert.equal(code, 0, way)
    await store.wait('x', HOUR)
    assert.equal(await store.exists('x'), false, way)
  }
  await store.close()
  await eventually(async () => (await servers()).length === 0)
})

test('a detached lease outlives a process that ends at once', options, async (t) => {
  const { node, open } = await place(t)
  const holder = node(`
    await store.save('x', owner, ${HOUR})
    await store.save('y', owner, ${HOUR})
    store.detach('x', owner)
    process.stdout.write(owner, () => process.exit())
  `)
  const [owner] = await Promise.all([holder.said(), holder.ended])
  const store = open()
  await store.wait('y', HOUR)
  assert.equal(await store.exists('y'), false, 'was not detached')
  assert.equal(await store.exists('x'), true)
  await store.extend('x', owner, HOUR)
  await assert.rejects(store.detach('x', newOwner()), NOT_OWNER)
  await store.delete('x', owner)
  await assert.rejects(store.detach('x', owner), NOT_OWNER)
})

test('Ctrl-C leaves the locks to the process that handles it', options, async (t) => {
  const { node } = await place(t)
  const holder = node(`
    await store.save('x', owner, ${HOUR})
    const alive = setInterval(() => {}, 1000)
    process.once('SIGINT', async () => {
      await store.delete('x', owner)
      console.log('released')
      clearInterval(alive)
    })
    console.log('ready')
  `)
  assert.equal(await holder.said(), 'ready')
  process.kill(-holder.pid, 'SIGINT') // as a terminal does: the whole group
  assert.equal(await holder.said(), 'released')
  assert.deepEqual(await holder.ended, [0, null])
})

test('a worker has its own store, which ends with the worker', options, async (t) => {
  const { dir, open } = await place(t)
  const worker = new Worker(
    `
    const { parentPort, workerData } = require('node:worker_threads')
    import(workerData.module).then(async ({ fileStore }) => {
      const store = fileStore(workerData.dir)
      parentPort.postMessage(await store.save('x', workerData.owner, null))
      setInterval(() => {}, 1000)
    })
    `,
    { eval: true, workerData: { module: MODULE.href, dir, owner: newOwner() } }
  )
  assert.deepEqual(await once(worker, 'message'), [true])
  const store = open()
  assert.equal(await store.save('x', newOwner(), HOUR), false)
  const waiting = store.wait('x', HOUR)
  await worker.terminate()
  await waiting
  assert.equal(await store.save('x', newOwner(), HOUR), true)
})

test('close ends all leases that are not detached', options, async (t) => {
  const { open, servers } = await place(t)
  const [store, other] = [open(), open()]
  await store.save('x', newOwner(), null)
  await store.save('z', newOwner(), null)
  const kept = newOwner()
  await store.save('y', kept, null)
  const waiting = assert.rejects(store.wait('x', HOUR), /is closed/)
  const detached = store.detach('y', kept)
  const [closed, again] = [store.close(), store.close()]
  await Promise.all([closed, again, waiting, detached])
  assert.deepEqual(await servers(), [])
  assert.equal(await other.exists('x'), false)
  assert.equal(await other.exists('z'), false)
  assert.equal(await other.exists('y'), true)
  await assert.rejects(store.save('x', newOwner(), HOUR), /is closed/)
  await assert.rejects(store.wait('x', HOUR), /is closed/)
  await other[Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]()
  await assert.rejects(other.exists('x'), /is closed/)
  await open().close()

  const brief = open()
  const asked = Promise.all([brief.save('x', newOwner(), HOUR), brief.exists('x')])
  const over = brief.close()
  assert.deepEqual(await asked, [true, true])
  await over
  assert.equal(await open().exists('x'), false)
})

test('an unused child is ended unless it keeps a lease alive', options, async (t) => {
  const { open, servers } = await place(t)
  const [holder, idler] = [open({ idle: 20 }), open({ idle: 20 })]
  const owner = newOwner()
  await holder.save('x', owner, HOUR)
  const [keeper] = await servers()
  await idler.wait('x', 1)
  await idler.exists('x')
  assert.ok((await servers()).length >= 1)
  await eventually(async () => (await servers()).length === 1)
  assert.deepEqual(await servers(), [keeper])
  assert.equal(await idler.exists('x'), true, 'starts another child')
  await holder.delete('x', owner)
  await eventually(async () => (await servers()).length === 0)
  assert.equal(await holder.save('x', owner, HOUR), true)
  await holder.detach('x', owner)
  await eventually(async () => (await servers()).length === 0)
  await assert.rejects(holder.delete('x', newOwner()), NOT_OWNER)
  assert.equal(await holder.exists('x'), true)
  await holder.forceDelete('x')
})
