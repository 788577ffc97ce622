import { Verrou } from 'verrou-wasm'
import { fileStore } from 'verrou-wasm/file-store'

/** The locks of all processes that have this folder, in whatever language they are written. */
export const verrou = new Verrou({
  default: 'files',
  stores: { files: { driver: fileStore(new URL('locks', import.meta.url)) } },
})
