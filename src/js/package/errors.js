/** The errors of locks: classes with a stable `code`. Both `instanceof` and `code` work. */

export class LockError extends Error {
  constructor(message, options) {
    super(textOf(message), optionsOf(options))
    this.name = new.target.name
    this.code = new.target.code
  }

  static code = 'E_LOCK'
}

/** Returns `message` as text; `undefined` without one, or if it has no text. */
function textOf(message) {
  try {
    return message === undefined ? undefined : String(message)
  } catch {
    return undefined
  }
}

/** Returns `options` if its cause can be read. */
function optionsOf(options) {
  try {
    return options?.cause === undefined ? undefined : options
  } catch {
    return undefined
  }
}

function define(code) {
  const names = { [code]: class extends LockError {} }
  names[code].code = code
  return names[code]
}

export const errors = Object.freeze(
  Object.fromEntries(
    [
      'E_INVALID_ARGUMENT',
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
    ].map((code) => [code, define(code)])
  )
)

/** Returns an error of the class with this `code`. Called by the core. */
export function lockError(code, message, cause) {
  return new errors[code](message, cause === undefined ? undefined : { cause })
}

let panic

/** Records a panic of the core, whose state is undefined from then on. Called by the core. */
export function corePanicked(message) {
  panic ??= new errors.E_LOCK_PANICKED(
    `the lock core panicked; reload the module before you use it again: ${message}`
  )
}

/** Throws if the core has panicked. */
export function assertUsable() {
  if (panic !== undefined) throw panic
}
