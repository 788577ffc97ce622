/**
 * What callers and other programs pass: their own properties and nothing else. Code that has written to
 * `Object.prototype` must choose no command, no store and no policy.
 */

/** Returns a copy of `options` that inherits nothing. */
export function own(options) {
  return Object.assign(Object.create(null), options)
}

/** Returns whether `object` has a method called `name` that not every object has. */
export function hasMethod(object, name) {
  const method = object?.[name]
  return typeof method === 'function' && method !== Object.prototype[name]
}

/** Returns a text that is a different one for each pair of texts. */
export function pairOf(one, two) {
  return JSON.stringify([one, two])
}
