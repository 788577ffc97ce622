/** From a component to a folder of modules that JavaScript can import. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

import { transpile } from '@bytecodealliance/jco';

/** Makes `name.js`, and what it needs, in `folder`, of the component at `component`; both are URLs. */
export async function transpileInto(folder, name, component) {
  const options = { name, instantiation: 'async', nodejsCompat: false, wasiShim: false };
  const { files } = await transpile(await readFile(component), options);
  for (const [path, content] of Object.entries(files)) {
    const url = new URL(path, folder);
    await mkdir(dirname(fileURLToPath(url)), { recursive: true });
    await writeFile(url, path === `${name}.js` ? keepingEveryCharacter(content) : content);
  }
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
