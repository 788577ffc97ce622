/** The waiting, which the component leaves to its user: by timers, notifications of the store, and signals. */
import { LockError, asking } from './arguments.mjs';

/**
 * Polls `attempt` until the lock called `name` is acquired, and returns the fencing token.
 *
 * `wake(milliseconds, signal)`, if it is not `undefined`, returns a promise that resolves when a poll is useful.
 */
export async function acquired(attempt, name, wake, signal) {
  for (;;) {
    const { tag, val } = asking(() => attempt.poll());
    if (tag === 'acquired') return val;
    if (tag === 'gave-up') throw LockError.timeout(name, val);
    // Even after an abort the attempt was polled once more: the store may have woken this waiter, and a grant that
    // is then released wakes the next one.
    signal?.throwIfAborted();
    await pause(val, signal, tag === 'wait' ? wake : undefined);
  }
}

/** Polls `renewal` until `signal` is aborted. If the lease is lost before, returns how. */
export async function kept(renewal, signal) {
  while (!signal.aborted) {
    const { tag, val } = renewal.poll();
    if (tag === 'lost') return val;
    await pause(tag === 'held' ? val : val.wait, signal);
  }
  return undefined;
}

/** Resolves after `nanoseconds`, or sooner by `signal` or `wake`. */
async function pause(nanoseconds, signal, wake) {
  const milliseconds = Math.min(Math.ceil(Number(nanoseconds) / 1e6), 2 ** 31 - 1); // a timer's limit
  const over = new AbortController();
  try {
    await new Promise((end) => {
      const timer = setTimeout(end, milliseconds);
      over.signal.addEventListener('abort', () => clearTimeout(timer));
      signal?.addEventListener('abort', end, { signal: over.signal });
      // A store whose `wake` fails is polled by the timer alone.
      wake?.(milliseconds, over.signal).then(end, () => {});
    });
  } finally {
    over.abort();
  }
}
