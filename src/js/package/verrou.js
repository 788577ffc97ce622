import {
  booleanOf,
  callbackOf,
  described,
  nameOf,
  objectOf,
  optionsOf,
  serializedOf,
  signalOf,
  ttlOf,
} from './arguments.js'
import { Lock as CoreLock, Retry, Store } from './core/verrou.js'
import { assertUsable, errors } from './errors.js'
import { hasMethod, own } from './options.js'
import { REQUIRED } from './store-methods.js'

/** The method that Node.js calls to print an object. */
const INSPECT = Symbol.for('nodejs.util.inspect.custom')

/** The method that `await using` calls. Node.js 20 and some browsers lack the symbol, which compilers then define so. */
const ASYNC_DISPOSE = Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')

/** The core's store of each store object. */
const coreStores = new WeakMap()

class MemoryStore {
  constructor() {
    coreStores.set(this, Store.memory())
  }
}

export function memoryStore() {
  return new MemoryStore()
}

/** Returns the core's store of the object `store`: the same at each call. `compat` uses it, too. */
export function coreStore(store) {
  const known = coreStores.get(store)
  if (known !== undefined) return known
  const missing = REQUIRED.filter((method) => !hasMethod(store, method))
  if (missing.length > 0) {
    throw new errors.E_INVALID_STORE(
      `a store must be an object with the methods ${REQUIRED.join(', ')}; this one lacks ${missing.join(', ')}`
    )
  }
  const made = Store.object(store)
  coreStores.set(store, made)
  return made
}

function policy(base, retry) {
  if (retry === undefined) return base
  const { attempts, delay, maxDelay, timeout } = optionsOf('retry', retry, errors.E_INVALID_RETRY)
  return base.with(attempts, delay, maxDelay, timeout)
}

/**
 * Returns the result of `request`, which receives a promise that resolves when `signal` is aborted. Throws the
 * signal's reason if it was aborted.
 */
async function unlessAborted(signal, request) {
  if (signal === undefined) return request()
  signal.throwIfAborted()
  let abort
  const aborted = new Promise((resolve) => {
    abort = () => resolve()
  })
  signal.addEventListener('abort', abort, own({ once: true }))
  try {
    const held = await request(aborted)
    if (held === undefined) throw signal.reason
    return held
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/** The argument of the callback of `run`. */
class Lease {
  #held
  #keeping

  constructor(held) {
    this.#held = held
    this.fence = held.fence ?? null
  }

  remaining() {
    // After the end of `run` there is no grant.
    return this.#held === undefined ? 0 : (this.#held.remaining() ?? null)
  }

  [INSPECT](_depth, options, inspect) {
    return `Lease ${inspect({ fence: this.fence, remaining: this.remaining() }, options)}`
  }

  get signal() {
    if (this.#held === undefined) return (this.#keeping ?? new AbortController()).signal
    this.#keeping ??= new ExpiryWatch(this.#held)
    return this.#keeping.signal
  }

  /** Begins to renew the lease. Called by `run`. */
  static renew(lease) {
    lease.#keeping = new Renewal(lease.#held)
  }

  /**
   * Ends the renewal, or the watch, of the lease. Returns the loss that its signal has reported, if any. Called by
   * `run`.
   */
  static async end(lease) {
    await lease.#keeping?.end()
    lease.#held = undefined
    const signal = lease.#keeping?.signal
    return signal?.aborted ? signal.reason : undefined
  }
}

function lost() {
  return new errors.E_LOCK_LOST('the lock was lost: its lease has expired')
}

/** Aborts its signal when the lease expires. */
class ExpiryWatch {
  #controller = new AbortController()
  #held
  #timer

  constructor(held) {
    this.#held = held
    this.#check()
  }

  get signal() {
    return this.#controller.signal
  }

  #check() {
    const left = this.#held.remaining()
    if (left === undefined || this.#held.isReleased) return
    if (left <= 0) return this.#controller.abort(lost())
    this.#timer = setTimeout(() => this.#check(), Math.min(Math.ceil(left), 2 ** 31 - 1))
  }

  end() {
    clearTimeout(this.#timer)
  }
}

/** Renews the lease; aborts its signal when the lease is lost. */
class Renewal {
  #controller = new AbortController()
  #kept
  #finish

  constructor(held) {
    const finished = new Promise((resolve) => {
      this.#finish = resolve
    })
    this.#kept = this.#keep(held, finished)
  }

  get signal() {
    return this.#controller.signal
  }

  async #keep(held, finished) {
    const loss = await held.keep(finished)
    if (loss !== undefined) this.#controller.abort(loss)
  }

  async end() {
    this.#finish()
    await this.#kept
  }
}

/** The result of `acquire({ renew: true })`: a lease that is renewed until it is released. */
class RenewedLease extends Lease {
  #held
  #released

  constructor(held) {
    super(held)
    this.#held = held
    Lease.renew(this)
  }

  /** Releases the lock; at a second call, returns the first result. */
  release() {
    this.#released ??= this.#release()
    return this.#released
  }

  async #release() {
    const loss = await ended(this, this.#held)
    if (loss !== undefined) throw loss
  }

  async [ASYNC_DISPOSE]() {
    // The caller of `release` has got its error.
    if (this.#released === undefined) await this.release()
  }
}

export class Lock {
  #core
  #retry
  #disposable = false

  /** Called by `createLock` and `restoreLock`. */
  constructor(core, retry) {
    this.#core = core
    this.#retry = retry
  }

  get name() {
    return this.#core.name
  }

  get fence() {
    return this.#core.fence ?? null
  }

  async acquire(options) {
    assertUsable()
    if (options === undefined) {
      await this.#core.acquire(this.#retry, false)
    } else {
      const { retry: wanted, signal, renew = false } = optionsOf('acquire', options)
      const retry = policy(this.#retry, wanted)
      booleanOf(renew, '`renew`')
      const held = await unlessAborted(signalOf(signal), (aborted) => this.#core.acquire(retry, renew, aborted))
      if (renew) return new RenewedLease(held)
    }
    this.#disposable = true
    return this
  }

  async acquireImmediately() {
    assertUsable()
    const acquired = await this.#core.tryAcquire()
    if (acquired) this.#disposable = true
    return acquired
  }

  async run(callback, options) {
    const { retry, signal, renew } = optionsOf('run', options)
    return this.#run(callback, retry, signal, renew)
  }

  async runImmediately(callback, options) {
    const { signal, renew } = optionsOf('runImmediately', options)
    return this.#run(callback, own({ attempts: 1 }), signal, renew)
  }

  async #run(callback, retry, signal, renew = false) {
    assertUsable()
    callbackOf(callback, 'the callback')
    booleanOf(renew, '`renew`')
    const wanted = policy(this.#retry, retry)
    const hold = (aborted) => this.#core.acquire(wanted, true, aborted)
    return runAndRelease(await unlessAborted(signalOf(signal), hold), callback, renew)
  }

  async release() {
    assertUsable()
    await this.#core.release()
    this.#disposable = false
  }

  async forceRelease() {
    assertUsable()
    await this.#core.forceRelease()
    this.#disposable = false
  }

  async extend(ttl) {
    assertUsable()
    await this.#core.extend(ttlOf(ttl))
  }

  isExpired() {
    assertUsable()
    return this.#core.isExpired()
  }

  getRemainingTime() {
    assertUsable()
    return this.#core.remaining() ?? null
  }

  async isLocked() {
    assertUsable()
    return (await this.holder()) !== null
  }

  async holder() {
    assertUsable()
    const holder = await this.#core.holder()
    if (holder === undefined) return null
    const { fence = null, remaining = null } = holder
    holder.free()
    return { fence, remaining }
  }

  serialize() {
    assertUsable()
    return this.#core.serialize(false)
  }

  async handOver() {
    assertUsable()
    return this.#core.serialize(true)
  }

  /** Returns the text that `console.log` of Node.js prints, without the owner token. */
  [INSPECT](_depth, options, inspect) {
    const { name, fence } = this
    return `Lock ${inspect({ name, fence, remaining: this.#core.remaining() ?? null }, options)}`
  }

  async [ASYNC_DISPOSE]() {
    if (!this.#disposable) return
    this.#disposable = false
    await this.#core.release()
  }
}

/**
 * Calls `callback`, then releases the lock. If the lock was lost, or the release fails, the error has the callback's
 * result in `value`, or the callback's error in `suppressed`.
 */
async function runAndRelease(held, callback, renew) {
  const lease = new Lease(held)
  if (renew) Lease.renew(lease)
  let value, failure
  let failed = false
  try {
    value = await callback(lease)
  } catch (error) {
    failed = true
    failure = error
  }
  const loss = await ended(lease, held)
  if (loss !== undefined && loss !== failure) {
    if (failed) loss.suppressed = failure
    else loss.value = value
    throw loss
  }
  if (failed) throw failure
  return value
}

/** Releases the lock. Returns the loss that the lease's signal has reported, or else the error of the release. */
async function ended(lease, held) {
  let loss
  try {
    loss = await Lease.end(lease)
    await held.release()
    return loss
  } catch (error) {
    if (loss === undefined || error.code === 'E_LOCK_LOST') return error
    // The lock is lost in any case, so that the store's error is only the cause.
    return new errors.E_LOCK_LOST(loss.message, { cause: error })
  } finally {
    held.free()
  }
}

export class LockFactory {
  #store
  #retry

  constructor(store, options) {
    assertUsable()
    const { retry } = optionsOf('LockFactory', options)
    this.#store = coreStore(store)
    this.#retry = policy(new Retry(), retry)
  }

  createLock(name, ttl) {
    assertUsable()
    return new Lock(new CoreLock(this.#store, nameOf(name), ttlOf(ttl)), this.#retry)
  }

  restoreLock(serialized) {
    assertUsable()
    return new Lock(CoreLock.restore(this.#store, serializedOf(serialized)), this.#retry)
  }
}

export class Verrou {
  #config
  #factories = new Map()

  constructor(config) {
    const { default: byDefault, stores, retry } = optionsOf('Verrou', config)
    if (stores === undefined) {
      throw new errors.E_INVALID_STORE('the configuration lacks `stores`, an object with a store for each name')
    }
    this.#config = { byDefault, stores: objectOf('`stores`', stores, errors.E_INVALID_STORE), retry }
    if (byDefault !== undefined) this.#assertKnown(byDefault)
  }

  use(name = this.#config.byDefault) {
    const known = this.#factories.get(name)
    if (known !== undefined) return known
    this.#assertKnown(name)
    const { stores, retry } = this.#config
    const factory = new LockFactory(driver(stores[name]), { retry })
    this.#factories.set(name, factory)
    return factory
  }

  #assertKnown(name) {
    const { stores } = this.#config
    if (typeof name === 'string' && Object.hasOwn(stores, name)) return
    const names = Object.keys(stores).join(', ')
    throw new errors.E_INVALID_STORE(`no store is called ${described(name)}; the stores are: ${names}`)
  }

  createLock(name, ttl) {
    return this.use().createLock(name, ttl)
  }

  restoreLock(serialized) {
    return this.use().restoreLock(serialized)
  }
}

/** Returns the member `name` that `value` itself has, and not its classes; `undefined` without one. */
function ownMember(value, name) {
  try {
    return own(value)[name]
  } catch {
    return undefined
  }
}

/** Returns the store of a configuration: a store, or one that Verrou's `driver` wraps. */
function driver(configured) {
  const store = ownMember(configured, 'driver') ?? configured
  return hasMethod(store, 'factory') ? store.factory() : store
}
