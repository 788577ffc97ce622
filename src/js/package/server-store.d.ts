import type { CommandStoreError, FileStore, FileStoreOptions } from './file-store.js'

export { CommandStoreError } from './file-store.js'

/** The options of {@link serverStore}. */
export type ServerStoreOptions = Pick<FileStoreOptions, 'command' | 'idle' | 'label'>

/**
 * A store of leases on a server, for the processes of many machines. The leases end by their ttl, not with
 * this process: its end releases nothing.
 *
 * {@link FileStore.close | Closing} the store, also by `await using`, releases the leases that were neither released nor
 * detached. It rejects with a {@link CommandStoreError} that names the locks whose release failed.
 *
 * Every method rejects with a {@link CommandStoreError} when the command cannot be started or has died, or
 * the server cannot answer. The server keeps the wait queue, in first-come order, and notifies the waiters.
 */
export type ServerStore = FileStore

/**
 * Returns the store at `url`: `redis://HOST`, `postgres://HOST/DATABASE` or `etcd://HOST`. It has the same
 * locks as `verrou run --store URL` and Rust's `Locks::open(URL)`.
 *
 * It needs the command `verrou`, built with the feature for that server. The URL is passed to the command in
 * the environment, which only this user can read.
 *
 * @throws `E_INVALID_ARGUMENT` when `url` is not a URL
 */
export declare function serverStore(url: string | URL, options?: ServerStoreOptions): ServerStore
