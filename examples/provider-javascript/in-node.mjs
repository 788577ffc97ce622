/**
 * The component for the tests that every store must pass: `node in-node.mjs` transpiles it to JavaScript
 * in `component/`, which the function exported here runs.
 */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

const directory = new URL('component/', import.meta.url);

/** Imports of the engine that this store does not use: for output and waiting. */
const NEVER_CALLED = {
  'wasi:cli/stderr': {},
  'wasi:clocks/wall-clock': {},
  'wasi:io/error': { Error: class {} },
  'wasi:io/poll': { Pollable: class {} },
  'wasi:io/streams': { InputStream: class {}, OutputStream: class {} },
};

/** Makes an instance of the component, by the clock `now`, and returns the functions of `wit/store.wit`. */
export async function createStore(now) {
  const { instantiate } = await import(new URL('provider.js', directory));
  const module = async (path) => WebAssembly.compile(await readFile(new URL(path, directory)));
  const { store } = await instantiate(module, { ...NEVER_CALLED, 'wasi:clocks/monotonic-clock': { now } });
  return store;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { transpileInto } = await import('../javascript/transpile.mjs');
  await transpileInto(directory, 'provider', new URL('../../target/component/provider-javascript.wasm', import.meta.url));
}
