import type { LockStore } from '../index.js'

/** Returns a factory of stores in this process's memory: a `driver` of `Verrou`'s configuration. */
export function memoryStore(): { factory: () => MemoryStore }

/**
 * A store in this process's memory. The locks of this package call its core directly. A release wakes
 * waiters in first-come order.
 */
export class MemoryStore implements LockStore {
  /** @throws `E_INVALID_ARGUMENTS_EXCEPTION`. */
  save(key: string, owner: string, ttl: number | null): Promise<boolean>
  /** @throws `E_LOCK_NOT_OWNED`. */
  delete(key: string, owner: string): Promise<void>
  forceDelete(key: string): Promise<void>
  exists(key: string): Promise<boolean>
  /** @throws `E_LOCK_NOT_OWNED`. */
  extend(key: string, owner: string, duration: number): Promise<void>
}
