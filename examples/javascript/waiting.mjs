/** The waiting, which the component leaves to its user: by timer, by a store's word, by signal. */
import { LockError, asking } from './arguments.mjs';

/**
 * Polls `attempt` until the lock called `name` is acquired, and returns the fencing token.
 *
 * `wake(milliseconds, signal)`, if there is one, is a promise that ends when that is worth a poll.
 */
export async function acquired(attempt, name, wake, signal) {
  for (;;) {
    const { tag, val } = asking(() => attempt.poll());
    if (tag === 'acquired') return val;
    if (tag === 'gave-up') throw LockError.timeout(name, val);
    // Aborted or not, it has asked once more by now: the store may have said that it is its turn,
    // and what it then gives back is the next one's.
    signal?.throwIfAborted();
    await pause(val, signal, tag === 'wait' ? wake : undefined);
  }
}

/** Polls `renewal` until `signal`; returns how the lease was lost before, if it was. */
export async function kept(renewal, signal) {
  while (!signal.aborted) {
    const { tag, val } = renewal.poll();
    if (tag === 'lost') return val;
    await pause(tag === 'held' ? val : val.wait, signal);
  }
  return undefined;
}

/** Ends after `nanoseconds`, or sooner by `signal` or `wake`. */
async function pause(nanoseconds, signal, wake) {
  const milliseconds = Math.min(Math.ceil(Number(nanoseconds) / 1e6), 2 ** 31 - 1); // a timer's limit
  const over = new AbortController();
  try {
    await new Promise((end) => {
      const timer = setTimeout(end, milliseconds);
      over.signal.addEventListener('abort', () => clearTimeout(timer));
      signal?.addEventListener('abort', end, { signal: over.signal });
      // A store that fails to wake anyone is one that wakes nobody.
      wake?.(milliseconds, over.signal).then(end, () => {});
    });
  } finally {
    over.abort();
  }
}
