/** The waiting, which the component leaves to its user: by timers, the store's wait queue, and signals. */
import { LockError, asking } from './arguments.mjs';

/** Polls `attempt` until the lock called `name` is acquired, and returns the grant. */
export async function acquired(attempt, name, signal) {
  for (;;) {
    const { tag, val } = asking(() => attempt.poll());
    if (tag === 'acquired') return val;
    if (tag === 'gave-up') throw LockError.timeout(name, val);
    await pause(val, signal, tag === 'wait' ? attempt.subscribe() : undefined);
    signal?.throwIfAborted();
  }
}

/** Polls `renewal` until `signal` is aborted, or the lock is released. If the lease is lost before, returns how. */
export async function kept(renewal, signal) {
  while (!signal.aborted) {
    const { tag, val } = renewal.poll();
    if (tag === 'released') break;
    if (tag === 'lost') return val;
    await pause(tag === 'held' ? val : val.wait, signal);
  }
  return undefined;
}

/** Resolves after `nanoseconds`, or sooner by `signal` or when `pollable` is ready. */
async function pause(nanoseconds, signal, pollable) {
  const milliseconds = Math.min(Math.ceil(Number(nanoseconds) / 1e6), 2 ** 31 - 1); // a timer's limit
  const over = new AbortController();
  try {
    await new Promise((end) => {
      const timer = setTimeout(end, milliseconds);
      over.signal.addEventListener('abort', () => clearTimeout(timer));
      signal?.addEventListener('abort', end, { signal: over.signal });
      pollable?.ended.then(end);
    });
  } finally {
    over.abort();
  }
}
