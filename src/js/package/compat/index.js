import { callbackOf, described, nameOf, objectOf, ownerOf } from '../arguments.js'
import { Lock as CoreLock, Retry } from '../core/verrou.js'
import { assertUsable } from '../errors.js'
import { hasMethod } from '../options.js'
import { millis, ttlOf } from './duration.js'
import {
  E_LOCK_NOT_OWNED,
  E_LOCK_STORAGE_ERROR,
  InvalidArgumentsException,
  errors,
  translateErrors,
  translated,
} from './errors.js'
import { ONCE, coreStore, drawnOwner, heldLock, ownedStore } from './stores.js'

export { E_LOCK_NOT_OWNED, E_LOCK_STORAGE_ERROR, errors }
export { driver } from './stores.js'

const DEFAULT_TTL = 30_000

/** The core's maximum number of attempts. More are treated as no limit. */
const MOST_ATTEMPTS = 2 ** 32 - 1

const NO_LIMIT = new Retry()

/** Returns a copy of the options of `where`. `null` is as `undefined`, as in `@verrou/core`. */
function optional(options, where) {
  return objectOf(where, options ?? undefined, InvalidArgumentsException)
}

function policy(base, retry) {
  const { attempts, delay, timeout } = optional(retry, '`retry`')
  const most = Number.isInteger(attempts) && attempts > MOST_ATTEMPTS ? Infinity : attempts
  return translateErrors(() => base.with(most, pause(delay), undefined, limit(timeout)))
}

/** Reads a retry delay. `null` is as `undefined`; zero is one millisecond, as in `@verrou/core`. */
function pause(delay) {
  if (delay === undefined || delay === null) return undefined
  return delay === 0 ? 1 : millis(delay)
}

/**
 * Reads a retry timeout. As in `@verrou/core`, zero is no limit, and a limit ends when more than its whole
 * milliseconds have passed.
 */
function limit(timeout) {
  if (timeout === undefined) return undefined
  const length = timeout === 0 ? null : millis(timeout)
  return length > 0 ? length + 1 : length
}

const SILENT = { child: () => SILENT, log() {}, trace() {}, debug() {} }

function loggerOf(logger = SILENT) {
  return checkedLogger(checkedLogger(logger, 'child').child({ pkg: 'verrou' }), 'debug')
}

function checkedLogger(logger, method) {
  if (hasMethod(logger, method)) return logger
  throw new InvalidArgumentsException(`A logger has a method \`${method}\`: not ${described(logger)}`)
}

/** The configuration that the locks of a factory share. */
class Resolved {
  static #all = new WeakSet()

  constructor(policy, logger) {
    this.policy = policy
    this.logger = logger
    Resolved.#all.add(this)
  }

  /** Returns whether `config` is one. `instanceof` would call code of a proxy. */
  static is(config) {
    return Resolved.#all.has(config)
  }
}

export class Lock {
  #key
  #store
  #ttl
  #policy
  #logger
  /** The owner of the latest acquisition; before the first, the owner of the next. */
  #owner
  /** Whether the owner was passed to the constructor, and never changes. */
  #isGiven
  /** The core lock that draws a new owner for each acquisition. */
  #drawing
  /** The core lock that acquires for an owner that was returned or given before. */
  #owned
  /** Whether `#owned` is the one that acquires next. */
  #isOwnedNext = false
  /** The one of the two that acquired last. */
  #latest
  #expirationTime = null

  constructor(key, lockStore, config, owner, ttl, expirationTime) {
    this.#key = translateErrors(() => nameOf(key))
    this.#store = lockStore
    this.#ttl = ttlOf(ttl ?? null)
    if (Resolved.is(config)) {
      this.#policy = config.policy
      this.#logger = config.logger
    } else {
      const { retry, logger } = optional(config, 'configuration of a lock')
      this.#policy = policy(NO_LIMIT, retry)
      this.#logger = checkedLogger(logger ?? SILENT, 'debug')
    }
    this.#isGiven = owner !== undefined && owner !== null
    if (this.#isGiven) {
      this.#expirationTime = instant(expirationTime)
      this.#own(owner)
    } else {
      this.#drawing = translateErrors(() => new CoreLock(coreStore(lockStore), this.#key, this.#ttl))
      this.#latest = this.#drawing
    }
  }

  getOwner() {
    if (this.#owner === undefined) this.#own(drawnOwner())
    return this.#owner
  }

  serialize() {
    assertUsable()
    const owner = this.getOwner()
    // In a store with ephemeral leases, this lease must not end with the process any more.
    if (hasMethod(this.#store, 'detach') && this.#latest.owner !== undefined) {
      translateErrors(() => this.#latest.serialize(false))
    }
    const expirationTime = this.#latest.remaining() === undefined ? null : this.#expirationTime
    return { key: this.#key, owner, ttl: this.#ttl, expirationTime }
  }

  async acquire(options) {
    const wanted = optional(options, 'options of `acquire`').retry
    const retry = wanted === undefined ? this.#policy : policy(this.#policy, wanted)
    return this.#acquire(retry, false, 'Lock acquired')
  }

  async acquireImmediately() {
    return this.#acquire(ONCE, false, 'Lock acquired with acquireImmediately()')
  }

  async run(callback) {
    translateErrors(() => callbackOf(callback, 'the callback'))
    return this.#during(await this.#acquire(this.#policy, true, 'Lock acquired'), callback)
  }

  async runImmediately(callback) {
    translateErrors(() => callbackOf(callback, 'the callback'))
    const held = await this.#acquire(ONCE, true, 'Lock acquired with acquireImmediately()')
    return this.#during(held, callback)
  }

  async forceRelease() {
    await this.#ask((core) => core.forceRelease())
  }

  async release() {
    // A lock that was never acquired here may be held by the owner that `getOwner` returned.
    this.getOwner()
    await this.#ask((core) => core.release())
    this.#logger.debug({ key: this.#key }, 'Lock released')
  }

  isExpired() {
    const left = this.getRemainingTime()
    return left !== null && left <= 0
  }

  getRemainingTime() {
    assertUsable()
    const left = this.#latest.remaining()
    if (left === undefined) return null
    const byWallClock = this.#expirationTime - Date.now()
    // The wall clock may be set back. The core's clock may stop while the machine is suspended.
    return Math.min(byWallClock, Math.ceil(left))
  }

  async extend(ttl) {
    const length = ttl === undefined || ttl === null ? this.#ttl : ttlOf(ttl)
    if (length === null) throw new InvalidArgumentsException('Cannot extend a lock without TTL')
    this.getOwner()
    await this.#ask((core) => core.extend(length))
    this.#noteExpiration()
    this.#logger.debug({ key: this.#key, newTtl: this.#expirationTime }, 'Lock extended')
  }

  async isLocked() {
    const holder = await this.#ask((core) => core.holder())
    holder?.free()
    return holder !== undefined
  }

  /** Makes `owner` the owner of the next acquisition. It may hold the lock already. */
  #own(owner) {
    translateErrors(() => ownerOf(owner))
    coreStore(this.#store)
    const grant = drawnOwner()
    this.#owned = translateErrors(() => {
      const store = coreStore(ownedStore(this.#store, owner, grant))
      return heldLock(store, this.#key, grant, this.#ttl, this.#expirationTime)
    })
    this.#isOwnedNext = true
    this.#owner = owner
    this.#latest = this.#owned
  }

  async #ask(ask) {
    assertUsable()
    try {
      return await ask(this.#latest)
    } catch (error) {
      throw translated(error)
    }
  }

  /** Acquires the lock. Returns `false` if that failed; the grant if that is `wanted`, `true` otherwise. */
  async #acquire(retry, wanted, message) {
    assertUsable()
    const isOwned = this.#isOwnedNext
    const core = isOwned ? this.#owned : this.#drawing
    // An owner that `getOwner` has returned is that of one acquisition, unless it was given.
    this.#isOwnedNext = this.#isGiven
    let held
    try {
      held = await core.acquire(retry, wanted)
    } catch (error) {
      if (isOwned && this.#latest === core) this.#isOwnedNext = true
      if (error?.code === 'E_LOCK_TIMEOUT' || error?.code === 'E_LOCK_LOST') return false
      throw translated(error)
    }
    this.#latest = core
    if (!isOwned) this.#owner = core.owner
    this.#noteExpiration()
    this.#logger.debug({ key: this.#key }, message)
    return held
  }

  /** Sets the expiration time, rounded up to whole milliseconds as in `@verrou/core`. */
  #noteExpiration() {
    const left = this.#latest.remaining()
    this.#expirationTime = left === undefined ? null : Date.now() + Math.ceil(left)
  }

  /** Calls `callback`, then releases the lock. Returns or throws the result of `callback`. */
  async #during(held, callback) {
    if (held === false) return [false, null]
    let value, failure
    let failed = false
    try {
      value = await callback()
    } catch (error) {
      failed = true
      failure = error
    }
    try {
      await held.release()
      this.#logger.debug({ key: this.#key }, 'Lock released')
    } catch (error) {
      const why = translated(error)
      this.#logger.debug({ key: this.#key, err: why }, 'Lock was not held until the end of its run')
      if (!failed && !(why instanceof E_LOCK_NOT_OWNED)) throw Object.assign(why, { value })
    } finally {
      held.free()
    }
    if (failed) throw failure
    return [true, value]
  }
}

/** Checks a time in milliseconds since 1970, or `null`, and returns it. */
function instant(time = null) {
  if (time === null || Number.isFinite(time)) return time
  throw new InvalidArgumentsException('`expirationTime` is milliseconds since 1970, or null')
}

export class LockFactory {
  #store
  #config

  constructor(store, options) {
    const { retry, logger } = optional(options, 'options of `LockFactory`')
    coreStore(store)
    this.#store = store
    this.#config = new Resolved(policy(NO_LIMIT, retry), loggerOf(logger))
  }

  createLock(name, ttl = DEFAULT_TTL) {
    return new Lock(name, this.#store, this.#config, undefined, ttlOf(ttl))
  }

  restoreLock(serialized) {
    const { key, owner, ttl, expirationTime } = objectOf('serialized lock', serialized ?? null, InvalidArgumentsException)
    if (owner === undefined || owner === null) {
      throw new InvalidArgumentsException('What is to be restored has no owner')
    }
    return new Lock(key, this.#store, this.#config, owner, ttl, expirationTime)
  }
}

export class Verrou {
  #config
  #logger
  #factories = new Map()

  constructor(config) {
    this.#config = objectOf('configuration of `Verrou`', config ?? null, InvalidArgumentsException)
    this.#logger = loggerOf(this.#config.logger)
  }

  use(store) {
    const name = store ?? this.#config.default
    const known = this.#factories.get(name)
    if (known !== undefined) return known
    const { stores } = this.#config
    if (!name) throw new InvalidArgumentsException('No store provided')
    const all = optional(stores, '`stores`')
    if (typeof name !== 'string' || !Object.hasOwn(all, name)) {
      const names = Object.keys(all).join(', ')
      throw new InvalidArgumentsException(`No store is called ${described(name)}: there are ${names}`)
    }
    const { driver } = optional(all[name], `store \`${name}\``)
    if (!hasMethod(driver, 'factory')) {
      throw new InvalidArgumentsException(`The store \`${name}\` has no \`driver\` with a method \`factory\``)
    }
    const factory = new LockFactory(driver.factory(), { logger: this.#logger })
    this.#factories.set(name, factory)
    return factory
  }

  createLock(name, ttl) {
    return this.use().createLock(name, ttl)
  }

  restoreLock(serialized) {
    return this.use().restoreLock(serialized)
  }
}
