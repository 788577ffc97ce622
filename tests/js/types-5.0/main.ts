/** The types in the oldest supported version of the compiler, without `await using`. */
import { LockFactory, Verrou, errors, memoryStore } from 'verrou-wasm'
import type { Lease, Lock, RenewedLease } from 'verrou-wasm'
import { LockFactory as CompatFactory } from 'verrou-wasm/compat'
import { MemoryStore } from 'verrou-wasm/compat/drivers/memory'
import { fileStore } from 'verrou-wasm/file-store'
import { serverStore } from 'verrou-wasm/server-store'
import { webStore } from 'verrou-wasm/web-store'

const verrou = new Verrou({ default: 'memory', stores: { memory: memoryStore(), files: fileStore('locks') } })
verrou.use('files')
// @ts-expect-error: no store has this name
verrou.use('another')
// @ts-expect-error: no store has this name
new Verrou({ default: 'another', stores: { memory: memoryStore() } })

export async function use(): Promise<bigint | null> {
  const lock: Lock = new LockFactory(serverStore('redis://localhost')).createLock('x')
  const lease: RenewedLease = await lock.acquire({ renew: true })
  await lease[Symbol.asyncDispose]()
  await new LockFactory(webStore()).createLock('x').run((lease: Lease) => lease.fence)
  const [done] = await new CompatFactory(new MemoryStore()).createLock('x').run(() => 1)
  return done ? lease.fence : null
}

export const code = (error: unknown) => (error instanceof errors.E_LOCK_TIMEOUT ? error.code : undefined)
