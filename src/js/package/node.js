import { readFileSync } from 'node:fs'
import { initSync } from './core/verrou.js'

initSync({ module: readFileSync(new URL('./core/verrou_bg.wasm', import.meta.url)) })

export * from './index.js'
