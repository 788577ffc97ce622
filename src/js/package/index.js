export { errors, LockError } from './errors.js'
export { Lock, LockFactory, Verrou, memoryStore } from './verrou.js'
