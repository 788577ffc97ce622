/** Locks under fake timers of test runners. */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { LockFactory, memoryStore, onEvent } from '../../target/js/node.js'
import { MapStore } from './compat/place.mjs'

/** Longer than any of these tests takes, even on a busy machine. */
const options = { timeout: 60_000 }

test('locks work while queueMicrotask is replaced by a fake', options, async (t) => {
  // Jest does this.
  const waiting = []
  t.mock.method(globalThis, 'queueMicrotask', (task) => waiting.push(task))
  for (const store of [memoryStore(), new MapStore()]) {
    const factory = new LockFactory(store, { retry: { delay: 1 } })
    const [one, two] = [factory.createLock('x'), factory.createLock('x')]
    await one.acquire()
    const acquired = two.acquire()
    await one.release()
    await acquired
    const events = []
    const end = onEvent(({ message }) => events.push(message))
    assert.equal(await two.run(() => 'never', { retry: { attempts: 1 } }).catch(({ code }) => code), 'E_LOCK_TIMEOUT')
    await two.release()
    end()
    assert.ok(events.includes('released'), events)
  }
  assert.deepEqual(waiting, [])
})

test('leases and time limits follow the clock of fake timers', options, async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] })
  // node:test has no fake for this clock, unlike Jest and Vitest.
  t.mock.method(performance, 'now', () => Date.now())
  const tick = async (millis) => {
    for (let at = 0; at < millis; at += 100) {
      t.mock.timers.tick(100)
      await new Promise(setImmediate)
    }
  }
  for (const store of [memoryStore(), new MapStore()]) {
    const factory = new LockFactory(store)
    const lock = factory.createLock('x', '10s')
    await lock.acquire()
    await tick(9_000)
    assert.equal(lock.getRemainingTime(), 1_000)
    assert.equal(await lock.isLocked(), true)
    let ended
    const waiting = factory.createLock('x').acquire({ retry: { timeout: 500, delay: 100 } })
    waiting.then(() => (ended = 'granted'), ({ code }) => (ended = code))
    await tick(400)
    assert.equal(ended, undefined)
    await tick(200)
    assert.equal(ended, 'E_LOCK_TIMEOUT')
    await tick(1_000)
    assert.equal(lock.isExpired(), true)
    assert.equal(await lock.isLocked(), false)
  }

  const lock = new LockFactory(memoryStore()).createLock('x', '10s')
  let signal
  let end
  const run = lock.run((lease) => {
    signal = lease.signal
    return new Promise((resolve) => (end = resolve))
  })
  await tick(9_900)
  assert.equal(signal.aborted, false)
  await tick(200)
  assert.equal(signal.aborted, true)
  end()
  await assert.rejects(run, { code: 'E_LOCK_LOST' })
})

test('a lease expires by the sooner of both clocks', options, async (t) => {
  let [time, wall] = [1_000, 1_763_892_000_000]
  t.mock.method(performance, 'now', () => time)
  t.mock.method(Date, 'now', () => wall)
  const left = (lock) => [lock.isExpired(), lock.getRemainingTime()]
  const factory = new LockFactory(memoryStore())
  const lock = factory.createLock('x', '10s')
  await lock.acquire()
  time += 4_000
  wall += 4_000
  assert.deepEqual(left(lock), [false, 6_000])
  // The machine is suspended for 5 s: this clock stops, and the other does not.
  wall += 5_000
  assert.deepEqual(left(lock), [false, 1_001])
  wall += 2_000
  assert.deepEqual(left(lock), [true, 0])
  // The store decides whether the lease can be extended.
  await lock.extend()
  assert.deepEqual(left(lock), [false, 10_000])
  // A wall clock that is set back makes no lease longer.
  wall -= 3_600_000
  time += 10_000
  assert.deepEqual(left(lock), [true, 0])

  await lock.acquire()
  await lock.run(() => assert.fail('called'), { retry: { attempts: 1 } }).catch(({ code }) => assert.equal(code, 'E_LOCK_TIMEOUT'))
  const restored = factory.restoreLock(lock.serialize())
  // A serialized lock has whole milliseconds of the wall clock.
  wall += 10_100
  assert.deepEqual(left(restored), [true, 0])
})
