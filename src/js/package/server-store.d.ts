import type { CommandStoreError, FileStore, FileStoreOptions } from './file-store.js'

export { CommandStoreError } from './file-store.js'

/** What a {@link serverStore} can be told. */
export type ServerStoreOptions = Pick<FileStoreOptions, 'command' | 'idle' | 'label'>

/**
 * Leases on a server, for the processes of many machines. They end by their ttl, and not with this
 * process.
 *
 * Every method rejects with a {@link CommandStoreError} when the command cannot be started or has died, or
 * the server cannot answer. Those who wait look ten times a second whether the lock is free; their places
 * are kept by the server in the order in which they came.
 */
export type ServerStore = FileStore

/**
 * The store at `url`: `redis://HOST`, `postgres://HOST/DATABASE` or `etcd://HOST`, as the command
 * `verrou run --store URL` and Rust's `Locks::open(URL)` have it.
 *
 * It needs the command `verrou`, built with the feature for that server. The URL is passed on in the
 * environment, where only this user can read it.
 *
 * @throws TypeError when `url` is none
 */
export declare function serverStore(url: string | URL, options?: ServerStoreOptions): ServerStore
