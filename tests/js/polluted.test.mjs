/** Code that writes to `Object.prototype` does not change the behaviour of the package. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

process.env.VERROU_COMMAND ??= fileURLToPath(new URL('../../target/debug/verrou', import.meta.url))

/** Every member that the package reads of its arguments and of the command's answers. */
const NAMES = [
  // Options.
  'anyFileSystem', 'attempts', 'command', 'default', 'delay', 'driver', 'factory', 'group', 'idle', 'label',
  'logger', 'maxDelay', 'name', 'renew', 'retry', 'signal', 'stores', 'timeout',
  // Optional methods of a store, and members of errors.
  'detach', 'fence', 'giveUp', 'holder', 'wait', 'code', 'remaining', 'temporary',
  // Serialized locks, answers, and the environment.
  'expirationTime', 'owner', 'ttl', 'error', 'granted', 'mine', 'queued', 'refused', 'renewed', 'waited',
  'VERROU_COMMAND', 'VERROU_STORE',
  // Options of functions that the package calls.
  'argv0', 'cwd', 'env', 'shell',
  // The method that `JSON.stringify` calls.
  'toJSON',
]

/** The optional methods of a store. */
const METHODS = ['detach', 'fence', 'giveUp', 'holder', 'renew', 'wait']

const directory = await mkdtemp(join(tmpdir(), 'verrou-'))
after(() => rm(directory, { recursive: true }))

/** Returns the results of all functions, with the name in `args`, if any, written to `Object.prototype`. */
async function used(...args) {
  const script = fileURLToPath(new URL('polluted.mjs', import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, [script, join(directory, 'locks'), ...args])
  return JSON.parse(stdout)
}

const clean = await used()

test('the functions have results', () => {
  const of = new Map(clean.map(([what, ...said]) => [what, said]))
  assert.deepEqual(of.get('memory runs'), ['done'])
  assert.deepEqual(of.get('plain runs'), ['done'])
  assert.deepEqual(of.get('compat runs')?.[0], [true, 'done'])
  assert.deepEqual(of.get('files save'), [true])
  assert.deepEqual(of.get('files refuse'), [false])
  assert.equal(of.get('memory is refused')[1], 'E_LOCK_TIMEOUT')
})

for (const name of NAMES) {
  test(`nothing is read from a polluted Object.prototype.${name}`, { timeout: 120_000 }, async () => {
    assert.deepEqual(await used(name), clean)
  })
}

for (const name of METHODS) {
  test(`nothing is read by a getter of Object.prototype.${name}`, { timeout: 120_000 }, async () => {
    assert.deepEqual(await used(name, 'getter'), clean)
  })
}
