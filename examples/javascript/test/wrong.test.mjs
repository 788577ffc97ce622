/** Invalid arguments of callers, and invalid replies of stores. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { asking } from '../arguments.mjs';
import { MapStore } from '../map-store.mjs';
import { openLocks } from '../verrou.mjs';
import { TestTime, outcome } from './time.mjs';

const code = (name, message) => ({ name: 'LockError', code: name, ...(message && { message }) });

/** Opens a Map store whose function `step` is replaced by `instead`, and acquires a lock there. */
async function opened(step, instead) {
  const store = new MapStore();
  const { createLock, restoreLock } = await openLocks(store);
  const lock = createLock('store');
  await lock.acquire();
  const text = lock.serialize();
  const before = store[step].bind(store);
  store[step] = (...request) => instead(...request);
  return { createLock, restored: restoreLock(text), heal: () => { store[step] = before; } };
}

/** A call of a lock that makes the store do each operation. */
const ASKING = {
  acquire: ({ createLock }) => createLock('other').tryAcquire(),
  extend: ({ restored }) => restored.extend(),
  release: ({ restored }) => restored.release(),
  forceRelease: ({ restored }) => restored.forceRelease(),
  holders: ({ restored }) => restored.isHeld(),
};

test('invalid names are refused', async () => {
  const { createLock } = await openLocks(new MapStore());
  const invalid = (name, message) => assert.throws(() => createLock(name), code('E_INVALID_NAME', message));
  invalid('', "a lock's name must not be empty");
  invalid('x'.repeat(1_025), "a lock's name must have at most 1024 bytes, this one has 1025");
  invalid('é'.repeat(513), "a lock's name must have at most 1024 bytes, this one has 1026");
  invalid('x'.repeat(2 ** 20), "a lock's name must have at most 1024 bytes, this one has 1048576");
  invalid('x'.repeat(2 ** 28), 'a text of 268435456 characters is too long');
  for (const half of ['\ud800', 'a\udc00b', '\udc00\ud800', 'x\ud83d']) invalid(half, /half a surrogate pair/);
  for (const other of [undefined, null, 7, {}, ['x'], Symbol('x')]) invalid(other, /expected a string/);
});

test('unusual names are accepted, and are different names', async () => {
  const { createLock } = await openLocks(new MapStore());
  const held = [];
  const names = ['x'.repeat(1_024), ' ', '\0', '\n', '../..', '🔒', '\ufffd', '\ufeff', '\ufeffx', 'x', '\ufeff\ufeff', 'e\u0301', '\u00e9', '__proto__', 'constructor'];
  for (const name of names) {
    const lock = createLock(name);
    held.push(lock);
    assert.equal(lock.name, name);
    assert.equal(lock.tryAcquire(), true, JSON.stringify(name));
  }
});

test('invalid ttls are refused', async () => {
  const { createLock } = await openLocks(new MapStore());
  const lock = createLock('ttl');
  await lock.acquire();
  const wrong = [0, -0, 1e-9, -1, -1e-9, NaN, Infinity, -Infinity, 2 ** 64 / 1e6, 2 ** 63 / 1e6, 1e300, '1s', 1n, true, {}];
  for (const ttl of wrong) {
    assert.throws(() => createLock('ttl', ttl), code('E_INVALID_TTL'), String(ttl));
    assert.throws(() => lock.extend(ttl), code('E_INVALID_TTL'), String(ttl));
  }
  assert.throws(() => createLock('ttl', 0), { message: /must last longer than zero/ });
  assert.throws(() => createLock('ttl', 2 ** 63 / 1e6), { message: /less than 292 years/ });
  const long = createLock('long', (2 ** 63 - 2 ** 11) / 1e6);
  await long.acquire();
  assert.ok(long.remaining() > 9.2e12);
});

test('invalid serialized locks are refused', async () => {
  const { restoreLock } = await openLocks(new MapStore());
  const right = { version: 1, name: 'demo', owner: '000102030405060708090a0b0c0d0e0f', ttl: 2000, expires: null, fence: 7 };
  restoreLock(JSON.stringify(right));
  restoreLock(JSON.stringify({ ...right, unknown: 'ignored' }));
  const wrong = [
    '', '{}', 'null', '[]', '{"version":1', 'x'.repeat(2 ** 20), 'x'.repeat(2 ** 22), '\ud800', undefined, 7,
    ...Object.keys(right).map((member) => JSON.stringify({ ...right, [member]: undefined })),
    ...[{ version: 2 }, { name: '' }, { owner: 'x' }, { ttl: 0 }, { ttl: -1 }, { ttl: 1e30 }, { fence: 0 }, { fence: -1 }, { expires: '1' }]
      .map((member) => JSON.stringify({ ...right, ...member })),
    `${JSON.stringify(right)}x`,
    JSON.stringify({ ...right, name: '\ud800' }),
  ];
  for (const text of wrong) {
    assert.throws(() => restoreLock(text), code('E_INVALID_SERIALIZED_LOCK'), String(text).slice(0, 200));
  }
});

for (const [step, asks] of Object.entries(ASKING)) {
  test(`an exception in ${step} is a storage error, and does no other harm`, async () => {
    const thrown = [
      [new Error('on fire'), 'on fire', false],
      [Object.assign(new Error('busy'), { temporary: true }), 'busy', true],
      [Object.assign(new Error('no room'), { code: 'full' }), 'no room', false],
      [Object.assign(new Error('no'), { code: 'E_MINE' }), 'no', false],
      [Object.assign(new Error('no'), { code: 7 }), 'no', false],
      ['a text', 'a text', false],
      [undefined, 'undefined', false],
      [null, 'null', false],
      [{ payload: 'what the component would read' }, '[object Object]', false],
      [new Error('half \ud800'), 'half \ufffd', false],
      [new Error(''), '', false],
      [new Error('long '.repeat(100_000)), 'long '.repeat(100_000), false],
    ];
    for (const [what, message, temporary] of thrown) {
      const failing = await opened(step, () => { throw what; });
      assert.throws(() => asks(failing), { ...code('E_LOCK_STORAGE_ERROR', message), temporary });
      failing.heal();
      assert.equal(failing.restored.isHeld(), true);
      failing.restored.release();
      assert.equal(failing.restored.isLocked(), false);
    }
  });

  test(`an invalid reply to ${step} is a storage error, and does no other harm`, async () => {
    const reply = (val) => ({ tag: 'granted', val });
    const process = (member) => [{ process: { id: 1, host: '', command: '', ...member } }];
    const replies = {
      acquire: [undefined, null, true, 'granted', 7n, {}, [], { tag: 'lent' }, Promise.resolve(reply(1n)), reply(-1n), reply(1),
        reply('1'), reply(2n ** 64n), reply({}), reply(0n), { tag: 'busy', val: NaN }, { tag: 'busy', val: -1n }],
      holders: [undefined, null, 'x', 1, true, () => {}, {}, Promise.resolve([]), [undefined], ['x'], [{ fencingToken: 7 }],
        [{ fencingToken: 0n }], [{ fencingToken: 2n ** 64n }], [{ remaining: -1n }], [{ remaining: 1.5 }], [{ since: 1 }],
        [{ mode: 'shared' }], [{ mode: { tag: 'none' } }], [{ mode: { tag: 'permit', val: -1 } }], [{ detached: 1 }],
        [{ process: 'x' }], process({ id: -1 }), process({ id: 2 ** 32 }), process({ host: 1 }), process({ command: null })],
    };
    const garbage = replies[step] ?? [undefined, null, 0, 1, 'true', {}, [], reply(), () => true, Promise.resolve(true)];
    for (const said of garbage) {
      const failing = await opened(step, () => said);
      assert.throws(() => asks(failing), { ...code('E_LOCK_STORAGE_ERROR'), message: /\w/, temporary: false }, `said ${typeof said}`);
      failing.heal();
      assert.equal(failing.restored.isHeld(), true);
    }
  });
}

test('the error for an invalid reply names the fault', async () => {
  const [wrong, promised, zero] = [
    await opened('acquire', () => ({ tag: 'granted', val: 7 })),
    await opened('acquire', async () => ({ tag: 'granted', val: 7n })),
    await opened('acquire', () => ({ tag: 'granted', val: 0n })),
  ];
  const says = (failing, message) => assert.throws(() => ASKING.acquire(failing), code('E_LOCK_STORAGE_ERROR', message));
  says(wrong, "the store's `acquire` returned 7 instead of undefined or a bigint of 64 bits");
  says(promised, /returned a promise \(the functions are synchronous\)/);
  says(zero, 'the store returned fencing token 0, which no grant has');
});

test('a store need not count grants', async () => {
  const store = new MapStore();
  store.acquire = () => ({ tag: 'granted' });
  const { createLock } = await openLocks(store);
  const lock = createLock('uncounted');
  assert.equal(await lock.acquire(), undefined);
  assert.equal(lock.tryAcquire(), true);
});

test('an error has the code of the component', () => {
  const failing = (tag, val) => () => asking(() => { throw { payload: { code: { tag, val }, message: 'why', temporary: true } }; });
  const codes = {
    'invalid-name': 'E_INVALID_NAME',
    lost: 'E_LOCK_LOST',
    'not-owner': 'E_LOCK_NOT_OWNER',
    storage: 'E_LOCK_STORAGE_ERROR',
    'too-many-handles': 'E_TOO_MANY_HANDLES',
    denied: 'E_LOCK_DENIED',
  };
  for (const [tag, name] of Object.entries(codes)) assert.throws(failing(tag), { ...code(name, 'why'), temporary: true });
  assert.throws(failing('other', 'E_LATER'), code('E_LATER', 'why'));
});

test('a renewal without a valid reply does not end the lease', async (t) => {
  const time = new TestTime(t);
  for (const reply of [undefined, true, 'extended', Promise.resolve('granted'), new Error('no')]) {
    const store = new MapStore(time.now);
    const { createLock } = await time.locks(store);
    const lock = createLock('kept', 60);
    await lock.acquire();
    const renew = store.renew.bind(store);
    store.renew = () => {
      store.renew = renew;
      if (reply instanceof Error) throw reply;
      return reply;
    };
    const stop = new AbortController();
    const keeping = outcome(lock.keepAlive(stop.signal));
    await time.pass(120);
    assert.equal(store.renew, renew);
    assert.equal(lock.isHeld(), true);
    stop.abort();
    await time.pass(1);
    assert.deepEqual(keeping.ended, { value: undefined });
  }
});

test('a store without valid capabilities is not opened', async () => {
  const capabilities = MapStore.prototype.getCapabilities();
  for (const wrong of [() => undefined, () => ({}), () => ({ ...capabilities, fences: 1 }), () => { throw new Error('no'); }]) {
    const store = Object.assign(new MapStore(), { getCapabilities: wrong });
    await assert.rejects(openLocks(store), /`getCapabilities`|no/);
  }
});

test('a temporary error is retried, and an acquisition with an unknown outcome is released', async (t) => {
  const time = new TestTime(t);
  const store = new MapStore(time.now);
  const { createLock } = await time.locks(store);
  const [acquire, release] = [store.acquire.bind(store), store.release.bind(store)];
  const trouble = () => { throw Object.assign(new Error('busy'), { temporary: true }); };
  let asked = 0;
  store.acquire = (claim) => (++asked < 3 ? trouble() : acquire(claim));
  const troubled = createLock('trouble');
  const unlimited = outcome(troubled.acquire({ delay: 20 }));
  await time.pass(39);
  assert.equal(unlimited.ended, undefined);
  await time.pass(2);
  assert.deepEqual(unlimited.ended, { value: 1n });

  let released = 0;
  store.release = (claim) => { released += 1; return release(claim); };
  store.acquire = (claim) => { acquire(claim); trouble(); };
  const lock = createLock('unknown');
  const limited = outcome(lock.acquire({ attempts: 2, delay: 20 }));
  await time.pass(21);
  assert.equal(limited.ended.error.code, 'E_LOCK_STORAGE_ERROR');
  assert.equal(limited.ended.error.temporary, true);
  assert.equal(released, 1);
  assert.equal(lock.isLocked(), false);
});

test('a disposed handle throws E_LOCK_DISPOSED', async () => {
  const { createLock } = await openLocks(new MapStore());
  const lock = createLock('disposed');
  await lock.acquire();
  lock.dispose();
  lock.dispose();
  const uses = ['tryAcquire', 'release', 'forceRelease', 'extend', 'detach', 'serialize', 'holders', 'isLocked', 'isHeld', 'remaining'];
  for (const use of uses) assert.throws(() => lock[use](), code('E_LOCK_DISPOSED', /`disposed` was disposed of/), use);
  for (const use of ['acquire', 'run', 'keepAlive']) await assert.rejects(lock[use](), code('E_LOCK_DISPOSED'), use);
  assert.equal(createLock('disposed').isLocked(), false, 'the lease ends with the handle');
});

test('a waiting lock can be disposed of, and is released with its grant', async (t) => {
  const time = new TestTime(t);
  const { createLock } = await time.locks();
  const held = createLock('waits', null);
  await held.acquire();
  const lock = createLock('waits', null);
  const waiting = outcome(lock.acquire());
  await time.pass(1);
  lock.dispose();
  held.release();
  await time.pass(1);
  assert.equal(waiting.ended.error.code, 'E_LOCK_DISPOSED');
  assert.equal(held.isLocked(), false);
  assert.equal(await held.acquire(), 3n);
});

test('a hundred thousand handles can be made one after the other', async () => {
  const { createLock } = await openLocks(new MapStore());
  for (let number = 0; number < 100_000; number += 1) createLock('many').dispose();
  const lock = createLock('many');
  // An attempt is a handle, too, and at most 32,768 handles can exist at a time.
  for (let number = 0; number < 40_000; number += 1) {
    await lock.acquire();
    lock.release();
  }
});

test('a hundred thousand handles at once are refused, and do no other harm', async () => {
  const { createLock } = await openLocks(new MapStore());
  const locks = [];
  const make = () => { while (locks.length < 100_000) locks.push(createLock('many')); };
  assert.throws(make, { ...code('E_TOO_MANY_HANDLES', /drop some/), temporary: true });
  assert.ok(locks.length >= 32_768, `only ${locks.length}`);
  assert.equal(locks[0].tryAcquire(), true);
  await assert.rejects(locks[1].acquire({ attempts: 1 }), code('E_TOO_MANY_HANDLES'));
  locks.splice(1_000).forEach((lock) => lock.dispose());
  await assert.rejects(locks[1].acquire({ attempts: 1 }), code('E_LOCK_TIMEOUT'));
  locks[0].release();
});
