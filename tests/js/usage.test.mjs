/** The examples of Verrou's page on usage. */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'

import { errors } from '../../target/js/node.js'
import { verrou } from './verrou.mjs'

/** The work of the examples under the lock: asserts that no other work runs meanwhile. */
let busy = 0
let done = 0
async function doSomething() {
  assert.equal(++busy, 1)
  await sleep(1)
  busy--
  done++
}

test('a new lock is not acquired', async () => {
  const lock = verrou.createLock('my-resource', '1s')
  assert.equal(await lock.isLocked(), false)
  assert.equal(lock.getRemainingTime(), null)
})

test('acquired and released by hand', async () => {
  const lock = verrou.createLock('my-resource', null)

  await lock.acquire()
  assert.equal(await lock.isLocked(), true)
  assert.equal(lock.getRemainingTime(), null)

  await doSomething()

  await lock.release()
  assert.equal(await lock.isLocked(), false)
})

test('released when the work throws', async () => {
  const lock = verrou.createLock('my-resource', null)
  const seen = []
  try {
    await lock.acquire()

    throw new TypeError('the work')
  } catch (error) {
    seen.push(error)
  } finally {
    await lock.release()
  }
  assert.ok(seen[0] instanceof TypeError)
  assert.equal(await lock.isLocked(), false)
})

test('run', async () => {
  const lock = verrou.createLock('my-resource', '2s')
  const before = done
  await lock.run(async () => {
    assert.equal(await lock.isLocked(), true)
    await doSomething()
  })
  assert.equal(done, before + 1)
  assert.equal(await lock.isLocked(), false)
  assert.equal(await lock.run(() => 'a value'), 'a value')
})

test('a retry policy', async () => {
  const lock = verrou.createLock('my-resource', '2s')

  await lock.acquire({
    retry: {
      attempts: 5,
      delay: 100,
      timeout: 1000,
    },
  })
  await lock.release()
})

test('errors', async () => {
  const holder = verrou.createLock('my-resource', null)
  await holder.acquire()
  const lock = verrou.createLock('my-resource', '2s')
  const retry = { attempts: 2, delay: 1 }
  let caught = 0
  try {
    await lock.acquire({ retry })
  } catch (error) {
    if (error instanceof errors.E_LOCK_TIMEOUT) {
      caught++
    }
  }

  await lock
    .run(
      async () => {
        doSomething()
      },
      { retry }
    )
    .catch((error) => {
      if (error instanceof errors.E_LOCK_TIMEOUT) {
        caught++
      }
    })
  assert.equal(caught, 2)
  await holder.release()
})

test('only the lock that acquired can release', async () => {
  const lock1 = verrou.createLock('my-resource', '2s')
  const lock2 = verrou.createLock('my-resource', '2s')

  await lock1.acquire()
  await assert.rejects(lock2.release(), (error) => {
    assert.ok(error instanceof errors.E_LOCK_NOT_OWNER)
    assert.ok(error instanceof Error)
    assert.equal(error.code, 'E_LOCK_NOT_OWNER')
    assert.match(error.message, /my-resource/)
    return true
  })
  await lock1.release()
})

test('a lock is shared through a queue', async () => {
  const myQueue = new EventEmitter()
  const processed = new Promise((resolve, reject) => {
    myQueue.on('process-payment', ({ lock: serialized }) => {
      const lock = verrou.restoreLock(serialized)
      doSomething()
        .then(() => lock.release())
        .then(resolve, reject)
    })
  })

  const lock = verrou.createLock('my-resource', '2s')
  await lock.acquire()
  myQueue.emit('process-payment', JSON.parse(JSON.stringify({ paymentId: 123, lock: lock.serialize() })))

  await processed
  assert.equal(await lock.isLocked(), false)
})

test('force-released', async () => {
  const lock1 = verrou.createLock('my-resource', null)
  const lock2 = verrou.createLock('my-resource', null)
  await lock1.acquire()
  await lock2.forceRelease()
  assert.equal(await lock1.isLocked(), false)
})

test('extended', async () => {
  const lock = verrou.createLock('my-resource', '10s')

  await lock.acquire()
  await lock.extend()
  assert.ok(lock.getRemainingTime() > 5_000)
  assert.ok(lock.getRemainingTime() <= 10_000)
  await lock.extend('5s')
  assert.ok(lock.getRemainingTime() <= 5_000)
  assert.equal(lock.isExpired(), false)
  await lock.release()
})
