/** Locks in a `Map`: `npm install && npm run build && node main.mjs` */
import { setTimeout as sleep } from 'node:timers/promises';

import { MapStore } from './map-store.mjs';
import { openLocks } from './verrou.mjs';

const { createLock, restoreLock } = await openLocks(new MapStore());

// Three who want the same, one after the other: the store wakes the next one.
let inside = 0;
const work = async (worker) => createLock('printer', 5_000).run(async (fencingToken) => {
  inside += 1;
  console.log(`worker ${worker} prints under fencing token ${fencingToken}, ${inside} inside`);
  await sleep(20);
  inside -= 1;
});
await Promise.all([1, 2, 3].map(work));

// Who does not want to wait asks once, or gives up in time.
const [mine, yours] = [createLock('payment', 60_000), createLock('payment', 60_000)];
console.log('mine is free:', mine.tryAcquire(), '- yours is free:', yours.tryAcquire());
try {
  await yours.acquire({ timeout: 50, delay: 10 });
} catch (error) {
  console.log(`${error.code}: ${error.message}`);
}

// A lease can be handed on as text: to another function here, to another process with a store that
// both see.
const text = mine.serialize();
console.log('written down:', text.replace(/"owner":"\w+"/, '"owner":"..."').replace(/"expires":\d+/, '"expires":...'));
const restored = restoreLock(text);
restored.extend(90_000);
console.log('restored, extended to', Math.ceil(restored.remaining() / 1000), 's');
restored.release();
console.log('is locked:', mine.isLocked());
