/**
 * Lengths of time as `@lukeed/ms` reads them, which Verrou has used: `'1.5s'`, `'2 minutes'`, `'1M'`.
 * Of these the core reads some otherwise, and some not at all.
 */
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

/** Milliseconds, or `null` where there is no end. */
export function millis(duration) {
  if (duration === null || typeof duration === 'number') return duration
  if (typeof duration === 'string') {
    const [, number, unit] = /^(-?\d*\.?\d+) *([a-z]*)$/.exec(duration.toLowerCase()) ?? []
    const length = Number(number) * UNITS.get(unit)
    // Zero is refused in this form, as there.
    if (length) return length
  }
  throw new InvalidArgumentsException(`Invalid duration expression "${duration}"`)
}

/** How long a lease is to last: whole milliseconds from 1, for there are stores that know no other. */
export function ttlOf(duration) {
  const length = millis(duration)
  if (length === null || (length > 0 && length < Infinity)) return length && Math.ceil(length)
  throw new InvalidArgumentsException(
    `A ttl is a number of milliseconds above zero, or null for a lock that never expires: not ${length}`
  )
}
