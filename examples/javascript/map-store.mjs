/**
 * A store in a `Map`, for the code of one page or one process. It has the functions of `wit/store.wit`, and
 * `waitFor`.
 */
export class MapStore {
  #records = new Map();
  #waiting = new Map();
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
    if (record && record.owner !== owner) return { tag: 'refused', val: left(record, now) };
    if (this.#records.size >= this.#enough) this.#removeExpired(now);
    const fencingToken = record?.fencingToken ?? ++this.#grants;
    this.#records.set(name, { owner, fencingToken, until: end(now, ttl) });
    return { tag: 'granted', val: fencingToken };
  }

  extend({ name, owner, ttl }) {
    const now = this.#now();
    const record = this.#record(name, now);
    if (record?.owner !== owner) return refused();
    record.until = end(now, ttl);
    return granted();
  }

  release({ name, owner }) {
    return this.#remove(name, (record) => record.owner === owner);
  }

  evict(name, only) {
    return this.#remove(name, (record) => only === undefined || only === record.fencingToken);
  }

  inspect(name) {
    const now = this.#now();
    const record = this.#record(name, now);
    return record && { fencingToken: record.fencingToken, remaining: left(record, now) };
  }

  detach({ name, owner }) {
    return this.#record(name, this.#now())?.owner === owner ? granted() : refused();
  }

  can() {
    return { expires: true, ephemeral: false, transfers: true, evicts: true, fences: true };
  }

  /** Resolves when `name` may be free for this waiter, or when `signal` is aborted. */
  waitFor(name, _milliseconds, signal) {
    if (!this.#record(name, this.#now())) return Promise.resolve();
    return new Promise((wake) => {
      const waiting = this.#waiting.get(name) ?? new Set();
      this.#waiting.set(name, waiting.add(wake));
      signal.addEventListener('abort', () => {
        waiting.delete(wake);
        if (waiting.size === 0 && this.#waiting.get(name) === waiting) this.#waiting.delete(name);
        wake();
      });
    });
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
    if (!record || !condition(record)) return refused();
    this.#records.delete(name);
    const [next] = this.#waiting.get(name) ?? [];
    this.#waiting.get(name)?.delete(next);
    next?.();
    return granted();
  }
}

const granted = () => ({ tag: 'granted', val: undefined });
const refused = () => ({ tag: 'refused', val: undefined });
const end = (now, ttl) => (ttl === undefined ? undefined : now + ttl);
const left = ({ until }, now) => (until === undefined ? undefined : until - now);
