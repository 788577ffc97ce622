/** A clock that only the test advances: for the component, the store and timers. */
import { setImmediate } from 'node:timers/promises';

import { MapStore } from '../map-store.mjs';
import { openLocks } from '../verrou.mjs';

/** The wall clock's time at the start, in milliseconds since 1970. */
export const START = 1_763_891_999_000;

/** A clock for the test `t`, which also drives timers. */
export class TestTime {
  #nanoseconds = 1_000_000_000n;
  #timers;

  constructor(t) {
    t.mock.timers.enable({ apis: ['setTimeout', 'Date'], now: START });
    this.#timers = t.mock.timers;
  }

  now = () => this.#nanoseconds;

  /** Advances the clock by `milliseconds`, one by one, and runs the timers that are due. */
  async pass(milliseconds) {
    await setImmediate();
    for (let passed = 0; passed < milliseconds; passed += 1) {
      this.#nanoseconds += 1_000_000n;
      this.#timers.tick(1);
      await setImmediate();
    }
  }

  /** Opens the locks of `store`, by this clock. */
  locks(store = new MapStore(this.now)) {
    const getRandomU64 = () => crypto.getRandomValues(new BigUint64Array(1))[0];
    return openLocks(store, { now: this.now, getRandomU64 });
  }
}

/** Returns an object whose `ended` becomes the outcome of `promise`. */
export function outcome(promise) {
  const seen = { ended: undefined };
  promise.then(
    (value) => { seen.ended = { value }; },
    (error) => { seen.ended = { error }; },
  );
  return seen;
}
