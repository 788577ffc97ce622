/** Arguments of every type for every exported function: each is used, or refused with an error that has a code. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import * as compat from '../../target/js/compat/index.js'
import * as compatMemory from '../../target/js/compat/drivers/memory.js'
import * as files from '../../target/js/file-store.js'
import * as main from '../../target/js/node.js'
import * as servers from '../../target/js/server-store.js'
import * as web from '../../target/js/web-store.js'

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))

/** Longer than any of these tests takes, even on a busy machine. */
const options = { timeout: 300_000 }

const { errors, LockFactory, Verrou, memoryStore } = main

const coded = (code) => (error) => {
  assert.equal(error.code, code, error)
  assert.ok(error instanceof errors[code])
  return true
}

const directory = mkdtempSync(join(tmpdir(), 'verrou-'))
after(() => rmSync(directory, { recursive: true }))

function throwing() {
  throw new Error('a hostile argument')
}

function revoked() {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

/** Values of every type, each made by a function. */
const VALUES = {
  undefined: () => undefined,
  null: () => null,
  true: () => true,
  false: () => false,
  zero: () => 0,
  negative: () => -1.5,
  number: () => 42,
  NaN: () => NaN,
  Infinity: () => Infinity,
  bigint: () => 10n ** 100n,
  'empty text': () => '',
  text: () => 'text',
  '2s': () => '2s',
  'long text': () => 'x'.repeat(100_000),
  'lone surrogate': () => '\ud800',
  NUL: () => 'a\0b',
  symbol: () => Symbol('a symbol'),
  function: () => () => 1,
  object: () => ({}),
  'object without prototype': () => Object.create(null),
  'object of any member': () => ({ retry: 1, signal: 1, renew: 1, stores: 1, default: 1, logger: 1, driver: 1 }),
  'empty retry': () => ({ retry: {}, stores: {}, key: 'a', owner: 'b', ttl: 1, expirationTime: 1 }),
  'object with getters that throw': () => ({ get retry() { throwing() }, get stores() { throwing() }, get save() { throwing() } }),
  'object without text': () => ({ toString: throwing, valueOf: throwing, [Symbol.toPrimitive]: throwing, toJSON: throwing }),
  'proxy that throws': () => new Proxy({}, { get: throwing, has: throwing, ownKeys: throwing, getPrototypeOf: throwing, getOwnPropertyDescriptor: throwing }),
  'revoked proxy': revoked,
  array: () => ['a'],
  bytes: () => new Uint8Array(3),
  date: () => new Date(NaN),
  map: () => new Map([['retry', 1]]),
  pattern: () => /x/,
  promise: () => Promise.resolve(),
  error: () => new Error('an argument'),
  signal: () => new AbortController().signal,
  aborted: () => AbortSignal.abort(new errors.E_LOCK_TIMEOUT('the reason')),
  store: memoryStore,
  'compat store': () => compatMemory.memoryStore().factory(),
}

/** Lists of arguments for a function with `count` parameters: each value at each place beside valid ones. */
function* lists(valid) {
  for (const [name, make] of Object.entries(VALUES)) {
    yield [`only ${name}`, () => valid.map(make)]
    for (const place of valid.keys()) {
      yield [`${name} at ${place}`, () => valid.map((value, at) => (at === place ? make() : value))]
    }
  }
}

/** Calls what `make` returns with all lists of arguments, and checks what is thrown. */
async function fuzz(what, valid, call) {
  for (const [list, args] of lists(valid)) {
    try {
      await call(...args())
    } catch (error) {
      const { code } = Object(error)
      assert.ok(error instanceof Error && typeof code === 'string', `${what}, ${list}: ${error?.stack}`)
      assert.notEqual(code, 'E_LOCK_PANICKED', `${what}, ${list}`)
      assert.ok(!code.startsWith('ERR_'), `${what}, ${list}: ${error.stack}`)
      assert.notEqual(error.message, 'a hostile argument', `${what}, ${list}`)
    }
  }
  // The core still works.
  assert.equal(await new LockFactory(memoryStore()).createLock('x').run(() => 'works'), 'works')
}

/** Fuzzes all functions of `exported`. `calls` has the valid arguments of each, and how to call it. */
async function fuzzExports(exported, calls) {
  assert.deepEqual(Object.keys(exported).sort(), Object.keys(calls).sort(), 'an export is not fuzzed')
  for (const [name, list] of Object.entries(calls)) {
    for (const [what, valid, call] of list) await fuzz(`${name}: ${what}`, valid, call)
  }
}

test('every function of the main entry refuses arguments of the wrong type with a code', options, async () => {
  const lock = () => new LockFactory(memoryStore()).createLock('x', '1h')
  const held = async () => lock().acquire()
  await fuzzExports(main, {
    errors: Object.values(errors).map((Class) => [Class.name, ['text', {}], (...args) => new Class(...args)]),
    LockError: [['new', ['text', {}], (...args) => new main.LockError(...args)]],
    LockFactory: [
      ['new', [memoryStore(), {}], (...args) => new LockFactory(...args)],
      ['createLock', ['x', 1_000], (...args) => new LockFactory(memoryStore()).createLock(...args).acquire()],
      ['restoreLock', ['x'], (...args) => new LockFactory(memoryStore()).restoreLock(...args)],
      ['acquire', [{}], (...args) => lock().acquire(...args)],
      ['acquire with a signal', [undefined], (signal) => lock().acquire({ signal })],
      ['acquire with a policy', [undefined], (retry) => lock().acquire({ retry })],
      ...['attempts', 'delay', 'maxDelay', 'timeout'].map((name) => [
        `acquire with ${name}`, [1], (value) => lock().acquire({ retry: { [name]: value } }),
      ]),
      ['acquire with renewal', [true], async (renew) => (await lock().acquire({ renew }))[Symbol.asyncDispose]()],
      ['acquireImmediately', [1], (...args) => lock().acquireImmediately(...args)],
      ['run', [() => 1, {}], (...args) => lock().run(...args)],
      ['run with options', [undefined, false], (signal, renew) => lock().run(() => 1, { signal, renew })],
      ['runImmediately', [() => 1, {}], (...args) => lock().runImmediately(...args)],
      ['extend', [1_000], async (...args) => (await held()).extend(...args)],
      ...['release', 'forceRelease', 'isExpired', 'getRemainingTime', 'isLocked', 'holder', 'serialize', 'handOver'].map(
        (name) => [name, [1], async (...args) => (await held())[name](...args)]
      ),
    ],
    Verrou: [
      ['new', [{ default: 'a', stores: { a: memoryStore() } }], (...args) => new Verrou(...args)],
      ['members', ['a', { a: memoryStore() }, {}], (byDefault, stores, retry) =>
        new Verrou({ default: byDefault, stores, retry }).createLock('x')],
      ['a store', [memoryStore()], (a) => new Verrou({ default: 'a', stores: { a } }).createLock('x')],
      ['a driver', [memoryStore()], (driver) => new Verrou({ default: 'a', stores: { a: { driver } } }).createLock('x')],
      ['use', ['a'], (...args) => new Verrou({ stores: { a: memoryStore() } }).use(...args)],
      ['createLock', ['x', 1], (...args) => new Verrou({ default: 'a', stores: { a: memoryStore() } }).createLock(...args)],
      ['restoreLock', ['x'], (...args) => new Verrou({ default: 'a', stores: { a: memoryStore() } }).restoreLock(...args)],
    ],
    memoryStore: [['call', [1], memoryStore]],
    onEvent: [['call', [() => {}], (...args) => main.onEvent(...args)()]],
  })
})

test('every function of compat refuses arguments of the wrong type with a code', options, async () => {
  const { Lock, LockFactory: Factory, Verrou: Compat } = compat
  const store = () => compatMemory.memoryStore().factory()
  const factory = () => new Factory(store())
  const retry = { attempts: 1 }
  const verrou = () => new Compat({ default: 'a', stores: { a: compatMemory.memoryStore() } })
  await fuzzExports(compat, {
    E_LOCK_NOT_OWNED: [['new', [[], {}], (args) => new compat.E_LOCK_NOT_OWNED(args)]],
    E_LOCK_STORAGE_ERROR: [['new', [['x'], {}], (args) => new compat.E_LOCK_STORAGE_ERROR(args)]],
    errors: [['new', ['x'], () => new compat.errors.E_INVALID_ARGUMENTS_EXCEPTION('x')]],
    driver: [
      ['call', [memoryStore()], (...args) => compat.driver(...args).factory()],
    ],
    Lock: [
      ['new', ['x', store(), { retry }, 'me', 1_000, 1], (...args) => new Lock(...args).acquireImmediately()],
      ['policy', [{}], (retry) => new Lock('x', store(), { retry })],
      ['logger', [undefined], (logger) => new Lock('x', store(), { logger }).acquireImmediately()],
    ],
    LockFactory: [
      ['new', [store(), {}], (...args) => new Factory(...args)],
      ['options', [{}, undefined], (retry, logger) => new Factory(store(), { retry, logger })],
      ['createLock', ['x', 1_000], (...args) => factory().createLock(...args).acquireImmediately()],
      ['restoreLock', [{ key: 'x', owner: 'me', ttl: 1 }], (...args) => factory().restoreLock(...args)],
      ['a serialized lock', ['x', 'me', 1, 1], (key, owner, ttl, expirationTime) =>
        factory().restoreLock({ key, owner, ttl, expirationTime }).acquireImmediately()],
      ['acquire', [{ retry }], (...args) => factory().createLock('x').acquire(...args)],
      ['run', [() => 1], (...args) => factory().createLock('x').run(...args)],
      ['runImmediately', [() => 1], (...args) => factory().createLock('x').runImmediately(...args)],
      ['extend', [1_000], async (...args) => {
        const lock = factory().createLock('x')
        await lock.acquire()
        await lock.extend(...args)
      }],
    ],
    Verrou: [
      ['new', [{}], (...args) => new Compat(...args).createLock('x')],
      ['members', ['a', { a: compatMemory.memoryStore() }, undefined], (byDefault, stores, logger) =>
        new Compat({ default: byDefault, stores, logger }).createLock('x')],
      ['a store', [compatMemory.memoryStore()], (a) => new Compat({ default: 'a', stores: { a } }).createLock('x')],
      ['a driver', [compatMemory.memoryStore()], (driver) => new Compat({ default: 'a', stores: { a: { driver } } }).createLock('x')],
      ['use', ['a'], (...args) => verrou().use(...args)],
      ['createLock', ['x', 1], (...args) => verrou().createLock(...args)],
      ['restoreLock', [{}], (...args) => verrou().restoreLock(...args)],
    ],
  })
  await fuzzExports(compatMemory, {
    memoryStore: [['call', [1], compatMemory.memoryStore]],
    MemoryStore: [
      ['save', ['x', 'me', 1], (...args) => store().save(...args)],
      ['delete', ['x', 'me'], (...args) => store().delete(...args)],
      ['forceDelete', ['x'], (...args) => store().forceDelete(...args)],
      ['exists', ['x'], (...args) => store().exists(...args)],
      ['extend', ['x', 'me', 1], (...args) => store().extend(...args)],
    ],
  })
})

test('every method of a file store refuses arguments of the wrong type with a code', options, async (t) => {
  const store = files.fileStore(directory)
  t.after(() => store.close())
  const owner = 'o'.repeat(32)
  const methods = [
    ['save', ['x', owner, 1]],
    ['delete', ['x', owner]],
    ['forceDelete', ['x']],
    ['exists', ['x']],
    ['extend', ['x', owner, 1]],
    ['renew', ['x', owner, 1, 1n]],
    ['fence', ['x', owner]],
    ['holder', ['x']],
    ['wait', ['x', 1, undefined, owner]],
    ['giveUp', ['x', owner]],
    ['detach', ['x', owner]],
  ]
  await fuzzExports(files, {
    CommandStoreError: [['new', ['text'], () => new files.CommandStoreError('text')]],
    fileStore: [
      ['call', [directory, {}], (...args) => files.fileStore(...args).close()],
      ...['anyFileSystem', 'command', 'group', 'idle', 'label'].map((name) => [
        name, [undefined], (value) => files.fileStore(directory, { [name]: value }).close(),
      ]),
      ...methods.map(([name, valid]) => [name, valid, async (...args) => {
        // Longer waits than this would only take time.
        if (name === 'wait' && args[1] === 42) return
        await store[name](...args)
      }]),
    ],
  })
  await fuzzExports(servers, {
    CommandStoreError: [['new', ['text'], () => new servers.CommandStoreError('text')]],
    serverStore: [
      ['call', ['redis://127.0.0.1:1', {}], (...args) => servers.serverStore(...args).close()],
      ...['command', 'idle', 'label'].map((name) => [
        name, [undefined], (value) => servers.serverStore('redis://127.0.0.1:1', { [name]: value }).close(),
      ]),
    ],
  })
  await fuzzExports(web, { webStore: [['call', [{}], web.webStore]] })
})

test('a number names the lock that its decimal form names', async () => {
  const store = memoryStore()
  const factory = new LockFactory(store)
  const lock = factory.createLock(42)
  assert.equal(lock.name, '42')
  await lock.acquire()
  assert.equal(await factory.createLock('42').isLocked(), true)
  assert.equal(await factory.createLock('42').acquireImmediately(), false)

  const held = compatMemory.memoryStore().factory()
  assert.equal(await new compat.LockFactory(held).createLock(42).acquireImmediately(), true)
  assert.equal(await held.exists('42'), true)
})

test('an invalid name is named in the error', () => {
  const factory = new LockFactory(memoryStore())
  for (const [name, shown] of [
    [{}, 'an object'],
    [true, 'true'],
    [7n, '7n'],
    [Symbol('s'), 'Symbol(s)'],
    [null, 'null'],
    [undefined, 'undefined'],
    [NaN, 'NaN'],
    ['\udfff', '"\\udfff"'],
  ]) {
    assert.throws(
      () => factory.createLock(name),
      (error) => coded('E_INVALID_NAME')(error) && error.message.endsWith(`not ${shown}`)
    )
  }
})

test('a lone surrogate is refused: names that differ only in it would be one name', () => {
  const factory = new LockFactory(memoryStore())
  for (const name of ['\ud800', 'a\udc00', '\udc00\ud800']) {
    assert.throws(() => factory.createLock(name), coded('E_INVALID_NAME'))
  }
  assert.equal(factory.createLock('🔒').name, '🔒')
})

test('the serialized lock of @verrou/core is refused with a hint', async () => {
  const lock = new compat.LockFactory(compatMemory.memoryStore().factory()).createLock('x')
  await lock.acquire()
  assert.throws(
    () => new LockFactory(memoryStore()).restoreLock(lock.serialize()),
    (error) => coded('E_INVALID_SERIALIZED_LOCK')(error) && /verrou-wasm\/compat/.test(error.message)
  )
})

test('a callback or signal of the wrong type is refused before the lock is acquired', async () => {
  const lock = new LockFactory(memoryStore()).createLock('x')
  await assert.rejects(lock.run(), coded('E_INVALID_ARGUMENT'))
  await assert.rejects(lock.run('work'), coded('E_INVALID_ARGUMENT'))
  await assert.rejects(lock.run(() => 1, { renew: 'yes' }), coded('E_INVALID_ARGUMENT'))
  await assert.rejects(lock.acquire({ signal: {} }), coded('E_INVALID_ARGUMENT'))
  assert.equal(await lock.isLocked(), false)
})
