/** What locks are good for: run by `main.mjs` in Node.js and by `page.mjs` in a browser. */
import { MapStore } from './map-store.mjs';
import { openLocks } from './verrou.mjs';

const sleep = (milliseconds) => new Promise((end) => { setTimeout(end, milliseconds); });

/** Takes some locks, and says what happens by `say`. */
export async function demo(say) {
  const { createLock, restoreLock } = await openLocks(new MapStore());

  // Three who want the same, one after the other: the store wakes the next one.
  let inside = 0;
  const print = (worker) => createLock('printer', 5_000).run(async (fencingToken) => {
    inside += 1;
    say(`worker ${worker} prints under fencing token ${fencingToken}, ${inside} inside`);
    await sleep(20);
    inside -= 1;
  });
  await Promise.all([1, 2, 3].map(print));

  // Who does not want to wait asks once, or gives up in time.
  const [mine, yours] = [createLock('payment', 60_000), createLock('payment', 60_000)];
  say(`mine is taken: ${mine.tryAcquire()}, yours is taken: ${yours.tryAcquire()}`);
  try {
    await yours.acquire({ attempts: 3, delay: 20 });
  } catch (error) {
    say(`${error.code}: ${error.message}`);
  }

  // A lease can be handed on as text: to a function here, or to another process that has the store.
  const restored = restoreLock(mine.serialize());
  restored.extend(90_000);
  say(`whoever has the text has the lock, for ${Math.ceil(restored.remaining() / 1_000)} s`);
  restored.release();
  say(`anyone holds it now: ${mine.isLocked()}`);

  // A lease that was not long enough: the work was done, but perhaps not alone.
  try {
    await createLock('slow', 10).run(() => sleep(50));
  } catch (error) {
    say(`${error.code}: ${error.message}`);
  }
}
