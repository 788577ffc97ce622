/** Serves this directory to browsers of this machine: `npm run serve` */
import { createReadStream } from 'node:fs';
import { createServer } from 'node:http';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };

/** Starts a server of this directory at `port`, or at any port with 0; resolves when it listens. */
export async function serve(port) {
  const server = createServer(({ url }, response) => {
    const { pathname } = new URL(url, 'http://localhost');
    const path = pathname === '/' ? '/index.html' : pathname;
    const type = TYPES[extname(path)];
    if (!type || !/^[\w./-]+$/.test(path)) return response.writeHead(404).end();
    const file = createReadStream(fileURLToPath(new URL(`.${path}`, import.meta.url)));
    file.on('error', () => response.writeHead(404).end());
    file.on('open', () => {
      response.writeHead(200, { 'content-type': type });
      file.pipe(response);
    });
    return response;
  });
  await new Promise((listening) => { server.listen(port, '127.0.0.1', listening); });
  return server;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await serve(8_000);
  console.log('http://localhost:8000/');
}
