/**
 * A length of time: milliseconds, a text such as `'1s'`, `'1m 30s'` or `'500ms'`, or `null` for one
 * without end.
 */
export type Duration = number | string | null

/** How often, and for how long, to ask for a lock that another holds. */
export interface RetryOptions {
  /** How many attempts to make in all, at least 1. As many as it takes, unless told otherwise. */
  attempts?: number | null
  /**
   * The pause between two attempts, 250 ms unless told otherwise. A store that can wait is woken
   * sooner.
   */
  delay?: Duration
  /**
   * With it, pauses are drawn at random up to a length that doubles with each, from `delay` to this:
   * exponential back-off with full jitter.
   */
  maxDelay?: Duration
  /** For how long to try, in all. The last attempt is made at its end. No limit by default. */
  timeout?: Duration
}

/** How to take a lock. */
export interface AcquireOptions {
  /** What is left out is as the factory has it. */
  retry?: RetryOptions
  /**
   * Calls the waiting off: its reason is thrown, and nothing is held then. A request that is under
   * way is waited for, and undone.
   */
  signal?: AbortSignal
}

/** How to do work under a lock. */
export interface RunOptions extends AcquireOptions {
  /**
   * Renews the lease again and again while the work goes on, so that it lasts as long as the work.
   * Without it the lease lasts as long as its ttl. A renewal never shortens a longer extension. A store with
   * `renew` takes an expired lease back, as after a suspension, if no other owner was granted it.
   */
  renew?: boolean
}

/** What work that is done under a lock is told about it. */
export interface Lease {
  /**
   * The grant's fencing token, which grows with every grant of the lock; `null` from a store that
   * does not count. Hand it to what the lock guards, and let that refuse smaller ones.
   */
  readonly fence: bigint | null
  /** Aborted as soon as the lock is lost, with an `E_LOCK_LOST` as its reason. */
  readonly signal: AbortSignal
  /** How much of the lease is left, in milliseconds; `null` when it does not end by itself. */
  remaining(): number | null
}

/** Who holds a lock. */
export interface Holder {
  /** The fencing token of what is held; `null` when the store does not tell. */
  fence: bigint | null
  /** How much of the lease is left, in milliseconds; `null` when it does not end, or is not told. */
  remaining: number | null
}

/** A lock that may be taken: made by `createLock` and `restoreLock`. */
export interface Lock {
  /** Its name. */
  readonly name: string
  /** The fencing token of its latest acquisition, if there was one and the store counts. */
  readonly fence: bigint | null
  /**
   * Takes the lock, waiting while another holds it. Not reentrant: who takes it twice waits for
   * itself.
   *
   * It is the lock that is returned, so that `await using` gives it back at the end of a block.
   *
   * @throws `E_LOCK_TIMEOUT` when the policy ended first; `E_LOCK_STORAGE_ERROR` when the store
   *   failed; `E_INVALID_RETRY`; the signal's reason.
   */
  acquire(options?: AcquireOptions): Promise<this>
  /**
   * Takes the lock if it is free now: whether it was.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  acquireImmediately(): Promise<boolean>
  /**
   * Takes the lock, does the work, gives the lock back, and returns what the work returned.
   *
   * @throws What the work threw. If the lock was lost meanwhile, or could not be given back, that is
   *   thrown instead, as `E_LOCK_LOST` or `E_LOCK_STORAGE_ERROR`: with what the work returned in
   *   `value`, or what it threw in `suppressed`. As `acquire`, when the work was not begun.
   */
  run<T>(work: (lease: Lease) => T | Promise<T>, options?: RunOptions): Promise<T>
  /**
   * `run`, if the lock is free now.
   *
   * @throws As `run`; `E_LOCK_TIMEOUT` when it is not free.
   */
  runImmediately<T>(
    work: (lease: Lease) => T | Promise<T>,
    options?: Omit<RunOptions, 'retry'>
  ): Promise<T>
  /**
   * Gives the lock back.
   *
   * @throws `E_LOCK_NOT_OWNER` when it was never acquired here, or is lost; `E_LOCK_STORAGE_ERROR`,
   *   and then it may be tried again.
   */
  release(): Promise<void>
  /**
   * Frees the lock, whoever holds it.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  forceRelease(): Promise<void>
  /**
   * Lets the lease last `ttl` from now, or as long as the lock was made for. It may become shorter
   * by that.
   *
   * @throws `E_LOCK_NOT_OWNER` when it is not held, or its time has passed; `E_INVALID_TTL`;
   *   `E_LOCK_STORAGE_ERROR`.
   */
  extend(ttl?: Duration): Promise<void>
  /** Whether the lease has run out; not when there is none. The store is not asked. */
  isExpired(): boolean
  /**
   * How much of the lease is left, in milliseconds, 0 once it has run out; `null` when there is none,
   * or it does not end by itself. The store is not asked.
   */
  getRemainingTime(): number | null
  /**
   * Whether anybody holds the lock.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  isLocked(): Promise<boolean>
  /**
   * Who holds the lock, if anybody does.
   *
   * @throws `E_LOCK_STORAGE_ERROR`.
   */
  holder(): Promise<Holder | null>
  /**
   * Writes the lease down as one line of JSON, to be handed to another process, in whatever language,
   * which restores the lock and can extend and release it. From then on the lease lives by its ttl
   * alone.
   *
   * A store that has to be told so is sent word, and not waited for: see `handOver`.
   *
   * @throws `E_LOCK_NOT_OWNER` when the lock is not held; `E_LOCK_NOT_SERIALIZABLE`.
   */
  serialize(): string
  /**
   * `serialize`, when the store has said that the lease outlives this process.
   *
   * @throws As `serialize`; `E_LOCK_STORAGE_ERROR`.
   */
  handOver(): Promise<string>
  /** Gives the lock back if it is held: for `await using`. */
  [Symbol.asyncDispose](): Promise<void>
}

/** What every factory's locks share. */
export interface LockFactoryOptions {
  /** How often to ask, unless a lock is told otherwise. */
  retry?: RetryOptions
}

/** Makes the locks of one store. */
export class LockFactory {
  /** @throws `E_INVALID_STORE` names the methods that `store` lacks; `E_INVALID_RETRY`. */
  constructor(store: LockStore | MemoryStore, options?: LockFactoryOptions)
  /**
   * A lock called `name`, whose leases last `ttl`: 30 seconds unless told otherwise. Nothing is asked
   * of the store yet.
   *
   * @throws `E_INVALID_NAME`: names have 1 to 1,024 bytes in UTF-8; `E_INVALID_TTL`.
   */
  createLock(name: string, ttl?: Duration): Lock
  /**
   * The lock that `serialize` wrote down, here or anywhere. Nothing is asked of the store yet.
   *
   * @throws `E_INVALID_SERIALIZED_LOCK`.
   */
  restoreLock(serialized: string): Lock
}

/** A store, or what makes one. */
export type StoreConfig =
  | LockStore
  | MemoryStore
  | { driver: LockStore | MemoryStore | { factory(): LockStore | MemoryStore } }

/** Which stores there are. */
export interface VerrouConfig<Names extends string = string> extends LockFactoryOptions {
  /** The name of the store that is used where none is named. */
  default?: NoInfer<Names>
  /** The stores, each by its name. */
  stores: Record<Names, StoreConfig>
}

/** The locks of several stores, one of which is the default. */
export class Verrou<Names extends string = string> {
  /** @throws `E_UNKNOWN_STORE`, `E_INVALID_STORE`. */
  constructor(config: VerrouConfig<Names>)
  /**
   * The factory of the store called `name`, or of the default: the same each time.
   *
   * @throws `E_UNKNOWN_STORE`; `E_INVALID_STORE`.
   */
  use(name?: Names): LockFactory
  /** `createLock` of the default store. */
  createLock(name: string, ttl?: Duration): Lock
  /** `restoreLock` of the default store. */
  restoreLock(serialized: string): Lock
}

/** A store in this process's memory. Its waiters are woken, in the order in which they came. */
export interface MemoryStore {
  readonly [memory]: true
}
declare const memory: unique symbol

/** A new store in this process's memory. */
export function memoryStore(): MemoryStore

/** What a method may return: at once, or later. */
export type Awaitable<T> = T | PromiseLike<T>

/**
 * Where locks are kept: any object with these methods. Each is one atomic step. What they throw
 * becomes an `E_LOCK_STORAGE_ERROR` with that as its `cause`; with a property `temporary: true`, it is
 * tried again as the retry policy says.
 */
export interface LockStore {
  /**
   * Records that `owner` holds `key` for `ttl` milliseconds, or without end: whether it could, for
   * nobody holds it. The same owner asking again may be told either.
   */
  save(key: string, owner: string, ttl: number | null): Awaitable<boolean>
  /** Removes `owner`'s record; if there is none, throws an error whose `code` is `'E_LOCK_NOT_OWNER'`. */
  delete(key: string, owner: string): Awaitable<void>
  /** Removes the record, whosever it is. */
  forceDelete(key: string): Awaitable<void>
  /** Whether anybody holds `key` now. */
  exists(key: string): Awaitable<boolean>
  /**
   * Lets `owner`'s record last `ttl` milliseconds from now; if there is none, or its time has passed,
   * throws as `delete`.
   */
  extend(key: string, owner: string, ttl: number | null): Awaitable<void>
  /**
   * Renews the lease of `owner`, granted under `fence`: its record lasts at least `ttl` milliseconds from now,
   * is never made shorter, and is taken back after it has expired, unless `key` was granted to another
   * owner or freed since. `'released'` means that `owner` has deleted it. Without this method, `extend` renews.
   */
  renew?(
    key: string,
    owner: string,
    ttl: number | null,
    fence: bigint | null
  ): Awaitable<'granted' | 'released' | 'lost'>
  /**
   * The fencing token of `owner`'s record: a number that grows with every grant of `key`. Asked after
   * each `save` that returned true.
   */
  fence?(key: string, owner: string): Awaitable<number | bigint | null>
  /**
   * Waits until `key` may be free for `owner`, for `atMost` milliseconds, or until `signal` is
   * aborted; leaves nothing behind but, where there is `giveUp`, a place in a queue.
   */
  wait?(key: string, atMost: number, signal: AbortSignal, owner: string): Awaitable<void>
  /**
   * Ends the place that `wait` may have kept for `owner`: it waits no more. Called at the end of every
   * wait for a key that was not granted. What it throws, or rejects with, is nobody's concern.
   */
  giveUp?(key: string, owner: string): Awaitable<void>
  /**
   * In a store whose records end with the process that made them: lets `owner`'s record live by its
   * ttl alone. The request is to be sent before this returns.
   */
  detach?(key: string, owner: string): Awaitable<void>
}

/** The code of each error, and the name of its class in `errors`. */
export type ErrorCode =
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
  | 'E_UNKNOWN_STORE'

/** What is thrown. */
export class LockError<Code extends ErrorCode = ErrorCode> extends Error {
  /** Which of the errors it is; the same on every host. */
  readonly code: Code
  /** From `run`: what the work returned, when the lock was lost under it. */
  readonly value?: unknown
  /** From `run`: what the work threw, when the lock was lost as well. */
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
 * - `E_LOCK_TIMEOUT`: another held the lock for as long as was waited.
 * - `E_LOCK_NOT_OWNER`: the lock is not, or no longer, held here.
 * - `E_LOCK_LOST`: the lease came to an end while it was counted on.
 * - `E_LOCK_STORAGE_ERROR`: the store failed; `cause` is what it threw.
 * - `E_LOCK_NOT_SERIALIZABLE`: the store's leases cannot be handed over.
 * - `E_LOCK_PANICKED`: the core failed, which is a mistake in it; load it anew.
 * - `E_INVALID_NAME`, `E_INVALID_RETRY`, `E_INVALID_SERIALIZED_LOCK`, `E_INVALID_STORE`,
 *   `E_INVALID_TTL`, `E_UNKNOWN_STORE`: the message says what is wrong.
 */
export const errors: { readonly [Code in ErrorCode]: LockErrorClass<Code> }
