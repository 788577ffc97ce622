/**
 * Access to the own properties of objects from callers and other programs. Code that has written to
 * `Object.prototype` must not choose a command, a store or a policy.
 */

/** Returns a copy of `options` that inherits nothing. */
export function own(options) {
  return Object.assign(Object.create(null), options)
}

/**
 * Returns the member `name` of `value` or of one of its classes; `undefined` if only `Object.prototype` has
 * it. `Object.prototype` is not read, because its getters could return another value at each read.
 */
export function member(value, name) {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return undefined
  for (let at = value; at !== null && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    if (Object.hasOwn(at, name)) return value[name]
  }
  return undefined
}

/** Returns the member `name` of `value` as `member` does; `undefined` if it cannot be read. */
export function read(value, name) {
  try {
    return member(value, name)
  } catch {
    return undefined
  }
}

/** Returns whether `object` has a method called `name` that does not come from `Object.prototype`. */
export function hasMethod(object, name) {
  return typeof read(object, name) === 'function'
}

/** Returns a text that differs for each pair of texts. */
export function pairOf(one, two) {
  const first = String(one)
  return `${first.length} ${first}${two}`
}

/** Returns the JSON of `object`, whose members are not objects. An inherited `toJSON` has no effect. */
export function jsonOf(object) {
  return JSON.stringify(own(object))
}
