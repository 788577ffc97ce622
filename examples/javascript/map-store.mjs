/** A store in a `Map`, for the code of one page or one process. It has the functions of `wit/store.wit`. */
export class MapStore {
  #records = new Map();
  /** The places of each name's waiters, the head waiter first. */
  #queues = new Map();
  #grants = 0n;
  #enough = 64;
  #now;

  /** `now` is the store's clock, in nanoseconds. */
  constructor(now = () => BigInt(Math.round(performance.now() * 1e6))) {
    this.#now = now;
  }

  acquire({ name, owner, ttl }) {
    const now = this.#now();
    const record = this.#record(name, now);
    if (record && record.owner !== owner) return { tag: 'busy', val: left(record, now) };
    if (this.#records.size >= this.#enough) this.#removeExpired(now);
    const fencingToken = record?.fencingToken ?? ++this.#grants;
    this.#records.set(name, { owner, fencingToken, until: end(now, ttl) });
    return { tag: 'granted', val: fencingToken };
  }

  extend({ name, owner, ttl }) {
    const now = this.#now();
    const record = this.#record(name, now);
    if (record?.owner !== owner) return false;
    record.until = end(now, ttl);
    return true;
  }

  /** Renews as a store without the capability `revives` does. */
  renew(claim) {
    return this.extend(claim) ? 'granted' : 'lost';
  }

  release({ name, owner }) {
    return this.#remove(name, (record) => record.owner === owner);
  }

  forceRelease(name, only) {
    return this.#remove(name, (record) => only === undefined || only === record.fencingToken);
  }

  holders(name) {
    const now = this.#now();
    const record = this.#record(name, now);
    return record ? [{ fencingToken: record.fencingToken, remaining: left(record, now) }] : [];
  }

  detach({ name, owner }) {
    return this.#record(name, this.#now())?.owner === owner;
  }

  getCapabilities() {
    return {
      expires: true,
      ephemeral: false,
      transfers: true,
      forceReleases: true,
      fences: true,
      revives: false,
      shared: false,
      permits: false,
    };
  }

  /**
   * Joins the wait queue. Returns the place there: `wait` returns a promise that resolves when the lock may be free
   * for this waiter, and `leave` leaves the queue.
   */
  join({ name }) {
    const queue = this.#queues.get(name) ?? new Set();
    const place = {
      wake: () => {},
      wait: () => new Promise((wake) => {
        place.wake = wake;
        this.#wakeHead(name);
      }),
      leave: () => {
        queue.delete(place);
        if (queue.size === 0) this.#queues.delete(name);
        // This waiter may have been woken in vain.
        this.#wakeHead(name);
      },
    };
    this.#queues.set(name, queue.add(place));
    return place;
  }

  /** Wakes the head waiter, if the name is free. */
  #wakeHead(name) {
    const [head] = this.#queues.get(name) ?? [];
    if (head && !this.#record(name, this.#now())) head.wake();
  }

  /** Returns the record of `name`, if it has not expired. */
  #record(name, now) {
    const record = this.#records.get(name);
    if (record?.until > now || (record && record.until === undefined)) return record;
    this.#records.delete(name);
    return undefined;
  }

  /** Removes expired records, so rarely that its cost does not matter. */
  #removeExpired(now) {
    for (const name of this.#records.keys()) this.#record(name, now);
    this.#enough = Math.max(64, 2 * this.#records.size);
  }

  #remove(name, condition) {
    const record = this.#record(name, this.#now());
    if (!record || !condition(record)) return false;
    this.#records.delete(name);
    this.#wakeHead(name);
    return true;
  }
}

const end = (now, ttl) => (ttl === undefined ? undefined : now + ttl);
const left = ({ until }, now) => (until === undefined ? undefined : until - now);
