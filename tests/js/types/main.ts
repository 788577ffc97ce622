/** The types of the package: this program must compile, and its marked lines must not. */
import { errors, LockError, LockFactory, memoryStore, onEvent, Verrou } from 'verrou-wasm'
import type { Duration, Lease, Lock, LockEvent, LockStore, RenewedLease } from 'verrou-wasm'

const verrou = new Verrou({
  default: 'memory',
  stores: { memory: { driver: memoryStore() }, other: memoryStore() },
})
verrou.use('other')
// @ts-expect-error: no store has this name
verrou.use('another')
// @ts-expect-error: no store has this name
new Verrou({ default: 'another', stores: { memory: memoryStore() } })

export async function use(signal: AbortSignal): Promise<number> {
  const lock: Lock = verrou.createLock('my-resource', '2s')
  await lock.acquire({ retry: { attempts: 5, delay: 100, timeout: '1s' }, signal })
  const free: boolean = await lock.acquireImmediately()
  const left: number | null = lock.getRemainingTime()
  const text: string = lock.serialize()
  await verrou.restoreLock(text).release()
  await using held = await lock.acquire()
  const fence: bigint | null = held.fence
  await lock.extend(null)
  // @ts-expect-error: not a length of time
  await lock.extend(true)
  return lock.run(async (lease: Lease) => (lease.signal.aborted || !free ? 0 : (left ?? Number(fence))), { renew: true })
}

export async function lead(lock: Lock): Promise<bigint | null> {
  await using lease = await lock.acquire({ renew: true })
  lease.signal.addEventListener('abort', () => console.log(lease.signal.reason))
  const same: RenewedLease = lease
  const held: Lock = await lock.acquire({ renew: false, retry: { attempts: 1 } })
  await same.release()
  // @ts-expect-error: a grant is no lock
  const wrong: Lock = await lock.acquire({ renew: true })
  return held.fence ?? lease.fence ?? wrong.fence
}

export function handle(error: unknown): string | undefined {
  if (error instanceof errors.E_LOCK_TIMEOUT) {
    const code: 'E_LOCK_TIMEOUT' = error.code
    return code
  }
  if (error instanceof LockError && error.code === 'E_LOCK_LOST') return String(error.value)
  return undefined
}

const store: LockStore = {
  save: (key: string, owner: string, ttl: number | null) => key.length + owner.length > (ttl ?? 0),
  async delete() {},
  forceDelete() {},
  exists: async () => false,
  extend() {},
  fence: () => 1n,
}
const lengths: Duration[] = [1_000, '1s', null]
export const locks = lengths.map((ttl) => new LockFactory(store, { retry: { delay: '10ms' } }).createLock('x', ttl))
// @ts-expect-error: it lacks methods
new LockFactory({ save: () => true })

const end: () => void = onEvent((event: LockEvent) => {
  const fence: bigint | undefined = event.fence
  console.log(event.level, event.message, event.name, fence, event.waitedMs)
})
end()
