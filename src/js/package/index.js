export { errors, LockError } from './errors.js'
export { onEvent } from './events.js'
export { LockFactory, Verrou, memoryStore } from './verrou.js'
