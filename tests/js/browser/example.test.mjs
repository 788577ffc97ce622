/** The page in `examples/browser`, used as its README says. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { chromium } from 'playwright-core'

import { serve } from '../../../examples/browser/serve.mjs'

let server
let browser
let context
before(async () => {
  server = await serve(0)
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] })
  context = await browser.newContext()
})
after(async () => {
  await browser?.close()
  server?.close()
})

async function tab() {
  const page = await context.newPage()
  page.on('pageerror', (error) => assert.fail(error))
  await page.goto(`http://127.0.0.1:${server.address().port}/`)
  return page
}
const says = (page, id, text) => page.locator(`#${id}`, { hasText: text }).waitFor()

test('the lock is handed off between tabs', async () => {
  const [one, two] = [await tab(), await tab()]
  await says(one, 'who', 'It is free')
  await one.click('#acquire')
  await says(one, 'who', 'This tab holds it')
  await says(two, 'who', 'Another tab holds it')
  const fence = Number(await two.textContent('#fence'))

  await two.click('#acquire')
  await says(one, 'waiting', '1')
  await two.click('#release')
  await says(two, 'said', 'cancelled')
  await two.click('#acquire')
  await says(one, 'waiting', '1')
  if (process.env.SCREENSHOT) await one.screenshot({ path: process.env.SCREENSHOT })
  await one.click('#release')
  await says(two, 'who', 'This tab holds it')
  await says(one, 'who', 'Another tab holds it')
  assert.ok(Number(await two.textContent('#fence')) > fence)

  await one.click('#acquire')
  await says(two, 'waiting', '1')
  await two.close()
  await says(one, 'who', 'This tab holds it')
})

test('only the page and the package are served', async () => {
  const status = async (path) => (await fetch(`http://127.0.0.1:${server.address().port}${path}`)).status
  assert.equal(await status('/package/core/verrou_bg.wasm'), 200)
  for (const path of ['/..%2f..%2fCargo.toml', '/package/..%2f..%2f..%2fCargo.lock', '/serve.mjs', '/README.md', '/nothing.js']) {
    assert.equal(await status(path), 404, path)
  }
})
