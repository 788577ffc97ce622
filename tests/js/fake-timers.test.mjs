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
