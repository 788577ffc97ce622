/**
 * Named locks with leases, in whatever store is plugged in. Lengths of time are milliseconds.
 *
 *     const { createLock } = await openLocks(new MapStore());
 *     await createLock('my-resource', 2_000).run(async (fencingToken) => { ... });
 *
 * What fails throws a `LockError`, whose `code` is the same on every host.
 */
import { LockError, asMilliseconds, asNanoseconds, asRetry, asText, asToken, asking, wallTime } from './arguments.mjs';
import { instantiateLocks } from './component.mjs';
import { acquired, kept } from './waiting.mjs';

const dispose = Symbol.dispose ?? Symbol.for('dispose');

/**
 * The locks of `store`: an object with the functions of `wit/store.wit`, and perhaps
 * `waitFor(name, milliseconds, signal)`, a promise that ends when `name` may have become free.
 * `platform` is another clock and randomness than the platform's own.
 */
export async function openLocks(store, platform) {
  const { Lock: Handle } = await instantiateLocks(store, platform);
  const made = (handle) => new Lock(asking(handle), store);
  return {
    /** A lock whose leases last `ttl` milliseconds; with `null` they do not end by themselves. */
    createLock: (name, ttl = 30_000) => made(() => new Handle(asText(name), asNanoseconds(ttl))),
    /** The lock that `serialize` wrote down, here or elsewhere. */
    restoreLock: (text) => made(() => Handle.restore(asText(text, 'E_INVALID_SERIALIZED_LOCK'), wallTime())),
  };
}

/** A lock. Every acquisition is another's, so it is not reentrant: taken twice, it waits for itself. */
class Lock {
  #handle;
  #store;
  #acquisitions = 0;

  constructor(handle, store) {
    [this.#handle, this.#store, this.name] = [handle, store, handle.name()];
  }

  /**
   * Waits for the lock, and returns its fencing token. Asks every `delay` milliseconds, or sooner
   * if the store says so; `attempts` times at most, and until `timeout`. `signal` ends the wait.
   */
  async acquire({ signal, ...retry } = {}) {
    signal?.throwIfAborted();
    const attempt = this.#ask((handle) => handle.acquire(asRetry(retry)));
    const wake = this.#store.waitFor && (async (...until) => this.#store.waitFor(this.name, ...until));
    try {
      const fencingToken = await acquired(attempt, this.name, wake, signal);
      this.#acquisitions += 1;
      if (signal?.aborted) this.release();
      signal?.throwIfAborted();
      return fencingToken;
    } finally {
      attempt[dispose]();
    }
  }

  /** Takes the lock if it is free now: whether it was. */
  tryAcquire() {
    const acquired = this.#ask((handle) => handle.tryAcquire());
    this.#acquisitions += Number(acquired);
    return acquired;
  }

  /** Holds the lock while `body` runs, and returns what it returns. Waits as `acquire` does. */
  async run(body, patience) {
    const fencingToken = await this.acquire(patience);
    const acquisition = this.#acquisitions;
    let outcome;
    try {
      outcome = await body(fencingToken);
    } catch (error) {
      try { this.#end(acquisition); } catch { /* The body's error says more. */ }
      throw error;
    }
    this.#end(acquisition, { outcome });
    return outcome;
  }

  /** Keeps the lease alive until `signal`; returns how it was lost before, if it was. */
  async keepAlive(signal) {
    const renewal = this.#ask((handle) => handle.keep());
    return kept(renewal, signal).finally(() => renewal[dispose]());
  }

  /** Gives the lock back. */
  release() { this.#ask((handle) => handle.release()); }
  /** Frees the lock, whoever holds it, or only the grant with this fencing token: whether it did. */
  forceRelease(only) { return this.#ask((handle) => handle.forceRelease(asToken(only))); }
  /** Lets the lease last `ttl` milliseconds from now, or the lock's own ttl. */
  extend(ttl) { this.#ask((handle) => (ttl === undefined ? handle.extend() : handle.extendFor(asNanoseconds(ttl)))); }
  /** Writes the lease down for `restoreLock`: whoever has the text has the lock. */
  serialize() { return this.#ask((handle) => handle.serialize(wallTime())); }
  /** Whether anyone holds the lock, as the store says. */
  isLocked() { return this.#ask((handle) => handle.isLocked()); }
  /** Whether this lock's latest acquisition holds it, as the store says. */
  isHeld() { return this.#ask((handle) => handle.isHeld()); }
  /** How much of the lease is left; `null` when there is none, or it does not end by itself. */
  remaining() { return asMilliseconds(this.#ask((handle) => handle.remaining())); }
  /** Frees the memory, not the lock; without it, the garbage collector will. */
  dispose() {
    this.#handle?.[dispose]();
    this.#handle = undefined;
  }

  #ask(question) {
    if (!this.#handle) throw LockError.disposed(this.name);
    return asking(() => question(this.#handle));
  }

  /** Ends what `run` began; an acquisition that another followed was lost before. */
  #end(acquisition, more) {
    const expired = this.#ask((handle) => handle.isExpired());
    try {
      if (acquisition !== this.#acquisitions) throw LockError.lost(this.name, 'expired');
      this.release();
    } catch (error) {
      const lost = error.code === 'E_LOCK_NOT_OWNER';
      throw Object.assign(lost ? LockError.lost(this.name, expired ? 'expired' : 'revoked') : error, more);
    }
  }
}
