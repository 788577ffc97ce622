/** Locks on a server: Redis, PostgreSQL or etcd. */
import { invalid, isUrl, optionsOf } from './arguments.js'
import { CommandStore, CommandStoreError } from './command-store.js'
import { errors } from './errors.js'

export { CommandStoreError }

export function serverStore(url, options) {
  return new ServerStore(url, options)
}

class ServerStore extends CommandStore {
  constructor(url, options) {
    const text = isUrl(url) ? url.href : url
    const wanted = 'a URL, such as redis://HOST'
    if (typeof text !== 'string') throw invalid('the address of a server store', wanted, url)
    if (!text.includes('://')) {
      // The text is not in the message: it may have a password.
      throw new errors.E_INVALID_ARGUMENT(`invalid argument: the address of a server store must be ${wanted}`)
    }
    // Every user can read a process's arguments, and a URL may have a password.
    super([], { VERROU_STORE: text }, optionsOf('serverStore', options), true)
  }
}
