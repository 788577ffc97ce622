/** One lock for all tabs of this page, and a display of its holder. */
import { errors, LockFactory } from './package/browser.js'
import { webStore } from './package/web-store.js'

const SECONDS = 30

const store = webStore()
const lock = new LockFactory(store).createLock('demo', SECONDS * 1_000)
const shown = (id) => document.getElementById(id)
/** The name of a Web Lock that all waiting tabs share, so that they can be counted. */
const WAITING = 'demo: waiting'
let canceller

async function acquire() {
  canceller = new AbortController()
  const { signal } = canceller
  shown('said').textContent = 'waiting …'
  update()
  try {
    await navigator.locks.request(WAITING, { mode: 'shared' }, () => lock.acquire({ signal }))
    shown('said').textContent = 'this tab holds the lock'
  } catch (error) {
    shown('said').textContent = error.name === 'AbortError' ? 'cancelled' : `${error.code}: ${error.message}`
  }
  canceller = undefined
  update()
}

async function release() {
  if (canceller) return canceller.abort()
  try {
    await lock.release()
    shown('said').textContent = 'released'
  } catch (error) {
    const late = error instanceof errors.E_LOCK_NOT_OWNER
    shown('said').textContent = late ? 'too late: the lease had expired' : `${error.code}: ${error.message}`
  }
  update()
}

/** Displays the current holder of the lock. */
async function update() {
  const [holder, { held }] = await Promise.all([lock.isLocked().then(find), navigator.locks.query()])
  const mine = holder !== undefined && BigInt(holder.fence) === lock.fence && !lock.isExpired()
  const left = holder ? Math.max(0, (holder.ends - Date.now()) / 1_000) : 0
  shown('picture').className = holder ? (mine ? 'mine' : 'others') : ''
  shown('who').textContent = holder ? (mine ? 'This tab holds it' : 'Another tab holds it') : 'It is free'
  shown('fence').textContent = holder?.fence ?? '–'
  shown('left').textContent = holder ? `${left.toFixed(1)} s` : '–'
  shown('waiting').textContent = held.filter(({ name }) => name === WAITING).length
  shown('lease').value = left
  shown('acquire').disabled = mine || canceller !== undefined
  shown('release').disabled = !mine && canceller === undefined
  shown('release').textContent = canceller ? 'Cancel' : 'Release'
}

async function find(isLocked) {
  return isLocked ? (await store.list()).find(({ key }) => key === 'demo') : undefined
}

shown('acquire').onclick = acquire
shown('release').onclick = release
setInterval(update, 200)
update()
