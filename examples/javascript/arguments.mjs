/** Conversions between JavaScript's values and the component's: texts, lengths of time, errors. */

/** The key of the method that drops a handle of the component, which older runtimes lack. */
export const dispose = Symbol.dispose ?? Symbol.for('dispose');

/** The error of an operation. Its `code` is the same on every host. */
export class LockError extends Error {
  /** `temporary`: the same call may succeed later with nothing changed by the caller. */
  constructor(code, message, temporary = false) {
    super(message);
    Object.assign(this, { name: 'LockError', code, temporary });
  }

  static timeout(name, attempts) {
    const message = `the lock \`${name}\` was held by another owner through ${attempts} attempt(s)`;
    return new LockError('E_LOCK_TIMEOUT', message, true);
  }

  static lost(name, loss) {
    const how = loss === 'expired'
      ? 'its lease expired before it was extended'
      : 'the store no longer records it for this owner';
    return new LockError('E_LOCK_LOST', `the lock \`${name}\` was lost: ${how}`);
  }

  static disposed(name) {
    const message = `this handle on the lock \`${name}\` was disposed of; create or restore another`;
    return new LockError('E_LOCK_DISPOSED', message);
  }
}

/** The codes that do not follow from their names in `wit/types.wit`. */
const CODES = {
  denied: 'E_LOCK_DENIED',
  lost: 'E_LOCK_LOST',
  'not-owner': 'E_LOCK_NOT_OWNER',
  'not-serializable': 'E_LOCK_NOT_SERIALIZABLE',
  storage: 'E_LOCK_STORAGE_ERROR',
};

/** Calls the component, and converts its errors to `LockError`. */
export function asking(call) {
  try {
    return call();
  } catch (error) {
    const { code, message, temporary } = error?.payload ?? {};
    if (code === undefined) throw error;
    throw new LockError(asCode(code), message, temporary);
  }
}

/** Returns the name of a case of `error-code`. */
function asCode({ tag, val }) {
  return tag === 'other' ? val : CODES[tag] ?? `E_${tag.toUpperCase().replaceAll('-', '_')}`;
}

/**
 * Returns `text`, if it has a UTF-8 form. Half a surrogate pair has none, and would be replaced, so that two texts
 * had one form.
 */
export function asText(text, code = 'E_INVALID_NAME') {
  if (typeof text !== 'string') throw new LockError(code, `expected a string, not ${String(text)}`);
  // The component would need as much memory; the longest valid text is much shorter.
  if (text.length > 2 ** 21) throw new LockError(code, `a text of ${text.length} characters is too long`);
  if (!text.isWellFormed()) throw new LockError(code, 'the text has half a surrogate pair, which has no UTF-8 form');
  return text;
}

/** Converts milliseconds to the component's nanoseconds; `null` becomes `none`. */
export function asNanoseconds(milliseconds, code = 'E_INVALID_TTL') {
  if (milliseconds === null) return undefined;
  const wrong = (why) => new LockError(code, `${why}; write a number of milliseconds, or null for no limit`);
  if (typeof milliseconds !== 'number') throw wrong(`${String(milliseconds)} is not a length of time`);
  if (Number.isNaN(milliseconds)) throw wrong('a length of time must be a number, not NaN');
  if (milliseconds < 0) throw wrong('a length of time must not be negative');
  if (milliseconds * 1e6 >= 2 ** 64) throw wrong('a length of time must be less than 584 years');
  return BigInt(Math.round(milliseconds * 1e6));
}

/** Converts the component's nanoseconds to milliseconds. */
export function asMilliseconds(nanoseconds) {
  return nanoseconds === undefined ? null : Number(nanoseconds) / 1e6;
}

/** Converts a holder of the component. */
export function asHolder({ fencingToken, mode, remaining, since, process, detached }) {
  return {
    fencingToken,
    mode: mode.tag,
    remaining: asMilliseconds(remaining),
    since: asMilliseconds(since),
    process,
    detached,
  };
}

/** Returns the wall-clock time in the component's form. */
export function wallTime() {
  return BigInt(Date.now()) * 1_000_000n;
}

/** Checks a fencing token, or `none`, and returns it. */
export function asToken(token) {
  if (token === undefined || token === null) return undefined;
  if (typeof token === 'bigint' && token === BigInt.asUintN(64, token)) return token;
  throw new LockError('E_INVALID_FENCING_TOKEN', `a fencing token must be a bigint of 64 bits, not ${String(token)}`);
}

/** Converts a retry policy to the component's `retry`. */
export function asRetry({ attempts = null, delay = null, maxDelay = null, timeout = null }) {
  const whole = Number.isInteger(attempts) && attempts >= 0 && attempts < 2 ** 32;
  if (attempts !== null && !whole) {
    throw new LockError('E_INVALID_RETRY', `\`attempts\` must be a whole number below 2^32, or null, not ${String(attempts)}`);
  }
  const length = (milliseconds) => asNanoseconds(milliseconds, 'E_INVALID_RETRY');
  return {
    attempts: attempts ?? undefined,
    delay: length(delay),
    maxDelay: length(maxDelay),
    timeout: length(timeout),
  };
}
