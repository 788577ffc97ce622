/**
 * The store in the lease files of this machine.
 *
 * It runs the command `verrou`, because Node.js has neither flock(2) nor notifications of the death of
 * another process.
 */
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { booleanOf, invalid, isUrl, optionsOf } from './arguments.js'
import { CommandStore, CommandStoreError } from './command-store.js'

export { CommandStoreError }

export function fileStore(dir, options) {
  return new FileStore(dir, options)
}

class FileStore extends CommandStore {
  constructor(dir, options) {
    const wanted = optionsOf('fileStore', options)
    const { group, anyFileSystem = false } = wanted
    const path = isUrl(dir) && dir.protocol === 'file:' ? fileURLToPath(dir) : dir
    if (typeof path !== 'string' || path === '') {
      throw invalid('the directory of a file store', 'a path, or a URL of the scheme `file:`', dir)
    }
    if (group !== undefined && (typeof group !== 'string' || group === '')) throw invalid('`group`', 'the name of a group', group)
    booleanOf(anyFileSystem, '`anyFileSystem`')
    const args = ['--store', `lease:${resolve(path)}`]
    if (group !== undefined) args.push('--group', group)
    if (anyFileSystem) args.push('--any-file-system')
    super(args, {}, wanted, false)
  }
}
