/** The locks of `compat` in this machine's lease files, transferred from one process to another. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { Lock, Verrou, driver } from '../../../target/js/compat/index.js'
import { fileStore } from '../../../target/js/file-store.js'
import { coded, config, options } from './place.mjs'

process.env.VERROU_COMMAND ??= fileURLToPath(
  new URL('../../../target/debug/verrou', import.meta.url)
)

/** A program that restores the lock in its argument, releases it, and prints whether it was locked. */
const PROGRAM = `
  import { Verrou, driver } from '${new URL('../../../target/js/compat/index.js', import.meta.url)}'
  import { fileStore } from '${new URL('../../../target/js/file-store.js', import.meta.url)}'
  const [directory, text] = process.argv.slice(1)
  const files = fileStore(directory)
  const verrou = new Verrou({ default: 'files', stores: { files: { driver: driver(files) } } })
  const lock = verrou.restoreLock(JSON.parse(text))
  const locked = await lock.isLocked()
  await lock.release()
  await files.close()
  console.log(locked)
`

function place(t) {
  const directory = mkdtempSync(join(tmpdir(), 'verrou-compat-'))
  const files = fileStore(directory)
  t.after(async () => {
    await files.close()
    rmSync(directory, { recursive: true })
  })
  const verrou = new Verrou({ default: 'files', stores: { files: { driver: driver(files) } } })
  return { directory, files, verrou }
}

async function releasedElsewhere(directory, serialized) {
  const args = ['--input-type=module', '--eval', PROGRAM, directory, JSON.stringify(serialized)]
  const { stdout } = await promisify(execFile)(process.execPath, args)
  return stdout.trim()
}

test('a lock is released by the process that it was transferred to', options, async (t) => {
  const { directory, verrou } = place(t)
  const lock = verrou.createLock('foo', '1h')
  await lock.acquire()
  assert.equal(await releasedElsewhere(directory, lock.serialize()), 'true')
  assert.equal(await lock.isLocked(), false)
  await assert.rejects(lock.release(), coded('E_LOCK_NOT_OWNED'))
})

test('a serialized lock outlives the process that serialized it', options, async (t) => {
  const { directory, files, verrou } = place(t)
  const lock = verrou.createLock('foo', '1h')
  await lock.acquire()
  const serialized = lock.serialize()
  const other = verrou.createLock('bar', '1h')
  await other.acquire()
  // This ends the child that keeps the leases alive, as the end of this process would.
  await files.close()

  const again = fileStore(directory)
  t.after(() => again.close())
  const [foo, bar] = ['foo', 'bar'].map((name) => new Lock(name, again, config()))
  assert.deepEqual([await foo.isLocked(), await bar.isLocked()], [true, false])
  assert.equal(await releasedElsewhere(directory, serialized), 'true')
  assert.equal(await foo.isLocked(), false)
})

test('an owner may be any text, and cannot acquire a lock that it holds', options, async (t) => {
  const { files } = place(t)
  const locks = [1, 2, 3].map(() => new Lock('foo', files, config(), 'me', 3_600_000))
  const acquired = await Promise.all(locks.map((lock) => lock.acquireImmediately()))
  assert.deepEqual(acquired.filter(Boolean), [true])
  await assert.rejects(new Lock('foo', files, config(), 'you').release(), coded('E_LOCK_NOT_OWNED'))
  await new Lock('foo', files, config(), 'me').release()
  assert.equal(await locks[0].isLocked(), false)
})

test('a release wakes a waiter in another process', options, async (t) => {
  const { directory, verrou } = place(t)
  const lock = verrou.createLock('foo', '1h')
  await lock.acquire()
  const waiting = verrou.createLock('foo', '1h').acquire({ retry: { delay: '1h' } })
  await releasedElsewhere(directory, lock.serialize())
  assert.equal(await waiting, true)
})
