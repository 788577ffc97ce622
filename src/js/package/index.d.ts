declare global {
  // The compiler has this from version 5.2 on, in the library `esnext.disposable`.
  interface SymbolConstructor {
    readonly asyncDispose: unique symbol
  }
}

/**
 * A length of time: milliseconds, a text such as `'1s'`, `'1m 30s'` or `'500ms'`, or `null` for no
 * limit.
 */
export type Duration = number | string | null

/** How often, and for how long, to retry while another owner holds the lock. */
export interface RetryOptions {
  /** The maximum number of attempts, at least 1. No limit by default. */
  attempts?: number | null
  /**
   * The pause between two attempts, 250 ms by default. A store with `wait` wakes the waiter sooner when
   * the lock is free.
   */
  delay?: Duration
  /**
   * Makes the pauses random, up to a length that doubles with each pause, from `delay` to this value:
   * exponential back-off with full jitter.
   */
  maxDelay?: Duration
  /** The time limit for all attempts. The last attempt is made at its end. No limit by default. */
  timeout?: Duration
}

/** How to acquire a lock. */
export interface AcquireOptions {
  /** Replaces the members of the factory's policy that it has. */
  retry?: RetryOptions
  /**
   * Cancels the wait. Its reason is thrown, and nothing is held then: a request that is in flight is
   * awaited, and a grant is released.
   */
  signal?: AbortSignal
}

/** How to do work under a lock. */
export interface RunOptions extends AcquireOptions {
  /**
   * Renews the lease while the work runs, so that it lasts as long as the work. Without it the lease
   * lasts as long as its ttl. A renewal never shortens a longer extension. A store with `renew` revives an
   * expired lease, as after a suspension, if no other owner was granted the lock.
   */
  renew?: boolean
}

/** The grant under which the callback of `run` works. */
export interface Lease {
  /**
   * The grant's fencing token, which grows with every grant of the lock; `null` from a store without
   * fencing tokens. Pass it to the resource that the lock guards, which must refuse smaller tokens.
   */
  readonly fence: bigint | null
  /** Aborted as soon as the lock is lost, with an `E_LOCK_LOST` as its reason. */
  readonly signal: AbortSignal
  /** Returns the remaining time of the lease, in milliseconds; `null` when it does not expire, and 0 after `run` has ended. */
  remaining(): number | null
}

/**
 * The grant of `acquire({ renew: true })`, whose lease is renewed until it is released or lost, also in the background of
 * a module. The renewal keeps the process alive.
 */
export interface RenewedLease extends Lease {
  /**
   * Ends the renewal, and releases the lock. At a second call, returns the first result.
   *
   * @throws `E_LOCK_LOST` if the lock was lost before; `E_LOCK_STORAGE_ERROR`, after which `release` of the lock can be
   *   called, too.
   */
  release(): Promise<void>
  /** Calls `release`, unless that was called before: for `await using`. */
  [Symbol.asyncDispose](): Promise<void>
}

/** The holder of a lock. */
export interface Holder {
  /** The fencing token of the grant; `null` when the store does not return it. */
  fence: bigint | null
  /** The remaining time, in milliseconds; `null` when the lease does not expire, or the store does not return it. */
  remaining: number | null
}

/** A lock that can be acquired: made by `createLock` and `restoreLock`. */
export interface Lock {
  /** Its name. */
  readonly name: string
  /** The fencing token of its latest acquisition, if there was one and the store has fencing tokens. */
  readonly fence: bigint | null
  /**
   * Acquires the lock, and waits while another owner holds it. Locks are not reentrant: a second
   * acquisition waits for the first.
   *
   * Returns the lock itself, so that `await using` releases it at the end of a block.
   *
   * @throws `E_LOCK_TIMEOUT` when the policy ended first; `E_LOCK_STORAGE_ERROR` when the store
   *   failed; `E_INVALID_RETRY`; `E_INVALID_ARGUMENT`; the signal's reason.
   */
  acquire(options?: AcquireOptions & { renew?: false }): Promise<this>
  /**
   * Does the same, and renews the lease until it is released. Returns the grant: its `signal` is aborted as soon as the
   * lock is lost.
   */
  acquire(options: AcquireOptions & { renew: true }): Promise<RenewedLease>
  /**
   * Acquires the lock if it is free now, and returns whether it was.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  acquireImmediately(): Promise<boolean>
  /**
   * Acquires the lock, does the work, releases the lock, and returns the work's result.
   *
   * The work may release the lock itself, which is no loss. (If another object does, such as a restored lock, it is a
   * loss in a store without `renew`, whose records do not show a release.)
   *
   * @throws The error of the work. If the lock was lost meanwhile, throws `E_LOCK_LOST` instead: always if the `signal`
   *   of the lease was aborted. If the lock could not be released, throws `E_LOCK_STORAGE_ERROR`. Both have the work's
   *   result in `value` or its error in `suppressed`. Throws as `acquire` if the work was not begun.
   */
  run<T>(work: (lease: Lease) => T | Promise<T>, options?: RunOptions): Promise<T>
  /**
   * Does the same as `run`, if the lock is free now.
   *
   * @throws As `run`; `E_LOCK_TIMEOUT` when the lock is not free.
   */
  runImmediately<T>(
    work: (lease: Lease) => T | Promise<T>,
    options?: Omit<RunOptions, 'retry'>
  ): Promise<T>
  /**
   * Releases the lock.
   *
   * @throws `E_LOCK_NOT_OWNER` when it was never acquired by this object, or is lost;
   *   `E_LOCK_STORAGE_ERROR`, after which the release can be retried.
   */
  release(): Promise<void>
  /**
   * Force-releases the lock, whichever owner holds it.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  forceRelease(): Promise<void>
  /**
   * Extends the lease to `ttl` from now, by default to the lock's own ttl. This can shorten it.
   *
   * @throws `E_LOCK_NOT_OWNER` when the lock is not held, or the lease has expired; `E_INVALID_TTL`;
   *   `E_LOCK_STORAGE_ERROR`.
   */
  extend(ttl?: Duration): Promise<void>
  /**
   * Returns whether the lease has expired, by `performance.now` or by the wall clock, which goes on while the machine is
   * suspended; false if there is none. Sends no request to the store.
   */
  isExpired(): boolean
  /**
   * Returns the remaining time of the lease, in milliseconds, by the clock by which it expires sooner, 0 after it has
   * expired; `null` when there is no lease, or it does not expire. Sends no request to the store.
   */
  getRemainingTime(): number | null
  /**
   * Returns whether any owner holds the lock.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  isLocked(): Promise<boolean>
  /**
   * Returns the holder of the lock, or `null`.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  holder(): Promise<Holder | null>
  /**
   * Serializes the lease as one line of JSON, for another process, in any language, which restores the
   * lock and can extend and release it. From then on the lease ends by its ttl alone.
   *
   * If the lease is ephemeral, sends a request to the store to detach it, and does not wait for the reply: see
   * `handOver`.
   *
   * @throws `E_LOCK_NOT_OWNER` when the lock is not held; `E_LOCK_NOT_SERIALIZABLE`.
   */
  serialize(): string
  /**
   * Does the same as `serialize`, but waits until the store has confirmed that the lease outlives this process.
   *
   * @throws As `serialize`; `E_LOCK_STORAGE_ERROR`.
   */
  handOver(): Promise<string>
  /** Releases the lock if it is held, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>
}

/** The defaults of a factory's locks. */
export interface LockFactoryOptions {
  /** The retry policy of acquire requests that do not set their own. */
  retry?: RetryOptions
}

/** Makes the locks of one store. */
export class LockFactory {
  /** @throws `E_INVALID_STORE` names the methods that `store` lacks; `E_INVALID_RETRY`. */
  constructor(store: LockStore | MemoryStore, options?: LockFactoryOptions)
  /**
   * Makes a lock called `name`, whose leases last `ttl`, by default 30 seconds. Sends no request to the
   * store.
   *
   * @throws `E_INVALID_NAME`: names have 1 to 1,024 bytes in UTF-8, and no lone surrogates, and a number names the
   *   lock of its decimal form; `E_INVALID_TTL`.
   */
  createLock(name: string | number, ttl?: Duration): Lock
  /**
   * Restores a lock from the text of `serialize`, of this or another process. Sends no request to the
   * store.
   *
   * @throws `E_INVALID_SERIALIZED_LOCK`.
   */
  restoreLock(serialized: string): Lock
}

/** A store, or an object with a factory of stores. */
export type StoreConfig =
  | LockStore
  | MemoryStore
  | { driver: LockStore | MemoryStore | { factory(): LockStore | MemoryStore } }

/** The type `T`, which is not inferred from this place: `NoInfer` of the compiler from version 5.4 on. */
type NotInferred<T> = [T][T extends unknown ? 0 : never]

/** The stores, and their defaults. */
export interface VerrouConfig<Names extends string = string> extends LockFactoryOptions {
  /** The name of the default store. */
  default?: NotInferred<Names>
  /** The stores, each by its name. */
  stores: Record<Names, StoreConfig>
}

/** The locks of several stores, one of which is the default. */
export class Verrou<Names extends string = string> {
  /** @throws `E_INVALID_STORE`. */
  constructor(config: VerrouConfig<Names>)
  /**
   * Returns the factory of the store called `name`, or of the default store: the same at each call.
   *
   * @throws `E_INVALID_STORE`.
   */
  use(name?: Names): LockFactory
  /** Calls `createLock` of the default store. */
  createLock(name: string | number, ttl?: Duration): Lock
  /** Calls `restoreLock` of the default store. */
  restoreLock(serialized: string): Lock
}

/** A store in this process's memory. A release wakes its waiters in first-come order. */
export interface MemoryStore {
  readonly [memory]: true
}
declare const memory: unique symbol

/** Makes a new store in this process's memory. */
export function memoryStore(): MemoryStore

/** The return value of a method that may be async. */
export type Awaitable<T> = T | PromiseLike<T>

/** The result of `save` of a store that counts its grants. */
export interface Granted {
  /** The grant's fencing token: a number that grows with every grant of the key. */
  granted: number | bigint
}

/**
 * A store of locks: any object with these methods. Each method is one atomic operation. An error that
 * it throws becomes the `cause` of an `E_LOCK_STORAGE_ERROR`. If the error has a property `temporary: true`,
 * the operation is retried as the retry policy says.
 */
export interface LockStore {
  /**
   * Records that `owner` holds `key` for `ttl` milliseconds, or without expiry if that is `null`, and returns
   * true, if no owner holds it; returns false otherwise. If the same owner holds it, either result is correct. A store
   * that counts its grants may return the fencing token instead of true; `fence` is not called then.
   */
  save(key: string, owner: string, ttl: number | null): Awaitable<boolean | Granted>
  /** Removes `owner`'s record; if there is none, throws an error whose `code` is `'E_LOCK_NOT_OWNER'`. */
  delete(key: string, owner: string): Awaitable<void>
  /** Removes the record of any owner. */
  forceDelete(key: string): Awaitable<void>
  /** Returns whether any owner holds `key` now. */
  exists(key: string): Awaitable<boolean>
  /**
   * Extends `owner`'s record to `ttl` milliseconds from now; if there is none, or it has expired,
   * throws as `delete`.
   */
  extend(key: string, owner: string, ttl: number | null): Awaitable<void>
  /**
   * Renews the lease of `owner`, granted under `fence`: its record lasts at least `ttl` milliseconds from now,
   * is never made shorter, and is revived after it has expired, unless `key` was granted to another
   * owner or freed since. `'released'` means that `owner` has deleted it. Without this method, `extend` renews.
   */
  renew?(
    key: string,
    owner: string,
    ttl: number | null,
    fence: bigint | null
  ): Awaitable<'granted' | 'released' | 'lost'>
  /**
   * Returns the fencing token of `owner`'s record: a number that grows with every grant of `key`. Called
   * after each `save` that returned true.
   */
  fence?(key: string, owner: string): Awaitable<number | bigint | null>
  /**
   * Returns the fencing token and the remaining time, in milliseconds, of the record of `key`; `null` if no owner holds it.
   * A member without a value in the store is `null`. Without this method, the result of `exists` is used.
   */
  holder?(key: string): Awaitable<{ fence: number | bigint | null; remaining: number | null } | null>
  /**
   * Waits until `key` may be free for `owner`, for `atMost` milliseconds, or until `signal` is
   * aborted. Leaves nothing behind but a ticket in a wait queue, in a store with `giveUp`.
   */
  wait?(key: string, atMost: number, signal: AbortSignal, owner: string): Awaitable<void>
  /**
   * Ends the ticket that `wait` may have kept for `owner`, which does not wait any more. Called at the end
   * of every wait for a key that was not granted. Its errors and rejections are ignored.
   */
  giveUp?(key: string, owner: string): Awaitable<void>
  /**
   * Makes `owner`'s record end by its ttl alone, in a store whose records are ephemeral (end with the process
   * that made them). Must send the request before it returns.
   */
  detach?(key: string, owner: string): Awaitable<void>
  /**
   * Resolves when the record of `owner` may have ended before its ttl, or when `signal` is aborted. A lease that is
   * renewed is checked then, and its `signal` is aborted if it is lost.
   */
  watch?(key: string, owner: string, signal: AbortSignal): Awaitable<void>
  /**
   * Whether `wait` ends when `key` may be free: then there is no attempt to acquire it before, and the retry policy's
   * delay is not used.
   */
  readonly notifies?: boolean
}

/** Something that happened to a lock. */
export interface LockEvent {
  readonly level: 'debug' | 'info' | 'warn'
  /**
   * The event: `granted`, `held by another owner`, `renewed`, `released`, `force-released`, `lost`,
   * `acquire request failed` or `renewal failed`. Later versions may add others.
   */
  readonly message: string
  /** The lock's name; hidden characters in it are escaped. */
  readonly name: string
  /** The grant's fencing token, if the store counts grants. */
  readonly fence?: bigint
  /** How long the acquire request took, in milliseconds. */
  readonly waitedMs?: number
  /** How many attempts the acquire request made. */
  readonly attempts?: number
  /** How long the lock stays held, at most, in milliseconds. */
  readonly remainingMs?: number
  /** The ttl of a renewal, in milliseconds. */
  readonly ttlMs?: number
  /** How the lock was lost: `Expired` or `Revoked`. */
  readonly loss?: string
  /** The store's error. */
  readonly error?: string
}

/**
 * Calls `listener` with each event of the locks of this module, in order, until the returned function is called. No
 * event has an owner token. `listener` runs in a microtask, so it may use locks; an error that it throws is an
 * unhandled rejection. Without a listener, no events are made.
 */
export function onEvent(listener: (event: LockEvent) => void): () => void

/** The code of each error, and the name of its class in `errors`. */
export type ErrorCode =
  | 'E_INVALID_ARGUMENT'
  | 'E_INVALID_NAME'
  | 'E_INVALID_RETRY'
  | 'E_INVALID_SERIALIZED_LOCK'
  | 'E_INVALID_STORE'
  | 'E_INVALID_TTL'
  | 'E_LOCK_LOST'
  | 'E_LOCK_NOT_OWNER'
  | 'E_LOCK_NOT_SERIALIZABLE'
  | 'E_LOCK_PANICKED'
  | 'E_LOCK_STORAGE_ERROR'
  | 'E_LOCK_TIMEOUT'

/** The base class of all errors of this package. */
export class LockError<Code extends ErrorCode = ErrorCode> extends Error {
  /** The code of the error, which is the same on every host. */
  readonly code: Code
  /** The work's result, if the lock was lost during `run`. */
  readonly value?: unknown
  /** The work's error, if the lock was lost during `run` as well. */
  readonly suppressed?: unknown
}

/** The class of the errors with one code. */
export interface LockErrorClass<Code extends ErrorCode> {
  new (message: string, options?: ErrorOptions): LockError<Code>
  readonly prototype: LockError<Code>
  readonly code: Code
}

/**
 * The errors' classes, for `instanceof`:
 *
 * - `E_LOCK_TIMEOUT`: another owner held the lock until the retry policy ended.
 * - `E_LOCK_NOT_OWNER`: this object does not hold the lock, or does not hold it any more.
 * - `E_LOCK_LOST`: the lease was lost while the lock was in use.
 * - `E_LOCK_STORAGE_ERROR`: the store failed; `cause` is the error that it threw.
 * - `E_LOCK_NOT_SERIALIZABLE`: the store's leases cannot be transferred.
 * - `E_LOCK_PANICKED`: internal error, please report it; the module must be reloaded.
 * - `E_INVALID_ARGUMENT`: an argument has the wrong type, or an option is unknown; the message says which.
 * - `E_INVALID_NAME`, `E_INVALID_RETRY`, `E_INVALID_SERIALIZED_LOCK`, `E_INVALID_STORE`,
 *   `E_INVALID_TTL`: the message says what is wrong.
 */
export const errors: { readonly [Code in ErrorCode]: LockErrorClass<Code> }
