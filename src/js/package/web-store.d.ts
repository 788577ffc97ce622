import type { LockStore } from './index.js'

/** Which store it is. */
export interface WebStoreOptions {
  /** Stores of one name share their locks: `'verrou'` unless told otherwise. */
  name?: string
}

/** A lock that is held. */
export interface HeldLock {
  /** The lock's name. */
  key: string
  /** The fencing token, which identifies the grant. */
  fence: number
  /** When it was acquired, in milliseconds since 1970 (UTC). */
  since: number
  /** When its lease ends, in milliseconds since 1970 (UTC); `null` when it does not end by itself. */
  ends: number | null
}

/**
 * A store whose locks the tabs and workers of one origin share, in one browser and profile.
 *
 * A lease ends with the tab or worker that took it, however that ends, unless it was serialized. A
 * fencing token grows for as long as the browser keeps the origin's data; "relaxed" is what
 * IndexedDB promises of power failures.
 *
 * All scripts of an origin are one user: each can read the records, release and forge them, and steal the Web Lock
 * that says that a tab lives. The holder's next renewal then fails with `E_LOCK_LOST`, and the next holder has a greater
 * fencing token unless the records were forged. Other origins can do none of that.
 *
 * The time is the wall clock's, for tabs share no other: when that is set, leases end sooner or later.
 * Browsers slow the timers of hidden tabs down to one in a minute: renew there with a ttl of some
 * minutes.
 */
export interface WebStore extends LockStore {
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  delete(key: string, owner: string): Promise<void>
  forceDelete(key: string): Promise<void>
  exists(key: string): Promise<boolean>
  extend(key: string, owner: string, ttl: number | null): Promise<void>
  fence(key: string, owner: string): number | null
  wait(key: string, atMost: number, signal: AbortSignal): Promise<void>
  detach(key: string, owner: string): Promise<void>
  /** What is held, by whomever. */
  list(): Promise<HeldLock[]>
  /** Ends it: leases that were taken by it and not serialized end, too. */
  close(): void
}

/**
 * The store of this origin.
 *
 * @throws `E_INVALID_STORE` where there is no IndexedDB, no Web Locks or no BroadcastChannel: outside
 *   browsers, and in pages that are not served over https or from localhost.
 */
export function webStore(options?: WebStoreOptions): WebStore
