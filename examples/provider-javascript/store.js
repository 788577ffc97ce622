/**
 * A store for the lock component, as a component: leases in this component's memory, by the host's
 * monotonic clock. The functions are those of `wit/store.wit`.
 */

/** Keeps a leading U+FEFF of a name, which the decoder takes for a byte order mark and drops. */
const { decode } = TextDecoder.prototype;
TextDecoder.prototype.decode = function decodeAll(bytes) {
  const marked = bytes?.[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf;
  return marked ? `\ufeff${this.decode(bytes.subarray(3))}` : decode.call(this, bytes);
};

/** The host's monotonic clock, in nanoseconds. */
const now = () => BigInt(Math.round(performance.now() * 1e6));

const records = new Map();
/** The number of grants of all names: with one counter, a free name needs no memory. */
let grants = 0n;

const end = (ttl, time) => (ttl === undefined ? undefined : time + ttl);
const left = (record, time) => (record.until === undefined ? undefined : record.until - time);

/** Returns the record of `name`, if it has not expired at `time`. */
function recorded(name, time) {
  const record = records.get(name);
  if (record?.until <= time) records.delete(name);
  return records.get(name);
}

/** Frees `name` if it is held and `condition` holds. Returns whether it did. */
function free(name, condition) {
  const record = recorded(name, now());
  return record !== undefined && condition(record) && records.delete(name);
}

export const store = {
  acquire({ name, owner, ttl }) {
    const time = now();
    for (const known of records.keys()) recorded(known, time); // removes expired records
    const record = records.get(name);
    if (record && record.owner !== owner) return { tag: 'busy', val: left(record, time) };
    // An owner that holds the name already retries: the reply was lost.
    const fencingToken = record?.fencingToken ?? ++grants;
    records.set(name, { owner, fencingToken, until: end(ttl, time) });
    return { tag: 'granted', val: fencingToken };
  },

  extend({ name, owner, ttl }) {
    const time = now();
    const record = recorded(name, time);
    if (record?.owner !== owner) return false;
    record.until = end(ttl, time);
    return true;
  },

  /** Renews as a store without the capability `revives` does. */
  renew(claim) {
    return store.extend(claim) ? 'granted' : 'lost';
  },

  release({ name, owner }) {
    return free(name, (record) => record.owner === owner);
  },

  forceRelease(name, only) {
    return free(name, (record) => only === undefined || only === record.fencingToken);
  },

  holders(name) {
    const time = now();
    const record = recorded(name, time);
    if (!record) return [];
    const { fencingToken } = record;
    return [{ fencingToken, mode: { tag: 'exclusive' }, remaining: left(record, time), detached: false }];
  },

  detach({ name, owner }) {
    return recorded(name, now())?.owner === owner;
  },

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
  },

  /** This store has no wait queue. */
  join() {
    return undefined;
  },

  Waiter: class {},
};
