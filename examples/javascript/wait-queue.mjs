/** Waits for the component: the resources `waiter` of `wit/store.wit` and `pollable` of `wasi:io/poll`. */
import { dispose } from './arguments.mjs';

/** One wait. JavaScript must not block: instead of `block`, await `ended`. */
export class Pollable {
  #isReady = false;

  /** `wait` returns the promise of the store. If it fails, the wait never ends. */
  constructor(wait) {
    this.ended = new Promise((end) => {
      const ready = () => { this.#isReady = true; end(); };
      (async () => wait())().then(ready, () => {});
    });
  }

  ready() { return this.#isReady; }
  block() { throw new Error('a program in JavaScript must not block; await `ended`'); }
}

/** A place in the wait queue of a store, whose `wait` returns a promise, and whose `leave` leaves the queue. */
export class Waiter {
  #place;

  constructor(place) { this.#place = place; }

  subscribe() { return new Pollable(() => this.#place.wait()); }

  [dispose]() {
    try { this.#place.leave(); } catch { /* An exception must not pass through the component. */ }
  }
}
