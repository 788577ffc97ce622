/** Locks in a browser tab: the script of `index.html`. */
import { demo } from './demo.mjs';

const lines = document.querySelector('#lines');
const state = document.querySelector('#state');

function say(line) {
  const item = document.createElement('li');
  item.textContent = line;
  lines.append(item);
}

try {
  await demo(say);
  state.textContent = 'done';
} catch (error) {
  state.textContent = `failed: ${error.stack}`;
}
