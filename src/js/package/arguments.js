/**
 * Checks of arguments, made before they reach the core: it can only read values of the expected types.
 * No code of an argument is called, except getters of options.
 */
import { errors } from './errors.js'
import { hasMethod, own, read } from './options.js'

/** The maximum number of characters of a value in an error message. */
const MAX_SHOWN = 60

/** UTF-8 has no form for these, so two names that differ only in them would be one name. */
const LONE_SURROGATE = /\p{Surrogate}/u

/** Returns a description of `value` for an error message. */
export function described(value) {
  switch (typeof value) {
    case 'string':
      return shortened(JSON.stringify(value.slice(0, MAX_SHOWN + 1)))
    case 'number':
    case 'boolean':
    case 'undefined':
      return String(value)
    case 'bigint':
      return shortened(`${value}n`)
    case 'symbol':
      return shortened(String(value))
    case 'function':
      return 'a function'
    default:
      return value === null ? 'null' : 'an object'
  }
}

function shortened(text) {
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text
}

function isWellFormed(text) {
  return !LONE_SURROGATE.test(text)
}

/** Returns `name` as a lock's name. A finite number becomes its decimal form, as in `@verrou/core`. */
export function nameOf(name) {
  if (typeof name === 'number' && Number.isFinite(name)) return String(name)
  if (typeof name === 'string' && isWellFormed(name)) return name
  const wanted = typeof name === 'string' ? 'has no lone surrogate' : 'is a string or a finite number'
  throw new errors.E_INVALID_NAME(`invalid lock name: a name ${wanted}, not ${described(name)}`)
}

/** Returns `owner`, a text that names an owner to a store. */
export function ownerOf(owner) {
  if (typeof owner === 'string' && owner !== '' && isWellFormed(owner)) return owner
  throw new errors.E_INVALID_ARGUMENT(
    `invalid owner: it must be a string that is not empty and has no lone surrogate, not ${described(owner)}`
  )
}

/** Returns `ttl` if it has the type of a length of time. The core reads it. */
export function ttlOf(ttl) {
  if (ttl === undefined || ttl === null || typeof ttl === 'number' || typeof ttl === 'string') return ttl
  throw new errors.E_INVALID_TTL(
    `invalid ttl: it must be a number of milliseconds, a text such as '2s', or null, not ${described(ttl)}`
  )
}

/** Returns `ttl` if a store's method accepts it: milliseconds above zero, or `null`. */
export function millisOf(ttl) {
  if (ttl === null || (Number.isFinite(ttl) && ttl > 0)) return ttl
  throw new errors.E_INVALID_TTL(
    `invalid ttl: it must be a number of milliseconds above zero, or null, not ${described(ttl)}`
  )
}

/** Returns `text` if it is a string that the core can parse as a serialized lock. */
export function serializedOf(text) {
  if (typeof text === 'string') return text
  const hint =
    typeof text === 'object' && text !== null
      ? '; `verrou-wasm/compat` restores the objects of `@verrou/core`'
      : ''
  throw new errors.E_INVALID_SERIALIZED_LOCK(
    `invalid serialized lock: it must be the string that \`serialize\` returned, not ${described(text)}${hint}`
  )
}

/** Returns the error for an argument: `what` names it, `wanted` its type. */
export function invalid(what, wanted, value) {
  return new errors.E_INVALID_ARGUMENT(`invalid argument: ${what} must be ${wanted}, not ${described(value)}`)
}

export function callbackOf(callback, what) {
  if (typeof callback !== 'function') throw invalid(what, 'a function', callback)
  return callback
}

export function booleanOf(value, what) {
  if (typeof value !== 'boolean') throw invalid(what, 'a boolean', value)
  return value
}

/** Returns `signal`, an `AbortSignal` of any realm, or `undefined`. */
export function signalOf(signal) {
  if (signal === undefined) return undefined
  if (typeof read(signal, 'aborted') === 'boolean' && hasMethod(signal, 'addEventListener')) {
    return signal
  }
  throw invalid('`signal`', 'an AbortSignal', signal)
}

/** Returns whether `value` is a URL object. */
export function isUrl(value) {
  try {
    return value instanceof URL
  } catch {
    // A proxy can throw.
    return false
  }
}

/** The options of each function, and the members of those that are objects. */
const KNOWN = {
  acquire: ['retry', 'signal', 'renew'],
  run: ['retry', 'signal', 'renew'],
  runImmediately: ['signal', 'renew'],
  LockFactory: ['retry'],
  Verrou: ['default', 'stores', 'retry'],
  retry: ['attempts', 'delay', 'maxDelay', 'timeout'],
  fileStore: ['command', 'idle', 'label', 'group', 'anyFileSystem'],
  serverStore: ['command', 'idle', 'label'],
  webStore: ['name'],
}

/** Where else a value is given that is not an option. */
const ELSEWHERE = {
  ttl: 'it is the second argument of `createLock`',
  owner: 'every acquisition draws its own',
  key: 'the name is the first argument of `createLock`',
}

/**
 * Returns a copy of the options of `where`, a member of `KNOWN`. Throws an error of the class `Invalid` if they cannot
 * be read, or if one is unknown: it would have no effect, and a wait without its time limit does not end.
 */
export function optionsOf(where, options, Invalid = errors.E_INVALID_ARGUMENT) {
  const read = objectOf(`options of \`${where}\``, options, Invalid)
  const unknown = Object.keys(read).find((name) => !KNOWN[where].includes(name))
  if (unknown === undefined) return read
  throw new Invalid(
    `\`${shownName(unknown)}\` is not an option of \`${where}\`, which has ${listed(KNOWN[where])}${placeOf(unknown, where)}`
  )
}

/** Returns a copy of the object `object`, called `what` in errors, that inherits nothing. */
export function objectOf(what, object, Invalid = errors.E_INVALID_ARGUMENT) {
  if (object === undefined) return own()
  if (typeof object !== 'object' || object === null) {
    throw new Invalid(`invalid ${what}: an object is expected, not ${described(object)}`)
  }
  try {
    return own(object)
  } catch (cause) {
    throw new Invalid(`invalid ${what}: a member cannot be read`, { cause })
  }
}

/** Returns the end of an error message that says where the option `name` belongs, if it belongs anywhere. */
function placeOf(name, where) {
  if (Object.hasOwn(ELSEWHERE, name)) return `; ${ELSEWHERE[name]}`
  const places = Object.keys(KNOWN).filter((place) => place !== where && KNOWN[place].includes(name))
  if (places.length === 0) return ''
  if (places[0] === 'retry' && KNOWN[where].includes('retry')) {
    return `; it belongs into \`retry\`: { retry: { ${name}: … } }`
  }
  return `; it is an option of ${listed(places)}`
}

function listed(names) {
  return names.map((name) => `\`${name}\``).join(', ')
}

function shownName(name) {
  return described(name).slice(1, -1)
}
