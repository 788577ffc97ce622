/** A clock that stands still until it is advanced. Must be imported before the package. */
const EPOCH = 1_763_892_000_000

export const clock = {
  /** The time of timers and leases, in milliseconds. */
  now: 1_000,
  /** The difference of the wall clock to `now`. */
  ahead: EPOCH,

  advance(millis) {
    clock.now += millis
  },
}

performance.now = () => clock.now
Date.now = () => Math.floor(clock.now + clock.ahead)
