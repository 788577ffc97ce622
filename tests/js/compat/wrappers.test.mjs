/** The wrappers of stores in `compat`: they have all methods of the store that they wrap. */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { Lock, LockFactory, driver } from '../../../target/js/compat/index.js'
import { fileStore } from '../../../target/js/file-store.js'
import { OPTIONAL, REQUIRED, ownedBy, wrapped } from '../../../target/js/store-methods.js'
import { MapStore, config, deferred, options } from './place.mjs'

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../../target/debug/verrou', import.meta.url))

const text = (path) => readFileSync(new URL(path, import.meta.url), 'utf8')

/** Returns the text between `begin` and the next `end`. */
const block = (text, begin, end) => text.split(begin)[1].split(end)[0]

/** A store with every method, which keeps the calls. */
function recording() {
  const calls = []
  const methods = {}
  for (const method of [...REQUIRED, ...OPTIONAL]) {
    methods[method] = (...args) => {
      calls.push([method, ...args])
      return method === 'save'
    }
  }
  return { calls, methods }
}

/** The arguments of each method, with `owner` at its place. */
const claims = (owner) => ({
  save: ['x', owner, 1],
  delete: ['x', owner],
  forceDelete: ['x'],
  exists: ['x'],
  extend: ['x', owner, 1],
  renew: ['x', owner, 1, 7n],
  fence: ['x', owner],
  holder: ['x'],
  wait: ['x', 1, undefined, owner],
  giveUp: ['x', owner],
  detach: ['x', owner],
  watch: ['x', owner, undefined],
})

test('the types, the core and the wrappers have the same methods', () => {
  const types = block(text('../../../target/js/index.d.ts'), 'export interface LockStore {', '\n}')
  const core = block(text('../../../src/js/store.rs'), 'pub type LockStore;', 'type AbortController;')
  const inTypes = [...types.matchAll(/^  (\w+)(\??)\(/gm)]
  assert.deepEqual(inTypes.filter(([, , optional]) => !optional).map(([, name]) => name).sort(), [...REQUIRED].sort())
  assert.deepEqual(inTypes.filter(([, , optional]) => optional).map(([, name]) => name).sort(), [...OPTIONAL].sort())
  const inCore = [...core.matchAll(/^    fn (\w+)\(/gm)].map(([, name]) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()))
  assert.deepEqual(inCore.sort(), [...REQUIRED, ...OPTIONAL].sort())
  assert.deepEqual(Object.keys(claims()).sort(), [...REQUIRED, ...OPTIONAL].sort())
})

test('a wrapper forwards every method, with its arguments', options, async () => {
  for (const [wrap, owner] of [
    [(store) => wrapped(store, {}), 'me'],
    [(store) => driver(store).factory(), 'me'],
    [(store) => ownedBy(store, 'me'), 'another owner'],
  ]) {
    const { calls, methods } = recording()
    const wrapper = wrap(methods)
    for (const [method, args] of Object.entries(claims(owner))) {
      calls.length = 0
      await wrapper[method](...args)
      assert.deepEqual(calls.at(-1), [method, ...claims('me')[method]])
    }
  }
})

test('a wrapper has no method that the store lacks', () => {
  for (const method of OPTIONAL) {
    const { methods } = recording()
    delete methods[method]
    assert.equal(driver(methods).factory()[method], undefined)
    assert.equal(ownedBy(methods, 'me')[method], undefined)
  }
})

/** A store that waits, and records the owners that wait and that stop waiting. */
class WaitingStore extends MapStore {
  waits = []
  left = []

  async wait(key, atMost, signal, owner) {
    this.waits.push(owner)
    await new Promise((resolve) => {
      signal.addEventListener('abort', resolve)
    })
  }

  giveUp(key, owner) {
    this.left.push(owner)
  }
}

test('a wait that ends without a grant leaves no place in the queue', options, async () => {
  for (const owner of [undefined, 'me']) {
    const store = new WaitingStore()
    await store.save('foo', 'holder', 60_000)
    const lock = new Lock('foo', driver(store).factory(), config(), owner)
    assert.equal(await lock.acquire({ retry: { timeout: 20, delay: 5 } }), false)
    assert.ok(store.waits.length > 0)
    assert.deepEqual(store.left, [store.waits[0]])
    if (owner !== undefined) assert.deepEqual(new Set(store.waits), new Set([owner]))
  }
})

function place(t) {
  const directory = mkdtempSync(join(tmpdir(), 'verrou-compat-'))
  const files = fileStore(directory)
  t.after(async () => {
    await files.close()
    rmSync(directory, { recursive: true })
  })
  return { files, store: driver(files).factory() }
}

test('a free lock is granted to a newcomer after a wait that ended without a grant', options, async (t) => {
  for (const owner of [undefined, 'me']) {
    const { files, store } = place(t)
    const holder = new Lock('foo', store, config())
    await holder.acquire()
    const waiter = new Lock('foo', store, config(), owner)
    assert.equal(await waiter.acquire({ retry: { timeout: 50, delay: 10 } }), false)
    await holder.release()
    // The queue is empty, so that the lock is reserved for no waiter.
    assert.equal(await new LockFactory(files).createLock('foo').acquireImmediately(), true)
  }
})

test('a restored lock waits in the queue: a later waiter does not overtake it', options, async (t) => {
  const { files, store } = place(t)
  const holder = new Lock('foo', store, config())
  await holder.acquire()

  const order = []
  /** Begins to acquire `lock`. Its ticket has been taken when this resolves. */
  const begin = async (lock, name) => {
    const { promise, resolve } = deferred()
    const wait = files.wait
    files.wait = function (...args) {
      resolve()
      return wait.apply(this, args)
    }
    const done = lock.acquire({ retry: { delay: '1h' } }).then(async (acquired) => {
      assert.equal(acquired, true)
      order.push(name)
      await lock.release()
    })
    await promise
    // Requests are answered in order: that for the ticket was sent before this one.
    await files.exists('foo')
    return { done }
  }
  const serialized = { key: 'foo', owner: 'me', ttl: 60_000, expirationTime: null }
  const restored = await begin(new LockFactory(store).restoreLock(serialized), 'restored')
  const later = await begin(new Lock('foo', store, config()), 'later')
  await holder.release()
  await Promise.all([restored.done, later.done])
  assert.deepEqual(order, ['restored', 'later'])
})
