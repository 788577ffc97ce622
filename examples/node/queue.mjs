/** A queue for a demonstration: each job is a file in the directory `jobs`, until a worker takes it. */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, watch, writeFileSync } from 'node:fs'
import { randomUUID } from 'node:crypto'

const jobs = new URL('jobs/', import.meta.url)
mkdirSync(jobs, { recursive: true })

/** Adds a job, for the first worker that asks for one. */
export function dispatch(name, job) {
  // The names sort by time, to the millisecond.
  const file = new URL(`${Date.now()}-${randomUUID()}.${name}`, jobs)
  const unfinished = new URL(`${file.href}.unfinished`)
  writeFileSync(unfinished, JSON.stringify(job))
  renameSync(unfinished, file)
}

/** Calls `work` with one job called `name` after the other; stops when `signal` is aborted. */
export async function on(name, work, signal) {
  let changed
  const watcher = watch(jobs, { signal }, () => changed?.())
  const stopped = new Promise((resolve) => watcher.once('close', resolve))
  while (!signal.aborted) {
    const change = new Promise((resolve) => {
      changed = resolve
    })
    const job = take(name)
    if (job === undefined) await Promise.race([change, stopped])
    else await work(job)
  }
}

/** Takes the oldest job out of the queue, and returns it. */
function take(name) {
  for (const file of readdirSync(jobs).sort()) {
    if (!file.endsWith(`.${name}`)) continue
    const taken = new URL(`${file}.taken`, jobs)
    try {
      renameSync(new URL(file, jobs), taken)
    } catch (error) {
      if (error.code === 'ENOENT') continue // taken by another worker
      throw error
    }
    const job = JSON.parse(readFileSync(taken, 'utf8'))
    rmSync(taken)
    return job
  }
}
