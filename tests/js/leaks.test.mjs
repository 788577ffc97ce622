/** A million locks leave nothing behind. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { promisify } from 'node:util'

const program = `
  import { LockFactory, memoryStore } from ${JSON.stringify(new URL('../../target/js/node.js', import.meta.url).href)}
  import { initSync } from ${JSON.stringify(new URL('../../target/js/core/verrou.js', import.meta.url).href)}

  const core = initSync({})
  const factory = new LockFactory(memoryStore())
  const sizes = []
  for (let round = 0; round < 20; round++) {
    for (let made = 0; made < 50_000; made++) {
      const lock = factory.createLock('lock ' + (made % 100), null)
      if (made % 10 === 0) await lock.run(() => {})
    }
    gc()
    // Finalizers run between tasks.
    await new Promise((resolve) => setTimeout(resolve))
    sizes.push(core.memory.buffer.byteLength)
  }
  console.log(JSON.stringify(sizes))
`

test('memory does not grow over a million locks that are not freed', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['--expose-gc', '--input-type=module', '--eval', program])
  const sizes = JSON.parse(stdout)
  assert.equal(sizes.length, 20)
  assert.equal(sizes.at(-1), sizes[9], `bytes after each round: ${sizes}`)
})
