/** The errors of locks: classes with a stable `code`, so that `instanceof` and `code` both work. */

export class LockError extends Error {
  constructor(message, options) {
    super(message, options)
    this.name = new.target.name
    this.code = new.target.code
  }

  static code = 'E_LOCK'
}

function define(code) {
  const names = { [code]: class extends LockError {} }
  names[code].code = code
  return names[code]
}

export const errors = Object.freeze(
  Object.fromEntries(
    [
      'E_INVALID_NAME',
      'E_INVALID_RETRY',
      'E_INVALID_SERIALIZED_LOCK',
      'E_INVALID_STORE',
      'E_INVALID_TTL',
      'E_LOCK_LOST',
      'E_LOCK_NOT_OWNER',
      'E_LOCK_NOT_SERIALIZABLE',
      'E_LOCK_PANICKED',
      'E_LOCK_STORAGE_ERROR',
      'E_LOCK_TIMEOUT',
      'E_UNKNOWN_STORE',
    ].map((code) => [code, define(code)])
  )
)

/** Called by the core: an error of the class that goes by `code`. */
export function lockError(code, message, cause) {
  return new errors[code](message, cause === undefined ? undefined : { cause })
}

let panic

/** Called by the core, when it panics: from then on nothing it says can be relied on. */
export function corePanicked(message) {
  panic ??= new errors.E_LOCK_PANICKED(
    `the lock core failed, and cannot be used until it is loaded anew: ${message}`
  )
}

/** Throws if the core failed before. */
export function assertUsable() {
  if (panic !== undefined) throw panic
}
