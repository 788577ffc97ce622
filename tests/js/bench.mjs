/**
 * The cost of the package beside its peers, measured in one run: the subjects take turns, round by round. Prints
 * the median of each and its ratio to the first.
 */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { gzipSync } from 'node:zlib'

import { Verrou as Peer } from '@verrou/core'
import { memoryStore as peerStore } from '@verrou/core/drivers/memory'

import { Verrou, memoryStore } from '../../target/js/node.js'

const built = new URL('../../target/js/', import.meta.url)

function median(numbers) {
  return numbers.toSorted((one, two) => one - two)[numbers.length >> 1]
}

async function compare(title, rounds, calls, subjects) {
  const times = subjects.map(() => [])
  for (const [, once] of subjects) for (let call = 0; call < calls; call++) await once()
  for (let round = 0; round < rounds; round++) {
    for (const [index, [, once]] of subjects.entries()) {
      const began = performance.now()
      for (let call = 0; call < calls; call++) await once()
      times[index].push((performance.now() - began) / calls)
    }
  }
  const medians = times.map(median)
  console.log(`\n${title} (median of ${rounds} rounds of ${calls})`)
  for (const [index, [name]] of subjects.entries()) {
    const micros = (medians[index] * 1e3).toFixed(2)
    console.log(`  ${name.padEnd(36)} ${micros.padStart(10)} µs ${(medians[index] / medians[0]).toFixed(2).padStart(7)} ×`)
  }
}

const size = (file) => {
  const bytes = readFileSync(new URL(file, built))
  return [bytes.length, gzipSync(bytes, { level: 9 }).length]
}
const scripts = ['node.js', 'index.js', 'verrou.js', 'errors.js', 'core/verrou.js'].map(size)
const [module, compressed] = size('core/verrou_bg.wasm')
console.log(`core: ${module} bytes, ${compressed} gzipped; scripts: ${scripts.reduce((sum, [, gzipped]) => sum + gzipped, 0)} gzipped`)

const lockOf = (Manager, driver) => new Manager({ default: 'memory', stores: { memory: { driver } } }).createLock('a', '10s')
const ours = lockOf(Verrou, memoryStore())
const peer = lockOf(Peer, peerStore())
await compare('acquire and release, in memory', 41, 2_000, [
  ['@verrou/core', async () => { await peer.acquire(); await peer.release() }],
  ['verrou-wasm', async () => { await ours.acquire(); await ours.release() }],
])
await compare('run, in memory', 41, 2_000, [
  ['@verrou/core', () => peer.run(() => 1)],
  ['verrou-wasm', () => ours.run(() => 1)],
])

await ours.acquire()
class Plain {
  #until = performance.now() + 10_000
  getRemainingTime() {
    return this.#until - performance.now()
  }
}
const plain = new Plain()
let sum = 0
await compare('getRemainingTime, a thousand calls', 41, 50, [
  ['plain JavaScript', () => { for (let call = 0; call < 1_000; call++) sum += plain.getRemainingTime() }],
  ['verrou-wasm', () => { for (let call = 0; call < 1_000; call++) sum += ours.getRemainingTime() }],
])

const node = (program) => () => execFileSync(process.execPath, ['--input-type=module', '--eval', program], { cwd: import.meta.dirname })
await compare('Node.js, started and ended', 11, 1, [
  ['without anything', node('')],
  ['@verrou/core', node("import '@verrou/core'; import '@verrou/core/drivers/memory'")],
  ['verrou-wasm', node("import '../../target/js/node.js'")],
])

if (process.env.CHROMIUM) await inChromium()
else console.log('\nNOT RUN  start-up in a browser: the variable CHROMIUM is not set')

/** Measures how long a page takes to import the package, from a server on this machine. */
async function inChromium() {
  const { chromium } = await import('playwright-core')
  const types = { js: 'text/javascript', wasm: 'application/wasm' }
  const files = new Set(readdirSync(built, { recursive: true }).map((path) => `/${path}`))
  const server = createServer(({ url }, response) => {
    const type = types[url.split('.').at(-1)]
    response.setHeader('content-type', type ?? 'text/html')
    response.end(files.has(url) && type ? readFileSync(new URL(`.${url}`, built)) : type ? '' : '<!doctype html>')
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] })
  try {
    const load = (module) => async () => {
      const page = await browser.newPage()
      await page.goto(`http://127.0.0.1:${server.address().port}/`)
      await page.evaluate((path) => import(path), module)
      await page.close()
    }
    await compare('a page in Chromium, opened, importing it, closed', 11, 1, [
      ['an empty module', load('/empty.js')],
      ['verrou-wasm', load('/browser.js')],
    ])
  } finally {
    await browser.close()
    server.close()
  }
}
