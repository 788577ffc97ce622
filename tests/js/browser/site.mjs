/** A browser and a site with the package, for tests. */
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { extname, join, normalize } from 'node:path'

import { chromium } from 'playwright-core'

const project = join(import.meta.dirname, '../../..')
const types = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html' }

/** Starts both, and returns `{ context, tab, close }`. Each `tab` is a page of the site. */
export async function open() {
  const server = createServer(async ({ url }, response) => {
    const path = normalize(new URL(url, 'http://site').pathname)
    if (path === '/') return response.setHeader('content-type', 'text/html').end('<!doctype html><title>tab</title>')
    try {
      const bytes = await readFile(join(project, path))
      response.setHeader('content-type', types[extname(path)] ?? 'application/octet-stream').end(bytes)
    } catch {
      response.writeHead(404).end()
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const origin = `http://127.0.0.1:${server.address().port}`
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] })
  const context = await browser.newContext()
  return {
    context,
    origin,
    /** The same files at another origin. */
    elsewhere: origin.replace('127.0.0.1', 'localhost'),
    /** Opens a tab with `locks`, a LockFactory of the web store. */
    async tab(path = '/', at = origin) {
      const page = await context.newPage()
      await page.goto(at + path)
      if (path === '/') {
        await page.evaluate(async () => {
          const { LockFactory, errors } = await import('/target/js/browser.js')
          const { webStore } = await import('/target/js/web-store.js')
          globalThis.store = webStore()
          globalThis.locks = new LockFactory(store, { retry: { delay: '1h' } })
          globalThis.errors = errors
          globalThis.coded = (promise) => promise.then(() => 'nothing', (error) => error.code)
        })
      }
      return page
    },
    async close() {
      await browser.close()
      server.close()
    },
  }
}
