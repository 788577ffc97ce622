/** Lengths of time, compared to the library with which `@verrou/core` reads them. */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { parse } from '@lukeed/ms'

import { LockFactory } from '../../../target/js/compat/index.js'
import { OpenStore, coded, options } from './place.mjs'

const WORDS =
  'ms msec msecs millisecond milliseconds s sec secs second seconds m min mins minute minutes ' +
  'h hr hrs hour hours d day days w wk wks week weeks y yr yrs year years'
const UNITS = ['', ...WORDS.split(' ')]
const NUMBERS = ['1', '10', '007', '1.5', '.5', '100.25']
const OTHERS = [
  ...['', ' ', '0', '0s', '0.0', '-0', 'abc', 'owner', 's', '1 2', '1,5s', '1e3', '0x10', '1.s', '1..5s'],
  ...['1m 30s', '1m30s', ' 1s', '1s ', '1\ts', '1 fortnight', '1 month', '1us', '1ns', 'none', 'null', '+1s', '1sec.', '١s'],
]

async function saved(ttl) {
  const store = new OpenStore()
  await new LockFactory(store).createLock('foo', ttl).acquire()
  return store.asked.save[0][2]
}

test('texts that the library reads are read equally', options, async () => {
  for (const unit of UNITS) {
    for (const number of NUMBERS) {
      for (const form of [number + unit, `${number} ${unit}`, `${number}   ${unit.toUpperCase()}`]) {
        const length = parse(form)
        assert.ok(length > 0, form)
        // To the microsecond: the core counts in nanoseconds, a store in milliseconds.
        assert.ok(Math.abs((await saved(form)) - Math.ceil(length)) < 0.001, form)
      }
    }
  }
})

test('texts that the library does not read, or that are not above zero, are refused', () => {
  const factory = new LockFactory(new OpenStore())
  for (const form of [...OTHERS, ...UNITS.map((unit) => `-1${unit}`)]) {
    const length = parse(form)
    assert.ok(!(length > 0), form)
    assert.throws(() => factory.createLock('foo', form), coded('E_INVALID_ARGUMENTS_EXCEPTION'), form)
  }
})

test('an invalid text is refused with the message of @verrou/core', () => {
  const factory = new LockFactory(new OpenStore())
  assert.throws(() => factory.createLock('foo', 'abc'), {
    message: 'Invalid duration expression "abc"',
  })
})
