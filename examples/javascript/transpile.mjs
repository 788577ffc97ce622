/** Transpiles a component to a directory of modules that JavaScript can import. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

import { transpile } from '@bytecodealliance/jco';

/**
 * Transpiles the component at the URL `component` to `name.js`, and the files that it needs, in the directory at
 * the URL `directory`.
 */
export async function transpileInto(directory, name, component) {
  const options = { name, instantiation: 'async', nodejsCompat: false, wasiShim: false };
  const { files } = await transpile(await readFile(component), options);
  for (const [path, content] of Object.entries(files)) {
    const url = new URL(path, directory);
    await mkdir(dirname(fileURLToPath(url)), { recursive: true });
    await writeFile(url, path === `${name}.js` ? keepingEveryCharacter(content) : content);
  }
}

/**
 * Makes jco's decoder keep U+FEFF at the start of a name. It would take that for a byte order mark and drop it,
 * so that two names became one.
 */
function keepingEveryCharacter(content) {
  const [before, after, ...more] = new TextDecoder().decode(content).split('new TextDecoder()');
  if (after === undefined || more.length > 0) throw new Error('cannot adapt the decoder of this version of jco; use the version in package.json');
  return `${before}new TextDecoder('utf-8', { ignoreBOM: true })${after}`;
}
