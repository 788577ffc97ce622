/**
 * The lease files of this machine.
 *
 * Node.js has neither flock(2) nor a way to be told that a process has died; the command has both.
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
    const folder = dir instanceof URL ? fileURLToPath(dir) : dir
    if (typeof folder !== 'string' || folder === '') {
      throw new TypeError('a file store needs the path of a folder')
    }
    const args = ['--store', `lease:${resolve(folder)}`]
    if (group !== undefined) args.push('--group', group)
    if (anyFileSystem) args.push('--any-file-system')
    super(args, {}, options)
  }
}
