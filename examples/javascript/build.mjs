/** Transpiles the lock component to `component/`, which JavaScript can import: `npm run build` */
import { transpileInto } from './transpile.mjs';

try {
  const component = new URL('../../target/component/verrou.wasm', import.meta.url);
  await transpileInto(new URL('component/', import.meta.url), 'verrou', component);
} catch (error) {
  if (error.code !== 'ENOENT') throw error;
  console.error(`${error.message}\n\`cargo xtask component\` builds it`);
  process.exitCode = 1;
}
