import type { LockStore } from './index.js'

/** What a {@link fileStore} can be told. */
export interface FileStoreOptions {
  /**
   * The command `verrou`: its path, or its name if it is in a folder of `PATH`.
   *
   * @defaultValue the variable `VERROU_COMMAND`; without that, `verrou`
   */
  command?: string
  /** Shares the folder with all members of this group; without it, it is for this user alone. */
  group?: string
  /** Uses the folder whatever file system it is on. Locks on a network's do not exclude everybody. */
  anyFileSystem?: boolean
  /** Names the purpose of this program's locks; `verrou show` and `verrou list` print it. */
  label?: string
  /**
   * After how many milliseconds without use a child process is ended. One that keeps a lease alive
   * is in use.
   *
   * @defaultValue 10,000
   */
  idle?: number
}

/** Why a {@link FileStore} did not do what it was asked. */
export declare class CommandStoreError extends Error {
  /**
   * `'E_LOCK_NOT_OWNER'` where a lease was to be acted on that is not, or no longer, that owner's;
   * none where the trouble is with the files or the command, and nobody knows what was done.
   */
  code?: 'E_LOCK_NOT_OWNER'
  /** Whether asking again may help. */
  temporary: boolean
}

/**
 * Leases in the files of a folder, for all processes of this machine: Node.js, the command
 * `verrou`, Rust programs.
 *
 * A lease ends with this process, however that ends, unless it was detached. That is so because the
 * command keeps it alive as this process's child.
 *
 * In a worker thread the same is true of that thread. {@link FileStore.close | Close} its store before
 * it ends: the system keeps the entry of a child that has ended until somebody takes notice, which
 * is otherwise not before the whole process ends.
 *
 * Every method rejects with a {@link CommandStoreError} when the command cannot be started or has
 * died. If it dies, so do the leases it kept alive; the next request starts it anew.
 */
export interface FileStore extends LockStore {
  /**
   * Takes `key` for `owner`, for `ttl` milliseconds, or without an end if that is `null`; `false`
   * if another holds it. An owner that holds it already has it for a ttl from now.
   *
   * @param key the lock's name, of 1 to 1,024 bytes in UTF-8
   * @param owner 32 hexadecimal digits, new for every acquisition; any other text is hashed to some
   */
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  /**
   * Gives `key` back.
   *
   * @throws CommandStoreError with the code `E_LOCK_NOT_OWNER` if it is not `owner`'s, or no longer
   */
  delete(key: string, owner: string): Promise<void>
  /** Frees `key`, whoever holds it. */
  forceDelete(key: string): Promise<void>
  /** Whether anybody holds `key` now. */
  exists(key: string): Promise<boolean>
  /**
   * Lets the lease last `ttl` milliseconds from now, or without an end if that is `null`.
   *
   * @throws CommandStoreError with the code `E_LOCK_NOT_OWNER` if it is not `owner`'s, or no longer
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
   * The fencing token of `owner`'s grant, or `null` if it does not hold `key`. It grows with every
   * grant of `key`, over releases, crashes and restarts of the machine.
   */
  fence(key: string, owner: string): Promise<number | null>
  /**
   * Resolves when `key` may be free, after `atMost` milliseconds, or when `signal` is aborted.
   *
   * However many wait, they share a few child processes. Of those who wait in this store for one
   * key only the first is woken, and the next one a moment later if the key is free even so.
   *
   * With an `owner`, that one gets a place in the queue of all processes that wait for the key, until
   * `save` grants it the key or it gives up. A key that was given back is kept for the first of them
   * for 200 ms.
   */
  wait(key: string, atMost: number, signal?: AbortSignal, owner?: string): Promise<void>
  /** Ends the place of `owner` in the queue for `key`. */
  giveUp(key: string, owner: string): void
  /**
   * Lets the lease outlive this process: from now on it ends by its ttl alone. When the call
   * returns the request has left this process, provided that those before it have been answered.
   *
   * @throws CommandStoreError with the code `E_LOCK_NOT_OWNER` if it is not `owner`'s, or no longer
   */
  detach(key: string, owner: string): Promise<void>
  /**
   * Ends the leases that were neither given back nor detached, and resolves when the child
   * processes have ended, too. What was asked before is answered; those who wait are rejected.
   */
  close(): Promise<void>
  /** {@link FileStore.close} */
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * The store in the folder `dir`, which is made for this user alone if need be: `verrou run --store
 * lease:DIR` and Rust's `LeaseFileStore::open(DIR)` have the same locks.
 *
 * It needs the command `verrou`. Nothing is started before something is asked, and the process can
 * end whenever nothing is being asked.
 *
 * @throws TypeError when `dir` is no path
 */
export declare function fileStore(dir: string | URL, options?: FileStoreOptions): FileStore
