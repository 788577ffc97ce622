/** Time that only the test lets pass: for the component, for the store and for timers. */
import { setImmediate } from 'node:timers/promises';

import { MapStore } from '../map-store.mjs';
import { openLocks } from '../verrou.mjs';

/** A wall clock's first instant, in milliseconds since 1970. */
export const START = 1_763_891_999_000;

/** A clock for the test `t`, and everything that goes by it. */
export class TestTime {
  #nanoseconds = 1_000_000_000n;
  #timers;

  constructor(t) {
    t.mock.timers.enable({ apis: ['setTimeout', 'Date'], now: START });
    this.#timers = t.mock.timers;
  }

  now = () => this.#nanoseconds;

  /** Lets `milliseconds` pass, one by one, and whoever waits for them go on. */
  async pass(milliseconds) {
    await setImmediate();
    for (let passed = 0; passed < milliseconds; passed += 1) {
      this.#nanoseconds += 1_000_000n;
      this.#timers.tick(1);
      await setImmediate();
    }
  }

  /** The locks of `store`, by this clock. */
  locks(store = new MapStore(this.now)) {
    const getRandomU64 = () => crypto.getRandomValues(new BigUint64Array(1))[0];
    return openLocks(store, { now: this.now, getRandomU64 });
  }
}

/** How `promise` ended, or `undefined` as long as it has not. */
export function outcome(promise) {
  const seen = { ended: undefined };
  promise.then(
    (value) => { seen.ended = { value }; },
    (error) => { seen.ended = { error }; },
  );
  return seen;
}
