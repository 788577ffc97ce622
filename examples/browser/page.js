/** One lock for all tabs of this page, and a picture of who holds it. */
import { errors, LockFactory } from './package/browser.js'
import { webStore } from './package/web-store.js'

const SECONDS = 30

const store = webStore()
const lock = new LockFactory(store).createLock('demo', SECONDS * 1_000)
const shown = (id) => document.getElementById(id)
/** Who waits holds a Web Lock of this name, together with the others who do, so that they can be counted. */
const WAITING = 'demo: waiting'
let giveUp

async function acquire() {
  giveUp = new AbortController()
  const { signal } = giveUp
  shown('said').textContent = 'waiting …'
  update()
  try {
    await navigator.locks.request(WAITING, { mode: 'shared' }, () => lock.acquire({ signal }))
    shown('said').textContent = 'this tab has it'
  } catch (error) {
    shown('said').textContent = error.name === 'AbortError' ? 'given up' : `${error.code}: ${error.message}`
  }
  giveUp = undefined
  update()
}

async function release() {
  if (giveUp) return giveUp.abort()
  try {
    await lock.release()
    shown('said').textContent = 'given back'
  } catch (error) {
    const late = error instanceof errors.E_LOCK_NOT_OWNER
    shown('said').textContent = late ? 'too late: the lease had ended' : `${error.code}: ${error.message}`
  }
  update()
}

/** Draws who holds the lock now. */
async function update() {
  const [holder, { held }] = await Promise.all([lock.isLocked().then(find), navigator.locks.query()])
  const mine = holder !== undefined && BigInt(holder.fence) === lock.fence && !lock.isExpired()
  const left = holder ? Math.max(0, (holder.ends - Date.now()) / 1_000) : 0
  shown('picture').className = holder ? (mine ? 'mine' : 'others') : ''
  shown('who').textContent = holder ? (mine ? 'This tab holds it' : 'Another tab holds it') : 'Nobody holds it'
  shown('fence').textContent = holder?.fence ?? '–'
  shown('left').textContent = holder ? `${left.toFixed(1)} s` : '–'
  shown('waiting').textContent = held.filter(({ name }) => name === WAITING).length
  shown('lease').value = left
  shown('acquire').disabled = mine || giveUp !== undefined
  shown('release').disabled = !mine && giveUp === undefined
  shown('release').textContent = giveUp ? 'Give up' : 'Release'
}

async function find(isLocked) {
  return isLocked ? (await store.list()).find(({ key }) => key === 'demo') : undefined
}

shown('acquire').onclick = acquire
shown('release').onclick = release
setInterval(update, 200)
update()
