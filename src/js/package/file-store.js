/**
 * The store in the lease files of this machine.
 *
 * It runs the command `verrou`, because Node.js has neither flock(2) nor notifications of the death of
 * another process.
 */
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { CommandStore, CommandStoreError } from './command-store.js'
import { own } from './options.js'

export { CommandStoreError }

export function fileStore(dir, options = {}) {
  return new FileStore(dir, options)
}

class FileStore extends CommandStore {
  constructor(dir, options) {
    const { group, anyFileSystem = false } = own(options)
    const path = dir instanceof URL ? fileURLToPath(dir) : dir
    if (typeof path !== 'string' || path === '') {
      throw new TypeError('a file store needs the path of a directory')
    }
    const args = ['--store', `lease:${resolve(path)}`]
    if (group !== undefined) args.push('--group', group)
    if (anyFileSystem) args.push('--any-file-system')
    super(args, {}, options)
  }
}
