/**
 * The page, in Chromium: `npm run test:browser`
 *
 * The environment variable `CHROMIUM` has the path of Chromium, if that is not `/usr/bin/chromium`.
 */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { chromium } from 'playwright-core';

import { serve } from '../serve.mjs';

const ARGUMENTS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

let [server, origin, profile, browser] = [];

before(async () => {
  server = await serve(0);
  origin = `http://127.0.0.1:${server.address().port}`;
  profile = await mkdtemp(join(tmpdir(), 'verrou-chromium-'));
  const executablePath = process.env.CHROMIUM || '/usr/bin/chromium';
  browser = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: ARGUMENTS });
});

after(async () => {
  await browser?.close();
  server.close();
  await rm(profile, { recursive: true, force: true, maxRetries: 5 });
});

/** Opens a tab at `path`; returns it with its errors, messages, and requests to other origins. */
async function opened(path) {
  const page = await browser.newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => complaints.push(message.text()));
  page.on('requestfailed', (request) => complaints.push(request.url()));
  page.on('request', (request) => {
    const { protocol } = new URL(request.url());
    if (!request.url().startsWith(`${origin}/`) && protocol !== 'data:') complaints.push(request.url());
  });
  await page.goto(`${origin}${path}`);
  return { page, complaints };
}

test('the page prints the lines of the program', { timeout: 60_000 }, async () => {
  const { page, complaints } = await opened('/');
  const state = page.locator('#state');
  await page.waitForFunction(() => document.querySelector('#state').textContent !== 'running');
  assert.equal(await state.textContent(), 'done');
  assert.deepEqual(await page.locator('#lines li').allTextContents(), [
    'worker 1 prints under fencing token 1, 1 inside',
    'worker 2 prints under fencing token 2, 1 inside',
    'worker 3 prints under fencing token 3, 1 inside',
    'first acquired: true, second acquired: false',
    'E_LOCK_TIMEOUT: the lock `payment` was held by another owner through 3 attempt(s)',
    'the restored lock is held for 90 s',
    'locked after the release: false',
    'E_LOCK_LOST: the lock `slow` was lost: its lease expired before it was extended',
  ]);
  assert.deepEqual(complaints, []);
});

test('the locks in a tab exclude each other, also with unusual names', { timeout: 60_000 }, async () => {
  const { page, complaints } = await opened('/');
  const seen = await page.evaluate(async () => {
    const { openLocks } = await import('/verrou.mjs');
    const { MapStore } = await import('/map-store.mjs');
    const { createLock, restoreLock } = await openLocks(new MapStore());
    const code = (call) => {
      try { call(); } catch (error) { return `${error.name} ${error.code}`; }
      return 'none';
    };
    let [inside, most, counted] = [0, 0, 0];
    await Promise.all(Array.from({ length: 200 }, () => createLock('one', null).run(async () => {
      most = Math.max(most, ++inside);
      await new Promise((end) => { queueMicrotask(end); });
      counted += 1;
      inside -= 1;
    }, { delay: 3_600_000 })));
    const stop = new AbortController();
    const held = createLock('held', null);
    await held.acquire();
    setTimeout(() => stop.abort(), 10);
    const aborted = await createLock('held').acquire({ signal: stop.signal }).catch((error) => error.name);
    const unusual = ['\ufeff', '\ufeffx', 'x', 'é', 'e\u0301'].map((name) => createLock(name));
    const text = held.serialize();
    restoreLock(text).release();
    return {
      most,
      counted,
      aborted,
      locked: held.isLocked(),
      names: unusual.map((lock) => lock.tryAcquire()),
      half: code(() => createLock('\ud800')),
      ttl: code(() => createLock('x', NaN)),
      text: code(() => restoreLock(`${text}x`)),
      members: Object.keys(JSON.parse(text)).join(),
    };
  });
  assert.deepEqual(seen, {
    most: 1,
    counted: 200,
    aborted: 'AbortError',
    locked: false,
    names: [true, true, true, true, true],
    half: 'LockError E_INVALID_NAME',
    ttl: 'LockError E_INVALID_TTL',
    text: 'LockError E_INVALID_SERIALIZED_LOCK',
    members: 'version,name,owner,ttl,expires,fence',
  });
  assert.deepEqual(complaints, []);
});
