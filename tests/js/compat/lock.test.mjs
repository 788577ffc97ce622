/** The locks of `compat`, by the cases of `@verrou/core`'s own tests and its known traps. */
import assert from 'node:assert/strict'
import { inspect } from 'node:util'
import { test } from 'node:test'

import { Lock, LockFactory, Verrou } from '../../../target/js/compat/index.js'
import { MemoryStore, memoryStore } from '../../../target/js/compat/drivers/memory.js'
import { HeldStore, MapStore, OpenStore, coded, config, deferred, options } from './place.mjs'

const INVALID = coded('E_INVALID_ARGUMENTS_EXCEPTION')
const NOT_OWNED = coded('E_LOCK_NOT_OWNED')

const stores = { MemoryStore, MapStore }

for (const [name, Store] of Object.entries(stores)) {
  test(`${name}: acquired, held, released`, options, async () => {
    const lock = new Lock('foo', new Store(), config())
    assert.equal(await lock.isLocked(), false)
    assert.equal(await lock.acquire(), true)
    assert.equal(await lock.isLocked(), true)
    assert.equal(await lock.acquireImmediately(), false)
    assert.equal(await lock.release(), undefined)
    assert.equal(await lock.isLocked(), false)
    assert.equal(await lock.acquireImmediately(), true)
  })

  for (const method of ['run', 'runImmediately']) {
    test(`${name}: ${method} holds the lock while the callback works, and no longer`, options, async () => {
      const lock = new Lock('foo', new Store(), config())
      const result = await lock[method](async () => {
        assert.equal(await lock.isLocked(), true)
        return 'foo'
      })
      assert.deepEqual(result, [true, 'foo'])
      assert.equal(await lock.isLocked(), false)
      assert.deepEqual(await lock[method](() => 'at once'), [true, 'at once'])
    })

    test(`${name}: ${method} does not call the callback while another owner holds the lock`, options, async () => {
      const store = new Store()
      await new Lock('foo', store, config()).acquire()
      const lock = new Lock('foo', store, config({ attempts: 1 }))
      const result = await lock[method](() => assert.fail('called'))
      assert.deepEqual(result, [false, null])
    })

    test(`${name}: ${method} throws the error of the callback, and releases`, options, async () => {
      const lock = new Lock('foo', new Store(), config())
      const mine = new TypeError('mine')
      const throwing = () => {
        throw mine
      }
      await assert.rejects(lock[method](throwing), (error) => error === mine)
      await assert.rejects(lock[method](async () => throwing()), (error) => error === mine)
      assert.equal(await lock.isLocked(), false)
    })
  }

  test(`${name}: runs of one lock do not overlap`, options, async () => {
    const lock = new Lock('foo', new Store(), config({ delay: 1 }), undefined, 60_000)
    let inside = 0
    const owners = new Set()
    const run = () =>
      lock.run(async () => {
        assert.equal(++inside, 1)
        owners.add(lock.getOwner())
        await null
        inside--
      })
    const results = await Promise.all(Array.from({ length: 10 }, run))
    assert.deepEqual(results, Array(10).fill([true, undefined]))
    assert.equal(owners.size, 10)
  })

  test(`${name}: an owner cannot acquire a lock that it holds, even by concurrent requests`, options, async () => {
    const store = new Store()
    const locks = Array.from({ length: 5 }, () => new Lock('foo', store, config(), 'me', 60_000))
    const acquired = await Promise.all(locks.map((lock) => lock.acquireImmediately()))
    assert.deepEqual(acquired.filter(Boolean), [true])
    const restored = new LockFactory(store).restoreLock(locks[0].serialize())
    assert.equal(await restored.acquireImmediately(), false)
  })

  test(`${name}: an owner may be any text, is used as it is, and allows others to release`, options, async () => {
    for (const owner of ['me', 'ünïcödé ☃', ' ', '0', 'A'.repeat(32), 'b'.repeat(32), 'c'.repeat(10_000)]) {
      const store = new Store()
      const lock = new Lock('foo', store, config(), owner, 60_000)
      assert.equal(lock.getOwner(), owner)
      await lock.acquire()
      assert.equal(lock.getOwner(), owner)
      if (store.records) assert.equal(store.records.get('foo').owner, owner)
      await assert.rejects(new Lock('foo', store, config(), `${owner}!`).release(), NOT_OWNED)
      await new Lock('foo', store, config(), owner).extend(30_000)
      await new Lock('foo', store, config(), owner).release()
      assert.equal(await lock.isLocked(), false)
      await assert.rejects(lock.release(), NOT_OWNED)
    }
  })

  test(`${name}: getOwner returns the owner of the next acquisition, then that of the latest`, options, async () => {
    const store = new Store()
    const factory = new LockFactory(store)
    const lock = factory.createLock('foo')
    const owner = lock.getOwner()
    assert.match(owner, /^[0-9a-f]{32}$/)
    assert.equal(lock.getOwner(), owner)
    const handed = factory.restoreLock(lock.serialize())
    await lock.acquire()
    assert.equal(lock.getOwner(), owner)
    await handed.release()
    assert.equal(await lock.isLocked(), false)

    await lock.acquire()
    assert.notEqual(lock.getOwner(), owner)
    await assert.rejects(handed.release(), NOT_OWNED)
    assert.equal(await lock.isLocked(), true)
    await lock.release()
  })

  test(`${name}: a failed acquisition keeps the owner for the next one`, options, async () => {
    const store = new Store()
    const other = new Lock('foo', store, config())
    const lock = new Lock('foo', store, config())
    const owner = lock.getOwner()
    await other.acquire()
    assert.equal(await lock.acquireImmediately(), false)
    await other.release()
    assert.equal(await lock.acquireImmediately(), true)
    assert.equal(lock.getOwner(), owner)
  })

  test(`${name}: the lock is serialized as an object with four members, and restored`, options, async () => {
    const factory = new LockFactory(new Store())
    const lock = factory.createLock('foo', '2s')
    await lock.acquire()
    const serialized = lock.serialize()
    assert.deepEqual(Object.keys(serialized), ['key', 'owner', 'ttl', 'expirationTime'])
    assert.equal(serialized.key, 'foo')
    assert.equal(serialized.owner, lock.getOwner())
    assert.equal(serialized.ttl, 2_000)
    assert.ok(Number.isSafeInteger(serialized.expirationTime))

    const restored = factory.restoreLock(JSON.parse(JSON.stringify(serialized)))
    assert.equal(restored.getOwner(), lock.getOwner())
    await restored.extend('1h')
    assert.ok(restored.getRemainingTime() > 60_000)
    await restored.release()
    assert.equal(await lock.isLocked(), false)
  })

  test(`${name}: a lock that is not held can be neither extended nor released`, options, async () => {
    const factory = new LockFactory(new Store())
    const [lock, other] = [factory.createLock('foo'), factory.createLock('foo')]
    await assert.rejects(lock.extend(), NOT_OWNED)
    await assert.rejects(lock.release(), NOT_OWNED)
    await lock.acquire()
    await assert.rejects(other.release(), NOT_OWNED)
    await assert.rejects(other.extend(), NOT_OWNED)
    await lock.release()
    await assert.rejects(lock.release(), NOT_OWNED)
    await assert.rejects(lock.extend(), NOT_OWNED)
  })

  test(`${name}: a force-released lock can be released only by its next holder`, options, async () => {
    const factory = new LockFactory(new Store())
    const [lock, other] = [factory.createLock('foo'), factory.createLock('foo')]
    await lock.acquire()
    await other.forceRelease()
    assert.equal(await lock.isLocked(), false)
    assert.equal(await other.acquireImmediately(), true)
    await assert.rejects(lock.release(), NOT_OWNED)
    assert.equal(await other.isLocked(), true)
    await other.release()
    await other.forceRelease()
  })
}

test('the number of attempts and the pauses between them are kept', options, async () => {
  const store = new HeldStore()
  const lock = new Lock('foo', store, config({ attempts: 5, delay: 50 }))
  const began = performance.now()
  assert.equal(await lock.acquire(), false)
  assert.ok(performance.now() - began >= 200)
  assert.equal(store.asked.save.length, 5)
})

test('a call has its own attempts and delay, and the factory keeps its own', options, async () => {
  const store = new HeldStore()
  const factory = new LockFactory(store, { retry: { attempts: 2, delay: '1ms' } })
  const lock = factory.createLock('foo')
  assert.equal(await lock.acquire({ retry: { attempts: 1, delay: '1h' } }), false)
  assert.equal(store.asked.save.length, 1)
  assert.equal(await lock.acquire({ retry: { attempts: 3 } }), false)
  assert.equal(store.asked.save.length, 4)
  assert.equal(await lock.acquire({ retry: { delay: null } }), false)
  assert.equal(await lock.acquire({}), false)
  assert.equal(store.asked.save.length, 8)
})

test('a timeout shorter than the delay is kept, with a last attempt at its end', options, async () => {
  const store = new HeldStore()
  const lock = new Lock('foo', store, config({ timeout: 100, delay: 3_600_000 }))
  for (const [retry, least] of [[undefined, 100], [{ timeout: '150ms' }, 150]]) {
    store.asked.save.length = 0
    const began = Date.now()
    assert.equal(await lock.acquire({ retry }), false)
    assert.ok(Date.now() - began > least)
    assert.equal(store.asked.save.length, 2)
  }
})

test('a delay of zero means the shortest pause', options, async () => {
  const store = new HeldStore()
  assert.equal(await new Lock('foo', store, config({ delay: 0, attempts: 3 })).acquire(), false)
  assert.equal(store.asked.save.length, 3)
})

test('an invalid number of attempts is refused, and acquires nothing', options, async () => {
  const store = new OpenStore()
  for (const attempts of [0, -1, Number.NaN, 1.5, -Infinity, '3']) {
    assert.throws(() => new LockFactory(store, { retry: { attempts } }), INVALID)
    assert.throws(() => new Lock('foo', store, config({ attempts })), INVALID)
    const lock = new LockFactory(store).createLock('foo')
    await assert.rejects(lock.acquire({ retry: { attempts } }), INVALID)
  }
  for (const retry of [{ delay: -1 }, { delay: 'soon' }, { timeout: -1 }, { timeout: Number.NaN }, { timeout: '0s' }]) {
    assert.throws(() => new LockFactory(store, { retry }), INVALID)
  }
  assert.deepEqual(store.asked.save, [])
})

test('very large numbers of attempts mean no limit', options, async () => {
  for (const attempts of [Infinity, Number.MAX_SAFE_INTEGER, 2 ** 32]) {
    assert.equal(await new Lock('foo', new OpenStore(), config({ attempts })).acquire(), true)
  }
})

test('an invalid ttl is refused by every function', options, async () => {
  const store = new OpenStore()
  const factory = new LockFactory(store)
  for (const ttl of [0, -1, Number.NaN, Infinity, -Infinity, '', '0', '0s', '-1s', 'abc', 'owner', true, 1e30]) {
    assert.throws(() => factory.createLock('foo', ttl), INVALID, `${ttl}`)
    const lock = factory.createLock('foo', '1s')
    await lock.acquire()
    await assert.rejects(lock.extend(ttl), INVALID, `${ttl}`)
  }
  assert.deepEqual(store.asked.extend, [])
  for (const ttl of [0, Infinity]) {
    assert.throws(() => new Lock('foo', store, config(), 'me', ttl), INVALID)
  }
})

test('an invalid name is refused', () => {
  const factory = new LockFactory(new OpenStore())
  for (const name of ['', 'x'.repeat(1_025), undefined, null, {}, true, NaN, '\ud800']) {
    assert.throws(() => factory.createLock(name), INVALID)
  }
})

test('an invalid serialized lock is refused', () => {
  const factory = new LockFactory(new OpenStore())
  const serialized = { key: 'foo', owner: 'me', ttl: 1_000, expirationTime: 1_763_892_000_000 }
  factory.restoreLock(serialized)
  factory.restoreLock({ key: 'foo', owner: 'me', ttl: null, expirationTime: null })
  for (const wrong of [{ key: undefined }, { key: '' }, { owner: undefined }, { owner: '' }, { owner: 5 }, { ttl: 0 }, { ttl: Number.NaN }, { expirationTime: '1' }, { expirationTime: Number.NaN }]) {
    assert.throws(() => factory.restoreLock({ ...serialized, ...wrong }), INVALID, inspect(wrong))
  }
  assert.throws(() => factory.restoreLock({}), INVALID)
})

test('a store receives the owner and the ttl unchanged', options, async () => {
  const store = new OpenStore()
  const lock = new Lock('foo', store, config(), 'bar', 1_000)
  await lock.acquire()
  await lock.extend()
  await lock.extend(2_000)
  await lock.extend('3s')
  await lock.extend(null)
  assert.equal(await lock.isLocked(), true)
  await lock.forceRelease()
  assert.deepEqual(store.asked, {
    save: [['foo', 'bar', 1_000]],
    extend: [1_000, 2_000, 3_000, 1_000].map((ttl) => ['foo', 'bar', ttl]),
    exists: [['foo']],
    forceDelete: [['foo']],
    delete: [],
  })
})

test('a lock with a given owner sends requests without an earlier acquisition', options, async () => {
  const store = new OpenStore()
  await new Lock('foo', store, config(), 'bar', 1_000).extend()
  await new Lock('foo', store, config(), 'bar', 1_000).release()
  assert.deepEqual(store.asked.extend, [['foo', 'bar', 1_000]])
  assert.deepEqual(store.asked.delete, [['foo', 'bar']])
})

test('every ttl reaches the store in whole milliseconds', options, async () => {
  const store = new OpenStore()
  const factory = new LockFactory(store)
  const lengths = [1, 999, 1_001, 1_003, 30_000, 4_294_967_297, 31_557_600_001]
  for (const length of lengths) {
    await factory.createLock('foo', length).acquire()
    await new Lock('foo', store, config(), 'me', length).extend()
  }
  await factory.createLock('foo', 1.5).acquire()
  // A grant that is received after its ttl of one or two milliseconds is requested again.
  const saved = store.asked.save.map(([, , ttl]) => ttl)
  assert.deepEqual(saved.filter((ttl, at) => ttl !== saved[at - 1]), [...lengths, 2])
  assert.deepEqual(store.asked.extend.map(([, , ttl]) => ttl), lengths)
})

test('a lock without a ttl cannot be extended without one', options, async () => {
  const lock = new LockFactory(new MemoryStore()).createLock('foo', null)
  await lock.acquire()
  for (const ttl of [undefined, null]) {
    await assert.rejects(lock.extend(ttl), (error) => {
      assert.equal(error.message, 'Cannot extend a lock without TTL')
      return INVALID(error)
    })
  }
})

test('the default ttl is 30 seconds, and null means no expiry', options, async () => {
  const store = new OpenStore()
  const factory = new LockFactory(store)
  await factory.createLock('foo').acquire()
  await factory.createLock('foo', null).acquire()
  await new Verrou({ default: 'open', stores: { open: { driver: { factory: () => store } } } }).createLock('foo').acquire()
  assert.deepEqual(store.asked.save.map(([, , ttl]) => ttl), [30_000, null, 30_000])
})

test('the error of a store is the cause of the lock error', options, async () => {
  const why = new Error('the disk is full')
  const failing = async () => {
    throw why
  }
  const expected = (error) => {
    assert.equal(error.cause, why)
    assert.equal(error.message, 'Lock storage error: the disk is full')
    assert.equal(String(error), 'Exception [E_LOCK_STORAGE_ERROR]: Lock storage error: the disk is full')
    return coded('E_LOCK_STORAGE_ERROR')(error)
  }
  for (const owner of [undefined, 'me']) {
    const asking = (method) => {
      const store = new OpenStore()
      store[method] = failing
      return new Lock('foo', store, config(), owner, 1_000)
    }
    await assert.rejects(asking('save').acquire(), expected)
    await assert.rejects(asking('save').acquireImmediately(), expected)
    await assert.rejects(asking('save').run(() => assert.fail('called')), expected)
    await assert.rejects(asking('forceDelete').forceRelease(), expected)
    await assert.rejects(asking('exists').isLocked(), expected)
    const lock = asking('delete')
    await lock.acquire()
    await assert.rejects(lock.release(), expected)
    // The release can be retried.
    await assert.rejects(lock.release(), expected)
    const extended = asking('extend')
    await extended.acquire()
    await assert.rejects(extended.extend(), expected)
  }
})

test('a store can throw a value that is not an error', options, async () => {
  const store = new OpenStore()
  store.save = () => {
    throw 'no'
  }
  await assert.rejects(new Lock('foo', store, config()).acquire(), (error) => {
    assert.equal(error.cause, 'no')
    assert.equal(error.message, 'Lock storage error: no')
    return coded('E_LOCK_STORAGE_ERROR')(error)
  })
})

test('both codes for a lost lock are accepted from a store', options, async () => {
  for (const code of ['E_LOCK_NOT_OWNED', 'E_LOCK_NOT_OWNER']) {
    for (const owner of [undefined, 'me']) {
      const store = new OpenStore()
      store.delete = store.extend = async () => {
        throw Object.assign(new Error('not yours'), { code })
      }
      const lock = new Lock('foo', store, config(), owner, 1_000)
      await lock.acquire()
      await assert.rejects(lock.extend(), NOT_OWNED)
      await assert.rejects(lock.release(), NOT_OWNED)
    }
  }
})

test('a run whose release failed reports the result, or throws the error of the callback', options, async () => {
  const store = new OpenStore()
  store.delete = async () => {
    throw new Error('the disk is full')
  }
  const lock = new Lock('foo', store, config())
  await assert.rejects(lock.run(() => 'done'), (error) => {
    assert.equal(error.value, 'done')
    return coded('E_LOCK_STORAGE_ERROR')(error)
  })
  const mine = new TypeError('mine')
  const throwing = () => {
    throw mine
  }
  await assert.rejects(lock.run(throwing), (error) => error === mine)
})

test('a record that a failed save may have made is released', options, async () => {
  for (const owner of [undefined, 'me']) {
    const store = new MapStore()
    const lock = new Lock('foo', store, config(), owner)
    await lock.acquire()
    await lock.release()
    const save = store.save
    store.save = async (...args) => {
      await save.apply(store, args)
      throw new Error('the answer was lost')
    }
    await assert.rejects(lock.acquire(), coded('E_LOCK_STORAGE_ERROR'))
    assert.equal(await lock.isLocked(), false)
  }
})

test('a failed save does not release a lock that the owner may have held before', options, async () => {
  const store = new MapStore()
  const lock = new Lock('foo', store, config(), 'me')
  await store.save('foo', 'me', 60_000)
  store.save = async () => {
    throw new Error('the disk is full')
  }
  await assert.rejects(lock.acquire(), coded('E_LOCK_STORAGE_ERROR'))
  assert.equal(await lock.isLocked(), true)
  await lock.release()
  assert.equal(await lock.isLocked(), false)
})

test('an object that is not a store is refused', () => {
  for (const store of [undefined, null, {}, new (class extends OpenStore { save = undefined })()]) {
    assert.throws(() => new LockFactory(store), INVALID)
    assert.throws(() => new Lock('foo', store, config()), INVALID)
  }
})

test('a release wakes a waiter', options, async () => {
  const factory = new LockFactory(new MemoryStore(), { retry: { delay: '1h' } })
  const [lock, other] = [factory.createLock('foo', null), factory.createLock('foo', null)]
  await lock.acquire()
  const acquired = other.acquire()
  await lock.release()
  assert.equal(await acquired, true)
})

test('a lock in memory is not granted to a waiter and a newcomer at once', options, async () => {
  const factory = new LockFactory(new MemoryStore())
  const [a, b, c] = [1, 2, 3].map(() => factory.createLock('foo'))
  await a.acquire()
  const attempt = b.acquireImmediately()
  await a.release()
  const held = [await attempt, await c.acquireImmediately()]
  assert.equal(held.filter(Boolean).length, 1)
})

test('the methods of the memory store grant a lock to one owner only, with owners of any form', options, async () => {
  const store = new MemoryStore()
  assert.equal(await store.save('foo', 'a', null), true)
  const attempt = store.save('foo', 'b', null)
  await store.delete('foo', 'a')
  const held = [await attempt, await store.save('foo', 'c', null)]
  assert.equal(held.filter(Boolean).length, 1)
  await assert.rejects(store.delete('foo', 'a'), NOT_OWNED)
  await assert.rejects(store.extend('foo', 'a', 1_000), NOT_OWNED)
  await store.forceDelete('foo')
  assert.equal(await store.exists('foo'), false)
})

test('twenty workers on one key in memory never overlap', options, async () => {
  const factory = new LockFactory(new MemoryStore())
  let [inside, overlaps, runs] = [0, 0, 0]
  const worker = async () => {
    const lock = factory.createLock('foo', null)
    for (let run = 0; run < 50; run++) {
      const [ran] = await lock.run(async () => {
        if (++inside > 1) overlaps++
        await new Promise((resolve) => setImmediate(resolve))
        inside--
        runs++
      })
      assert.equal(ran, true)
    }
  }
  await Promise.all(Array.from({ length: 20 }, worker))
  assert.deepEqual([overlaps, runs], [0, 1_000])
})

test('replaced methods of the memory store are called', options, async () => {
  const asked = []
  class CountingStore extends MemoryStore {
    async save(...args) {
      asked.push('subclass')
      return super.save(...args)
    }
  }
  await new Lock('foo', new CountingStore(), config()).acquire()
  const store = new MemoryStore()
  store.save = async () => {
    asked.push('replaced')
    return false
  }
  assert.equal(await new Lock('foo', store, config()).acquireImmediately(), false)
  assert.deepEqual(asked, ['subclass', 'replaced'])
})

test('a waiting run does not delay the release of another', options, async () => {
  const factory = new LockFactory(new MapStore(), { retry: { delay: 1 } })
  const lock = factory.createLock('foo', null)
  const { promise, resolve } = deferred()
  const first = lock.run(() => promise)
  const second = lock.run(() => 'second')
  resolve('first')
  assert.deepEqual(await Promise.all([first, second]), [[true, 'first'], [true, 'second']])
})

test('the factory of each store is called once, at its first use', options, async () => {
  let made = 0
  const driver = {
    factory() {
      made++
      return memoryStore().factory()
    },
  }
  const verrou = new Verrou({ default: 'memory', stores: { memory: { driver }, other: { driver } } })
  assert.equal(made, 0)
  assert.equal(verrou.use('memory'), verrou.use('memory'))
  assert.equal(verrou.use(), verrou.use('memory'))
  assert.equal(made, 1)
  assert.notEqual(verrou.use('other'), verrou.use('memory'))
  assert.equal(made, 2)
  assert.ok(verrou.use() instanceof LockFactory)

  await verrou.createLock('foo').acquire()
  assert.equal(await verrou.use('memory').createLock('foo').isLocked(), true)
  assert.equal(await verrou.use('other').createLock('foo').isLocked(), false)
  assert.ok(verrou.createLock('foo') instanceof Lock)
})

test('the name of an unknown store is refused', () => {
  const verrou = new Verrou({ stores: { memory: { driver: memoryStore() } } })
  assert.throws(() => verrou.createLock('foo'), { message: 'No store provided' })
  for (const name of ['other', 'toString', '__proto__']) assert.throws(() => verrou.use(name), INVALID)
})

test('each store of one factory has its own locks', options, async () => {
  const { factory } = memoryStore()
  const [one, two] = [factory(), factory()]
  assert.ok(one instanceof MemoryStore)
  await new Lock('foo', one, config()).acquire()
  assert.equal(await new Lock('foo', two, config()).isLocked(), false)
})

test('a logger with only its four methods receives all messages', options, async () => {
  const calls = []
  const logger = {
    child(fields) {
      calls.push(['child', fields])
      return logger
    },
    log: () => assert.fail('called'),
    trace: () => assert.fail('called'),
    debug: (...args) => calls.push(['debug', ...args]),
  }
  const verrou = new Verrou({ default: 'memory', logger, stores: { memory: { driver: memoryStore() } } })
  const lock = verrou.createLock('foo', '1h')
  await lock.acquire()
  await lock.extend()
  await lock.release()
  await lock.acquireImmediately()
  await lock.release()
  await lock.run(() => {})
  const messages = calls.map(([method, , message]) => message ?? method)
  assert.deepEqual(messages, [
    'child',
    'child',
    'Lock acquired',
    'Lock extended',
    'Lock released',
    'Lock acquired with acquireImmediately()',
    'Lock released',
    'Lock acquired',
    'Lock released',
  ])
  for (const [method, fields] of calls) {
    if (method === 'child') assert.deepEqual(fields, { pkg: 'verrou' })
    else assert.equal(fields.key, 'foo')
  }
  const [, { newTtl }] = calls.find(([, , message]) => message === 'Lock extended')
  assert.ok(newTtl > Date.now())
})

test('a run whose lease was lost is logged', options, async () => {
  const logged = []
  const logger = { child: () => logger, debug: (fields) => logged.push(fields) }
  const factory = new LockFactory(new MemoryStore(), { logger })
  const lock = factory.createLock('foo')
  assert.deepEqual(await lock.run(() => factory.createLock('foo').forceRelease()), [true, undefined])
  assert.deepEqual(logged.map(({ err }) => err?.code), [undefined, 'E_LOCK_NOT_OWNED'])
})

test('neither the JSON nor the inspection of a lock shows its fields', options, async () => {
  const lock = new LockFactory(new MemoryStore()).createLock('foo')
  await lock.acquire()
  assert.equal(JSON.stringify(lock), '{}')
  assert.equal(JSON.stringify({ lock }), '{"lock":{}}')
  assert.ok(!inspect(lock, { depth: null, showHidden: true }).includes(lock.getOwner()))
})

test('the errors have the form of those of @verrou/core', async () => {
  const theirs = await import('@verrou/core')
  const ours = await import('../../../target/js/compat/index.js')
  for (const [name, args] of [['E_LOCK_NOT_OWNED', []], ['E_LOCK_STORAGE_ERROR', ['why']]]) {
    const [Theirs, Ours] = [theirs[name], ours[name]]
    for (const member of ['message', 'code']) assert.equal(Ours[member], Theirs[member])
    const cause = new Error('why')
    const [their, our] = [new Theirs(args, { cause }), new Ours(args, { cause })]
    for (const member of ['name', 'message', 'code', 'status', 'cause']) assert.equal(our[member], their[member])
    assert.equal(String(our), String(their))
    assert.equal(new Ours().code, name)
    assert.equal(ours.errors[name], Ours)
  }
  for (const name of Object.keys(theirs)) assert.equal(typeof ours[name], 'function', name)
})
