import { MemoryStore } from '../stores.js'

export { MemoryStore }

export function memoryStore() {
  return { factory: () => new MemoryStore() }
}
