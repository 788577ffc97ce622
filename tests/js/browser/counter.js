/** A counter that loses increments without a lock: it is read and written in separate transactions. */
function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('counter', 1)
    request.onupgradeneeded = () => request.result.createObjectStore('numbers')
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

function asked(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

export async function read() {
  const database = await open()
  const number = await asked(database.transaction('numbers').objectStore('numbers').get('count'))
  database.close()
  return number ?? 0
}

/** Increments the counter `times` times, each time under the lock; returns the fencing tokens. */
export async function countUp(locks, times) {
  const database = await open()
  const numbers = (mode) => database.transaction('numbers', mode).objectStore('numbers')
  const fences = []
  for (let time = 0; time < times; time++) {
    await locks.createLock('counter').run(async ({ fence }) => {
      const seen = (await asked(numbers('readonly').get('count'))) ?? 0
      await new Promise((resolve) => setTimeout(resolve))
      await asked(numbers('readwrite').put(seen + 1, 'count'))
      fences.push(fence)
    })
  }
  database.close()
  return fences.map(Number)
}
