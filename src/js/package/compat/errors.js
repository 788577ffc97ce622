/** The errors of `@verrou/core`, and the translation of the core's errors to them. */

import { assertUsable } from '../errors.js'

class Exception extends Error {
  constructor(message, options) {
    super(message, options)
    this.name = new.target.name
    this.code = new.target.code
    this.status = new.target.status
  }

  static status = 500

  get [Symbol.toStringTag]() {
    return this.constructor.name
  }

  toString() {
    return `${this.name} [${this.code}]: ${this.message}`
  }
}

export class InvalidArgumentsException extends Exception {
  static code = 'E_INVALID_ARGUMENTS_EXCEPTION'
}

function define(code, message) {
  const names = {
    [code]: class extends Exception {
      static message = message
      static code = code

      constructor(args = [], options = undefined) {
        const values = valuesOf(args)
        let next = 0
        super(
          message.replaceAll('%s', (place) => (next < values.length ? textOf(values[next++]) : place)),
          options
        )
        this.name = 'Exception'
      }
    },
  }
  return names[code]
}

/** Returns the values of the array `args`; none if it is not one. */
function valuesOf(args) {
  try {
    return Array.from(args)
  } catch {
    return []
  }
}

function textOf(value) {
  try {
    return String(value?.message ?? value)
  } catch {
    return 'a value without a text'
  }
}

export const E_LOCK_NOT_OWNED = define(
  'E_LOCK_NOT_OWNED',
  'Looks like you are trying to update or release a lock that is not acquired by you'
)

export const E_LOCK_STORAGE_ERROR = define('E_LOCK_STORAGE_ERROR', 'Lock storage error: %s')

export const errors = Object.freeze({
  E_LOCK_NOT_OWNED,
  E_LOCK_STORAGE_ERROR,
  E_INVALID_ARGUMENTS_EXCEPTION: InvalidArgumentsException,
})

/** Translates an error of the core to one of this contract. */
export function translated(error) {
  switch (error?.code) {
    case 'E_LOCK_NOT_OWNER':
    case 'E_LOCK_LOST':
      return new E_LOCK_NOT_OWNED()
    case 'E_LOCK_STORAGE_ERROR': {
      // The core itself is the cause when a store's fencing tokens go backwards, and the like.
      const cause = error.cause === undefined ? error : error.cause
      return new E_LOCK_STORAGE_ERROR([cause], { cause })
    }
    case 'E_INVALID_ARGUMENT':
    case 'E_INVALID_NAME':
    case 'E_INVALID_RETRY':
    case 'E_INVALID_SERIALIZED_LOCK':
    case 'E_INVALID_STORE':
    case 'E_INVALID_TTL':
      return new InvalidArgumentsException(error.message, { cause: error })
    default:
      return error
  }
}

/** Calls the core, and translates its errors. */
export function translateErrors(ask) {
  assertUsable()
  try {
    return ask()
  } catch (error) {
    throw translated(error)
  }
}
