/**
 * Lengths of time as `@lukeed/ms` reads them, which `@verrou/core` uses: `'1.5s'`, `'2 minutes'`, `'1M'`.
 * The core reads some of these differently, and rejects others.
 */
import { described } from '../arguments.js'
import { InvalidArgumentsException } from './errors.js'

const SECOND = 1_000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

const UNITS = new Map(
  [
    [1, 'ms msec msecs millisecond milliseconds'],
    [SECOND, 's sec secs second seconds'],
    [MINUTE, 'm min mins minute minutes'],
    [HOUR, 'h hr hrs hour hours'],
    [DAY, 'd day days'],
    [7 * DAY, 'w wk wks week weeks'],
    [365.25 * DAY, 'y yr yrs year years'],
  ].flatMap(([length, words]) => words.split(' ').map((word) => [word, length]))
).set('', 1)

/** Returns the milliseconds of `duration`, or `null` for no limit. */
export function millis(duration) {
  if (duration === null || typeof duration === 'number') return duration
  if (typeof duration === 'string') {
    const [, number, unit] = /^(-?\d*\.?\d+) *([a-z]*)$/.exec(duration.toLowerCase()) ?? []
    const length = Number(number) * UNITS.get(unit)
    // A text of zero length is refused, as in `@verrou/core`.
    if (length) return length
  }
  const shown = typeof duration === 'string' ? `"${duration}"` : described(duration)
  throw new InvalidArgumentsException(`Invalid duration expression ${shown}`)
}

/** Returns a ttl in whole milliseconds from 1, because some stores accept no others. */
export function ttlOf(duration) {
  const length = millis(duration)
  if (length === null || (length > 0 && length < Infinity)) return length && Math.ceil(length)
  throw new InvalidArgumentsException(
    `A ttl is a number of milliseconds above zero, or null for a lock that never expires: not ${length}`
  )
}
