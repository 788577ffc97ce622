/** Helpers that the tests of `compat` share. */
import assert from 'node:assert/strict'

import { errors } from '../../../target/js/compat/index.js'

/** Longer than any of these tests takes, even on a busy machine. */
export const options = { timeout: 120_000 }

export const config = (retry = {}) => ({ retry, logger: silent })

export const silent = { child: () => silent, debug() {} }

/** A store that grants everything, records no lock, and keeps the arguments of all calls. */
export class OpenStore {
  asked = { save: [], delete: [], forceDelete: [], exists: [], extend: [] }

  async save(...args) {
    this.asked.save.push(args)
    return true
  }

  async delete(...args) {
    this.asked.delete.push(args)
  }

  async forceDelete(...args) {
    this.asked.forceDelete.push(args)
  }

  async exists(...args) {
    this.asked.exists.push(args)
    return true
  }

  async extend(...args) {
    this.asked.extend.push(args)
  }
}

/** A store whose locks are all held by another owner. */
export class HeldStore extends OpenStore {
  async save(...args) {
    await super.save(...args)
    return false
  }
}

/** A store with only the methods that Verrou's contract requires. */
export class MapStore {
  records = new Map()

  #held(key) {
    const record = this.records.get(key)
    if (record !== undefined && record.until > Date.now()) return record
    this.records.delete(key)
    return undefined
  }

  async save(key, owner, ttl) {
    if (this.#held(key) !== undefined) return false
    this.records.set(key, { owner, until: Date.now() + (ttl ?? Infinity) })
    return true
  }

  async delete(key, owner) {
    if (this.#held(key)?.owner !== owner) throw new errors.E_LOCK_NOT_OWNED()
    this.records.delete(key)
  }

  async forceDelete(key) {
    this.records.delete(key)
  }

  async exists(key) {
    return this.#held(key) !== undefined
  }

  async extend(key, owner, duration) {
    const record = this.#held(key)
    if (record?.owner !== owner) throw new errors.E_LOCK_NOT_OWNED()
    record.until = Date.now() + duration
  }
}

/** Checks that the thrown value is the error of `code`, in the form of `@verrou/core`. */
export const coded = (code) => (error) => {
  assert.ok(error instanceof errors[code], error)
  assert.ok(error instanceof Error)
  assert.equal(error.code, code)
  assert.equal(error.status, 500)
  return true
}

/** Returns a promise and its `resolve`. */
export function deferred() {
  let resolve
  const promise = new Promise((done) => {
    resolve = done
  })
  return { promise, resolve }
}
