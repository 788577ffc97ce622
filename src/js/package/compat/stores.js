/** The store in memory, and the wrappers between a lock with a given owner and its store. */
// Imported by the package's own name, which loads the core as the platform requires.
import 'verrou-wasm'

import { nameOf, ownerOf } from '../arguments.js'
import { Lock as CoreLock, Retry, Store } from '../core/verrou.js'
import { hasMethod, jsonOf } from '../options.js'
import { ownedBy, wrapped } from '../store-methods.js'
import { coreStore as storeOf } from '../verrou.js'
import { E_LOCK_NOT_OWNED, InvalidArgumentsException, translateErrors } from './errors.js'
import { ttlOf } from './duration.js'

export const ONCE = new Retry().with(1)

const HEX = /^[0-9a-f]{32}$/

/** Returns a random owner token, in the core's form. */
export function drawnOwner() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
}

/** Returns the lock that `owner`, in the core's form, holds until `expirationTime` at most. */
export function heldLock(core, key, owner, ttl, expirationTime = null) {
  const expires = expirationTime === null ? null : Math.max(0, Math.ceil(expirationTime))
  const text = { version: 1, name: key, owner, ttl, expires, fence: null }
  return CoreLock.restore(core, jsonOf(text))
}

/** The core's store in memory, with the methods of a store. */
export class MemoryStore {
  #core = Store.memory()

  async save(key, owner, ttl) {
    return this.#ask(key, ttlOf(ttl), (lock) => {
      const mine = coreOwner(owner)
      // The core lets the holder acquire the lock again. Operations of its memory store return no promises, so
      // that nothing happens between these two.
      const holder = lock.holder()
      const held = holder !== undefined
      holder?.free()
      return !held && attempted(() => lock.acquire(ONCE, false, undefined, mine))
    })
  }

  async delete(key, owner) {
    this.#askFor(key, owner, (lock) => lock.release())
  }

  async forceDelete(key) {
    this.#ask(key, null, (lock) => lock.forceRelease())
  }

  async exists(key) {
    return this.#ask(key, null, (lock) => {
      const holder = lock.holder()
      holder?.free()
      return holder !== undefined
    })
  }

  async extend(key, owner, duration) {
    const ttl = ttlOf(duration)
    this.#askFor(key, owner, (lock) => lock.extend(ttl))
  }

  #ask(key, ttl, ask) {
    return translateErrors(() => used(new CoreLock(this.#core, nameOf(key), ttl), ask))
  }

  #askFor(key, owner, ask) {
    return translateErrors(() => used(heldLock(this.#core, nameOf(key), coreOwner(owner), null), ask))
  }

  /** Returns the core's store of `store`. */
  static coreOf(store) {
    // Methods that replace these must be called, so such a store is not used directly.
    const isPlain = #core in store && Object.getPrototypeOf(store) === MemoryStore.prototype
    return isPlain && Object.keys(store).length === 0 ? store.#core : undefined
  }
}

function used(lock, ask) {
  try {
    return ask(lock)
  } finally {
    lock.free()
  }
}

/** Returns the result of `acquire`; `false` when another owner holds the lock. */
function attempted(acquire) {
  try {
    return acquire()
  } catch (error) {
    if (error.code === 'E_LOCK_TIMEOUT') return false
    throw error
  }
}

/**
 * Returns `owner` in the core's form. An owner of another form is hashed by FNV-1a of 128 bits, which needs no
 * promise. The hash only has to distinguish the owners within one process.
 */
function coreOwner(owner) {
  if (owner !== '') ownerOf(owner)
  if (HEX.test(owner)) return owner
  let hash = 0x6c62272e07bb014262b821756295c58dn
  for (const byte of new TextEncoder().encode(owner)) {
    hash = BigInt.asUintN(128, (hash ^ BigInt(byte)) * 0x1000000000000000000013bn)
  }
  return hash.toString(16).padStart(32, '0')
}

/** Returns the core's store of `store`. */
export function coreStore(store) {
  if (store === null || typeof store !== 'object') {
    throw new InvalidArgumentsException('A store is an object with the methods of `LockStore`')
  }
  return MemoryStore.coreOf(store) ?? translateErrors(() => storeOf(store))
}

/**
 * Returns a wrapper of `store` that refuses an owner that holds the lock already, as this contract requires. The
 * stores of this package may grant it again. Stores that refuse by themselves pay for an additional request.
 */
function notReentrant(store) {
  const saves = new Map()
  return wrapped(store, {
    /** Saves one after the other: otherwise one owner could be granted the lock twice between two operations. */
    save(key, owner, ttl) {
      const before = saves.get(key) ?? Promise.resolve()
      const saved = before.then(async () => !(await store.exists(key)) && store.save(key, owner, ttl))
      const end = () => {
        if (saves.get(key) === done) saves.delete(key)
      }
      const done = saved.then(end, end)
      saves.set(key, done)
      return saved
    },
    async delete(key, owner) {
      await translateNotOwner(() => store.delete(key, owner))
    },
    async forceDelete(key) {
      await store.forceDelete(key)
    },
    async exists(key) {
      return store.exists(key)
    },
    async extend(key, owner, duration) {
      await translateNotOwner(() => store.extend(key, owner, duration))
    },
  })
}

async function translateNotOwner(ask) {
  try {
    return await ask()
  } catch (error) {
    if (error?.code === 'E_LOCK_NOT_OWNER') throw new E_LOCK_NOT_OWNED([], { cause: error })
    throw error
  }
}

/** The wrapper of each store. */
const wrappers = new WeakMap()

export function driver(store) {
  coreStore(store)
  return { factory: () => withoutReentrancy(store) }
}

/** Returns `store` with the contract of `@verrou/core`. */
function withoutReentrancy(store) {
  if (store instanceof MemoryStore) return store
  const known = wrappers.get(store)
  if (known !== undefined) return known
  const made = notReentrant(store)
  wrappers.set(store, made)
  // A wrapper needs none.
  wrappers.set(made, made)
  return made
}

/**
 * Returns a wrapper of `store` for one owner, which may be any text. It replaces the core's owner tokens, one for each
 * acquisition, by that owner. `granted` is the core's owner token of the grant that is held already.
 *
 * An acquisition must not release the grant of another. The store cannot distinguish them, but this wrapper can.
 */
export function ownedStore(store, owner, granted) {
  // Stores with `wait` are this package's; the stores of `@verrou/core` refuse by themselves.
  const owned = ownedBy(hasMethod(store, 'wait') ? withoutReentrancy(store) : store, owner)
  const assertGrant = (grant) => {
    if (grant !== granted) throw new E_LOCK_NOT_OWNED()
  }
  return wrapped(owned, {
    async save(key, grant, ttl) {
      try {
        const saved = await owned.save(key, owner, ttl)
        if (saved) granted = grant
        return saved
      } catch (error) {
        // The lock may have been granted: the core is about to release it.
        granted ??= grant
        throw error
      }
    },
    async delete(key, grant) {
      assertGrant(grant)
      await owned.delete(key, owner)
      if (granted === grant) granted = undefined
    },
    extend(key, grant, ttl) {
      assertGrant(grant)
      return owned.extend(key, owner, ttl)
    },
    renew(key, grant, ttl, fence) {
      assertGrant(grant)
      return owned.renew(key, owner, ttl, fence)
    },
    detach(key, grant) {
      assertGrant(grant)
      return owned.detach(key, owner)
    },
  })
}
