/** Acquires the lock of a payment, and dispatches it to a worker: `node app.mjs PAYMENT`. */
import { errors } from 'verrou-wasm'

import { dispatch } from './queue.mjs'
import { verrou } from './verrou.mjs'

const paymentId = process.argv[2]
const lock = verrou.createLock(`payment-${paymentId}`, '2m')
try {
  await lock.acquire({ retry: { timeout: '100ms' } })
  // From here on the lease does not end with this process, but expires after its ttl.
  dispatch('process-payment', { paymentId, lock: lock.serialize() })
  console.log(`app: payment ${paymentId} is locked, and in the queue`)
} catch (error) {
  if (!(error instanceof errors.E_LOCK_TIMEOUT)) throw error
  console.log(`app: payment ${paymentId} is being processed already`)
}
