import type { LockStore } from './index.js'

/** The options of {@link webStore}. */
export interface WebStoreOptions {
  /** The store's name, `'verrou'` by default. Stores of one name share their locks. */
  name?: string
}

/** A lock that is held. */
export interface HeldLock {
  /** The lock's name. */
  key: string
  /** The fencing token, which identifies the grant. */
  fence: number
  /** The time of the grant, in milliseconds since 1970 (UTC). */
  since: number
  /** The time when its lease expires, in milliseconds since 1970 (UTC); `null` when it does not. */
  ends: number | null
}

/**
 * A store whose locks the tabs and workers of one origin share, in one browser and profile.
 *
 * A lease is ephemeral: it ends with the tab or worker that acquired it, for any reason, unless it was
 * serialized. A fencing token grows for as long as the browser keeps the origin's data. After a power failure
 * IndexedDB guarantees only "relaxed" durability.
 *
 * All scripts of an origin are one user: each can read the records, release and forge them, and steal the Web Lock
 * that a tab holds as long as it lives. The holder's next renewal then fails with `E_LOCK_LOST`, and the next holder has
 * a greater fencing token unless the records were forged. Scripts of other origins cannot do that.
 *
 * The time is the wall clock's, because tabs share no other clock: when it is set, leases expire sooner or later.
 * Browsers limit the timers of hidden tabs to one per minute: renew there with a ttl of several minutes.
 */
export interface WebStore extends LockStore {
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  delete(key: string, owner: string): Promise<void>
  forceDelete(key: string): Promise<void>
  exists(key: string): Promise<boolean>
  extend(key: string, owner: string, ttl: number | null): Promise<void>
  fence(key: string, owner: string): number | null
  holder(key: string): Promise<{ fence: number; remaining: number | null } | null>
  wait(key: string, atMost: number, signal: AbortSignal): Promise<void>
  detach(key: string, owner: string): Promise<void>
  /** Returns the locks that are held, by any owner. */
  list(): Promise<HeldLock[]>
  /** Closes the store. Leases that it acquired and that were not serialized end, too. */
  close(): void
}

/**
 * Returns the store of this origin.
 *
 * @throws `E_INVALID_STORE` where there is no IndexedDB, no Web Locks or no BroadcastChannel: outside
 *   browsers, and in pages that are not served over https or from localhost; `E_INVALID_ARGUMENT`.
 */
export function webStore(options?: WebStoreOptions): WebStore
