/** The methods of a store, and wrappers that cannot omit one. */
import { hasMethod } from './options.js'

/** The methods that every store must have. */
export const REQUIRED = ['save', 'delete', 'forceDelete', 'exists', 'extend']

/** The methods that a store may have. */
export const OPTIONAL = ['renew', 'fence', 'holder', 'wait', 'giveUp', 'detach', 'watch']

/** The place of the owner among the arguments of each method that has one. */
const OWNER_PLACE = { save: 1, delete: 1, extend: 1, renew: 1, fence: 1, wait: 3, giveUp: 1, detach: 1, watch: 1 }

/**
 * Returns a store with the methods that `store` has, and its `notifies`. Those in `changes` replace the methods of
 * `store`; all others are forwarded.
 */
export function wrapped(store, changes) {
  const methods = Object.create(null)
  for (const method of [...REQUIRED, ...OPTIONAL]) {
    if (hasMethod(store, method)) methods[method] = changes[method] ?? ((...args) => store[method](...args))
  }
  if (store.notifies) methods.notifies = true
  return methods
}

/** Returns `store` with `owner` in place of the owner in the arguments of each method. */
export function ownedBy(store, owner) {
  const changes = Object.create(null)
  for (const [method, place] of Object.entries(OWNER_PLACE)) {
    changes[method] = (...args) => {
      args[place] = owner
      return store[method](...args)
    }
  }
  return wrapped(store, changes)
}
