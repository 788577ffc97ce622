/**
 * The contract of `@verrou/core` 0.5.2, on the core of this package. A program only has to change its import.
 *
 * The differences:
 *
 * - `attempts` that are not a whole number from 1, and a ttl that is not above zero, are refused. (In
 *   `@verrou/core`, `attempts: 0` acquires nothing and returns true; a ttl of 0 never expires.)
 * - By default there is no timeout. (In `@verrou/core`, it is 30 seconds.) With a timeout, the last attempt is
 *   made at its end.
 * - `run` returns the callback's result, and throws its error, even if the lease expired before the callback
 *   ended.
 * - Each acquisition has an owner token of its own, of 128 random bits, so that overlapping `run`s of one
 *   lock do not release each other. `getOwner()` returns that of the latest. A given owner is used as
 *   it is.
 * - A lost lease (expired or revoked) can be neither extended nor released: `E_LOCK_NOT_OWNED`,
 *   in every store. A lease expires exactly at the millisecond of its end.
 * - After a release nothing remains of the lease: `getRemainingTime()` returns `null`.
 * - An error of a store becomes the `cause` of an `E_LOCK_STORAGE_ERROR`.
 * - The memory store excludes, and a release wakes its waiters, except for locks with a given owner, such as restored
 *   ones, which retry after the delay.
 */

import type { LockStore as MainLockStore } from '../index.js'

/**
 * A length of time: milliseconds, a text such as `'500ms'`, `'1.5s'` or `'2 minutes'` as
 * [`@lukeed/ms`](https://github.com/lukeed/ms) reads it, or `null` for no limit.
 */
export type Duration = number | string | null

/** The factory of a store in the configuration. */
export interface StoreFactory {
  driver: {
    /** Makes the store. Called once, at the store's first use. */
    factory: () => LockStore
  }
}

/** A serialized lock, for transfer to another process. It can be converted to JSON. */
export interface SerializedLock {
  /** The lock's name. */
  key: string
  /** The owner. It allows a process to extend and release the lock. */
  owner: string
  /** The ttl of its leases, in milliseconds; `null` for no expiry. Extensions do not change it. */
  ttl: number | null
  /** The time when its lease expires, in milliseconds since 1970; `null` when it does not, or there is none. */
  expirationTime: number | null
}

/** How often, and for how long, to retry while another owner holds the lock. */
export interface RetryConfig {
  /**
   * The maximum number of attempts, a whole number from 1.
   *
   * @default Infinity
   */
  attempts?: number
  /**
   * The pause between two attempts. Zero means one millisecond. The memory store ends the pause when the
   * lock is released.
   *
   * @default 250
   */
  delay?: Duration
  /**
   * The time limit for all attempts; zero and `null` mean no limit.
   *
   * @default null
   */
  timeout?: Duration
}

/** How to acquire a lock. */
export interface LockAcquireOptions {
  /** Replaces the members of the factory's policy that it has. */
  retry?: RetryConfig
}

/** A logger, used at the level `debug` alone. */
export interface Logger {
  /** Returns a logger that adds `fields` to its messages. */
  child(fields: { pkg: string }): Logger
  /** Logs an acquisition, extension or release; `key` is the lock's name. */
  debug(fields: { key: string }, message: string): void
}

/** The defaults of a factory's locks. */
export interface LockFactoryOptions {
  /** The retry policy of acquire requests that do not set their own. */
  retry?: RetryConfig
  /** The logger. Nothing is logged by default. */
  logger?: Logger
}

/** A configuration in which every length of time is in milliseconds. */
export interface ResolvedLockConfig {
  retry: { attempts?: number; delay?: number; timeout?: number }
  logger: Logger
}

/**
 * A store of locks: one of `@verrou/core`, of this package, or your own. An error of its
 * methods becomes an `E_LOCK_STORAGE_ERROR`, unless its `code` is `'E_LOCK_NOT_OWNED'`.
 */
export interface LockStore {
  /**
   * Records that `owner` holds `key` for `ttl` milliseconds, or without expiry. Returns false when any owner
   * holds it, also when `owner` does.
   */
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  /** Removes `owner`'s record; if there is none, throws `E_LOCK_NOT_OWNED`. */
  delete(key: string, owner: string): Promise<void>
  /** Removes the record of any owner. */
  forceDelete(key: string): Promise<void>
  /** Returns whether any owner holds `key` now. */
  exists(key: string): Promise<boolean>
  /** Extends `owner`'s record to `duration` milliseconds from now; throws as `delete`. */
  extend(key: string, owner: string, duration: number): Promise<void>
}

/**
 * Wraps another store of this package, such as `fileStore(directory)`, for the configuration of this `Verrou`
 * or that of `@verrou/core`.
 *
 * The wrapper refuses an owner that holds the lock already, as in `@verrou/core`. But two processes that
 * acquire for the same owner at the same moment could both be granted the lock. In `@verrou/core`, the leases of
 * such a store end with the process that acquired them, serialized or not: only this package detaches them.
 *
 * @throws `E_INVALID_ARGUMENTS_EXCEPTION`.
 */
export function driver(store: MainLockStore): { factory: () => LockStore }

/** The result of `run`: true and the callback's result, or false if the callback was not called. */
export type RunResult<T> = [true, T] | [false, null]

/** A lock that can be acquired. */
export class Lock {
  /**
   * @param key The lock's name: 1 to 1,024 bytes in UTF-8.
   * @param lockStore The store.
   * @param config The retry policy and the logger.
   * @param owner The owner of all acquisitions, which may hold the lock already; by default, each acquisition
   *   has a new one.
   * @param ttl The ttl of its leases, in milliseconds; by default, they do not expire.
   * @param expirationTime The time when the lease that `owner` holds expires, in milliseconds since 1970.
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
  /** Returns the owner of the latest acquisition; before the first, the owner of the next. */
  getOwner(): string
  /** Serializes the lock, for `restoreLock`. */
  serialize(): SerializedLock
  /**
   * Acquires the lock, and waits while another owner holds it. Returns false when the policy ended first.
   * Locks are not reentrant: a second acquisition waits for the first.
   *
   * @throws `E_LOCK_STORAGE_ERROR`; `E_INVALID_ARGUMENTS_EXCEPTION`.
   */
  acquire(options?: LockAcquireOptions): Promise<boolean>
  /**
   * Acquires the lock if it is free now, and returns whether it was.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  acquireImmediately(): Promise<boolean>
  /**
   * Acquires the lock, calls `callback`, and releases the lock. Returns `[true, result]`, or
   * `[false, null]` when the lock could not be acquired.
   *
   * @throws The error of `callback`. `E_LOCK_STORAGE_ERROR`; if the release failed, its `value` is the
   *   callback's result.
   */
  run<T>(callback: () => T | Promise<T>): Promise<RunResult<T>>
  /** Does the same as `run`, if the lock is free now. */
  runImmediately<T>(callback: () => T | Promise<T>): Promise<RunResult<T>>
  /**
   * Force-releases the lock, whichever owner holds it.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  forceRelease(): Promise<void>
  /**
   * Releases the lock.
   *
   * @throws `E_LOCK_NOT_OWNED` when it is not held, or not any more; `E_LOCK_STORAGE_ERROR`, after which the
   *   release can be retried.
   */
  release(): Promise<void>
  /** Returns whether the lease has expired; false if there is none. Sends no request to the store. */
  isExpired(): boolean
  /**
   * Returns the remaining time of the lease, in milliseconds: below zero after it has expired, `null` when
   * there is no lease, or it does not expire. Sends no request to the store.
   */
  getRemainingTime(): number | null
  /**
   * Extends the lease to `ttl` from now, by default to the lock's own ttl. This can shorten it.
   *
   * @throws `E_LOCK_NOT_OWNED` when the lock is not held, or not any more;
   *   `E_INVALID_ARGUMENTS_EXCEPTION` when neither `ttl` nor the lock has a ttl;
   *   `E_LOCK_STORAGE_ERROR`.
   */
  extend(ttl?: Duration): Promise<void>
  /**
   * Returns whether any owner holds the lock.
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
   * Makes a lock called `name`, whose leases last `ttl`, by default 30 seconds. Sends no request to the
   * store.
   *
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION`: names have 1 to 1,024 bytes in UTF-8, and no lone surrogates, and a number
   *   names the lock of its decimal form.
   */
  createLock(name: string, ttl?: Duration): Lock
  /**
   * Restores a lock from the result of `serialize`, of this or another process. Sends no request to the
   * store.
   *
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION`.
   */
  restoreLock(lock: SerializedLock): Lock
}

/** The locks of several stores, one of which is the default. */
export class Verrou<KnownStores extends Record<string, StoreFactory>> {
  constructor(config: { default: keyof KnownStores; stores: KnownStores; logger?: Logger })
  /**
   * Returns the factory of a store: the same at each call.
   *
   * @throws `E_INVALID_ARGUMENTS_EXCEPTION` when no store has this name.
   */
  use<T extends keyof KnownStores>(store?: T): LockFactory
  /** Calls `createLock` of the default store. */
  createLock(name: string, ttl?: Duration): Lock
  /** Calls `restoreLock` of the default store. */
  restoreLock(lock: SerializedLock): Lock
}

/** The base of all errors. */
export interface Exception<Code extends string = string> extends Error {
  /** The code of the error. */
  readonly code: Code
  /** The status of an HTTP response for this error: 500. */
  readonly status: number
  /** The callback's result, in an `E_LOCK_STORAGE_ERROR` of `run` whose callback had ended. */
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

/** Thrown by `extend` and `release` of a lock that is not held, or not any more. */
export const E_LOCK_NOT_OWNED: ExceptionClass<'E_LOCK_NOT_OWNED', []>
/** Thrown when the store failed: `cause` is the error that it threw. */
export const E_LOCK_STORAGE_ERROR: ExceptionClass<
  'E_LOCK_STORAGE_ERROR',
  [string | { message: string }]
>

/** Thrown for invalid arguments: its message says which. */
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
