/** This package's stores inside `@verrou/core`, whose own locks use them, and whose own suite checks them. */
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

/** Compares codes: the expected class is that of `@verrou/core`, which this package's stores do not throw. */
const hasItsCode = (error, Class) => error.code === Class.code

register(registerStoreTestSuite, 'memoryStore', () => memoryStore().factory(), hasItsCode)

const directory = mkdtempSync(join(tmpdir(), 'verrou-compat-'))
const stores = []
after(async () => {
  await Promise.all(stores.map((store) => store.close()))
  rmSync(directory, { recursive: true })
})

function files() {
  const store = fileStore(join(directory, String(stores.length)))
  stores.push(store)
  return driver(store).factory()
}

register(registerStoreTestSuite, 'fileStore', files, hasItsCode)
