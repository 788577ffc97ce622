import { Verrou } from 'verrou-wasm'
import { fileStore } from 'verrou-wasm/file-store'

/** The locks that all processes share that use this directory, in any language. */
export const verrou = new Verrou({
  default: 'files',
  stores: { files: { driver: fileStore(new URL('locks', import.meta.url)) } },
})
