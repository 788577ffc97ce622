/** A worker that increments a counter under a lock, in a database without other protection. */
import { LockFactory } from '/target/js/browser.js'
import { webStore } from '/target/js/web-store.js'
import { countUp } from '/tests/js/browser/counter.js'

onmessage = async ({ data: times }) => {
  await countUp(new LockFactory(webStore(), { retry: { delay: '1h' } }), times)
  postMessage('done')
}
postMessage('ready')
