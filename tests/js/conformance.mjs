/**
 * Serves the package's store in memory, *through its locks*, to the tests that every store must pass
 * (`host/tests/javascript_package.rs`):
 *
 *     node conformance.mjs
 *
 * Each line of standard input requests one operation of one client, and sets the time:
 *
 *     {"client": 1, "now": 5000, "step": {"inspect": {"name": "x"}}}
 *
 * The operations and their answers are those of `verrou serve`; `{"drop": {}}` ends a client. The core
 * reads the time from functions that replace the runtime's clocks here.
 */
import { createInterface } from 'node:readline'

let millis = 0
performance.now = () => millis
Date.now = () => 1_763_892_000_000 + millis

const { Lock, Retry, Store } = await import('../../target/js/core/verrou.js')
await import('../../target/js/node.js')

const store = Store.memory()
const once = new Retry().with(1)
const REFUSED = { refused: null }
const GRANTED = { granted: null }

const nanos = (millis) => (millis === undefined ? null : BigInt(Math.round(millis * 1e6)))
const length = (nanos) => (nanos === null ? null : Number(nanos) / 1e6)

function restored({ name, owner }) {
  const text = JSON.stringify({ version: 1, name, owner, ttl: null, expires: null, fence: null })
  return Lock.restore(store, text)
}

const steps = {
  async acquire({ name, owner, ttl }) {
    const lock = new Lock(store, name, length(ttl))
    const held = await lock.acquire(once, true, undefined, owner)
    if (lock.owner !== owner || lock.fence !== held.fence) throw new Error('the grant has another owner or fence')
    return { granted: held.fence ?? null }
  },
  async extend(claim) {
    await restored(claim).extend(length(claim.ttl))
    return GRANTED
  },
  async renew(claim) {
    try {
      await restored(claim).extend(length(claim.ttl))
      return { renewed: 'granted' }
    } catch (error) {
      if (error.code === 'E_LOCK_NOT_OWNER') return { renewed: 'lost' }
      throw error
    }
  },
  async release(claim) {
    await restored(claim).release()
    return GRANTED
  },
  async detach(claim) {
    await restored(claim).serialize(true)
    return GRANTED
  },
  async evict({ name, only }) {
    const evicted = await new Lock(store, name, null).forceRelease(only ?? undefined)
    return evicted ? GRANTED : REFUSED
  },
  async inspect({ name }) {
    const holder = await new Lock(store, name, null).holder()
    if (holder === undefined) return { holder: null }
    const { fence = null, remaining } = holder
    return { holder: { fencing_token: fence, remaining: nanos(remaining) } }
  },
  abilities: () => ({
    // Locks are restored here, and a restored lock revives no lease.
    abilities: { expires: true, ephemeral: false, transfers: true, evicts: true, fences: true, revives: false },
  }),
}

/** Parses JSON whose whole numbers may have 64 bits. */
function parse(line) {
  const marked = line.replace(/"(?:[^"\\]|\\.)*"|\d+/g, (token) => (token[0] === '"' ? token : `{"number":"${token}"}`))
  return JSON.parse(marked, (_, value) => (typeof value?.number === 'string' ? BigInt(value.number) : value))
}

function text(value) {
  if (typeof value === 'bigint') return String(value)
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  return `{${Object.entries(value).map(([key, member]) => `${JSON.stringify(key)}:${text(member)}`).join()}}`
}

async function answer({ now, step }) {
  millis = Number(now) / 1e6
  const [[kind, claim]] = Object.entries(step)
  if (kind === 'drop') return { dropped: true }
  try {
    return await steps[kind](claim)
  } catch (error) {
    if (error.code === 'E_LOCK_NOT_OWNER' || error.code === 'E_LOCK_TIMEOUT') return REFUSED
    return { error: { temporary: false, message: error.message } }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(text(await answer(parse(line))))
}
