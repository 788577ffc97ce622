/** Runs the suite that `@verrou/core` exports, which is written for Japa, with the runner of Node.js. */
import assert from 'node:assert/strict'
import { test as nodeTest } from 'node:test'

/** How many tests the suite has in version 0.5.2. */
export const TESTS = 25

const japa = {
  isTrue: (value) => assert.equal(value, true),
  isFalse: (value) => assert.equal(value, false),
  isString: (value) => assert.equal(typeof value, 'string'),
  equal: assert.equal,
  deepEqual: assert.deepEqual,
  rejects: (work, message) => assert.rejects(work, { message }),
}

/**
 * Registers the tests of `suite`. `isThrown(error, Class)` returns whether an error is the expected one.
 */
export function register(suite, title, createStore, isThrown, options = {}) {
  let tests = 0
  suite({
    createStore,
    test(name, body) {
      tests++
      let expected
      nodeTest(`${title}: ${name}`, options, async () => {
        if (expected === undefined) return body({ assert: japa })
        const { message, Class } = expected
        await assert.rejects(body({ assert: japa }), (error) => {
          assert.equal(error.message, message)
          assert.ok(isThrown(error, Class), error)
          return true
        })
      })
      return {
        throws(message, Class) {
          expected = { message, Class }
        },
      }
    },
  })
  nodeTest(`${title}: nothing of the suite is missing`, () => assert.equal(tests, TESTS))
}
