export { errors, LockError } from './errors.js'
export { LockFactory, Verrou, memoryStore } from './verrou.js'
