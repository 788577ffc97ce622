/**
 * Named locks with leases, in any store. Lengths of time are milliseconds.
 *
 *     const { createLock } = await openLocks(new MapStore());
 *     await createLock('my-resource', 2_000).run(async (fencingToken) => { ... });
 *
 * Functions that fail throw a `LockError`, whose `code` is the same on every host.
 */
import { LockError, asMilliseconds, asNanoseconds, asRetry, asText, asToken, asking, wallTime } from './arguments.mjs';
import { instantiateLocks } from './component.mjs';
import { acquired, kept } from './waiting.mjs';

const dispose = Symbol.dispose ?? Symbol.for('dispose');

/**
 * Opens the locks of `store`: an object with the functions of `wit/store.wit`, and optionally
 * `waitFor(name, milliseconds, signal)`, which returns a promise that resolves when `name` may be free.
 * `platform` replaces the platform's clock and randomness.
 */
export async function openLocks(store, platform) {
  const { Lock: Handle } = await instantiateLocks(store, platform);
  const made = (handle) => new Lock(asking(handle), store);
  return {
    /** Makes a lock whose leases last `ttl` milliseconds; with `null` they do not expire. */
    createLock: (name, ttl = 30_000) => made(() => new Handle(asText(name), asNanoseconds(ttl))),
    /** Restores a lock from the text of `serialize`, of this or another process. */
    restoreLock: (text) => made(() => Handle.restore(asText(text, 'E_INVALID_SERIALIZED_LOCK'), wallTime())),
  };
}

/** A lock. Every acquisition has an owner token of its own, so a lock is not reentrant: a second acquisition waits for the first. */
class Lock {
  #handle;
  #store;
  #acquisitions = 0;

  constructor(handle, store) {
    [this.#handle, this.#store, this.name] = [handle, store, handle.name()];
  }

  /**
   * Waits for the lock, and returns its fencing token. Makes an attempt every `delay` milliseconds, or sooner
   * if the store wakes it; at most `attempts` of them, until `timeout`. `signal` cancels the wait.
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

  /** Acquires the lock if it is free now, and returns whether it was. */
  tryAcquire() {
    const acquired = this.#ask((handle) => handle.tryAcquire());
    this.#acquisitions += Number(acquired);
    return acquired;
  }

  /** Holds the lock while `body` runs, and returns the result of `body`. Waits as `acquire` does. */
  async run(body, options) {
    const fencingToken = await this.acquire(options);
    const acquisition = this.#acquisitions;
    let outcome;
    try {
      outcome = await body(fencingToken);
    } catch (error) {
      try { this.#end(acquisition); } catch { /* The body's error is more important. */ }
      throw error;
    }
    this.#end(acquisition, { outcome });
    return outcome;
  }

  /** Renews the lease until `signal` is aborted. If the lease is lost before, returns how. */
  async keepAlive(signal) {
    const renewal = this.#ask((handle) => handle.keep());
    return kept(renewal, signal).finally(() => renewal[dispose]());
  }

  /** Releases the lock. */
  release() { this.#ask((handle) => handle.release()); }
  /** Force-releases the lock, or only the grant with this fencing token. Returns whether there was such a grant. */
  forceRelease(only) { return this.#ask((handle) => handle.forceRelease(asToken(only))); }
  /** Extends the lease to `ttl` milliseconds from now, by default to the lock's own ttl. */
  extend(ttl) { this.#ask((handle) => (ttl === undefined ? handle.extend() : handle.extendFor(asNanoseconds(ttl)))); }
  /** Serializes the lease for `restoreLock`. The text allows any process to extend and release the lock. */
  serialize() { return this.#ask((handle) => handle.serialize(wallTime())); }
  /** Returns whether the store has a holder of the lock. */
  isLocked() { return this.#ask((handle) => handle.isLocked()); }
  /** Returns whether the store's holder is this lock's latest acquisition. */
  isHeld() { return this.#ask((handle) => handle.isHeld()); }
  /** Returns the remaining time of the lease; `null` when there is none, or it does not expire. */
  remaining() { return asMilliseconds(this.#ask((handle) => handle.remaining())); }
  /** Frees the memory, not the lock. Otherwise the garbage collector does. */
  dispose() {
    this.#handle?.[dispose]();
    this.#handle = undefined;
  }

  #ask(call) {
    if (!this.#handle) throw LockError.disposed(this.name);
    return asking(() => call(this.#handle));
  }

  /** Releases the acquisition of `run`. If a later acquisition followed it, it was lost before. */
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
