/** The times that a lock of `compat` reports, by a clock that stands still. */
import './clock.mjs'
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { clock } from './clock.mjs'

const { Lock, LockFactory } = await import('../../../target/js/compat/index.js')
const { MemoryStore } = await import('../../../target/js/compat/drivers/memory.js')
const { MapStore, OpenStore, coded, config } = await import('./place.mjs')

const stores = { MemoryStore, MapStore }

for (const [name, Store] of Object.entries(stores)) {
  const lockFor = (ttl, store = new Store()) => new Lock('foo', store, config(), undefined, ttl)

  test(`${name}: a lock without a ttl does not expire`, async () => {
    const lock = lockFor(undefined)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, null])
    await lock.acquire()
    clock.advance(1e9)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, null])
    assert.equal(await lock.isLocked(), true)
    assert.equal(lock.serialize().expirationTime, null)
  })

  test(`${name}: a lease expires at its exact millisecond, and its remaining time is negative afterwards`, async () => {
    const lock = lockFor(100)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, null])
    await lock.acquire()
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, 100])
    clock.advance(99)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, 1])
    assert.equal(await lock.isLocked(), true)
    clock.advance(1)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [true, 0])
    assert.equal(await lock.isLocked(), false)
    clock.advance(100)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [true, -100])
  })

  test(`${name}: acquireImmediately leaves the whole ttl`, async () => {
    const lock = lockFor(1_000)
    assert.equal(await lock.acquireImmediately(), true)
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, 1_000])
  })

  test(`${name}: a lock that could not be acquired has no remaining time`, async () => {
    const store = new Store()
    const other = lockFor(1_000, store)
    const lock = new Lock('foo', store, config({ attempts: 1 }), undefined, 500)
    await other.acquire()
    assert.equal(await lock.acquire(), false)
    assert.equal(await lock.acquireImmediately(), false)
    assert.equal(lock.getRemainingTime(), null)
    assert.equal(other.getRemainingTime(), 1_000)
  })

  test(`${name}: extend sets the remaining time to more or less`, async () => {
    const lock = lockFor(100)
    await lock.acquire()
    clock.advance(50)
    await lock.extend('2s')
    assert.equal(lock.getRemainingTime(), 2_000)
    await lock.extend(30)
    assert.equal(lock.getRemainingTime(), 30)
    await lock.extend()
    assert.equal(lock.getRemainingTime(), 100)
    assert.equal(lock.serialize().ttl, 100)
    clock.advance(99)
    assert.equal(await lock.isLocked(), true)
    clock.advance(1)
    assert.equal(await lock.isLocked(), false)
  })

  test(`${name}: extend sets an expiry on a lease without one`, async () => {
    const lock = lockFor(null)
    await lock.acquire()
    await lock.extend('5s')
    assert.equal(lock.getRemainingTime(), 5_000)
  })

  test(`${name}: a failed second acquisition keeps the remaining time`, async () => {
    const lock = lockFor(1_000)
    await lock.acquire()
    clock.advance(100)
    assert.equal(await lock.acquire({ retry: { attempts: 1 } }), false)
    assert.equal(lock.getRemainingTime(), 900)
    await lock.release()
  })

  test(`${name}: nothing of the lease remains after the release`, async () => {
    const lock = lockFor(1_000)
    await lock.acquire()
    await lock.release()
    assert.deepEqual([lock.isExpired(), lock.getRemainingTime()], [false, null])
    assert.equal(lock.serialize().expirationTime, null)
  })

  test(`${name}: nothing of the lease remains after a run`, async () => {
    const lock = lockFor(1_000)
    await lock.run(() => assert.equal(lock.getRemainingTime(), 1_000))
    assert.equal(lock.getRemainingTime(), null)
  })

  test(`${name}: an expired lease can be neither extended nor released`, async () => {
    const store = new Store()
    const lock = lockFor(100, store)
    await lock.acquire()
    clock.advance(100)
    await assert.rejects(lock.extend(100), coded('E_LOCK_NOT_OWNED'))
    await assert.rejects(lock.release(), coded('E_LOCK_NOT_OWNED'))

    const other = lockFor(100, store)
    assert.equal(await other.acquireImmediately(), true)
    await assert.rejects(lock.release(), coded('E_LOCK_NOT_OWNED'))
    assert.equal(await other.isLocked(), true)
    await other.release()
  })

  test(`${name}: a restored lock has the remaining time of the original`, async () => {
    const factory = new LockFactory(new Store())
    const lock = factory.createLock('foo', '1s')
    await lock.acquire()
    clock.advance(100)
    const restored = factory.restoreLock(JSON.parse(JSON.stringify(lock.serialize())))
    assert.equal(restored.getRemainingTime(), 900)
    assert.equal(lock.getRemainingTime(), 900)
    assert.deepEqual(restored.serialize(), lock.serialize())
    clock.advance(1_000)
    assert.equal(restored.getRemainingTime(), -100)
    assert.equal(factory.restoreLock(lock.serialize()).getRemainingTime(), -100)
  })

  test(`${name}: a restored lock can release a lease that was extended since`, async () => {
    const factory = new LockFactory(new Store())
    const lock = factory.createLock('foo', 100)
    await lock.acquire()
    const restored = factory.restoreLock(lock.serialize())
    await lock.extend(1_000)
    clock.advance(500)
    assert.equal(restored.isExpired(), true)
    await restored.release()
    assert.equal(await lock.isLocked(), false)
  })

  test(`${name}: a run that outlives its lease returns its result, and does not release the next grant`, async () => {
    const factory = new LockFactory(new Store())
    const lock = factory.createLock('foo', 100)
    const other = factory.createLock('foo', 1_000)
    const late = await lock.run(async () => {
      clock.advance(100)
      assert.equal(await other.acquireImmediately(), true)
      return 'done'
    })
    assert.deepEqual(late, [true, 'done'])
    assert.equal(await other.isLocked(), true)
    await other.release()
  })

  test(`${name}: a run that outlives its lease throws the error of its callback`, async () => {
    const lock = lockFor(100)
    const mine = new TypeError('mine')
    const late = lock.run(() => {
      clock.advance(100)
      throw mine
    })
    await assert.rejects(late, (error) => error === mine)
  })

  test(`${name}: a late run of one lock does not release a later grant of the same lock`, async () => {
    const lock = lockFor(100)
    const late = await lock.run(async () => {
      clock.advance(100)
      assert.deepEqual(await lock.acquireImmediately(), true)
      return lock.getOwner()
    })
    assert.deepEqual(late, [true, lock.getOwner()])
    assert.equal(await lock.isLocked(), true)
    assert.equal(lock.getRemainingTime(), 100)
    await lock.release()
    assert.equal(await lock.isLocked(), false)
  })

  test(`${name}: a late run does not release a later grant of the same given owner`, async () => {
    const lock = new Lock('foo', new Store(), config(), 'me', 100)
    await lock.run(async () => {
      clock.advance(100)
      assert.equal(await lock.acquireImmediately(), true)
    })
    assert.equal(await lock.isLocked(), true)
    await lock.release()
    assert.equal(await lock.isLocked(), false)
  })
}

test('a failed extend keeps the remaining time', async () => {
  class FailingStore extends OpenStore {
    async extend() {
      throw new Error('no')
    }
  }
  const lock = new Lock('foo', new FailingStore(), config(), undefined, 100)
  await lock.acquire()
  clock.advance(10)
  await assert.rejects(lock.extend(200), coded('E_LOCK_STORAGE_ERROR'))
  assert.equal(lock.getRemainingTime(), 90)
})

test('the duration of the request is subtracted from the lease', async () => {
  class SlowStore extends OpenStore {
    async save() {
      clock.advance(40)
      return true
    }
  }
  const lock = new Lock('foo', new SlowStore(), config(), undefined, 100)
  await lock.acquire()
  assert.equal(lock.getRemainingTime(), 60)
})

test('a wall clock that is set back does not lengthen a lease, one that is set forward shortens it', async (t) => {
  const { ahead } = clock
  t.after(() => {
    clock.ahead = ahead
  })
  const lock = new Lock('foo', new MemoryStore(), config(), undefined, 100)
  await lock.acquire()
  clock.ahead -= 3_600_000
  clock.advance(60)
  assert.equal(lock.getRemainingTime(), 40)
  clock.advance(40)
  assert.equal(lock.isExpired(), true)
  clock.ahead += 7_200_000
  assert.equal(lock.getRemainingTime(), -3_600_000)
})

test('without a timeout the lock is retried without limit', async () => {
  let saves = 0
  class BusyStore extends OpenStore {
    async save() {
      clock.advance(31_000)
      return ++saves === 4
    }
  }
  for (const retry of [{}, { timeout: null }, { timeout: 0 }, { timeout: Infinity }]) {
    const factory = new LockFactory(new BusyStore(), { retry: { delay: 1, ...retry } })
    saves = 0
    await moving(factory.createLock('foo', '1h').acquire())
    assert.equal(saves, 4)
    saves = 0
    const [, result] = await moving(factory.createLock('foo', '1h').run(() => 'done'))
    assert.deepEqual([result, saves], ['done', 4])
  }
})

/** Awaits `promise` while the clock advances by itself. */
async function moving(promise) {
  let over = false
  const done = promise.finally(() => {
    over = true
  })
  while (!over) {
    await new Promise((resolve) => setImmediate(resolve))
    clock.advance(1)
  }
  return done
}
