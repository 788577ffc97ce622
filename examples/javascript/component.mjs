/**
 * The component `verrou.wasm` for JavaScript: the modules that jco made (`npm run build`), with a store,
 * a clock and randomness.
 */
import { instantiate } from './component/verrou.js';
import { checkedStore } from './checked-store.mjs';
import { Pollable } from './wait-queue.mjs';

/** The platform's clock, in nanoseconds, and its randomness, 64 bits at a time. */
const platform = {
  now: () => BigInt(Math.round(performance.now() * 1e6)),
  getRandomU64: () => crypto.getRandomValues(new BigUint64Array(1))[0],
};

/**
 * Makes a new instance of the component, and returns the interface `locks` of `wit/locks.wit`.
 *
 * `store` is an object with the functions of `wit/store.wit`; see `map-store.mjs` for one.
 */
export async function instantiateLocks(store, { now, getRandomU64 } = platform) {
  const interfaces = {
    'verrou:lock/store': checkedStore(store),
    'wasi:clocks/monotonic-clock': { now },
    'wasi:io/poll': { Pollable },
    'wasi:random/random': { getRandomU64 },
  };
  const { locks } = await instantiate(module, interfaces);
  return locks;
}

const modules = new Map();

/** Returns a core module of the component, which is compiled once. */
function module(path) {
  if (!modules.has(path)) modules.set(path, compile(new URL(`component/${path}`, import.meta.url)));
  return modules.get(path);
}

async function compile(url) {
  if (url.protocol !== 'file:') return WebAssembly.compileStreaming(fetch(url));
  const { readFile } = await import('node:fs/promises');
  return WebAssembly.compile(await readFile(url));
}
