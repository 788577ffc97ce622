import { base64 } from './core/bytes.js'
import { initSync } from './core/verrou.js'

initSync({ module: bytes() })

/** Returns the bytes of the core. */
function bytes() {
  if (typeof Buffer === 'function') return Buffer.from(base64, 'base64')
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))
}

export * from './index.js'
