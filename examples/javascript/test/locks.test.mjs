/** Locks that are held. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { MapStore } from '../map-store.mjs';
import { openLocks } from '../verrou.mjs';
import { START, TestTime, outcome } from './time.mjs';

const code = (name) => ({ name: 'LockError', code: name });

test('a lock can be acquired, inspected, extended and released', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const lock = createLock('life', 1_000);
  assert.equal(lock.name, 'life');
  assert.equal(lock.isLocked(), false);
  assert.equal(lock.remaining(), null);
  assert.throws(() => lock.release(), code('E_LOCK_NOT_OWNER'));
  assert.throws(() => lock.extend(), code('E_LOCK_NOT_OWNER'));
  assert.equal(await lock.acquire(), 1n);
  assert.equal(lock.isHeld(), true);
  await time.pass(400);
  assert.equal(lock.remaining(), 600);
  lock.extend();
  assert.equal(lock.remaining(), 1_000);
  lock.extend(5_000);
  assert.equal(lock.remaining(), 5_000);
  lock.extend(null);
  assert.equal(lock.remaining(), null);
  await time.pass(6_000);
  assert.equal(lock.isHeld(), true);
  lock.extend(10);
  await time.pass(10);
  assert.equal(lock.remaining(), 0);
  assert.equal(lock.isLocked(), false);
  assert.throws(() => lock.release(), code('E_LOCK_NOT_OWNER'));
});

test('any lock can force-release the current grant, or one grant only', async () => {
  const { createLock } = await openLocks(new MapStore());
  const [lock, other] = [createLock('forced'), createLock('forced')];
  const token = await lock.acquire();
  assert.equal(other.forceRelease(token + 1n), false);
  assert.equal(other.forceRelease(0n), false);
  assert.equal(other.forceRelease(2n ** 64n - 1n), false);
  assert.throws(() => other.forceRelease(2n ** 64n), /a fencing token must be/);
  assert.throws(() => other.forceRelease(1), /a fencing token must be/);
  assert.equal(lock.isHeld(), true);
  assert.equal(other.forceRelease(token), true);
  assert.equal(lock.isHeld(), false);
  assert.throws(() => lock.release(), code('E_LOCK_NOT_OWNER'));
  assert.equal(other.forceRelease(), false);
});

test('run holds the lock, releases it, and returns the result of its body', async () => {
  const { createLock } = await openLocks(new MapStore());
  const lock = createLock('run');
  assert.equal(await lock.run(async (token) => [token, lock.isHeld()].join()), '1,true');
  assert.equal(lock.isLocked(), false);
  const failing = lock.run(() => { throw new RangeError('its own'); });
  await assert.rejects(failing, new RangeError('its own'));
  assert.equal(lock.isLocked(), false);
});

test('run reports how the lock was lost, and the result of the work', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const lock = createLock('lost', 50);
  const late = lock.run(async () => { await time.pass(50); return 'late'; });
  await assert.rejects(late, { code: 'E_LOCK_LOST', outcome: 'late', message: /its lease expired/ });
  const evicted = lock.run(async () => createLock('lost').forceRelease() && 'evicted');
  await assert.rejects(evicted, { code: 'E_LOCK_LOST', outcome: 'evicted', message: /no longer records it/ });
  const both = lock.run(async () => { await time.pass(50); throw new RangeError('its own'); });
  await assert.rejects(both, new RangeError('its own'));
});

test('an expired run does not release the next grant of the same lock', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const lock = createLock('overtaken', 50);
  let finish;
  const first = outcome(lock.run(() => new Promise((end) => { finish = end; })));
  await time.pass(50);
  assert.equal(await lock.acquire(), 2n);
  finish();
  await time.pass(1);
  assert.equal(first.ended.error.code, 'E_LOCK_LOST');
  assert.equal(lock.isHeld(), true);
});

test('keepAlive renews a lease until its signal is aborted, or the lease is lost', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const lock = createLock('kept', 60);
  await assert.rejects(lock.keepAlive(new AbortController().signal), code('E_LOCK_NOT_OWNER'));
  await lock.acquire();
  const enough = new AbortController();
  const keeping = outcome(lock.keepAlive(enough.signal));
  await time.pass(500);
  assert.equal(lock.isHeld(), true);
  enough.abort();
  await time.pass(1);
  assert.deepEqual(keeping.ended, { value: undefined });
  await time.pass(60);
  assert.equal(lock.isLocked(), false);
  await lock.acquire();
  const losing = outcome(lock.keepAlive(new AbortController().signal));
  await time.pass(100);
  createLock('kept').forceRelease();
  await time.pass(30);
  assert.deepEqual(losing.ended, { value: 'revoked' });
});

test('a lease is the same text on every host', async (t) => {
  const time = new TestTime(t);
  const { createLock, restoreLock } = await time.locks();
  const texts = [
    '{"version":1,"name":"demo","owner":"000102030405060708090a0b0c0d0e0f","ttl":2000,"expires":1763892000000,"fence":7}',
    '{"version":1,"name":"d\\"\\\\\\u0000é🔒","owner":"ffffffffffffffffffffffffffffffff","ttl":null,"expires":null,"fence":null}',
    '{"version":1,"name":"x","owner":"000102030405060708090a0b0c0d0e0f","ttl":1,"expires":1763892000000,"fence":18446744073709551615}',
  ];
  for (const text of texts) assert.equal(restoreLock(text).serialize(), text);
  const lock = createLock('mine', 1_500);
  await lock.acquire();
  const text = lock.serialize();
  const members = JSON.parse(text);
  assert.equal(text, JSON.stringify(members), 'one line, without spaces between the members');
  assert.deepEqual(Object.keys(members), ['version', 'name', 'owner', 'ttl', 'expires', 'fence']);
  assert.match(members.owner, /^[0-9a-f]{32}$/);
  assert.deepEqual({ ...members, owner: '' }, { version: 1, name: 'mine', owner: '', ttl: 1_500, expires: START + 1_500, fence: 1 });
});

test('a restored lock can be extended and released', async (t) => {
  const time = new TestTime(t);
  const store = new MapStore(time.now);
  const { createLock } = await time.locks(store);
  const { restoreLock } = await time.locks(store);
  const lock = createLock('handed', 1_000);
  await lock.acquire();
  await time.pass(250);
  const restored = restoreLock(lock.serialize());
  assert.equal(restored.name, 'handed');
  assert.equal(restored.isHeld(), true);
  assert.equal(restored.remaining(), 750);
  restored.extend();
  assert.equal(restored.remaining(), 1_000);
  restored.release();
  assert.equal(lock.isHeld(), false);
});

test('a lock that is not held, or whose store ties leases to clients, cannot be serialized', async () => {
  const { createLock } = await openLocks(new MapStore());
  assert.throws(() => createLock('free').serialize(), code('E_LOCK_NOT_OWNER'));
  const tied = new MapStore();
  tied.getCapabilities = () => ({ ...MapStore.prototype.getCapabilities(), transfers: false });
  const lock = (await openLocks(tied)).createLock('tied');
  await lock.acquire();
  assert.throws(() => lock.serialize(), code('E_LOCK_NOT_SERIALIZABLE'));
  assert.throws(() => lock.detach(), code('E_LOCK_NOT_SERIALIZABLE'));
});

test('a dropped lock is released, unless it was detached, serialized or restored', async () => {
  const { createLock, restoreLock } = await openLocks(new MapStore());
  const other = createLock('dropped');
  const dropped = (use) => {
    const lock = createLock('dropped');
    assert.equal(lock.tryAcquire(), true);
    const text = use(lock);
    lock.dispose();
    return text;
  };
  dropped(() => {});
  assert.equal(other.isLocked(), false);
  dropped((lock) => lock.detach());
  assert.equal(other.isLocked(), true);
  other.forceRelease();
  const restored = restoreLock(dropped((lock) => lock.serialize()));
  assert.equal(restored.isHeld(), true);
  restored.dispose();
  assert.equal(other.isLocked(), true);
});

test('the garbage collector releases a lock', { timeout: 60_000 }, async () => {
  const { createLock } = await openLocks(new MapStore());
  const other = createLock('collected');
  (() => { assert.equal(createLock('collected').tryAcquire(), true); })();
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc');
  do {
    collect();
    await setImmediate();
  } while (other.isLocked());
});

test('the holders of a lock are listed', async (t) => {
  const time = new TestTime(t);
  const store = new MapStore(time.now);
  const { createLock } = await time.locks(store);
  const lock = createLock('listed', 1_000);
  assert.deepEqual(lock.holders(), []);
  await lock.acquire();
  await time.pass(400);
  const own = { fencingToken: 1n, mode: 'exclusive', remaining: 600, since: null, process: undefined, detached: false };
  assert.deepEqual(lock.holders(), [own]);
  // A store may record more.
  const process = { id: 4_242, host: 'host', command: 'nightly' };
  store.holders = () => [{ fencingToken: 7n, since: BigInt(START) * 1_000_000n, process, detached: true }, {}];
  assert.deepEqual(lock.holders(), [
    { ...own, fencingToken: 7n, remaining: null, since: START, process, detached: true },
    { ...own, fencingToken: undefined, remaining: null },
  ]);
});

test('a renewal passes the fencing token, and ends when the lock is released', async (t) => {
  const time = new TestTime(t);
  const store = new MapStore(time.now);
  const renewals = [];
  store.renew = ({ name, ttl }, fencingToken) => {
    renewals.push([name, ttl, fencingToken]);
    return renewals.length < 3 ? 'granted' : 'released';
  };
  const { createLock } = await time.locks(store);
  const lock = createLock('renewed', 60);
  await lock.acquire();
  const keeping = outcome(lock.keepAlive(new AbortController().signal));
  await time.pass(59);
  assert.deepEqual(renewals, Array(2).fill(['renewed', 60_000_000n, 1n]));
  await time.pass(2);
  assert.equal(renewals.length, 3);
  assert.deepEqual(keeping.ended, { value: undefined });
});

test('the Map store removes the names of expired records', async (t) => {
  const time = new TestTime(t);
  const store = new MapStore(time.now);
  const { createLock } = await time.locks(store);
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc');
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let number = 0; number < 20_000; number += 1) {
    const lock = createLock(`${number}`.padStart(1_000, 'x'), 1);
    lock.tryAcquire();
    lock.dispose();
    if (number % 200 === 0) await time.pass(1);
  }
  collect();
  // The names alone would be 20 MB if they were kept.
  const grown = process.memoryUsage().heapUsed - before;
  assert.ok(grown < 5e6, `grown by ${grown} bytes`);
  assert.equal(createLock('still there').tryAcquire(), true);
});
