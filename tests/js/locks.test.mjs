/** The locks beyond the examples of Verrou's page on usage. */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'
import { inspect } from 'node:util'

import { errors, LockError, LockFactory, memoryStore, Verrou } from '../../target/js/node.js'

const memory = () => new LockFactory(memoryStore())
const coded = (code) => (error) => {
  assert.ok(error instanceof errors[code], error)
  assert.ok(error instanceof LockError)
  assert.equal(error.code, code)
  assert.equal(error.name, code)
  return true
}

test('twenty workers never overlap', async () => {
  const lock = new LockFactory(memoryStore(), { retry: { delay: 250 } })
  let [inside, overlaps, runs] = [0, 0, 0]
  const end = Date.now() + 8_000
  const worker = async () => {
    const mine = lock.createLock('one', '30s')
    while (Date.now() < end) {
      await mine.run(async () => {
        if (++inside > 1) overlaps++
        await sleep(Math.random() * 20)
        inside--
        runs++
      })
    }
  }
  await Promise.all(Array.from({ length: 20 }, worker))
  assert.equal(overlaps, 0)
  assert.ok(runs > 100, `${runs} runs`)
})

test('overlapping runs of one lock exclude each other, and each has its own grant', async () => {
  const lock = memory().createLock('one')
  const fences = []
  let inside = 0
  await Promise.all(
    Array.from({ length: 10 }, () =>
      lock.run(async ({ fence }) => {
        assert.equal(++inside, 1)
        fences.push(fence)
        await null
        inside--
      })
    )
  )
  assert.deepEqual(fences, [1n, 2n, 3n, 4n, 5n, 6n, 7n, 8n, 9n, 10n])
})

test('an expired run does not release the next grant, and throws E_LOCK_LOST', async () => {
  const lock = memory().createLock('one', 20)
  const other = lock
  let taken
  const late = lock.run(async (lease) => {
    taken = other.acquire()
    await taken
    return lease.fence
  })
  await assert.rejects(late, (error) => {
    coded('E_LOCK_LOST')(error)
    assert.equal(error.value, 1n)
    return true
  })
  assert.equal((await lock.holder()).fence, 2n)
})

test('the error of the work and the loss of the lock are both reported', async () => {
  const lock = memory().createLock('one')
  const failure = new RangeError('the work')
  await assert.rejects(
    lock.run(() => {
      throw failure
    }),
    (error) => error === failure
  )
  assert.equal(await lock.isLocked(), false)
  const robbed = lock.run(async () => {
    await lock.forceRelease()
    throw failure
  })
  await assert.rejects(robbed, (error) => coded('E_LOCK_LOST')(error) && error.suppressed === failure)
})

test('a lease is renewed as long as the work runs', async () => {
  const lock = memory().createLock('one', 60)
  const left = await lock.run(
    async (lease) => {
      await sleep(200)
      assert.equal(lease.signal.aborted, false)
      return lease.remaining()
    },
    { renew: true }
  )
  assert.ok(left > 0)
})

test('the signal is aborted when the lease expires', async () => {
  const lock = memory().createLock('one', 20)
  const run = lock.run(({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))))
  await assert.rejects(run, (error) => coded('E_LOCK_LOST')(error) && coded('E_LOCK_LOST')(error.suppressed))
})

test('the signal is aborted when a renewed lease is revoked', async () => {
  const factory = memory()
  const lock = factory.createLock('one', 60)
  const run = lock.run(
    async ({ signal }) => {
      await factory.createLock('one').forceRelease()
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      coded('E_LOCK_LOST')(signal.reason)
      return 'revoked'
    },
    { renew: true }
  )
  await assert.rejects(run, (error) => coded('E_LOCK_LOST')(error) && error.value === 'revoked')
})

for (const renew of [false, true]) {
  const how = renew ? 'with renewal' : 'without renewal'

  test(`a work that releases the lock itself is no loss, ${how}`, async () => {
    for (const make of [memoryStore, () => new MapStore()]) {
      const lock = new LockFactory(make()).createLock('one', 40)
      const ran = lock.run(
        async ({ signal }) => {
          const aborted = new Promise((resolve) => signal.addEventListener('abort', () => resolve('aborted')))
          await lock.release()
          return Promise.race([aborted, sleep(120, 'released')])
        },
        { renew }
      )
      assert.equal(await ran, 'released')
    }
  })

  test(`a run throws the loss that its signal reported when the store fails, ${how}`, async () => {
    const store = new MapStore()
    const lock = new LockFactory(store).createLock('one', 40)
    const failing = () => {
      throw new Error('the disk is full')
    }
    const run = lock.run(
      async ({ signal }) => {
        store.extend = failing
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        store.delete = failing
        return signal.reason
      },
      { renew }
    )
    await assert.rejects(run, (error) => coded('E_LOCK_LOST')(error) && coded('E_LOCK_LOST')(error.value))
  })
}

test('a run throws the loss that its signal reported when the store still has the record', async () => {
  // This store does not end its records.
  const lock = new LockFactory(new MapStore()).createLock('one', 20)
  let reason
  const run = lock.run(async ({ signal }) => {
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    reason = signal.reason
    return 'late'
  })
  await assert.rejects(run, (error) => error === reason && coded('E_LOCK_LOST')(error) && error.value === 'late')
  assert.equal(await lock.isLocked(), false)
})

test('a work that throws the reason of its signal throws it', async () => {
  const lock = new LockFactory(new MapStore()).createLock('one', 20)
  const run = lock.run(async ({ signal }) => {
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    signal.throwIfAborted()
  })
  await assert.rejects(run, (error) => coded('E_LOCK_LOST')(error) && error.suppressed === undefined)
})

test('a renewed lease lasts until it is released', async () => {
  const factory = memory()
  const lock = factory.createLock('one', 60)
  const lease = await lock.acquire({ renew: true })
  assert.equal(lease.fence, 1n)
  await sleep(200)
  assert.equal(lease.signal.aborted, false)
  assert.ok(lease.remaining() > 0)
  assert.equal(await factory.createLock('one').acquireImmediately(), false)
  await lease.release()
  await lease.release()
  await lease[Symbol.asyncDispose]()
  assert.equal(await lock.isLocked(), false)
  assert.equal(lease.signal.aborted, false)
  // The lock itself can be acquired again.
  assert.equal((await lock.acquire({ renew: false })).fence, 2n)
  await lock[Symbol.asyncDispose]()
  assert.equal(await lock.isLocked(), false)
})

test('the signal of a renewed lease reports its loss, which its release throws', async () => {
  for (const end of [(lease) => lease.release(), (lease) => lease[Symbol.asyncDispose]()]) {
    const factory = memory()
    const lease = await factory.createLock('one', 60).acquire({ renew: true })
    const aborted = new Promise((resolve) => lease.signal.addEventListener('abort', resolve))
    await factory.createLock('one').forceRelease()
    await aborted
    coded('E_LOCK_LOST')(lease.signal.reason)
    const other = factory.createLock('one', null)
    await other.acquire()
    await assert.rejects(end(lease), coded('E_LOCK_LOST'))
    assert.equal((await other.holder()).fence, 2n)
  }
})

test('a lock that its owner releases ends the renewal without a loss', async () => {
  const lock = memory().createLock('one', 60)
  const lease = await lock.acquire({ renew: true })
  await lock.release()
  await sleep(100)
  assert.equal(lease.signal.aborted, false)
  await lease.release()
})

test('the wait for a renewed lease can be cancelled', async () => {
  const factory = memory()
  await factory.createLock('one', null).acquire()
  const controller = new AbortController()
  const waiting = factory.createLock('one').acquire({ renew: true, signal: controller.signal })
  controller.abort()
  await assert.rejects(waiting, { name: 'AbortError' })
  await assert.rejects(factory.createLock('one').acquire({ renew: true, retry: { attempts: 1 } }), coded('E_LOCK_TIMEOUT'))
})

test('a signal cancels the wait', async () => {
  const factory = memory()
  const held = factory.createLock('one', null)
  await held.acquire()
  const lock = factory.createLock('one')
  const stop = new Error('enough')
  for (const wait of [(options) => lock.acquire(options), (options) => lock.run(() => 1, options)]) {
    const controller = new AbortController()
    const waiting = wait({ signal: controller.signal })
    setImmediate(() => controller.abort(stop))
    await assert.rejects(waiting, (error) => error === stop)
    await assert.rejects(wait({ signal: controller.signal }), (error) => error === stop)
  }
  await held.release()
  await lock.acquire({ signal: new AbortController().signal })
  assert.equal((await lock.holder()).fence, 2n)
})

test('a grant that arrives after the cancellation is released', async () => {
  const store = new MapStore()
  const factory = new LockFactory(store)
  const controller = new AbortController()
  let answer
  store.answer = new Promise((resolve) => {
    answer = resolve
  })
  const waiting = factory.createLock('one').acquire({ signal: controller.signal })
  controller.abort()
  setImmediate(answer)
  await assert.rejects(waiting, { name: 'AbortError' })
  assert.deepEqual(store.calls, ['save', 'delete'])
  assert.equal(store.held.size, 0)
})

test('a release wakes a waiter', async () => {
  const factory = new LockFactory(memoryStore(), { retry: { delay: '1h' } })
  const [one, two] = ['one', 'one'].map((name) => factory.createLock(name, null))
  await one.acquire()
  const waiting = two.acquire()
  setImmediate(() => one.release())
  await waiting
})

test('await using releases the lock', async () => {
  const lock = memory().createLock('one')
  await lock.acquire()
  await lock[Symbol.asyncDispose]()
  assert.equal(await lock.isLocked(), false)
  await lock[Symbol.asyncDispose]()
  await lock.acquire()
  await lock.forceRelease()
  await lock[Symbol.asyncDispose]()
})

test('invalid input is refused with its own error code', async () => {
  const factory = memory()
  for (const name of ['', 'x'.repeat(1025), 'x'.repeat(1 << 20)]) {
    assert.throws(() => factory.createLock(name), coded('E_INVALID_NAME'))
  }
  for (const ttl of [0, -1, NaN, Infinity, '', 'soon', '0s', {}, true, '-1s', '1 parsec']) {
    assert.throws(() => factory.createLock('one', ttl), coded('E_INVALID_TTL'), String(ttl))
  }
  for (const text of ['', '{', '{"version":2}', 'null', '[]', '{"version":1,"name":"x"}']) {
    assert.throws(() => factory.restoreLock(text), coded('E_INVALID_SERIALIZED_LOCK'), text)
  }
  const lock = factory.createLock('one')
  for (const retry of [
    { attempts: 0 },
    { attempts: -1 },
    { attempts: 1.5 },
    { attempts: NaN },
    { attempts: 'many' },
    { delay: -1 },
    { delay: 'soon' },
    { delay: 0 },
    { timeout: -1 },
    { timeout: {} },
    { delay: 100, maxDelay: 10 },
  ]) {
    await assert.rejects(lock.acquire({ retry }), coded('E_INVALID_RETRY'), JSON.stringify(retry))
    assert.throws(() => new LockFactory(memoryStore(), { retry }), coded('E_INVALID_RETRY'))
  }
  await assert.rejects(lock.extend('never'), coded('E_INVALID_TTL'))
  await assert.rejects(lock.extend(), coded('E_LOCK_NOT_OWNER'))
  assert.throws(() => lock.serialize(), coded('E_LOCK_NOT_OWNER'))
  assert.throws(() => new LockFactory({ save() {} }), (error) => coded('E_INVALID_STORE')(error) && /delete/.test(error.message))
  for (const nothing of [undefined, null, 1, 'memory']) {
    assert.throws(() => new LockFactory(nothing), coded('E_INVALID_STORE'))
  }
  assert.throws(() => new Verrou({ default: 'b', stores: { a: memoryStore() } }), coded('E_INVALID_STORE'))
  assert.throws(() => new Verrou({ stores: { a: memoryStore() } }).use('toString'), coded('E_INVALID_STORE'))
  assert.throws(() => new Verrou({ stores: { a: memoryStore() } }).createLock('one'), coded('E_INVALID_STORE'))
  assert.throws(() => new Verrou(), coded('E_INVALID_STORE'))
  assert.equal(await lock.isLocked(), false)
})

test('an unknown option is an error that names it and where it belongs', async () => {
  const lock = memory().createLock('one')
  const refused = (code, ...parts) => (error) => {
    coded(code)(error)
    for (const part of parts) assert.ok(error.message.includes(part), `${part} in: ${error.message}`)
    return true
  }
  // Without this error it would wait without a limit.
  await assert.rejects(lock.acquire({ timeout: 100 }), refused('E_INVALID_ARGUMENT', '`timeout`', '{ retry: { timeout: … } }'))
  await assert.rejects(lock.acquire({ ttl: 100 }), refused('E_INVALID_ARGUMENT', '`ttl`', 'the second argument of `createLock`'))
  await assert.rejects(lock.acquire({ retries: 1 }), refused('E_INVALID_ARGUMENT', '`retries`', 'which has `retry`'))
  await assert.rejects(lock.acquire({ retry: { signal: 1 } }), refused('E_INVALID_RETRY', '`signal`', 'an option of `acquire`'))
  await assert.rejects(lock.acquire({ retry: { retries: 1 } }), refused('E_INVALID_RETRY', '`retries`', 'which has `attempts`'))
  await assert.rejects(lock.run(() => 1, { delay: 1 }), refused('E_INVALID_ARGUMENT', '`delay`', '`retry`'))
  await assert.rejects(lock.runImmediately(() => 1, { retry: {} }), refused('E_INVALID_ARGUMENT', '`retry`', 'an option of `acquire`, `run`'))
  const store = memoryStore()
  assert.throws(() => new LockFactory(store, { attempts: 1 }), refused('E_INVALID_ARGUMENT', '`attempts`', '{ retry: { attempts: … } }'))
  assert.throws(() => new LockFactory(store, { label: 'x' }), refused('E_INVALID_ARGUMENT', '`label`', 'an option of `fileStore`, `serverStore`'))
  assert.throws(() => new Verrou({ stores: { store }, store }), refused('E_INVALID_ARGUMENT', '`store`', '`default`, `stores`, `retry`'))
  assert.equal(await lock.isLocked(), false)
})

test('lengths of time are read as in Verrou', async () => {
  const factory = memory()
  for (const [ttl, millis] of [
    ['2s', 2_000],
    ['1m 30s', 90_000],
    [1_500, 1_500],
    ['1500', 1_500],
    ['1.5', 1.5],
    [undefined, 30_000],
  ]) {
    const lock = factory.createLock(`lock ${ttl}`, ttl)
    await lock.acquire()
    const { ttl: serialized } = JSON.parse(lock.serialize())
    assert.equal(serialized, Math.ceil(millis))
    assert.ok(lock.getRemainingTime() <= millis)
  }
})

test('a store is made once, at its first use', async () => {
  let made = 0
  const verrou = new Verrou({
    default: 'lazy',
    stores: {
      lazy: {
        driver: {
          factory() {
            made++
            return memoryStore()
          },
        },
      },
      plain: memoryStore(),
    },
  })
  assert.equal(made, 0)
  assert.equal(verrou.use(), verrou.use('lazy'))
  assert.equal(made, 1)
  const [one, two] = [verrou.createLock('one'), verrou.use('plain').createLock('one')]
  await one.acquire()
  await two.acquire()
})

/** A store in a `Map` whose answers to `save` can be delayed. */
class MapStore {
  held = new Map()
  calls = []
  answer
  fences = 0

  async save(key, owner) {
    this.calls.push('save')
    await this.answer
    if (this.held.has(key)) return false
    this.held.set(key, owner)
    return true
  }
  async delete(key, owner) {
    this.calls.push('delete')
    this.#owned(key, owner)
    this.held.delete(key)
  }
  forceDelete(key) {
    this.calls.push('forceDelete')
    this.held.delete(key)
  }
  exists(key) {
    return this.held.has(key)
  }
  async extend(key, owner, ttl) {
    this.calls.push(`extend ${ttl}`)
    this.#owned(key, owner)
  }
  #owned(key, owner) {
    if (this.held.get(key) === owner) return
    throw Object.assign(new Error('not yours'), { code: 'E_LOCK_NOT_OWNER' })
  }
}

/** Returns an object with the required methods of `store`. */
function methodsOf(store) {
  const names = ['save', 'delete', 'forceDelete', 'exists', 'extend']
  return Object.fromEntries(names.map((name) => [name, (...args) => store[name](...args)]))
}

test('any object can be a store', async () => {
  const store = new MapStore()
  const factory = new LockFactory(store)
  const lock = factory.createLock('one', '5s')
  await lock.acquire()
  assert.match(store.held.get('one'), /^[0-9a-f]{32}$/)
  assert.equal(lock.fence, null)
  assert.equal(await lock.isLocked(), true)
  assert.deepEqual(await lock.holder(), { fence: null, remaining: null })
  assert.equal(await factory.createLock('one').acquireImmediately(), false)
  const restored = new LockFactory(store).restoreLock(lock.serialize())
  await restored.extend('2s')
  await restored.extend(null)
  await restored.release()
  await assert.rejects(lock.release(), coded('E_LOCK_NOT_OWNER'))
  await lock.acquire()
  await lock.forceRelease()
  assert.deepEqual(store.calls, [
    'save',
    'save',
    'extend 2000',
    'extend null',
    'delete',
    'delete',
    'save',
    'forceDelete',
  ])
})

test('a store can return fencing tokens', async () => {
  for (const token of [(count) => count, (count) => BigInt(count), async (count) => count]) {
    const store = new MapStore()
    store.fence = () => token(++store.fences)
    const lock = new LockFactory(store).createLock('one')
    for (const fence of [1n, 2n, 3n]) {
      await lock.run((lease) => assert.equal(lease.fence, fence))
    }
  }
  for (const bad of [0, -1, 1.5, 'x', {}, 2n ** 64n, true]) {
    const store = new MapStore()
    store.fence = () => bad
    await assert.rejects(new LockFactory(store).createLock('one').acquire(), coded('E_LOCK_STORAGE_ERROR'), String(bad))
    assert.equal(store.held.size, 0)
  }
})

test('a store can return the fencing token of a grant from `save`', async () => {
  for (const token of [(count) => count, (count) => BigInt(count)]) {
    const store = new MapStore()
    const save = store.save
    store.save = async (...claim) => (await save.apply(store, claim)) && { granted: token(++store.fences) }
    store.fence = () => assert.fail('called')
    const lock = new LockFactory(store).createLock('one')
    for (const fence of [1n, 2n, 3n]) await lock.run((lease) => assert.equal(lease.fence, fence))
  }
  for (const bad of [0, -1, 1.5, 'x', {}, 2n ** 64n, true]) {
    const store = new MapStore()
    const save = store.save
    store.save = async (...claim) => (await save.apply(store, claim)) && { granted: bad }
    await assert.rejects(new LockFactory(store).createLock('one').acquire(), coded('E_LOCK_STORAGE_ERROR'), String(bad))
    assert.equal(store.held.size, 0)
  }
})

test('a store can describe the holder', async () => {
  const store = new MapStore()
  for (const [described, holder] of [
    [{ fence: 7, remaining: 250 }, { fence: 7n, remaining: 250 }],
    [{ fence: 8n, remaining: null }, { fence: 8n, remaining: null }],
    [{}, { fence: null, remaining: null }],
    [null, null],
    [undefined, null],
  ]) {
    for (const returned of [() => described, async () => described]) {
      const lock = new LockFactory({ ...methodsOf(store), holder: returned }).createLock('one')
      assert.deepEqual(await lock.holder(), holder)
      assert.equal(await lock.isLocked(), holder !== null)
    }
  }
  for (const bad of [{ fence: 0 }, { remaining: -1 }, { remaining: 'x' }, { remaining: NaN }]) {
    const broken = new LockFactory({ ...methodsOf(store), holder: () => bad }).createLock('one')
    await assert.rejects(broken.holder(), coded('E_LOCK_STORAGE_ERROR'))
  }
})

test('a lock is printed with its name, fencing token and remaining time, and without its owner', async () => {
  const lock = memory().createLock('one', null)
  assert.equal(inspect(lock), "Lock { name: 'one', fence: null, remaining: null }")
  await lock.acquire()
  assert.equal(inspect(lock), "Lock { name: 'one', fence: 1n, remaining: null }")
  assert.match(inspect({ lock: memory().createLock('two', '1h') }), /lock: Lock \{ name: 'two'/)
  const lease = await memory().createLock('one', null).run((lease) => {
    assert.equal(inspect(lease), 'Lease { fence: 1n, remaining: null }')
    return lease
  })
  // It can be used after the end of the run.
  assert.equal(inspect(lease), 'Lease { fence: 1n, remaining: 0 }')
  assert.equal(lease.signal.aborted, false)
})

test('a fencing token that decreases is refused', async () => {
  const store = new MapStore()
  let fence = 10
  store.fence = () => fence--
  const lock = new LockFactory(store).createLock('one')
  await lock.run(() => {})
  await assert.rejects(lock.acquire(), coded('E_LOCK_STORAGE_ERROR'))
  assert.equal(store.held.size, 0)
})

test('a store can wake waiters', async () => {
  const store = new MapStore()
  let free
  const signals = []
  store.wait = (key, atMost, signal) => {
    assert.equal(key, 'one')
    assert.ok(atMost > 1_000)
    signals.push(signal)
    return new Promise((resolve) => {
      free = resolve
    })
  }
  const factory = new LockFactory(store, { retry: { delay: '1h' } })
  const [one, two] = ['one', 'one'].map((name) => factory.createLock(name))
  await one.acquire()
  const waiting = two.acquire()
  setImmediate(async () => {
    await one.release()
    free()
  })
  await waiting
  const controller = new AbortController()
  const called = one.acquire({ signal: controller.signal })
  setImmediate(() => controller.abort())
  await assert.rejects(called, { name: 'AbortError' })
  assert.equal(signals.length, 2)
  assert.equal(signals[1].aborted, true)
})

test('the error of a store is the cause of the lock error', async () => {
  for (const failure of [new TypeError('down'), 'down', undefined, null, 0, Object.create(null)]) {
    const store = new MapStore()
    const lock = new LockFactory(store).createLock('one')
    await lock.acquire()
    for (const [method, step] of [
      ['delete', () => lock.release()],
      ['extend', () => lock.extend()],
      ['forceDelete', () => lock.forceRelease()],
      ['exists', () => lock.isLocked()],
      ['save', () => lock.acquire()],
    ]) {
      for (const thrown of [() => Promise.reject(failure), () => { throw failure }]) {
        store[method] = thrown
        await assert.rejects(step(), (error) => coded('E_LOCK_STORAGE_ERROR')(error) && error.cause === failure)
      }
    }
  }
})

test('a temporary error is retried', async () => {
  const store = new MapStore()
  let failures = 2
  const save = store.save
  store.save = function (...claim) {
    if (failures-- > 0) throw Object.assign(new Error('busy'), { temporary: true })
    return save.apply(this, claim)
  }
  await new LockFactory(store, { retry: { delay: 1 } }).createLock('one').acquire()
  failures = 2
  const once = new LockFactory(store).createLock('two')
  await assert.rejects(once.acquire({ retry: { attempts: 1 } }), coded('E_LOCK_STORAGE_ERROR'))
})

test('a store without `wait` does not delay the timeout', async () => {
  const store = new MapStore()
  const factory = new LockFactory(store)
  await factory.createLock('one').acquire()
  const retry = { timeout: 20, delay: 5 }
  await assert.rejects(factory.createLock('one').acquire({ retry }), coded('E_LOCK_TIMEOUT'))
})

test('each acquire request draws its own owner token', async () => {
  // A token that is drawn in advance is in every copy of the memory, such as a snapshot.
  const drawn = []
  crypto.getRandomValues = function (bytes) {
    drawn.push(bytes.byteLength)
    return Object.getPrototypeOf(this).getRandomValues.call(this, bytes)
  }
  try {
    const lock = memory().createLock('one')
    for (let i = 0; i < 2; i++) {
      await lock.acquire()
      await lock.release()
    }
  } finally {
    delete crypto.getRandomValues
  }
  assert.deepEqual(drawn, [16, 16])
})
