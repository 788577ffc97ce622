/** Locks on a server: Redis, PostgreSQL or etcd. */
import { CommandStore, CommandStoreError } from './command-store.js'

export { CommandStoreError }

export function serverStore(url, options = {}) {
  return new ServerStore(url, options)
}

class ServerStore extends CommandStore {
  constructor(url, options) {
    const text = url instanceof URL ? url.href : url
    if (typeof text !== 'string' || !text.includes('://')) {
      throw new TypeError('a server store needs a URL, such as redis://HOST')
    }
    // Every user can read a process's arguments, and a URL may have a password.
    super([], { VERROU_STORE: text }, options)
  }
}
