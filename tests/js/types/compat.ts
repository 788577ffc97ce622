/** The types of `compat`: this program must compile, and its marked lines must not. */
import { driver, E_LOCK_NOT_OWNED, E_LOCK_STORAGE_ERROR, errors, Lock, LockFactory, Verrou } from 'verrou-wasm/compat'
import { MemoryStore, memoryStore } from 'verrou-wasm/compat/drivers/memory'
import { fileStore } from 'verrou-wasm/file-store'
import type { Duration, LockStore, Logger, RunResult, SerializedLock } from 'verrou-wasm/compat'

class NullStore implements LockStore {
  async save(_key: string): Promise<boolean> {
    return true
  }
  async delete(_key: string): Promise<void> {}
  async forceDelete(_key: string): Promise<void> {}
  async exists(_key: string): Promise<boolean> {
    return true
  }
  async extend(_key: string, _owner: string, _duration: number): Promise<void> {}
}

const logger: Logger = {
  child: ({ pkg }) => (pkg === 'verrou' ? logger : logger),
  debug: ({ key }, message) => console.debug(key, message),
}

const verrou = new Verrou({
  default: 'memory',
  logger,
  stores: {
    memory: { driver: memoryStore() },
    files: { driver: driver(fileStore('/run/locks')) },
    own: { driver: { factory: () => new NullStore() } },
  },
})
verrou.use('files')
verrou.use()
// @ts-expect-error: no store has this name
verrou.use('other')
// @ts-expect-error: no store has this name
new Verrou({ default: 'other', stores: { memory: { driver: memoryStore() } } })

export async function use(ttl: Duration): Promise<string | null> {
  const lock: Lock = verrou.createLock('my-resource', ttl)
  const acquired: boolean = await lock.acquire({ retry: { attempts: 5, delay: '100ms', timeout: null } })
  // @ts-expect-error: not a number of attempts
  await lock.acquire({ retry: { attempts: '5' } })
  const at: boolean = await lock.acquireImmediately()
  const left: number | null = lock.getRemainingTime()
  const owner: string = lock.getOwner()
  const serialized: SerializedLock = lock.serialize()
  await verrou.restoreLock(JSON.parse(JSON.stringify(serialized))).release()
  await lock.extend('5s')
  // @ts-expect-error: not a length of time
  await lock.extend(true)

  const result: RunResult<string> = await lock.run(async () => `${acquired} ${at} ${left} ${owner}`)
  if (!result[0]) {
    const none: null = result[1]
    return none
  }
  const said: string = result[1]
  const [, count] = await lock.runImmediately(() => 5)
  const counted: number | null = count
  // @ts-expect-error: the result may be null
  const surely: number = count
  return `${said} ${counted} ${surely}`
}

export function handle(error: unknown): unknown {
  if (error instanceof E_LOCK_NOT_OWNED) {
    const code: 'E_LOCK_NOT_OWNED' = error.code
    return code
  }
  if (error instanceof E_LOCK_STORAGE_ERROR) return error.cause ?? error.value
  if (error instanceof errors.E_INVALID_ARGUMENTS_EXCEPTION) return error.status
  return new E_LOCK_STORAGE_ERROR(['why'], { cause: error })
}

export const direct = new Lock(
  'foo',
  new MemoryStore(),
  { retry: { attempts: 5, delay: 50 }, logger },
  undefined,
  1_000,
  null
)
export const factory = new LockFactory(new NullStore(), { retry: { timeout: '1s' } })
// @ts-expect-error: a store has more methods
export const none = new LockFactory({ save: async () => true })
