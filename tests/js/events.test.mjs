/** The events of locks. */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { errors, LockFactory, memoryStore, onEvent } from '../../target/js/node.js'

/** Returns the events of `work`. */
async function eventsOf(work) {
  const events = []
  const end = onEvent((event) => events.push(event))
  await work()
  await new Promise((resolve) => setImmediate(resolve))
  end()
  return events
}

test('the life of a lock has events without an owner token', async () => {
  const locks = new LockFactory(memoryStore())
  const [lock, other] = [locks.createLock('one', '30s'), locks.createLock('one', '30s')]
  let text
  const events = await eventsOf(async () => {
    await lock.acquire()
    text = lock.serialize()
    assert.equal(await other.acquireImmediately(), false)
    await other.forceRelease()
    await assert.rejects(lock.extend(), errors.E_LOCK_NOT_OWNER)
    await lock.acquire()
    await lock.release()
  })
  const granted = (fence) => ({ level: 'info', message: 'granted', name: 'one', fence, attempts: 1 })
  const [first, refused, ended, second, released, ...more] = events
  assert.deepEqual(more, [])
  for (const [event, fence] of [[first, 1n], [second, 2n]]) {
    const { waitedMs, ...rest } = event
    assert.ok(waitedMs >= 0 && waitedMs < 10_000, waitedMs)
    assert.deepEqual(rest, granted(fence))
  }
  const { remainingMs, ...busy } = refused
  assert.ok(remainingMs > 0 && remainingMs <= 30_000, remainingMs)
  assert.deepEqual(busy, { level: 'debug', message: 'held by another owner', name: 'one' })
  assert.deepEqual(ended, { level: 'warn', message: 'force-released', name: 'one' })
  assert.deepEqual(released, { level: 'info', message: 'released', name: 'one', fence: 2n })
  const { owner } = JSON.parse(text)
  const seen = JSON.stringify(events, (_, value) => (typeof value === 'bigint' ? String(value) : value))
  assert.ok(owner.length > 8 && !seen.includes(owner))
})

test('renewals and a lost lease have events', async () => {
  const locks = new LockFactory(memoryStore())
  const lock = locks.createLock('two', '300ms')
  const events = await eventsOf(async () => {
    const renewed = new Promise((resolve) => {
      const end = onEvent(({ message }) => {
        if (message !== 'renewed') return
        end()
        resolve()
      })
    })
    const work = async ({ signal }) => {
      await renewed
      await locks.createLock('two').forceRelease()
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
    }
    await assert.rejects(lock.run(work, { renew: true }), errors.E_LOCK_LOST)
  })
  const renewal = events.find((event) => event.message === 'renewed')
  assert.deepEqual(renewal, { level: 'debug', message: 'renewed', name: 'two', fence: 1n, ttlMs: 300 })
  const lost = events.find((event) => event.message === 'lost')
  assert.deepEqual(lost, { level: 'warn', message: 'lost', name: 'two', fence: 1n, loss: 'Revoked' })
})

test('a listener may use locks, and gets no event after its end', async () => {
  const lock = new LockFactory(memoryStore()).createLock('three', '30s')
  const heard = []
  const end = onEvent(({ message }) => {
    heard.push(message)
    if (message === 'granted') lock.release()
  })
  await lock.acquire()
  while (await lock.isLocked()) await new Promise((resolve) => setImmediate(resolve))
  end()
  end()
  await lock.acquire()
  await lock.release()
  await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(heard, ['granted', 'released'])
})

test('a listener that is no function is refused', () => {
  assert.throws(() => onEvent('granted'), { code: 'E_INVALID_ARGUMENT' })
})
