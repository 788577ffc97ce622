/** The suite that `@verrou/core` exports, with the locks and errors of `compat` in place of its own. */
import { register as addHooks } from 'node:module'

import { memoryStore } from '../../../target/js/compat/drivers/memory.js'
import { register } from './suite.mjs'

const url = import.meta.resolve('../../../target/js/compat/index.js')
addHooks('./replace.mjs', import.meta.url, { data: { url } })
const { registerStoreTestSuite } = await import('@verrou/core/test_suite')

const isIts = (error, Class) => error instanceof Class

register(registerStoreTestSuite, 'compat', () => memoryStore().factory(), isIts)
