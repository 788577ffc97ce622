/** What JavaScript says and the component means: texts, lengths of time, errors. */

/** Why an operation failed: `code` is the same on every host. */
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

/** The codes whose names in `wit/locks.wit` do not say all. */
const CODES = {
  lost: 'E_LOCK_LOST',
  'not-owner': 'E_LOCK_NOT_OWNER',
  'not-serializable': 'E_LOCK_NOT_SERIALIZABLE',
  storage: 'E_LOCK_STORAGE_ERROR',
};

/** Asks the component; what it says went wrong is thrown as a `LockError`. */
export function asking(question) {
  try {
    return question();
  } catch (error) {
    const { code, message, temporary } = error?.payload ?? {};
    if (code === undefined) throw error;
    throw new LockError(CODES[code] ?? `E_${code.toUpperCase().replaceAll('-', '_')}`, message, temporary);
  }
}

/**
 * `text`, if it has a UTF-8 form: half a surrogate pair has none, and would become another text's.
 */
export function asText(text, code = 'E_INVALID_NAME') {
  if (typeof text !== 'string') throw new LockError(code, `this has to be a string: ${String(text)}`);
  // The component would need as much memory; the longest that makes sense is much shorter.
  if (text.length > 2 ** 21) throw new LockError(code, `a text of ${text.length} characters is too long`);
  if (!text.isWellFormed()) throw new LockError(code, 'the text has half a surrogate pair, which has no UTF-8 form');
  return text;
}

/** Milliseconds as the component's nanoseconds; `null` is its `none`. */
export function asNanoseconds(milliseconds, code = 'E_INVALID_TTL') {
  if (milliseconds === null) return undefined;
  const wrong = (why) => new LockError(code, `${why}; it is a number of milliseconds, or null for no end`);
  if (typeof milliseconds !== 'number') throw wrong(`${String(milliseconds)} is no length of time`);
  if (Number.isNaN(milliseconds)) throw wrong('a length of time must be a number, not NaN');
  if (milliseconds < 0) throw wrong('a length of time must not be negative');
  if (milliseconds * 1e6 >= 2 ** 64) throw wrong('a length of time must be less than 584 years');
  return BigInt(Math.round(milliseconds * 1e6));
}

/** The component's nanoseconds as milliseconds. */
export function asMilliseconds(nanoseconds) {
  return nanoseconds === undefined ? null : Number(nanoseconds) / 1e6;
}

/** The time that people agree on, as the component has it. */
export function wallTime() {
  return BigInt(Date.now()) * 1_000_000n;
}

/** A fencing token, or `none`. */
export function asToken(token) {
  if (token === undefined || token === null) return undefined;
  if (typeof token === 'bigint' && token === BigInt.asUintN(64, token)) return token;
  throw new LockError('E_INVALID_FENCING_TOKEN', `a fencing token is a bigint of 64 bits: ${String(token)}`);
}

/** How to wait for a lock, as the component's `retry`. */
export function asRetry({ attempts = null, delay = null, maxDelay = null, timeout = null }) {
  const whole = Number.isInteger(attempts) && attempts >= 0 && attempts < 2 ** 32;
  if (attempts !== null && !whole) {
    throw new LockError('E_INVALID_RETRY', `\`attempts\` has to be a whole number below 2^32, or null: ${String(attempts)}`);
  }
  const length = (milliseconds) => asNanoseconds(milliseconds, 'E_INVALID_RETRY');
  return {
    attempts: attempts ?? undefined,
    delay: length(delay),
    maxDelay: length(maxDelay),
    timeout: length(timeout),
  };
}
