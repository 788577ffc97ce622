/**
 * What callers and other programs pass: their own properties and nothing else. Code that has written to
 * `Object.prototype` must choose no command, no store and no policy.
 */

/** Returns a copy of `options` that inherits nothing. */
export function own(options) {
  return Object.assign(Object.create(null), options)
}

/**
 * Returns what is called `name` in `value` or in a class of it; `undefined` where only `Object.prototype` has
 * it, which is not asked: it could answer each question in another way.
 */
export function member(value, name) {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return undefined
  for (let at = value; at !== null && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    if (Object.hasOwn(at, name)) return value[name]
  }
  return undefined
}

/** Returns whether `object` has a method called `name` that not every object has. */
export function hasMethod(object, name) {
  return typeof member(object, name) === 'function'
}

/** Returns a text that is a different one for each pair of texts. */
export function pairOf(one, two) {
  const first = String(one)
  return `${first.length} ${first}${two}`
}

/** Returns the JSON of `object`, whose members are no objects; an inherited `toJSON` has no effect. */
export function jsonOf(object) {
  return JSON.stringify(own(object))
}
