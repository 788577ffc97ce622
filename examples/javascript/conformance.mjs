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

/** The operations of a store, done by the locks of an instance. */
class Client {
  #store;
  #now;
  #random = [];
  #locks;

  static async over(store, now) {
    const client = new Client();
    [client.#store, client.#now] = [store, now];
    client.#locks = await instantiateLocks(store, { now, getRandomU64: () => client.#random.shift() });
    return client;
  }

  acquire({ name, owner, ttl }) {
    this.#random.push(BigInt(`0x${owner.slice(0, 16)}`), BigInt(`0x${owner.slice(16)}`));
    const lock = new this.#locks.Lock(name, ttl ?? undefined);
    const { tag, val } = lock.acquire({ attempts: 1 }).poll();
    if (this.#random.length > 0) throw new Error('an owner is made of two numbers');
    if (tag === 'gave-up') return { refused: null };
    if (tag !== 'acquired' || lock.fencingToken() !== val) throw new Error(`${tag} ${val}`);
    return { granted: val ?? null };
  }

  extend({ name, owner, ttl }) {
    this.#restored(name, owner).extendFor(ttl ?? undefined);
    return { granted: null };
  }

  release({ name, owner }) {
    this.#restored(name, owner).release();
    return { granted: null };
  }

  detach({ name, owner }) {
    this.#restored(name, owner).serialize(this.#now());
    return { granted: null };
  }

  evict({ name, only }) {
    const evicted = new this.#locks.Lock(name).forceRelease(only ?? undefined);
    return evicted ? { granted: null } : { refused: null };
  }

  inspect({ name }) {
    const holder = new this.#locks.Lock(name).holder();
    if (!holder) return { holder: null };
    const { fencingToken = null, remaining = null } = holder;
    return { holder: { fencing_token: fencingToken, remaining } };
  }

  abilities() {
    return { abilities: this.#store.can() };
  }

  #restored(name, owner) {
    const text = JSON.stringify({ version: 1, name, owner, ttl: null, expires: null, fence: null });
    return this.#locks.Lock.restore(text, this.#now());
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
    return code === 'not-owner' ? { refused: null } : { error: { temporary, message } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(text(await answer(parse(line))));
}
