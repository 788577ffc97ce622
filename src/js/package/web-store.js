/**
 * A store of leases for the tabs and workers of one origin. The records are in IndexedDB, whose transactions
 * make each operation atomic. Each tab holds a Web Lock as long as it lives. A BroadcastChannel notifies
 * waiters that a lock may be free.
 */
import { invalid, millisOf, nameOf, optionsOf, ownerOf, signalOf } from './arguments.js'
import { errors } from './errors.js'
import { own, pairOf } from './options.js'

const TABLE = 'locks'

/** The longest time of a timer, in ms. */
const MAX_TIMER = 2 ** 31 - 1

export function webStore(options) {
  return new WebStore(options)
}

class WebStore {
  #name
  #channel
  #wakers = new Map()
  #granted = new Map()
  #database
  #opening
  #client
  #clientLock
  #end
  #closed = false

  constructor(options) {
    const { name = 'verrou' } = optionsOf('webStore', options)
    if (typeof name !== 'string') throw invalid('`name`', 'a string', name)
    assertPresent()
    this.#name = name
    this.#channel = new BroadcastChannel(`verrou:${name}`)
    this.#channel.onmessage = ({ data }) => this.#wake(data)
  }

  async save(key, owner, ttl) {
    key = nameOf(key)
    ownerOf(owner)
    millisOf(ttl)
    const client = await this.#liveClient()
    let dead
    for (;;) {
      const { fence, holder } = await this.#transaction(key, (record) => {
        const mine = record.owner === owner
        if (isHeld(record) && !mine && (dead === undefined || record.client !== dead)) {
          return { answer: { holder: record.client } }
        }
        const same = mine && isHeld(record)
        const granted = {
          key,
          owner,
          fence: same ? record.fence : record.fence + 1,
          since: same ? record.since : Date.now(),
          ends: endOf(ttl),
          client: same ? record.client : client,
        }
        return { put: granted, answer: { fence: granted.fence } }
      })
      if (fence !== undefined) {
        this.#granted.set(pairOf(owner, key), fence)
        return true
      }
      if (holder === null || (await this.#isAlive(holder))) return false
      dead = holder
    }
  }

  async delete(key, owner) {
    key = nameOf(key)
    ownerOf(owner)
    this.#granted.delete(pairOf(owner, key))
    const held = await this.#transaction(key, (record) =>
      record.owner === owner ? { put: freed(record), answer: isHeld(record) } : { answer: false }
    )
    this.#notify(key)
    if (!held) throw notOwner(key)
  }

  async forceDelete(key) {
    key = nameOf(key)
    await this.#transaction(key, (record) => ({ put: freed(record) }))
    this.#notify(key)
  }

  async exists(key) {
    return (await this.holder(key)) !== null
  }

  async holder(key) {
    key = nameOf(key)
    const record = await this.#transaction(key, (record) => ({ answer: record }))
    const held = isHeld(record) && (record.client === null || (await this.#isAlive(record.client)))
    if (!held) return null
    return { fence: record.fence, remaining: record.ends === null ? null : Math.max(0, record.ends - Date.now()) }
  }

  async extend(key, owner, ttl) {
    key = nameOf(key)
    ownerOf(owner)
    millisOf(ttl)
    const held = await this.#transaction(key, (record) =>
      record.owner === owner && isHeld(record)
        ? { put: { ...record, ends: endOf(ttl) }, answer: true }
        : { answer: false }
    )
    // The new expiry may be sooner than the one that waiters wait for.
    this.#notify(key)
    if (!held) throw notOwner(key)
  }

  fence(key, owner) {
    const grant = pairOf(owner, key)
    const fence = this.#granted.get(grant)
    this.#granted.delete(grant)
    return fence ?? null
  }

  async detach(key, owner) {
    key = nameOf(key)
    ownerOf(owner)
    const held = await this.#transaction(key, (record) =>
      record.owner === owner && isHeld(record)
        ? { put: { ...record, client: null }, answer: true }
        : { answer: false }
    )
    this.#notify(key)
    if (!held) throw notOwner(key)
  }

  async wait(key, atMost, signal) {
    key = nameOf(key)
    if (typeof atMost !== 'number') throw invalid('`atMost`', 'a number of milliseconds', atMost)
    signalOf(signal)
    const over = new AbortController()
    let timer
    const woken = new Promise((resolve) => {
      const wakers = this.#wakers.get(key) ?? new Set()
      this.#wakers.set(key, wakers.add(resolve))
      over.signal.addEventListener('abort', () => {
        wakers.delete(resolve)
        if (wakers.size === 0) this.#wakers.delete(key)
        clearTimeout(timer)
        resolve()
      })
      const end = () => over.abort()
      if (signal?.aborted) return end()
      signal?.addEventListener('abort', end, own({ once: true }))
      over.signal.addEventListener('abort', () => signal?.removeEventListener('abort', end))
    })
    try {
      const record = await this.#transaction(key, (record) => ({ answer: record }))
      if (!isHeld(record) || over.signal.aborted) return
      const left = record.ends === null ? atMost : Math.min(atMost, record.ends - Date.now())
      timer = setTimeout(() => over.abort(), Math.min(Math.max(Math.ceil(left), 0), MAX_TIMER))
      const waits = [woken]
      if (record.client !== null && record.client !== this.#client) {
        // Granted when the holder's tab or worker has ended.
        const options = own({ mode: 'shared', signal: over.signal })
        waits.push(navigator.locks.request(record.client, options, () => {}).catch(() => woken))
      }
      await Promise.race(waits)
    } finally {
      over.abort()
    }
  }

  async list() {
    const database = this.#database ?? (await this.#open())
    const records = await resultOf(database.transaction(TABLE).objectStore(TABLE).getAll())
    const { held } = await navigator.locks.query()
    const living = new Set(held.map((lock) => lock.name))
    return records
      .filter((record) => isHeld(record) && (record.client === null || living.has(record.client)))
      .map(({ key, fence, since, ends }) => ({ key, fence, since, ends }))
  }

  close() {
    this.#closed = true
    this.#channel.close()
    this.#database?.close()
    this.#end?.()
    for (const wakers of this.#wakers.values()) for (const wake of wakers) wake()
  }

  /** Reads the record of `key`, and replaces it by that of `change`, in one transaction. */
  #transaction(key, change) {
    // Synchronously if possible, so that a page that is closed next has sent the request.
    if (this.#database !== undefined) return transact(this.#database, key, change)
    return this.#open().then((database) => transact(database, key, change))
  }

  #open() {
    this.#assertOpen()
    this.#opening ??= new Promise((resolve, reject) => {
      const request = indexedDB.open(`verrou:${this.#name}`, 1)
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, own({ keyPath: 'key' }))
      request.onsuccess = () => {
        this.#database = request.result
        // Another version of this module upgrades the database, or a script deletes it.
        this.#database.onversionchange = () => this.close()
        resolve(this.#database)
      }
      request.onerror = () => {
        this.#opening = undefined
        reject(new Error(`cannot open IndexedDB: ${request.error?.message}; some browsers have none in private windows`, { cause: request.error }))
      }
    })
    return this.#opening
  }

  /** Returns the name of the Web Lock that this tab or worker holds as long as it lives. */
  #liveClient() {
    this.#assertOpen()
    this.#clientLock ??= new Promise((resolve, reject) => {
      const client = `verrou:${this.#name}:${crypto.randomUUID()}`
      const held = navigator.locks.request(client, own({ mode: 'exclusive' }), () => {
        this.#client = client
        resolve(client)
        return new Promise((end) => {
          this.#end = end
        })
      })
      held.catch((error) => {
        this.#clientLock = undefined
        reject(error)
      })
    })
    return this.#clientLock
  }

  async #isAlive(client) {
    if (client === this.#client) return true
    const { held } = await navigator.locks.query()
    return held.some((lock) => lock.name === client)
  }

  /** Wakes the waiters for `key`, in this and the other tabs and workers. */
  #notify(key) {
    if (!this.#closed) this.#channel.postMessage(key)
    this.#wake(key)
  }

  #wake(key) {
    for (const wake of this.#wakers.get(key) ?? []) wake()
  }

  #assertOpen() {
    if (this.#closed) throw new Error('this store is closed')
  }
}

function assertPresent() {
  const missing = [
    ['Web Locks (navigator.locks)', globalThis.navigator?.locks],
    ['IndexedDB', globalThis.indexedDB],
    ['BroadcastChannel', globalThis.BroadcastChannel],
  ]
    .filter(([, present]) => !present)
    .map(([name]) => name)
  if (missing.length === 0) return
  const why = globalThis.isSecureContext === false ? ': serve the page over https, or from localhost' : ''
  throw new errors.E_INVALID_STORE(`webStore() needs a browser's tab or worker: there is no ${missing.join(', no ')} here${why}`)
}

function transact(database, key, change) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(TABLE, 'readwrite')
    const table = transaction.objectStore(TABLE)
    let answer
    const read = table.get(key)
    read.onsuccess = () => {
      const record = read.result ?? { key, owner: null, fence: 0, since: null, ends: null, client: null }
      const changed = change(record)
      answer = changed.answer
      if (changed.put) table.put(changed.put)
    }
    transaction.oncomplete = () => resolve(answer)
    transaction.onabort = () => reject(transaction.error ?? new Error('IndexedDB aborted the transaction'))
  })
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

function isHeld({ owner, ends }) {
  return owner !== null && (ends === null || Date.now() < ends)
}

function freed(record) {
  return { ...record, owner: null, since: null, ends: null, client: null }
}

function endOf(ttl) {
  return ttl === null ? null : Date.now() + ttl
}

function notOwner(key) {
  return new errors.E_LOCK_NOT_OWNER(`the lock \`${key}\` is not held by this owner`)
}
