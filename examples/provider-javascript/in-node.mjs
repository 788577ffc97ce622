/**
 * The component for the tests that every store has to pass: `node in-node.mjs` makes JavaScript of it
 * again, in `component/`, and what is exported here runs that.
 */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

const folder = new URL('component/', import.meta.url);

/** What the engine inside imports for what this store does not do: say something, and wait. */
const NEVER_CALLED = {
  'wasi:cli/stderr': {},
  'wasi:clocks/wall-clock': {},
  'wasi:io/error': { Error: class {} },
  'wasi:io/poll': { Pollable: class {} },
  'wasi:io/streams': { InputStream: class {}, OutputStream: class {} },
};

/** An instance of the component: the functions of `wit/store.wit`, by the clock `now`. */
export async function createStore(now) {
  const { instantiate } = await import(new URL('provider.js', folder));
  const module = async (path) => WebAssembly.compile(await readFile(new URL(path, folder)));
  const { store } = await instantiate(module, { ...NEVER_CALLED, 'wasi:clocks/monotonic-clock': { now } });
  return store;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { transpileInto } = await import('../javascript/transpile.mjs');
  await transpileInto(folder, 'provider', new URL('../../target/component/provider-javascript.wasm', import.meta.url));
}
