/** Serves this directory, and the package as `package/`, to browsers of this machine: `node serve.mjs` */
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { createServer } from 'node:http'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.wasm': 'application/wasm' }
const PACKAGE = new URL('../../target/js/', import.meta.url)

/** Starts a server of the page at `port`, or at any port with 0; resolves when it listens. */
export async function serve(port) {
  const server = createServer(({ url }, response) => {
    // The parsed path has no `..` any more.
    const { pathname } = new URL(url, 'http://localhost')
    const path = pathname === '/' ? '/index.html' : pathname
    const [, inPackage] = path.match(/^\/package\/(.+)$/) ?? []
    const file = inPackage ? new URL(inPackage, PACKAGE) : new URL(`.${path}`, import.meta.url)
    const type = TYPES[extname(path)]
    if (!type) return response.writeHead(404).end()
    const bytes = createReadStream(fileURLToPath(file))
    bytes.on('error', () => response.writeHead(404).end())
    bytes.on('open', () => {
      response.writeHead(200, { 'content-type': type })
      bytes.pipe(response)
    })
    return response
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  return server
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await serve(8_000)
  console.log('http://localhost:8000/')
}
