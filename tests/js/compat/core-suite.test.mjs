/** This package's stores inside `@verrou/core`: its own locks ask them, and its own suite checks it. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
import { fileURLToPath } from 'node:url'

import { registerStoreTestSuite } from '@verrou/core/test_suite'

import { driver } from '../../../target/js/compat/index.js'
import { memoryStore } from '../../../target/js/compat/drivers/memory.js'
import { fileStore } from '../../../target/js/file-store.js'
import { register } from './suite.mjs'

process.env.VERROU_COMMAND ??= fileURLToPath(
  new URL('../../../target/debug/verrou', import.meta.url)
)

/** The class is that of `@verrou/core`, which no store of ours knows: the code is what they share. */
const hasItsCode = (error, Class) => error.code === Class.code

register(registerStoreTestSuite, 'memoryStore', () => memoryStore().factory(), hasItsCode)

const folder = mkdtempSync(join(tmpdir(), 'verrou-compat-'))
const stores = []
after(async () => {
  await Promise.all(stores.map((store) => store.close()))
  rmSync(folder, { recursive: true })
})

function files() {
  const store = fileStore(join(folder, String(stores.length)))
  stores.push(store)
  return driver(store).factory()
}

register(registerStoreTestSuite, 'fileStore', files, hasItsCode)
