/** The module that the examples import as `./verrou.js`. */
import { Verrou, memoryStore } from '../../target/js/node.js'

export const verrou = new Verrou({
  default: 'memory',
  stores: { memory: { driver: memoryStore() }, other: { driver: memoryStore() } },
})
