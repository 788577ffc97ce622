/** Makes `component/`, which JavaScript can import, of `target/component/verrou.wasm`: `npm run build` */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';

import { transpile } from '@bytecodealliance/jco';

const component = new URL('../../target/component/verrou.wasm', import.meta.url);
const folder = new URL('component/', import.meta.url);

const bytes = await readFile(component).catch((error) => {
  console.error(`${error.message}\n\`cargo xtask component\` builds it`);
  process.exit(1);
});
const { files } = await transpile(bytes, { name: 'verrou', instantiation: 'async', nodejsCompat: false, wasiShim: false });
for (const [path, content] of Object.entries(files)) {
  const url = new URL(path, folder);
  await mkdir(dirname(url.pathname), { recursive: true });
  await writeFile(url, path === 'verrou.js' ? keepingEveryCharacter(content) : content);
}

/**
 * A name may begin with U+FEFF. jco's decoder takes that for a byte order mark and drops it, so that
 * two names would become one.
 */
function keepingEveryCharacter(content) {
  const [before, after, ...more] = new TextDecoder().decode(content).split('new TextDecoder()');
  if (after === undefined || more.length > 0) throw new Error('this version of jco decodes text in another way');
  return `${before}new TextDecoder('utf-8', { ignoreBOM: true })${after}`;
}
