/**
 * The stores of the command `verrou serve`, which does with them the very same that the shell and Rust
 * programs do.
 *
 * It is a child of this process: however that ends, the child's standard input ends, too, and with it the
 * child and its leases in files.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'

import { jsonOf, own, pairOf } from './options.js'

const GREETING = { protocol: 'verrou serve', version: 1 }

/** What can be asked, and of what kind the answer is. */
const ANSWERS = {
  acquire: ['granted', 'refused'],
  detach: ['granted', 'refused'],
  evict: ['granted', 'refused'],
  extend: ['granted', 'refused'],
  give_up: ['queued'],
  inspect: ['holder'],
  queue: ['queued'],
  release: ['granted', 'refused'],
  renew: ['renewed'],
  wait: ['waited'],
}

/** No request is this long, in bytes; nor is an answer, in characters. */
const LONGEST = 64 * 1024

/** So much of what the command complained about is kept, in characters. */
const COMPLAINTS = 4 * 1024

/** A child answers one request at a time, and waiting is one: as many names are waited for at once. */
const WAITING_CHILDREN = 4

/** A child looks at one name for so long, in ms, before it is the next one's turn. */
const LOOK = 100

/** What a timer can wait for, in ms. */
const LONGEST_TIMER = 2 ** 31 - 1

/** A child without use is ended after so long, in ms. */
const IDLE = 10_000

/** How many fencing tokens are remembered that nobody has asked for. */
const FENCES = 1_000

export class CommandStoreError extends Error {
  constructor(message, temporary = false, options = undefined) {
    super(message, options)
    this.name = 'CommandStoreError'
    this.temporary = temporary
  }
}

/** What the command does with a store. */
export class CommandStore {
  #start
  #steps
  #waits
  #fences = new Map()
  #closed = false

  /** The store that `args` and the variables of `env` tell the command of. */
  constructor(args, env, options) {
    const { command = ofEnvironment() || 'verrou', idle = IDLE, label } = own(options)
    if (!(idle >= 0)) throw new TypeError('`idle` is a number of milliseconds')
    if (label !== undefined) {
      if (typeof label !== 'string') throw new TypeError('`label` is text')
      args = [...args, `--label=${label}`]
    }
    this.#start = () => {
      if (this.#closed) throw new CommandStoreError('this store is closed')
      return new Served(command, args, env, idle)
    }
    this.#waits = new Waits(this.#start)
  }

  async save(key, owner, ttl) {
    const served = this.#served()
    const { granted } = await served.ask('acquire', claim(key, owner, ttl))
    if (granted === undefined) return false
    served.places.delete(placeOf(key, owner))
    served.leases.set(key, owner)
    this.#remember(key, owner, granted)
    return true
  }

  async delete(key, owner) {
    this.#fences.delete(placeOf(key, owner))
    const served = this.#served()
    const answer = await served.ask('release', claim(key, owner, null))
    served.forget(key, owner)
    assertOwner(key, answer)
  }

  async forceDelete(key) {
    const served = this.#served()
    const holder = served.leases.get(key)
    await served.ask('evict', { name: key, only: null })
    if (holder !== undefined) served.forget(key, holder)
  }

  async exists(key) {
    const { holder } = await this.#served().ask('inspect', { name: key })
    return holder !== null
  }

  async extend(key, owner, ttl) {
    assertOwner(key, await this.#served().ask('extend', claim(key, owner, ttl)))
  }

  async renew(key, owner, ttl, fence) {
    const token = fence === null ? null : Number(fence)
    const fencing_token = Number.isSafeInteger(token) ? token : null
    const { renewed } = await this.#served().ask('renew', { ...claim(key, owner, ttl), fencing_token })
    return renewed
  }

  async fence(key, owner) {
    const name = placeOf(key, owner)
    const fence = this.#fences.get(name)
    if (fence !== undefined) {
      this.#fences.delete(name)
      return fence
    }
    const { holder } = await this.#served().ask('inspect', { name: key, owner: ownerOf(owner) })
    return holder?.mine === true ? holder.fencing_token : null
  }

  async wait(key, atMost, signal, owner) {
    if (owner !== undefined) await this.#queue(key, owner)
    await this.#waits.wait(key, atMost, signal)
  }

  /** Ends the place that `wait` got for `owner`. */
  giveUp(key, owner) {
    const served = this.#steps
    if (!served?.usable || !served.places.delete(placeOf(key, owner))) return
    // A child that has ended keeps no places.
    served.ask('give_up', claim(key, owner, null)).catch(() => {})
  }

  /** What it asks is on its way when it returns: to the child that keeps the lease alive. */
  async detach(key, owner) {
    const served = this.#served()
    const answer = await served.ask('detach', claim(key, owner, null))
    served.forget(key, owner)
    assertOwner(key, answer)
  }

  async close() {
    this.#closed = true
    await Promise.all([this.#steps?.end(), this.#waits.close()])
  }

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    await this.close()
  }

  /** The child that is asked for steps, and keeps the leases alive. */
  #served() {
    if (!this.#steps?.usable) this.#steps = this.#start()
    return this.#steps
  }

  /** Sees to it that `owner` has a place among those who wait, in the child that it asks for steps. */
  async #queue(key, owner) {
    const served = this.#served()
    const place = placeOf(key, owner)
    if (served.places.has(place)) return
    served.places.add(place)
    try {
      await served.ask('queue', claim(key, owner, null))
    } catch {
      // Without a place it waits all the same.
      served.places.delete(place)
    }
  }

  #remember(key, owner, fence) {
    this.#fences.set(placeOf(key, owner), fence)
    if (this.#fences.size <= FENCES) return
    const [oldest] = this.#fences.keys()
    this.#fences.delete(oldest)
  }
}

/** What is kept for an owner at a key goes by this. */
function placeOf(key, owner) {
  return pairOf(owner, key)
}

/** Returns the command that the environment names. */
function ofEnvironment() {
  return own(process.env).VERROU_COMMAND
}

function claim(key, owner, ttl) {
  return { name: key, owner: ownerOf(owner), ttl: nanoseconds(ttl), ephemeral: true }
}

/** Owners of another form, as other lock managers have them, are hashed to this one. */
function ownerOf(owner) {
  if (typeof owner !== 'string' || owner === '') throw new TypeError('an owner is some text')
  if (/^[0-9a-f]{32}$/.test(owner)) return owner
  return createHash('sha256').update(owner).digest('hex').slice(0, 32)
}

function nanoseconds(ttl) {
  if (ttl === null) return null
  // JSON would make a lease without an end of what is not finite.
  if (!(Number.isFinite(ttl) && ttl > 0)) {
    throw new TypeError(`a ttl is a number of milliseconds above zero, or null: not ${ttl}`)
  }
  return Math.max(1, Math.round(ttl * 1e6))
}

function assertOwner(key, { granted }) {
  if (granted !== undefined) return
  const error = new CommandStoreError(`the lock \`${key}\` is not, or no longer, held by this owner`)
  error.code = 'E_LOCK_NOT_OWNER'
  throw error
}

/** A `verrou serve`: it is asked one thing after the other, and answers in the same order. */
class Served {
  /** Whether it can be asked anything. */
  usable = true
  /** The leases that end with it: of each name, whose. */
  leases = new Map()
  /** The places it keeps among those who wait. */
  places = new Set()

  #command
  #child
  #timer
  #greeted = false
  #unsent = ''
  #pending = []
  #held
  #heard = ''
  #complaints = ''
  #why
  #ended
  #end

  constructor(command, args, env, idle) {
    this.#command = command
    this.#ended = new Promise((end) => {
      this.#end = end
    })
    this.#timer = setTimeout(() => this.#unused(), Math.min(idle, LONGEST_TIMER)).unref()
    try {
      const options = {
        env: own({ ...process.env, ...env }),
        // Ctrl-C in the terminal is not for it: it is needed to give locks back.
        detached: true,
        stdio: 'pipe',
        windowsHide: true,
      }
      this.#child = spawn(command, ['serve', ...args], own(options))
    } catch (error) {
      // The caller is not told in the middle of its question.
      process.nextTick(() => this.#over(this.#unstarted(error)))
      return
    }
    this.#listen()
  }

  #listen() {
    const child = this.#child
    const gone = () => {
      this.usable = false
    }
    child.on('error', (error) => {
      if (child.pid === undefined) this.#over(this.#unstarted(error))
    })
    child.on('exit', gone)
    child.on('close', (code, signal) => this.#over(this.#obituary(code, signal)))
    // There are no pipes when this process has no more descriptors.
    for (const pipe of child.stdio ?? []) pipe?.on('error', gone)
    child.stdout?.setEncoding('utf8').on('data', (text) => this.#hear(text))
    child.stderr?.setEncoding('utf8').on('data', (text) => {
      this.#complaints = (this.#complaints + text).slice(-COMPLAINTS)
    })
    this.#hold(false)
  }

  /** Takes a step, and returns the answer; what has to be asked is sent before this returns. */
  ask(step, members) {
    if (this.#why !== undefined) throw this.#why
    const line = `{"${step}":${jsonOf(members)}}\n`
    if (Buffer.byteLength(line) > LONGEST) {
      throw new CommandStoreError(`a request has at most ${LONGEST} bytes: the key is too long`)
    }
    return new Promise((resolve, reject) => {
      this.#pending.push({ kinds: ANSWERS[step], resolve, reject })
      this.#hold(true)
      // What speaks another language is not to be asked anything.
      if (this.#greeted) this.#child.stdin.write(line)
      else this.#unsent += line
    })
  }

  /** Forgets a lease that is over, or no longer its own. */
  forget(key, owner) {
    if (this.leases.get(key) === owner) this.leases.delete(key)
  }

  /** Ends it once it has answered everything; resolves when it has ended. */
  end() {
    this.usable = false
    this.#hold(true)
    // What has not been sent yet is sent before.
    if (this.#unsent === '') this.#child?.stdin?.end()
    return this.#ended
  }

  /** Ends it at once: for one that keeps no leases alive. */
  kill() {
    this.#child?.kill()
    return this.end()
  }

  /** Whether the process is to stay for the sake of this child. */
  #hold(held) {
    if (held === this.#held) return
    this.#held = held
    const method = held ? 'ref' : 'unref'
    for (const handle of [this.#child, ...(this.#child?.stdio ?? [])]) handle?.[method]()
  }

  #unused() {
    const kept = this.leases.size + this.places.size
    if (this.usable && this.#pending.length === 0 && kept === 0) {
      this.usable = false
      this.#child?.stdin?.end()
    }
  }

  #hear(text) {
    const lines = (this.#heard + text).split('\n')
    this.#heard = lines.pop()
    for (const line of lines) this.#heardLine(line)
    if (this.#heard.length > LONGEST) this.#misunderstood(this.#heard)
  }

  #heardLine(line) {
    if (this.#why !== undefined) return
    let answer
    try {
      answer = own(JSON.parse(line))
    } catch {
      return this.#misunderstood(line)
    }
    if (!this.#greeted) {
      const known = Object.entries(GREETING).every(([key, value]) => answer[key] === value)
      if (!known) return this.#misunderstood(line)
      this.#greeted = true
      if (this.#unsent !== '') this.#child.stdin.write(this.#unsent)
      this.#unsent = ''
      if (!this.usable) this.#child.stdin.end()
      return
    }
    const [asked] = this.#pending
    const { error } = answer
    if (!asked || !(error || asked.kinds.some((kind) => kind in answer))) {
      return this.#misunderstood(line)
    }
    this.#pending.shift()
    if (error) asked.reject(new CommandStoreError(error.message, error.temporary === true))
    else asked.resolve(answer)
    if (this.#pending.length > 0) return
    this.#timer.refresh()
    if (this.usable) this.#hold(false)
  }

  #misunderstood(line) {
    for (const pipe of this.#child.stdio) pipe.destroy()
    this.#child.kill('SIGKILL')
    const why =
      `\`${this.#command} serve\` speaks another language than this package, which is of ` +
      `version ${GREETING.version}: ${line.slice(0, 200)}`
    this.#over(new CommandStoreError(why))
  }

  #unstarted(error) {
    if (error.code === 'ENOENT') {
      return new CommandStoreError(
        `there is no command \`${this.#command}\`, which a file store needs: install it with ` +
          '`cargo install --path host` in a copy of Verrou, or say where it is, by the option ' +
          '`command` or the variable VERROU_COMMAND',
        false,
        { cause: error }
      )
    }
    const temporary = ['EAGAIN', 'EMFILE', 'ENFILE', 'ENOMEM'].includes(error.code)
    return new CommandStoreError(`cannot start \`${this.#command}\`: ${error.message}`, temporary, {
      cause: error,
    })
  }

  /** What to say to those who still wait for an answer. */
  #obituary(code, signal) {
    const said = this.#complaints.trim() || (signal === null ? `code ${code}` : signal)
    // Where it refuses to start it would do so again.
    if (!this.#greeted && signal === null) {
      return new CommandStoreError(`\`${this.#command} serve\` did not start: ${said}`)
    }
    return new CommandStoreError(`\`${this.#command} serve\` has ended: ${said}`, true)
  }

  #over(error) {
    this.usable = false
    this.#why ??= error
    clearTimeout(this.#timer)
    for (const { reject } of this.#pending.splice(0)) reject(error)
    this.#end()
  }
}

/** Who waits for which name: some children look at one name after the other. */
class Waits {
  #start
  #names = new Map()
  #due = []
  #children = new Set()
  #idle = []

  constructor(start) {
    this.#start = start
  }

  wait(key, atMost, signal) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted || !(atMost > 0)) return resolve()
      const name = this.#name(key)
      const ended = (settle) => (value) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', waiter.wake)
        name.waiters.delete(waiter)
        settle(value)
      }
      const waiter = { wake: ended(() => resolve()), fail: ended(reject) }
      const timer = setTimeout(waiter.wake, Math.min(Math.ceil(atMost), LONGEST_TIMER))
      signal?.addEventListener('abort', waiter.wake)
      name.waiters.add(waiter)
      this.#look()
    })
  }

  async close() {
    const closed = new CommandStoreError('this store is closed')
    for (const name of this.#names.values()) fail(name, closed)
    await Promise.all(Array.from(this.#children, (child) => child.kill()))
  }

  #name(key) {
    let name = this.#names.get(key)
    if (name === undefined) {
      name = { key, waiters: new Set() }
      this.#names.set(key, name)
      this.#due.push(name)
    }
    return name
  }

  /** Sees to it that somebody looks at the names. */
  #look() {
    if (this.#due.length === 0) return
    for (const child of this.#children) if (!child.usable) this.#children.delete(child)
    this.#idle = this.#idle.filter((child) => child.usable)
    if (this.#idle.length > 0 || this.#children.size < WAITING_CHILDREN) {
      this.#looking(this.#idle.pop())
    }
  }

  async #looking(child) {
    try {
      child ??= this.#start()
      this.#children.add(child)
    } catch (error) {
      return this.#fail(error)
    }
    while (this.#due.length > 0 && child.usable) {
      const name = this.#due.shift()
      try {
        // Whoever waited for it may be gone by now.
        if (name.waiters.size > 0 && (await this.#holder(child, name.key)) === null) {
          // Only one of them can have it. If that one does not want it, it is the next one's.
          const [first] = name.waiters
          first?.wake()
        }
      } catch (error) {
        fail(name, error)
        if (!child.usable) this.#fail(error)
      }
      if (name.waiters.size > 0) this.#due.push(name)
      else this.#names.delete(name.key)
    }
    if (child.usable) this.#idle.push(child)
    else this.#look()
  }

  /** Lets all who are to be looked for know that nobody does. */
  #fail(error) {
    for (const name of this.#due.splice(0)) {
      fail(name, error)
      this.#names.delete(name.key)
    }
  }

  /** Who holds the name, after it was looked at for some time. */
  async #holder(child, key) {
    const turn = LOOK * Math.min(1, WAITING_CHILDREN / this.#names.size)
    const [, { holder }] = await Promise.all([
      child.ask('wait', { name: key, at_most: Math.round(turn * 1e6) }),
      child.ask('inspect', { name: key }),
    ])
    return holder
  }
}

function fail(name, error) {
  for (const waiter of [...name.waiters]) waiter.fail(error)
}
