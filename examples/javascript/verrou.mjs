/**
 * Named locks with leases, in any store. Lengths of time are milliseconds.
 *
 *     const { createLock } = await openLocks(new MapStore());
 *     await createLock('my-resource', 2_000).run(async (fencingToken) => { ... });
 *
 * Functions that fail throw a `LockError`, whose `code` is the same on every host.
 */
import {
  LockError, asHolder, asMilliseconds, asNanoseconds, asRetry, asText, asToken, asking, dispose, wallTime,
} from './arguments.mjs';
import { instantiateLocks } from './component.mjs';
import { acquired, kept } from './waiting.mjs';

/**
 * Opens the locks of `store`: an object with the functions of `wit/store.wit`. Its `join` returns `undefined`, or
 * an object whose `wait` returns a promise that resolves when the lock may be free for the waiter, and whose
 * `leave` leaves the wait queue. `platform` replaces the platform's clock and randomness.
 */
export async function openLocks(store, platform) {
  const { Lock: Handle } = await instantiateLocks(store, platform);
  const made = (handle) => new Lock(asking(handle));
  return {
    /** Makes a lock whose leases last `ttl` milliseconds; with `null` they do not expire. */
    createLock: (name, ttl = 30_000) => made(() => Handle.create(asText(name), asNanoseconds(ttl))),
    /** Restores a lock from the text of `serialize`, of this or another process. */
    restoreLock: (text) => made(() => Handle.restore(asText(text, 'E_INVALID_SERIALIZED_LOCK'), wallTime())),
  };
}

/**
 * A lock. Every acquisition has an owner token of its own, so a lock is not reentrant: a second acquisition waits for
 * the first.
 *
 * `dispose`, or else the garbage collector, releases it, unless it was detached, serialized or restored. So a program
 * must keep the object for as long as it holds the lock.
 */
class Lock {
  #handle;
  #acquisitions = 0;

  constructor(handle) {
    [this.#handle, this.name] = [handle, handle.name()];
  }

  /**
   * Waits for the lock, and returns its fencing token. Makes an attempt every `delay` milliseconds, or sooner
   * if the store wakes it; at most `attempts` of them, until `timeout`. `signal` cancels the wait.
   */
  async acquire({ signal, ...retry } = {}) {
    signal?.throwIfAborted();
    const { tag, val } = this.#ask((handle) => handle.acquire(asRetry(retry)));
    return tag === 'acquired' ? this.#granted(val) : this.#wait(val, signal);
  }

  /** Acquires the lock if it is free now, and returns whether it was. */
  tryAcquire() {
    const isAcquired = this.#ask((handle) => handle.tryAcquire()) !== undefined;
    this.#acquisitions += Number(isAcquired);
    return isAcquired;
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

  /** Renews the lease until `signal` is aborted, or the lock is released. If the lease is lost before, returns how. */
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
  /** Detaches the lease: from now on it ends by its ttl alone, and outlives this object. */
  detach() { this.#ask((handle) => handle.detach()); }
  /** Serializes the lease for `restoreLock`, and detaches it. The text allows any process to extend and release the lock. */
  serialize() { return this.#ask((handle) => handle.serialize(wallTime())); }
  /** Returns whether the store has a holder of the lock. */
  isLocked() { return this.#ask((handle) => handle.isLocked()); }
  /** Returns the holders of the lock: none when it is free. */
  holders() { return this.#ask((handle) => handle.holders()).map(asHolder); }
  /** Returns whether the store's holder is this lock's latest acquisition. */
  isHeld() { return this.#ask((handle) => handle.isHeld()); }
  /** Returns the remaining time of the lease; `null` when there is none, or it does not expire. */
  remaining() { return asMilliseconds(this.#ask((handle) => handle.remaining())); }
  /** Drops this handle, which releases the lock. Otherwise the garbage collector does, at an unknown time. */
  dispose() {
    this.#handle?.[dispose]();
    this.#handle = undefined;
  }

  /** Counts the acquisition, and returns its fencing token. */
  #granted({ fencingToken }) {
    this.#acquisitions += 1;
    return fencingToken;
  }

  async #wait(attempt, signal) {
    try {
      const fencingToken = this.#granted(await acquired(attempt, this.name, signal));
      // The attempt is the last handle of a lock that was disposed of meanwhile.
      if (!this.#handle) throw LockError.disposed(this.name);
      if (signal?.aborted) this.release();
      signal?.throwIfAborted();
      return fencingToken;
    } finally {
      attempt[dispose](); // leaves the wait queue
    }
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
