/** Builds `target/component/provider-javascript.wasm` from `store.js`: `npm run build` */
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import { componentize } from '@bytecodealliance/componentize-js';

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));

const { component } = await componentize({
  sourcePath: path('store.js'),
  witPath: path('../../wit'),
  worldName: 'store-provider',
  // The features that JavaScript could use besides the time. Without `clocks` the time would always be
  // that of the build.
  disableFeatures: ['stdio', 'random', 'http', 'fetch-event'],
});
const output = path('../../target/component/provider-javascript.wasm');
await mkdir(path('../../target/component'), { recursive: true });
await writeFile(output, component);
console.log(`${output}: ${component.length} bytes`);
