const resolved = Promise.resolve()

/**
 * Calls `task` when the code that runs now has ended. The fake timers of test runners replace the function of the
 * runtime with this name by one that waits; promises are never replaced. The core's bindings import this.
 */
export function queueMicrotask(task) {
  resolved.then(task)
}
