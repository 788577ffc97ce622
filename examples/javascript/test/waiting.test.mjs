/** Waiters: how long they wait, and which one is woken. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';

import { MapStore } from '../map-store.mjs';
import { openLocks } from '../verrou.mjs';
import { Pollable } from '../wait-queue.mjs';
import { TestTime, outcome } from './time.mjs';

/** A pause so long that a test that waits for its end times out. */
const NEVER = { delay: 3_600_000 };

/** A Map store that counts its acquire requests. */
class CountingStore extends MapStore {
  asked = 0;
  acquire(claim) {
    this.asked += 1;
    return super.acquire(claim);
  }
}

test('of many waiters one holds the lock, and each release wakes the next', { timeout: 60_000 }, async () => {
  const store = new CountingStore();
  const { createLock } = await openLocks(store);
  let [inside, counted] = [0, 0];
  const tokens = [];
  const order = [];
  await Promise.all(Array.from({ length: 500 }, (_, waiter) => createLock('one', null).run(async (token) => {
    inside += 1;
    assert.equal(inside, 1);
    const before = counted;
    await setImmediate();
    counted = before + 1;
    tokens.push(token);
    order.push(waiter);
    inside -= 1;
  }, NEVER)));
  assert.equal(counted, 500);
  assert.deepEqual(tokens, Array.from({ length: 500 }, (_, index) => BigInt(index + 1)));
  assert.deepEqual(order, tokens.map((token) => Number(token) - 1), 'first come, first served');
  assert.ok(store.asked <= 1_000, `asked ${store.asked} times: a release wakes one waiter, not all`);
});

test('the instances of one store exclude each other and wake each other', { timeout: 60_000 }, async () => {
  const store = new MapStore();
  const [one, other] = [await openLocks(store), await openLocks(store)];
  const held = one.createLock('shared', null);
  assert.equal(held.tryAcquire(), true);
  const waiting = other.createLock('shared', null);
  assert.equal(waiting.tryAcquire(), false);
  const acquired = waiting.acquire(NEVER);
  await setImmediate();
  held.release();
  assert.equal(await acquired, 2n);
  assert.equal(waiting.isHeld(), true);
  assert.equal(held.isHeld(), false);
});

test('locks of other names do not wait', async () => {
  const { createLock } = await openLocks(new MapStore());
  const [one, two] = [createLock('one'), createLock('two')];
  assert.equal(one.tryAcquire(), true);
  assert.equal(two.tryAcquire(), true);
});

test('a waiter acquires a lease that is not released when it expires', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const held = createLock('lease', 100);
  held.tryAcquire();
  const waiting = outcome(createLock('lease', 100).acquire(NEVER));
  await time.pass(99);
  assert.equal(waiting.ended, undefined);
  await time.pass(2);
  assert.deepEqual(waiting.ended, { value: 2n });
});

test('a timeout ends the wait with a last attempt', async (t) => {
  const time = new TestTime(t);
  const store = new CountingStore(time.now);
  const { createLock } = await time.locks(store);
  const held = createLock('taken', null);
  held.tryAcquire();
  const waiting = outcome(createLock('taken').acquire({ timeout: 95, delay: 20 }));
  await time.pass(94);
  assert.equal(waiting.ended, undefined);
  await time.pass(2);
  assert.equal(waiting.ended.error.code, 'E_LOCK_TIMEOUT');
  assert.equal(waiting.ended.error.temporary, true);
  assert.equal(waiting.ended.error.message, 'the lock `taken` was held by another owner through 6 attempt(s)');
  assert.equal(store.asked, 1 + 6);
});

test('the number of attempts is kept', async (t) => {
  const time = new TestTime(t);
  const store = new CountingStore(time.now);
  const { createLock } = await time.locks(store);
  const held = createLock('taken', null);
  held.tryAcquire();
  for (const attempts of [1, 3]) {
    store.asked = 0;
    const waiting = outcome(createLock('taken').acquire({ attempts, delay: 10 }));
    await time.pass(10 * attempts);
    assert.equal(waiting.ended.error.code, 'E_LOCK_TIMEOUT');
    assert.equal(store.asked, attempts);
  }
});

test('the pause between attempts can grow', async (t) => {
  const time = new TestTime(t);
  const store = new CountingStore(time.now);
  const { createLock } = await time.locks(store);
  const held = createLock('taken', null);
  held.tryAcquire();
  const waiting = outcome(createLock('taken').acquire({ delay: 1, maxDelay: 1_000, timeout: 1_000 }));
  await time.pass(1_001);
  assert.equal(waiting.ended.error.code, 'E_LOCK_TIMEOUT');
  assert.ok(store.asked < 100, `asked ${store.asked} times in a second`);
});

test('a signal ends the wait, which leaves no record behind', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const held = createLock('signal', null);
  held.tryAcquire();
  const stop = new AbortController();
  const waiting = outcome(createLock('signal').acquire({ signal: stop.signal }));
  await time.pass(1);
  stop.abort(new Error('enough'));
  await time.pass(0);
  assert.equal(waiting.ended.error.message, 'enough');
  held.release();
  await time.pass(300);
  assert.equal(held.isLocked(), false);
  await assert.rejects(createLock('signal').acquire({ signal: stop.signal }), /enough/);
  assert.equal(held.isLocked(), false);
});

test('a waiter that is woken and aborted at once does not keep the next one waiting', { timeout: 60_000 }, async () => {
  const { createLock } = await openLocks(new MapStore());
  const held = createLock('turn', null);
  held.tryAcquire();
  const stop = new AbortController();
  const stopped = createLock('turn', null).acquire({ ...NEVER, signal: stop.signal });
  const next = createLock('turn', null).acquire(NEVER);
  await setImmediate();
  held.release();
  stop.abort(new Error('enough'));
  await assert.rejects(stopped, /enough/);
  assert.equal(typeof await next, 'bigint');
});

test('a woken waiter that is aborted wakes the next one', { timeout: 60_000 }, async () => {
  const { createLock } = await openLocks(new MapStore());
  const held = createLock('turn', null);
  held.tryAcquire();
  const stop = new AbortController();
  const stopped = createLock('turn', null).acquire({ ...NEVER, signal: stop.signal });
  const next = createLock('turn', null).acquire(NEVER);
  await setImmediate();
  stop.abort(new Error('enough'));
  held.release();
  await assert.rejects(stopped, /enough/);
  assert.equal(await next, 2n);
});

test('a waiter leaves the queue with its grant, its last attempt and its abort', async (t) => {
  const time = new TestTime(t);
  const store = new MapStore(time.now);
  const places = [];
  store.join = (claim) => {
    const place = MapStore.prototype.join.call(store, claim);
    const { leave } = place;
    places.push(place);
    place.leave = () => { place.left = true; leave(); };
    return place;
  };
  const { createLock } = await time.locks(store);
  const held = createLock('left', null);
  held.tryAcquire();
  const stop = new AbortController();
  const ends = [{ timeout: 5 }, { signal: stop.signal }, {}].map((retry) => outcome(createLock('left').acquire(retry)));
  const left = () => places.map((place) => place.left ?? false);
  await time.pass(1);
  assert.deepEqual(left(), [false, false, false]);
  await time.pass(5);
  assert.equal(ends[0].ended.error.code, 'E_LOCK_TIMEOUT');
  assert.deepEqual(left(), [true, false, false]);
  stop.abort(new Error('enough'));
  await time.pass(0);
  assert.deepEqual(left(), [true, true, false]);
  held.release();
  await time.pass(0);
  assert.deepEqual(ends[2].ended, { value: 2n });
  assert.deepEqual(left(), [true, true, true]);
});

test('a store without a queue, or with a failing one, is polled by the timer', async (t) => {
  const time = new TestTime(t);
  const failing = () => { throw new Error('no'); };
  const leave = () => {};
  const joins = [
    undefined, () => undefined, () => null, failing, async () => undefined, () => ({ wait: failing, leave }),
    () => ({ wait: async () => failing(), leave }), () => ({ wait: () => new Promise(() => {}), leave: failing }),
    () => ({}), () => 7,
  ];
  for (const join of joins) {
    const { createLock } = await time.locks(Object.assign(new MapStore(time.now), { join }));
    const held = createLock('timer', null);
    held.tryAcquire();
    const waiting = outcome(createLock('timer', null).acquire({ delay: 50 }));
    await time.pass(1);
    held.release();
    await time.pass(48);
    assert.equal(waiting.ended, undefined);
    await time.pass(2);
    assert.deepEqual(waiting.ended, { value: 2n });
  }
});

test('JavaScript cannot block on a wait', async () => {
  let end;
  const pollable = new Pollable(() => new Promise((resolve) => { end = resolve; }));
  assert.equal(pollable.ready(), false);
  assert.throws(() => pollable.block(), /must not block/);
  end();
  await pollable.ended;
  assert.equal(pollable.ready(), true);
});

test('an invalid retry policy is refused', async () => {
  const { createLock } = await openLocks(new MapStore());
  const lock = createLock('patience');
  const wrong = [
    { attempts: 0 }, { attempts: -1 }, { attempts: 1.5 }, { attempts: 2 ** 32 }, { attempts: '3' }, { attempts: 3n },
    { delay: 0 }, { delay: -1 }, { delay: NaN }, { delay: 2 ** 64 / 1e6 }, { delay: '1' },
    { delay: 10, maxDelay: 5 }, { timeout: -1 }, { timeout: NaN }, { timeout: Infinity },
  ];
  for (const patience of wrong) {
    await assert.rejects(lock.acquire(patience), { name: 'LockError', code: 'E_INVALID_RETRY' }, String(Object.entries(patience)));
  }
  assert.equal(lock.isLocked(), false);
});
