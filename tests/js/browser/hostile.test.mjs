/** Hostile scripts beside `webStore`, of another origin and of the same origin. */
import assert from 'node:assert/strict'
import { after, afterEach, before, test } from 'node:test'

import { open } from './site.mjs'

let site
before(async () => {
  site = await open()
})
after(() => site?.close())
afterEach(() => Promise.all(site.context.pages().map((page) => page.close())))

/** Holds a lock under renewal in `tab` until `globalThis.end()` is called; returns the fencing token. */
const hold = (tab, name, ttl = '1h') =>
  tab.evaluate(
    ([name, ttl]) =>
      new Promise((resolve) => {
        const work = async ({ fence, signal }) => {
          resolve(Number(fence))
          globalThis.signal = signal
          await new Promise((end) => {
            globalThis.end = end
          })
        }
        globalThis.ended = coded(locks.createLock(name, ttl).run(work, { renew: true }))
      }),
    [name, ttl]
  )
const end = (tab) => tab.evaluate(() => (globalThis.end(), ended))
const take = (tab, name) =>
  tab.evaluate(async (name) => {
    const lock = locks.createLock(name, '1h')
    return (await lock.acquireImmediately()) ? Number(lock.fence) : null
  }, name)

test('another origin reads, wakes and takes nothing', async () => {
  const [holder, other] = [await site.tab(), await site.tab('/', site.elsewhere)]
  await hold(holder, 'lock')
  const seen = await other.evaluate(async () => {
    const channel = new BroadcastChannel('verrou:verrou')
    channel.postMessage('lock')
    const { held } = await navigator.locks.query()
    return [await store.list(), held.filter(({ name }) => name.startsWith('verrou:'))]
  })
  assert.deepEqual(seen, [[], []])
  assert.notEqual(await take(other, 'lock'), null, 'a lock of its own')
  assert.equal(await end(holder), 'nothing')
})

test('a message on the channel grants nothing', async () => {
  const [holder, waiter, hostile] = [await site.tab(), await site.tab(), await site.tab()]
  await hold(holder, 'lock')
  await waiter.evaluate(() => {
    globalThis.asked = 0
    const save = store.save.bind(store)
    store.save = (...claim) => {
      asked++
      return save(...claim)
    }
    globalThis.acquired = locks.createLock('lock').acquire().then(({ fence }) => Number(fence))
  })
  await waiter.waitForFunction(() => asked > 0)
  const waking = hostile.evaluate(async () => {
    const channel = new BroadcastChannel('verrou:verrou')
    globalThis.waking = setInterval(() => {
      for (const message of ['lock', null, undefined, 7, { key: 'lock' }, ['lock'], 'x'.repeat(1_000)]) {
        channel.postMessage(message)
      }
    }, 5)
  })
  await waking
  await waiter.waitForFunction(() => asked > 3)
  assert.equal(await take(hostile, 'lock'), null)
  assert.equal(await end(holder), 'nothing')
  assert.ok((await waiter.evaluate(() => acquired)) > 0)
})

/** The attacks of a script of the same origin. The holder's next renewal fails. */
const ENDS = {
  'steals the Web Lock of a live tab': async () => {
    const { held } = await navigator.locks.query()
    for (const { name } of held) {
      if (name.startsWith('verrou:')) await navigator.locks.request(name, { steal: true }, () => {})
    }
  },
  'reads the owner token and releases': async () => {
    const database = await new Promise((resolve) => {
      indexedDB.open('verrou:verrou').onsuccess = ({ target }) => resolve(target.result)
    })
    const record = await new Promise((resolve) => {
      const table = database.transaction('locks').objectStore('locks')
      table.get('lock').onsuccess = ({ target }) => resolve(target.result)
    })
    database.close()
    await store.delete('lock', record.owner)
  },
  'forges the record': async () => {
    const database = await new Promise((resolve) => {
      indexedDB.open('verrou:verrou').onsuccess = ({ target }) => resolve(target.result)
    })
    await new Promise((resolve) => {
      const transaction = database.transaction('locks', 'readwrite')
      const table = transaction.objectStore('locks')
      table.get('lock').onsuccess = ({ target }) => table.put({ ...target.result, owner: null })
      transaction.oncomplete = resolve
    })
    database.close()
  },
}

for (const [what, attack] of Object.entries(ENDS)) {
  test(`a script of the same origin ${what}: the holder's lease is lost, and the next fence is greater`, async () => {
    const [holder, hostile] = [await site.tab(), await site.tab()]
    const first = await hold(holder, 'lock', '2s')
    assert.equal(await take(hostile, 'lock'), null)
    await hostile.evaluate(attack)
    const second = await take(hostile, 'lock')
    assert.ok(second > first, `${second} after ${first}`)
    // The holder's next renewal is refused.
    await holder.waitForFunction(() => signal.aborted)
    assert.equal(await holder.evaluate(() => signal.reason.code), 'E_LOCK_LOST')
    assert.equal(await end(holder), 'E_LOCK_LOST')
    assert.equal(await take(holder, 'lock'), null, 'the other tab holds it')
  })
}

test('a polluted Object.prototype chooses no database and steals no lock', async () => {
  const [holder, other] = [await site.tab(), await site.tab()]
  const first = await hold(holder, 'lock')
  const said = await other.evaluate(async () => {
    const { LockFactory } = await import('/target/js/browser.js')
    const { webStore } = await import('/target/js/web-store.js')
    const evil = { name: 'evil', ifAvailable: true, steal: true, mode: 'evil', keyPath: 'evil', autoIncrement: true }
    Object.assign(Object.prototype, evil)
    try {
      const store = webStore({})
      const locks = new LockFactory(store, {})
      const refused = await locks.createLock('lock').acquireImmediately()
      const granted = await locks.createLock('mine').acquireImmediately()
      return [refused, granted, (await store.list()).map(({ key }) => key).sort()]
    } finally {
      for (const name of Object.keys(evil)) delete Object.prototype[name]
    }
  })
  assert.deepEqual(said, [false, true, ['lock', 'mine']])
  assert.equal(await end(holder), 'nothing')
  assert.ok((await take(holder, 'lock')) > first)
})
