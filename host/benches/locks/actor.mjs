/** An actor of the benchmark with a lock of an npm package; actor.rs documents the requests. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import { Verrou } from '@verrou/core'
import { memoryStore } from '@verrou/core/drivers/memory'
import { redisStore } from '@verrou/core/drivers/redis'
import { Redis } from 'ioredis'
import lockfile from 'proper-lockfile'
import Redlock from 'redlock'

function make(kind, directory) {
  if (kind.startsWith('proper-lockfile')) {
    const path = join(directory, 'proper')
    writeFileSync(path, '', { flag: 'a' })
    // By default it does not wait; a number is the number of retries, the first one after a second.
    const retries =
      kind === 'proper-lockfile-1ms' ? { forever: true, minTimeout: 1, maxTimeout: 1, factor: 1 } : 10
    let release
    return [async () => (release = await lockfile.lock(path, { retries })), () => release()]
  }
  if (kind === 'redlock') {
    const redlock = new Redlock([new Redis(process.env.VERROU_BENCH_REDIS)], { retryCount: -1 })
    let lock
    return [async () => (lock = await redlock.lock('redlock', 10_000)), () => lock.unlock()]
  }
  const driver = kind.startsWith('verrou-redis')
    ? redisStore({ connection: new Redis(process.env.VERROU_BENCH_REDIS) })
    : memoryStore()
  const verrou = new Verrou({ default: 'store', stores: { store: { driver } } })
  const options = kind === 'verrou-redis-1ms' ? { retry: { delay: 1 } } : {}
  const lock = verrou.createLock('javascript', '10s')
  return [() => lock.acquire(options), () => lock.release()]
}

const now = () => process.hrtime.bigint()

async function pairs(acquire, release, times) {
  const began = now()
  for (let time = 0; time < times; time++) {
    await acquire()
    await release()
  }
  return now() - began
}

const [, , kind, directory] = process.argv
const [acquire, release] = make(kind, directory)
for await (const line of createInterface({ input: process.stdin })) {
  const [what, number] = line.split(' ')
  let done
  if (what === 'pairs') done = await pairs(acquire, release, Number(number))
  else if (what === 'acquire') {
    await acquire()
    done = `${now()} ${process.pid}`
  } else if (what === 'release') {
    done = now()
    await release()
  } else throw new Error(`unknown request \`${line}\``)
  process.stdout.write(`${done}\n`)
}
process.exit()
