/**
 * Serves a store *through the component* to the tests that every store must pass:
 *
 *     node conformance.mjs               the Map store
 *     node conformance.mjs MODULE        the store that the function `createStore(now)` of that module makes
 *
 * Each line of standard input requests one operation of one client, and sets the time:
 *
 *     {"client": 1, "now": 5000, "step": {"inspect": {"name": "x"}}}
 *
 * The operations and their answers are those of `verrou serve`; `{"drop": {}}` ends a client. All clients
 * share one store, and each has its own instance of the component. The operations are done by the exports of
 * the component: a claim becomes a lock that is made, or restored from text, for that owner.
 */
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

import { instantiateLocks } from './component.mjs';
import { MapStore } from './map-store.mjs';

const MILLISECOND = 1_000_000n;

/** The operations of a store, done by the locks of an instance. */
class Client {
  #store;
  #now;
  #ahead = 0n;
  #random = [];
  #locks;

  static async over(store, now) {
    const client = new Client();
    [client.#store, client.#now] = [store, now];
    client.#locks = await instantiateLocks(store, {
      now: () => now() + client.#ahead,
      getRandomU64: () => client.#random.shift(),
    });
    return client;
  }

  acquire({ name, owner, ttl }) {
    this.#random.push(BigInt(`0x${owner.slice(0, 16)}`), BigInt(`0x${owner.slice(16)}`));
    const lock = this.#locks.Lock.create(name, ttl ?? undefined);
    const { tag, val } = lock.acquire({ attempts: 1 });
    if (this.#random.length > 0) throw new Error('an owner is made of two numbers');
    if (tag === 'pending') {
      const progress = val.poll();
      if (progress.tag !== 'gave-up') throw new Error(`${progress.tag} ${progress.val}`);
      return { refused: null };
    }
    if (lock.fencingToken() !== val.fencingToken) throw new Error(`${lock.fencingToken()} ${val.fencingToken}`);
    // The garbage collector would release it.
    lock.detach();
    return { granted: val.fencingToken ?? null };
  }

  extend({ name, owner, ttl }) {
    this.#restored(name, owner).extendFor(ttl ?? undefined);
    return { granted: null };
  }

  renew({ name, owner, ttl, fencing_token: fence }) {
    // A renewal is due when half of the remaining time has passed, and after ten seconds without an end.
    const lease = ttl === null
      ? { fence }
      : { ttl: ttl / MILLISECOND, expires: this.#now() / MILLISECOND + 3n, fence };
    const renewal = this.#restored(name, owner, lease).keep();
    this.#ahead += (ttl === null ? 10_000n : 2n) * MILLISECOND;
    const { tag, val } = renewal.poll();
    if (tag === 'unknown') return { error: { temporary: false, message: val.why } };
    return { renewed: tag === 'held' ? 'granted' : tag };
  }

  release({ name, owner }) {
    this.#restored(name, owner).release();
    return { granted: null };
  }

  detach({ name, owner }) {
    this.#restored(name, owner).detach();
    return { granted: null };
  }

  evict({ name, only }) {
    const isDone = this.#locks.Lock.create(name).forceRelease(only ?? undefined);
    return isDone ? { granted: null } : { refused: null };
  }

  inspect({ name }) {
    const [holder] = this.#locks.Lock.create(name).holders();
    if (!holder) return { holder: null };
    const { fencingToken = null, remaining = null } = holder;
    return { holder: { fencing_token: fencingToken, remaining } };
  }

  abilities() {
    const { forceReleases: evicts, ...others } = this.#store.getCapabilities();
    return { abilities: { evicts, ...others } };
  }

  #restored(name, owner, { ttl = null, expires = null, fence = null } = {}) {
    const serialized = text({ version: 1, name, owner, ttl, expires, fence });
    return this.#locks.Lock.restore(serialized, this.#now());
  }
}

/** Parses JSON whose numbers are whole numbers of up to 64 bits: each becomes a bigint. */
function parse(line) {
  const marked = line.replace(/"(?:[^"\\]|\\.)*"|\d+/g, (token) => (token[0] === '"' ? token : `{"number":"${token}"}`));
  return JSON.parse(marked, (_, value) => (typeof value?.number === 'string' ? BigInt(value.number) : value));
}

/** Writes a value as such JSON. */
function text(value) {
  if (typeof value === 'bigint') return String(value);
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, member]) => `${JSON.stringify(key)}:${text(member)}`).join()}}`;
}

let time = 0n;
const store = await createStore(process.argv[2], () => time);
const clients = new Map();

async function createStore(path, now) {
  return path ? (await import(pathToFileURL(resolve(path)))).createStore(now) : new MapStore(now);
}

async function answer({ client, now, step }) {
  time = now;
  const [[kind, claim]] = Object.entries(step);
  if (kind === 'drop') return { dropped: clients.delete(client) };
  if (!clients.has(client)) clients.set(client, await Client.over(store, () => time));
  try {
    return clients.get(client)[kind](claim);
  } catch (error) {
    if (!error.payload) throw error;
    const { code, temporary, message } = error.payload;
    return code.tag === 'not-owner' ? { refused: null } : { error: { temporary, message } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(text(await answer(parse(line))));
}
