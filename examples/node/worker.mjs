/** Processes payments, and releases their locks: `node worker.mjs`, until Ctrl-C. */
import { setTimeout as pause } from 'node:timers/promises'
import { errors } from 'verrou-wasm'

import { on } from './queue.mjs'
import { verrou } from './verrou.mjs'

const stop = new AbortController()
process.once('SIGINT', () => stop.abort())

await on(
  'process-payment',
  async ({ paymentId, lock: serialized }) => {
    const lock = verrou.restoreLock(serialized)
    try {
      // The lease may have expired while the job was in the queue, and another owner may hold the lock.
      await lock.extend()
      await processPayment(paymentId)
      await lock.release()
    } catch (error) {
      if (!(error instanceof errors.E_LOCK_NOT_OWNER)) throw error
      console.log(`worker: the lock of payment ${paymentId} was lost`)
    }
  },
  stop.signal
)

async function processPayment(paymentId) {
  await pause(100) // the work
  console.log(`worker: payment ${paymentId} is processed`)
}
