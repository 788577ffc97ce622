/** Tabs and workers of one origin, in a real browser. */
import assert from 'node:assert/strict'
import { after, afterEach, before, test } from 'node:test'

import { open } from './site.mjs'

let site
before(async () => {
  site = await open()
})
after(() => site?.close())
afterEach(() => Promise.all(site.context.pages().map((page) => page.close())))

const acquire = (tab, name, ttl) =>
  tab.evaluate(async ([name, ttl]) => {
    globalThis.held = locks.createLock(name, ttl)
    await held.acquire()
    return Number(held.fence)
  }, [name, ttl])

/** Makes a tab wait for the lock; it waits when this returns. */
async function waits(tab, name) {
  await tab.evaluate((name) => {
    const wait = store.wait.bind(store)
    globalThis.waiting = new Promise((resolve) => {
      store.wait = (...claim) => {
        const waited = wait(...claim)
        // By then the record has been read, and the events that can wake it are subscribed.
        setTimeout(resolve, 50)
        return waited
      }
    })
    globalThis.held = locks.createLock(name, '1m')
    globalThis.acquired = held.acquire().then(() => Number(held.fence))
  }, name)
  await tab.evaluate(() => waiting)
}
const acquired = (tab) => tab.evaluate(() => acquired)

test('two tabs and a worker count together, and lose nothing', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  const count = async (times) => {
    const { countUp } = await import('/tests/js/browser/counter.js')
    return countUp(locks, times)
  }
  const work = (times) =>
    new Promise((resolve, reject) => {
      const worker = new Worker('/tests/js/browser/contender.js', { type: 'module' })
      worker.onerror = (event) => reject(new Error(event.message))
      worker.onmessage = ({ data }) => (data === 'ready' ? worker.postMessage(times) : resolve([]))
    })
  const fences = await Promise.all([one.evaluate(count, 40), two.evaluate(count, 40), one.evaluate(work, 40)])
  const total = await one.evaluate(async () => (await import('/tests/js/browser/counter.js')).read())
  assert.equal(total, 120)
  for (const mine of fences) assert.deepEqual(mine, mine.toSorted((first, second) => first - second))
  const known = fences.flat()
  assert.equal(new Set(known).size, known.length)
})

test('a release wakes a waiter in another tab', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  const before = await acquire(one, 'released', null)
  await waits(two, 'released')
  await one.evaluate(() => held.release())
  assert.ok((await acquired(two)) > before)
})

test('a closed tab frees its locks before their ttl has passed', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  const before = await acquire(one, 'closed', '1h')
  await waits(two, 'closed')
  await one.close()
  assert.ok((await acquired(two)) > before)
})

test('a crashed tab frees its locks', async () => {
  const [one, two, three] = [await site.tab(), await site.tab(), await site.tab()]
  const before = await acquire(one, 'crashed', null)
  await waits(two, 'crashed')
  const crashed = new Promise((resolve) => one.once('crash', resolve))
  const session = await site.context.newCDPSession(one)
  session.send('Page.crash').catch(() => {})
  await crashed
  const fence = await acquired(two)
  assert.ok(fence > before)
  // A tab that does not wait is refused while the lock is held, and granted it when it is free.
  const immediately = () => three.evaluate(() => locks.createLock('crashed').acquireImmediately())
  assert.equal(await immediately(), false)
  await two.evaluate(() => held.release())
  assert.equal(await immediately(), true)
})

test('a terminated worker frees its locks', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  await one.evaluate(
    () =>
      new Promise((resolve) => {
        const program = `
          import { LockFactory } from '${location.origin}/target/js/browser.js'
          import { webStore } from '${location.origin}/target/js/web-store.js'
          await new LockFactory(webStore()).createLock('worker', null).acquire()
          postMessage('held')`
        const url = URL.createObjectURL(new Blob([program], { type: 'text/javascript' }))
        globalThis.worker = new Worker(url, { type: 'module' })
        worker.onmessage = resolve
      })
  )
  assert.equal(await two.evaluate(() => locks.createLock('worker').isLocked()), true)
  await waits(two, 'worker')
  await one.evaluate(() => worker.terminate())
  await acquired(two)
})

test('a waiter acquires an expired lock', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  const before = await acquire(one, 'expired', 400)
  const began = await two.evaluate(() => Date.now())
  await waits(two, 'expired')
  assert.ok((await acquired(two)) > before)
  assert.ok((await two.evaluate(() => Date.now())) - began > 50)
  assert.equal(await one.evaluate(() => coded(held.extend())), 'E_LOCK_NOT_OWNER')
  assert.equal(await one.evaluate(() => coded(held.release())), 'E_LOCK_NOT_OWNER')
  assert.equal(await two.evaluate(() => locks.createLock('expired').isLocked()), true)
})

test('a force-release wakes a waiter, and the former holder cannot release', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  await acquire(one, 'forced', null)
  await waits(two, 'forced')
  await one.evaluate(() => locks.createLock('forced').forceRelease())
  await acquired(two)
  assert.equal(await one.evaluate(() => coded(held.release())), 'E_LOCK_NOT_OWNER')
})

test('a lock that is serialized in one tab outlives it, and is released in another', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  await acquire(one, 'transferred', '1m')
  const text = await one.evaluate(() => held.handOver())
  await one.close()
  assert.equal(await two.evaluate(() => locks.createLock('transferred').acquireImmediately()), false)
  await two.evaluate((text) => locks.restoreLock(text).release(), text)
  assert.equal(await two.evaluate(() => locks.createLock('transferred').acquireImmediately()), true)
})

test('serialize without waiting detaches the lease', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  await acquire(one, 'sent', '1m')
  const text = await one.evaluate(async () => {
    const text = held.serialize()
    // The next operation comes after the request that was sent.
    await held.isLocked()
    return text
  })
  await one.close()
  assert.equal(await two.evaluate((text) => coded(locks.restoreLock(text).extend('2m')), text), 'nothing')
})

test('a cancelled wait leaves no request behind', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  await acquire(one, 'cancelled', null)
  const pending = await two.evaluate(async () => {
    const lock = locks.createLock('cancelled')
    for (let time = 0; time < 20; time++) {
      const controller = new AbortController()
      const waiting = lock.acquire({ signal: controller.signal })
      setTimeout(() => controller.abort(), 5)
      await waiting.catch((error) => {
        if (error.name !== 'AbortError') throw error
      })
    }
    // Cancelled requests are removed before the next answer.
    const { pending } = await navigator.locks.query()
    return pending.length
  })
  assert.equal(pending, 0)
})

test('list returns the held locks, and a closed store holds none', async () => {
  const [one, two] = [await site.tab(), await site.tab()]
  const fence = await acquire(one, 'listed', '1h')
  const listed = () => two.evaluate(async () => (await store.list()).filter(({ key }) => key === 'listed'))
  const [entry] = await listed()
  assert.equal(entry.fence, fence)
  assert.equal(entry.ends - entry.since, 3_600_000)
  assert.doesNotMatch(JSON.stringify(entry), /[0-9a-f]{32}/, 'no owner token')
  await one.evaluate(() => store.close())
  assert.deepEqual(await listed(), [])
  assert.equal(await one.evaluate(() => coded(locks.createLock('listed').acquire())), 'E_LOCK_STORAGE_ERROR')
  assert.equal(await two.evaluate(() => locks.createLock('listed').acquireImmediately()), true)
})

test('without Web Locks the error names them', async () => {
  const page = await site.context.newPage()
  await page.goto(site.origin)
  const error = await page.evaluate(async () => {
    const { webStore } = await import('/target/js/web-store.js')
    Object.defineProperty(navigator, 'locks', { value: undefined })
    try {
      webStore()
    } catch ({ code, message }) {
      return { code, message }
    }
  })
  assert.equal(error.code, 'E_INVALID_STORE')
  assert.match(error.message, /Web Locks/)
})
