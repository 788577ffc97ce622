/**
 * The contract of `@verrou/core` 0.5.2, on the core of this package: change the import, and keep the
 * program.
 *
 * What differs, each for the better:
 *
 * - `attempts` that are no whole number from 1, and a ttl that is not above zero, are refused. (There,
 *   `attempts: 0` acquires nothing and returns true; a ttl of 0 never expires.)
 * - Without a timeout there is none. (There, it is 30 seconds.) With one, the last attempt is made at
 *   its end.
 * - `run` returns what the callback returned, and throws what it threw, even if the lease ran out
 *   before it was done.
 * - Each acquisition has an owner of its own, of 128 random bits, so that overlapping `run`s of one
 *   lock do not release each other. `getOwner()` is that of the latest; one that is given is used as
 *   it is.
 * - A lease that ran out, or was taken, can be neither extended nor released: `E_LOCK_NOT_OWNED`,
 *   whatever the store. A lease is over at the very millisecond that it ends.
 * - After a release nothing remains of the lease, `getRemainingTime()` included.
 * - What a store throws becomes an `E_LOCK_STORAGE_ERROR`, with that as its `cause`.
 * - The memory store excludes, and wakes who waits.
 */

import type { LockStore as MainLockStore } from '../index.js'

/**
 * A length of time: milliseconds, a text such as `'500ms'`, `'1.5s'` or `'2 minutes'` as
 * [`@lukeed/ms`](https://github.com/lukeed/ms) reads it, or `null` for one without end.
 */
export type Duration = number | string | null

/** What makes a store, as the configuration names it. */
export interface StoreFactory {
  driver: {
    /** Called once, when the store is used first. */
    factory: () => LockStore
  }
}

/** A lock written down, to be handed to another process: safe to be made JSON of. */
export interface SerializedLock {
  /** The lock's name. */
  key: string
  /** Whose it is: whoever knows it can extend and release the lock. */
  owner: string
  /** How long its leases last, in milliseconds; `null` for ever. Extensions do not change it. */
  ttl: number | null
  /** When its lease ends, in milliseconds since 1970; `null` when it does not, or there is none. */
  expirationTime: number | null
}

/** How often, and for how long, to ask for a lock that another holds. */
export interface RetryConfig {
  /**
   * How many attempts to make in all, a whole number from 1.
   *
   * @default Infinity
   */
  attempts?: number
  /**
   * The pause between two attempts. Zero is a millisecond. The memory store ends it early when the
   * lock is released.
   *
   * @default 250
   */
  delay?: Duration
  /**
   * For how long to try, in all; zero and `null` are without limit.
   *
   * @default null
   */
  timeout?: Duration
}

/** How to take a lock. */
export interface LockAcquireOptions {
  /** What is left out is as the factory has it. */
  retry?: RetryConfig
}

/** What is told about locks: at the level of debugging alone. */
export interface Logger {
  /** A logger that adds `fields` to what it is told. */
  child(fields: { pkg: string }): Logger
  /** Told of each acquisition, extension and release; `key` is the lock's name. */
  debug(fields: { key: string }, message: string): void
}

/** What every factory's locks share. */
export interface LockFactoryOptions {
  /** How often to ask, unless a lock is told otherwise. */
  retry?: RetryConfig
  /** Silent, unless there is one. */
  logger?: Logger
}

/** A configuration in which every length of time is one of milliseconds. */
export interface ResolvedLockConfig {
  retry: { attempts?: number; delay?: number; timeout?: number }
  logger: Logger
}

/**
 * Where locks are kept: one of `@verrou/core`'s stores, of this package's, or of your own. What its
 * methods throw becomes an `E_LOCK_STORAGE_ERROR`, unless its `code` is `'E_LOCK_NOT_OWNED'`.
 */
export interface LockStore {
  /**
   * Records that `owner` holds `key` for `ttl` milliseconds, or without end: false when it is held,
   * by `owner` included.
   */
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  /** Removes `owner`'s record; if there is none, throws `E_LOCK_NOT_OWNED`. */
  delete(key: string, owner: string): Promise<void>
  /** Removes the record, whosever it is. */
  forceDelete(key: string): Promise<void>
  /** Whether anybody holds `key` now. */
  exists(key: string): Promise<boolean>
  /** Lets `owner`'s record last `duration` milliseconds from now; throws as `delete`. */
  extend(key: string, owner: string, duration: number): Promise<void>
}

/**
 * Another of this package's stores, such as `fileStore(folder)`, as the configuration wants it: that
 * of `Verrou` here, and that of `@verrou/core`.
 *
 * It refuses an owner who holds the lock already, as it is there; but two processes that ask for the
 * same owner at the same moment could both be granted it. In `@verrou/core` the leases of a store
 * such as this last no longer than the process that took them, serialized or not: only here is the
 * store told that they are handed over.
 *
 * @throws `E_INVALID_ARGUMENTS_EXCEPTION`.
 */
export function driver(store: MainLockStore): { factory: () => LockStore }

/** What `run` returns: what the callback did, or that it was not called. */
export type RunResult<T> = [true, T] | [false, null]

/** A lock that may be taken. */
export class Lock {
  /**
   * @param key The lock's name: 1 to 1,024 bytes in UTF-8.
   * @param lockStore Where it is kept.
   * @param config How often to ask, and whom to tell.
   * @param owner For whom it is acquired, and who may hold it already; drawn for each acquisition
   *   where it is left out.
   * @param ttl How long its leases last, in milliseconds; for ever where it is left out.
   * @param expirationTime When the lease that `owner` holds ends, in milliseconds since 1970.
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION`.
   */
  constructor(
    key: string,
    lockStore: LockStore,
    config: ResolvedLockConfig,
    owner?: string,
    ttl?: number | null,
    expirationTime?: number | null
  )
  /** The owner of the latest acquisition; before the first, the one that it will be made for. */
  getOwner(): string
  /** Writes the lock down, for `restoreLock`. */
  serialize(): SerializedLock
  /**
   * Takes the lock, waiting while another holds it: false when the policy ended first. Not reentrant:
   * who takes it twice waits for itself.
   *
   * @throws `E_LOCK_STORAGE_ERROR`; `E_INVALID_ARGUMENTS_EXCEPTION`.
   */
  acquire(options?: LockAcquireOptions): Promise<boolean>
  /**
   * Takes the lock if it is free now: whether it was.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  acquireImmediately(): Promise<boolean>
  /**
   * Takes the lock, calls `callback`, and releases the lock: `[true, what it returned]`, or
   * `[false, null]` when the lock could not be taken.
   *
   * @throws What `callback` threw. `E_LOCK_STORAGE_ERROR`; when it was the release that failed, its
   *   `value` is what the callback returned.
   */
  run<T>(callback: () => T | Promise<T>): Promise<RunResult<T>>
  /** `run`, if the lock is free now. */
  runImmediately<T>(callback: () => T | Promise<T>): Promise<RunResult<T>>
  /**
   * Frees the lock, whoever holds it.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  forceRelease(): Promise<void>
  /**
   * Gives the lock back.
   *
   * @throws `E_LOCK_NOT_OWNED` when it is not, or no longer, held; `E_LOCK_STORAGE_ERROR`, and then it
   *   may be tried again.
   */
  release(): Promise<void>
  /** Whether the lease has run out; not when there is none. The store is not asked. */
  isExpired(): boolean
  /**
   * How much of the lease is left, in milliseconds: below zero once it has run out, `null` when there
   * is none, or it does not end by itself. The store is not asked.
   */
  getRemainingTime(): number | null
  /**
   * Lets the lease last `ttl` from now, or as long as the lock was made for. It may become shorter by
   * that.
   *
   * @throws `E_LOCK_NOT_OWNED` when the lock is not, or no longer, held;
   *   `E_INVALID_ARGUMENTS_EXCEPTION` when neither `ttl` nor the lock says for how long;
   *   `E_LOCK_STORAGE_ERROR`.
   */
  extend(ttl?: Duration): Promise<void>
  /**
   * Whether anybody holds the lock.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  isLocked(): Promise<boolean>
}

/** Makes the locks of one store. */
export class LockFactory {
  /** @throws `E_INVALID_ARGUMENTS_EXCEPTION`. */
  constructor(store: LockStore, options?: LockFactoryOptions)
  /**
   * A lock called `name`, whose leases last `ttl`: 30 seconds unless told otherwise. Nothing is asked
   * of the store yet.
   *
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION`: names have 1 to 1,024 bytes in UTF-8.
   */
  createLock(name: string, ttl?: Duration): Lock
  /**
   * The lock that `serialize` wrote down, here or in another process. Nothing is asked of the store
   * yet.
   *
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION`.
   */
  restoreLock(lock: SerializedLock): Lock
}

/** The locks of several stores, one of which is the default. */
export class Verrou<KnownStores extends Record<string, StoreFactory>> {
  constructor(config: { default: keyof KnownStores; stores: KnownStores; logger?: Logger })
  /**
   * The factory of a store: the same each time.
   *
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION` when no store is called so.
   */
  use<T extends keyof KnownStores>(store?: T): LockFactory
  /** `createLock` of the default store. */
  createLock(name: string, ttl?: Duration): Lock
  /** `restoreLock` of the default store. */
  restoreLock(lock: SerializedLock): Lock
}

/** What is thrown. */
export interface Exception<Code extends string = string> extends Error {
  /** Which of the errors it is. */
  readonly code: Code
  /** As for an answer in HTTP: 500. */
  readonly status: number
  /** Of an `E_LOCK_STORAGE_ERROR` of `run`, whose callback was done: what that returned. */
  readonly value?: unknown
}

/** The class of the errors with one code. */
export interface ExceptionClass<Code extends string, Args> {
  /** `args` are put into the message. */
  new (args?: Args, options?: ErrorOptions): Exception<Code>
  readonly prototype: Exception<Code>
  readonly message: string
  readonly code: Code
  readonly status: number
}

/** Thrown when a lock that is not, or no longer, held is to be extended or released. */
export const E_LOCK_NOT_OWNED: ExceptionClass<'E_LOCK_NOT_OWNED', []>
/** Thrown when the store failed: `cause` is what it threw. */
export const E_LOCK_STORAGE_ERROR: ExceptionClass<
  'E_LOCK_STORAGE_ERROR',
  [string | { message: string }]
>

/** Thrown for what cannot be meant: its message says what is wrong. */
export interface InvalidArgumentsExceptionClass {
  new (message: string, options?: ErrorOptions): Exception<'E_INVALID_ARGUMENTS_EXCEPTION'>
  readonly prototype: Exception<'E_INVALID_ARGUMENTS_EXCEPTION'>
  readonly code: 'E_INVALID_ARGUMENTS_EXCEPTION'
  readonly status: number
}

/** The errors' classes, by their codes. */
export const errors: {
  readonly E_LOCK_NOT_OWNED: typeof E_LOCK_NOT_OWNED
  readonly E_LOCK_STORAGE_ERROR: typeof E_LOCK_STORAGE_ERROR
  readonly E_INVALID_ARGUMENTS_EXCEPTION: InvalidArgumentsExceptionClass
}
