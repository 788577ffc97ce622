/**
 * The program that `polluted.test.mjs` runs in a process of its own: `node polluted.mjs DIRECTORY [NAME [getter]]`
 * writes NAME to `Object.prototype`, or a getter that returns a new function each time. Then it uses every function of
 * the package that takes options, and prints the results.
 */
import { Lock as CompatLock, LockFactory as CompatFactory, Verrou as CompatVerrou } from '../../target/js/compat/index.js'
import { memoryStore as compatMemory } from '../../target/js/compat/drivers/memory.js'
import { fileStore } from '../../target/js/file-store.js'
import { LockFactory, Verrou, memoryStore } from '../../target/js/node.js'
import { serverStore } from '../../target/js/server-store.js'
import { webStore } from '../../target/js/web-store.js'

/** The hostile value of each name for which it is not the default text. */
const EVIL = {
  attempts: 7,
  anyFileSystem: true,
  delay: 1,
  driver: { factory: () => undefined },
  env: { VERROU_COMMAND: '/nonexistent/evil' },
  expirationTime: 1,
  factory: () => undefined,
  fence: () => 6_666,
  giveUp: () => {},
  granted: 6_666,
  holder: () => ({ fence: 6_666, remaining: 1 }),
  idle: 1,
  logger: { child: () => { throw new Error('evil') } },
  maxDelay: 1,
  renew: true,
  retry: { attempts: 7, timeout: 1 },
  shell: true,
  signal: AbortSignal.abort(new Error('evil')),
  stores: { evil: memoryStore() },
  temporary: true,
  timeout: 1,
  toJSON: () => ({ evil: 1 }),
  ttl: 1,
  wait: () => { throw new Error('evil') },
}

const [, , directory, name, how] = process.argv
const value = Object.hasOwn(EVIL, name) ? EVIL[name] : '/nonexistent/evil'

const said = []
async function note(what, ask) {
  try {
    said.push([what, await ask()])
  } catch (error) {
    const code = Object.hasOwn(error, 'code') ? error.code : null
    said.push([what, error.name, code, error.message])
  }
}

/** A store with only the required methods. */
const plain = (held = new Map()) => ({
  save: (key, owner) => !held.has(key) && Boolean(held.set(key, owner)),
  delete: (key) => void held.delete(key),
  forceDelete: (key) => void held.delete(key),
  exists: (key) => held.has(key),
  extend() {
    throw new Error('this store cannot extend')
  },
})

if (how === 'getter') {
  Object.defineProperty(Object.prototype, name, {
    configurable: true,
    get: () => () => { throw new Error('evil') },
    // Does the same as an assignment without a getter.
    set(own) {
      Object.defineProperty(this, name, { value: own, configurable: true, enumerable: true, writable: true })
    },
  })
} else if (name !== undefined) {
  Object.prototype[name] = value
}

for (const [kind, store] of [['memory', memoryStore()], ['plain', plain()]]) {
  const verrou = new Verrou({ default: 'one', stores: { one: store } })
  const lock = verrou.createLock('x', '1h')
  await note(`${kind} runs`, () => lock.run(() => 'done'))
  await note(`${kind} runs with options`, () => lock.run(({ signal }) => signal.aborted, {}))
  await note(`${kind} acquires`, async () => typeof (await lock.acquire({})).fence)
  await note(`${kind} has a holder`, async () => typeof (await lock.holder())?.remaining)
  await note(`${kind} extends`, () => lock.extend())
  const once = new LockFactory(store, { retry: { attempts: 1 } }).createLock('x')
  await note(`${kind} is refused`, () => once.acquire({ retry: {} }))
  await note(`${kind} is refused at once`, () => once.runImmediately(() => 'done', {}))
  const restored = new LockFactory(store, {}).restoreLock(lock.serialize())
  await note(`${kind} restores`, () => restored.isExpired())
  await note(`${kind} releases`, () => lock.release())
  await note(`${kind} has no other store`, () => new Verrou({ stores: { one: store } }).use())
  await note(`${kind} is named`, () => new Verrou({ stores: { one: { driver: store } } }).use('one').createLock('y').acquireImmediately())
}
await note('no store', () => new LockFactory({}))
await note('no stores', () => new Verrou({}))

const compat = new CompatVerrou({ default: 'one', stores: { one: { driver: compatMemory() } } })
await note('compat runs', () => compat.createLock('x').run(() => 'done'))
await note('compat restores', async () => {
  const lock = compat.createLock('y')
  await lock.acquire({})
  return compat.restoreLock(lock.serialize()).isLocked()
})
const store = compatMemory().factory()
const factory = new CompatFactory(store, {})
await note('compat is refused', async () => {
  const held = new CompatFactory(store, { retry: { attempts: 1 } })
  return [await held.createLock('z', null).acquire(), await held.createLock('z').acquire({ retry: {} })]
})
await note('compat acquires', async () => (await factory.createLock('w', null).acquire()) && factory.createLock('w').isLocked())
await note('compat lock', () => new CompatLock('v', store, {}).acquire())

// Node.js itself reads this member whenever it makes a stream.
if (name === 'signal') delete Object.prototype.signal

const files = fileStore(directory, {})
const [mine, other] = ['1'.repeat(32), '2'.repeat(32)]
await note('files save', () => files.save('x', mine, 3_600_000))
await note('files count', async () => typeof (await files.fence('x', mine)))
await note('files count again', async () => typeof (await files.fence('x', mine)))
await note('files have a holder', async () => Object.keys(await files.holder('x')))
await note('files refuse', () => files.save('x', other, 3_600_000))
await note('files return no fence', () => files.fence('x', other))
await note('files refuse to extend', () => files.extend('x', other, 3_600_000))
await note('files renew', () => files.renew('x', mine, 3_600_000, null))
await note('files delete', () => files.delete('x', mine))
await note('files are free', () => files.exists('x'))
await note('files wait', () => files.wait('x', 1_000))
await files.close()
const server = serverStore('redis://127.0.0.1:1', {})
await note('server', () => server.exists('x'))
await server.close()
await note('web', () => webStore({}))

if (name !== undefined) delete Object.prototype[name]
console.log(JSON.stringify(said))
process.exit(0)
