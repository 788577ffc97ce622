/** A demonstration of locks, run by `main.mjs` in Node.js and by `page.mjs` in a browser. */
import { MapStore } from './map-store.mjs';
import { openLocks } from './verrou.mjs';

const sleep = (milliseconds) => new Promise((end) => { setTimeout(end, milliseconds); });

/** Acquires some locks, and passes lines of text to `say`. */
export async function demo(say) {
  const { createLock, restoreLock } = await openLocks(new MapStore());

  // Three workers acquire the same lock, one after the other: each release wakes the next waiter.
  let inside = 0;
  const print = (worker) => createLock('printer', 5_000).run(async (fencingToken) => {
    inside += 1;
    say(`worker ${worker} prints under fencing token ${fencingToken}, ${inside} inside`);
    await sleep(20);
    inside -= 1;
  });
  await Promise.all([1, 2, 3].map(print));

  // Without a wait: one attempt, or a limited number of attempts.
  const [first, second] = [createLock('payment', 60_000), createLock('payment', 60_000)];
  say(`first acquired: ${first.tryAcquire()}, second acquired: ${second.tryAcquire()}`);
  try {
    await second.acquire({ attempts: 3, delay: 20 });
  } catch (error) {
    say(`${error.code}: ${error.message}`);
  }

  // A lease can be transferred as text, here or to another process that shares the store.
  const restored = restoreLock(first.serialize());
  restored.extend(90_000);
  say(`the restored lock is held for ${Math.ceil(restored.remaining() / 1_000)} s`);
  restored.release();
  say(`locked after the release: ${first.isLocked()}`);

  // A lease that expires during the work: another owner may have held the lock meanwhile.
  try {
    await createLock('slow', 10).run(() => sleep(50));
  } catch (error) {
    say(`${error.code}: ${error.message}`);
  }
}
