import init from './core/verrou.js'

await init({ module_or_path: new URL('./core/verrou_bg.wasm', import.meta.url) })

export * from './index.js'
