import { callbackOf } from './arguments.js'
import { setEventListener } from './core/verrou.js'
import { assertUsable } from './errors.js'
import { queueMicrotask } from './microtask.js'

/** The functions that get the events, each in an object of its own: one function may listen twice. */
const listeners = new Set()

/** Passes an event to the listeners, outside the operation in which it happened: they may use locks. */
function pass(members) {
  const event = Object.freeze(Object.fromEntries(members))
  for (const entry of listeners) {
    queueMicrotask(() => {
      if (listeners.has(entry)) entry.listener(event)
    })
  }
}

export function onEvent(listener) {
  callbackOf(listener, 'the listener of events')
  assertUsable()
  const entry = { listener }
  if (listeners.size === 0) setEventListener(pass)
  listeners.add(entry)
  return () => {
    if (listeners.delete(entry) && listeners.size === 0) setEventListener(undefined)
  }
}
