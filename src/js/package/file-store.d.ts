import type { LockStore } from './index.js'

/** The options of {@link fileStore}. */
export interface FileStoreOptions {
  /**
   * The command `verrou`: its path, or its name if it is in a directory of `PATH`.
   *
   * @defaultValue the variable `VERROU_COMMAND`; without that, `verrou`
   */
  command?: string
  /** Shares the directory with all members of this group; without it, only this user can use it. */
  group?: string
  /** Uses the directory on any file system. Locks on a network file system do not exclude every process. */
  anyFileSystem?: boolean
  /** Names the purpose of this program's locks; `verrou show` and `verrou list` print it. */
  label?: string
  /**
   * The time without use after which a child process is ended, in milliseconds. A child that keeps a lease
   * alive is in use.
   *
   * @defaultValue 10,000
   */
  idle?: number
}

/** An error of a {@link FileStore}. */
export declare class CommandStoreError extends Error {
  /**
   * `'E_LOCK_NOT_OWNER'` if the owner does not hold the lease, or does not hold it any more;
   * `'E_LOCK_STORAGE_ERROR'` if the files or the command failed, which leaves the outcome unknown.
   */
  code: 'E_LOCK_NOT_OWNER' | 'E_LOCK_STORAGE_ERROR'
  /** Whether a retry may succeed. */
  temporary: boolean
}

/**
 * A store of leases in the files of a directory, for all processes of this machine: Node.js, the command
 * `verrou`, Rust programs.
 *
 * A lease is ephemeral: it ends with this process, for any reason, unless it was detached. The command keeps
 * it alive as a child of this process.
 *
 * In a worker thread the lease ends with that thread. {@link FileStore.close | Close} its store before
 * the thread ends: the child that has ended stays a zombie until it is reaped, otherwise only at the end
 * of the whole process.
 *
 * Every method rejects with a {@link CommandStoreError} when the command cannot be started or has
 * died, and with `E_INVALID_NAME`, `E_INVALID_TTL` or `E_INVALID_ARGUMENT` for an argument that is invalid. The leases that a dead command kept alive end with it; the next request starts a new one.
 */
export interface FileStore extends LockStore {
  /**
   * Acquires `key` for `owner`, for `ttl` milliseconds, or without expiry if that is `null`; returns `false`
   * if another owner holds it. If `owner` holds it already, its lease lasts a ttl from now.
   *
   * @param key the lock's name, of 1 to 1,024 bytes in UTF-8
   * @param owner 32 hexadecimal digits, new for every acquisition; any other text is hashed
   */
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  /**
   * Releases `key`.
   *
   * @throws CommandStoreError with the code `E_LOCK_NOT_OWNER` if `owner` does not hold it, or not any more
   */
  delete(key: string, owner: string): Promise<void>
  /** Force-releases `key`, whichever owner holds it. */
  forceDelete(key: string): Promise<void>
  /** Returns whether any owner holds `key` now. */
  exists(key: string): Promise<boolean>
  /**
   * Extends the lease to `ttl` milliseconds from now, or without expiry if that is `null`.
   *
   * @throws CommandStoreError with the code `E_LOCK_NOT_OWNER` if `owner` does not hold it, or not any more
   */
  extend(key: string, owner: string, ttl: number | null): Promise<void>
  /**
   * Renews the lease that `owner` was granted under `fence`: it lasts at least `ttl` milliseconds from now, also
   * after it has expired, unless `key` was granted to another owner or freed since. On servers this only extends.
   */
  renew(
    key: string,
    owner: string,
    ttl: number | null,
    fence: bigint | null
  ): Promise<'granted' | 'released' | 'lost'>
  /**
   * Returns the fencing token of `owner`'s grant, or `null` if it does not hold `key`. The token grows with
   * every grant of `key`, across releases, crashes and reboots.
   */
  fence(key: string, owner: string): Promise<number | null>
  /**
   * Returns the fencing token and the remaining time, in milliseconds, of the grant of `key`, by any owner; `null` if no
   * owner holds it.
   */
  holder(key: string): Promise<{ fence: number | null; remaining: number | null } | null>
  /**
   * Resolves when `key` may be free, after `atMost` milliseconds, or when `signal` is aborted.
   *
   * With an `owner`, takes a ticket for it in the wait queue of all processes, which ends when
   * `save` grants it the key, or by `giveUp`; the store notifies it when it is its turn. One child process waits for any
   * number of keys. A released key is reserved for the head waiter for 200 ms.
   *
   * Without an `owner`, looks ten times a second whether the key is free.
   */
  wait(key: string, atMost: number, signal?: AbortSignal, owner?: string): Promise<void>
  /** Ends the ticket of `owner` in the wait queue for `key`. */
  giveUp(key: string, owner: string): void
  /** Resolves when the child process has ended that kept the lease of `owner` alive, or when `signal` is aborted. */
  watch(key: string, owner: string, signal: AbortSignal): Promise<void>
  readonly notifies: true
  /**
   * Detaches the lease from this process: from now on it ends by its ttl alone. When the call
   * returns, the request has left this process, provided that the requests before it have been answered.
   *
   * @throws CommandStoreError with the code `E_LOCK_NOT_OWNER` if `owner` does not hold it, or not any more
   */
  detach(key: string, owner: string): Promise<void>
  /**
   * Ends the leases that were neither released nor detached, and resolves when the child processes have
   * ended, too. Requests that were sent before are answered; waits and later requests are rejected.
   */
  close(): Promise<void>
  /** Calls `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Returns the store in the directory `dir`, which is created for this user alone if it does not exist.
 * It has the same locks as `verrou run --store lease:DIR` and Rust's `LeaseFileStore::open(DIR)`.
 *
 * It needs the command `verrou`, which the first request starts. The store keeps the process's event loop
 * alive only during requests.
 *
 * @throws `E_INVALID_ARGUMENT` when `dir` is not a path
 */
export declare function fileStore(dir: string | URL, options?: FileStoreOptions): FileStore
