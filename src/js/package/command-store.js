/**
 * The stores of the command `verrou serve`: the same stores that the shell and Rust programs use.
 *
 * The command is a child of this process. When this process ends, for any reason, the child's standard
 * input ends, too, and with it the child and its leases in files.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'

import { invalid, millisOf, nameOf, ownerOf as checkedOwner, signalOf } from './arguments.js'
import { errors } from './errors.js'
import { jsonOf, own, pairOf } from './options.js'

const GREETING = { protocol: 'verrou serve', version: 1 }

/** The operations, and the kinds of their answers. */
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

/** The maximum length of an answer, in characters. */
const MAX_LENGTH = 64 * 1024

/** The maximum length of a lock's name, in bytes. */
const MAX_NAME = 1_024

/** How much of the command's standard error is kept, in characters. */
const MAX_STDERR = 4 * 1024

/**
 * The maximum number of children that wait. A child answers one request at a time, and a wait is a request, so
 * that as many names are watched at once.
 */
const WAITING_CHILDREN = 4

/** How long a child waits for one name before it turns to the next, in ms. */
const TURN = 100

/** The longest time of a timer, in ms. */
const MAX_TIMER = 2 ** 31 - 1

/** The time without use after which a child is ended, in ms. */
const DEFAULT_IDLE = 10_000

/** The maximum number of fencing tokens that are kept until `fence` reads them. */
const MAX_FENCES = 1_000

export class CommandStoreError extends Error {
  constructor(message, temporary = false, options = undefined) {
    super(message, options)
    this.name = 'CommandStoreError'
    this.code = 'E_LOCK_STORAGE_ERROR'
    this.temporary = temporary
  }
}

/** A store that is accessed by the command. */
export class CommandStore {
  #start
  #server
  #waits
  #fences = new Map()
  #closed = false

  /** Makes a store; `args` and the variables of `env` name it for the command. `options` inherit nothing. */
  constructor(args, env, options) {
    const { command = commandOfEnvironment() || 'verrou', idle = DEFAULT_IDLE, label } = options
    if (typeof command !== 'string' || command === '') throw invalid('`command`', 'the path of a command', command)
    if (typeof idle !== 'number' || !(idle >= 0)) throw invalid('`idle`', 'a number of milliseconds from 0', idle)
    if (label !== undefined) {
      if (typeof label !== 'string') throw invalid('`label`', 'a string', label)
      args = [...args, `--label=${label}`]
    }
    this.#start = () => {
      if (this.#closed) throw new CommandStoreError('this store is closed')
      return new ServeProcess(command, args, env, idle)
    }
    this.#waits = new Waits(this.#start)
  }

  async save(name, owner, ttl) {
    const key = keyOf(name)
    const wanted = claim(key, owner, ttl)
    const server = this.#usableServer()
    const { granted } = await server.ask('acquire', wanted)
    if (granted === undefined) return false
    server.tickets.delete(ownerKey(key, owner))
    server.leases.set(key, owner)
    this.#keepFence(key, owner, granted)
    return true
  }

  async delete(name, owner) {
    const key = keyOf(name)
    const released = claim(key, owner, null)
    this.#fences.delete(ownerKey(key, owner))
    const server = this.#usableServer()
    const answer = await server.ask('release', released)
    server.removeLease(key, owner)
    assertOwner(key, answer)
  }

  async forceDelete(name) {
    const key = keyOf(name)
    const server = this.#usableServer()
    const holder = server.leases.get(key)
    await server.ask('evict', { name: key, only: null })
    if (holder !== undefined) server.removeLease(key, holder)
  }

  async exists(name) {
    const key = keyOf(name)
    const { holder } = await this.#usableServer().ask('inspect', { name: key })
    return holder !== null
  }

  async extend(name, owner, ttl) {
    const key = keyOf(name)
    const wanted = claim(key, owner, ttl)
    assertOwner(key, await this.#usableServer().ask('extend', wanted))
  }

  async renew(name, owner, ttl, fence) {
    const wanted = { ...claim(keyOf(name), owner, ttl), fencing_token: fencingToken(fence) }
    const { renewed } = await this.#usableServer().ask('renew', wanted)
    return renewed
  }

  async fence(name, owner) {
    const key = keyOf(name)
    const inspection = { name: key, owner: ownerOf(owner) }
    const grant = ownerKey(key, owner)
    const fence = this.#fences.get(grant)
    if (fence !== undefined) {
      this.#fences.delete(grant)
      return fence
    }
    const { holder } = await this.#usableServer().ask('inspect', inspection)
    return holder?.mine === true ? holder.fencing_token : null
  }

  async wait(name, atMost, signal, owner) {
    const key = keyOf(name)
    if (typeof atMost !== 'number') throw invalid('`atMost`', 'a number of milliseconds', atMost)
    signalOf(signal)
    if (owner !== undefined) checkedOwner(owner)
    if (owner !== undefined) await this.#takeTicket(key, owner)
    await this.#waits.wait(key, atMost, signal)
  }

  /** Ends the ticket that `wait` took for `owner`. */
  giveUp(name, owner) {
    const key = keyOf(name)
    const left = claim(key, owner, null)
    const server = this.#server
    if (!server?.usable || !server.tickets.delete(ownerKey(key, owner))) return
    // A child that has ended keeps no tickets.
    server.ask('give_up', left).catch(() => {})
  }

  /** Sends the request to the child that keeps the lease alive before it returns. */
  async detach(name, owner) {
    const key = keyOf(name)
    const detached = claim(key, owner, null)
    const server = this.#usableServer()
    const answer = await server.ask('detach', detached)
    server.removeLease(key, owner)
    assertOwner(key, answer)
  }

  async close() {
    this.#closed = true
    await Promise.all([this.#server?.end(), this.#waits.close()])
  }

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    await this.close()
  }

  /** Returns the child that does the operations and keeps the leases alive. */
  #usableServer() {
    if (!this.#server?.usable) this.#server = this.#start()
    return this.#server
  }

  /** Takes a ticket in the wait queue for `owner`, in the child that does its operations. */
  async #takeTicket(key, owner) {
    const server = this.#usableServer()
    const ticket = ownerKey(key, owner)
    if (server.tickets.has(ticket)) return
    server.tickets.add(ticket)
    try {
      await server.ask('queue', claim(key, owner, null))
    } catch {
      // Without a ticket it waits nevertheless.
      server.tickets.delete(ticket)
    }
  }

  #keepFence(key, owner, fence) {
    this.#fences.set(ownerKey(key, owner), fence)
    if (this.#fences.size <= MAX_FENCES) return
    const [oldest] = this.#fences.keys()
    this.#fences.delete(oldest)
  }
}

/** Returns the key of an owner's fencing token and ticket for a lock. */
function ownerKey(key, owner) {
  return pairOf(owner, key)
}

/** Returns the command that the environment names. */
function commandOfEnvironment() {
  return own(process.env).VERROU_COMMAND
}

/** Returns `name` as a lock's name, whose length the command limits. */
function keyOf(name) {
  const key = nameOf(name)
  const bytes = Buffer.byteLength(key)
  if (bytes > 0 && bytes <= MAX_NAME) return key
  throw new errors.E_INVALID_NAME(`invalid lock name: a name has 1 to ${MAX_NAME} bytes in UTF-8, this one has ${bytes}`)
}

function claim(key, owner, ttl) {
  return { name: key, owner: ownerOf(owner), ttl: nanoseconds(ttl), ephemeral: true }
}

/** Returns an owner token of 32 hexadecimal digits. An owner of another form, as of other lock managers, is hashed. */
function ownerOf(owner) {
  checkedOwner(owner)
  if (/^[0-9a-f]{32}$/.test(owner)) return owner
  return createHash('sha256').update(owner).digest('hex').slice(0, 32)
}

function nanoseconds(ttl) {
  // JSON would turn a number that is not finite into `null`, a lease that does not expire.
  return millisOf(ttl) === null ? null : Math.max(1, Math.round(ttl * 1e6))
}

/** Returns a fencing token for a request; `null` without one, and for one that JSON would change. */
function fencingToken(fence) {
  if (fence !== null && typeof fence !== 'bigint' && typeof fence !== 'number') {
    throw invalid('`fence`', 'a bigint, or null', fence)
  }
  const token = Number(fence)
  return fence !== null && Number.isSafeInteger(token) ? token : null
}

function assertOwner(key, { granted }) {
  if (granted !== undefined) return
  const error = new CommandStoreError(`the lock \`${key}\` is not, or no longer, held by this owner`)
  error.code = 'E_LOCK_NOT_OWNER'
  throw error
}

/** A process of `verrou serve`, which answers requests in the order in which they were sent. */
class ServeProcess {
  /** Whether it accepts requests. */
  usable = true
  /** The leases that end with it: the owner of each name. */
  leases = new Map()
  /** The tickets that it keeps in wait queues. */
  tickets = new Set()

  #command
  #child
  #timer
  #greeted = false
  #unsent = ''
  #pending = []
  #isReferenced
  #received = ''
  #stderr = ''
  #error
  #ended
  #end

  constructor(command, args, env, idle) {
    this.#command = command
    this.#ended = new Promise((end) => {
      this.#end = end
    })
    this.#timer = setTimeout(() => this.#endIfUnused(), Math.min(idle, MAX_TIMER)).unref()
    try {
      const options = {
        env: own({ ...process.env, ...env }),
        // Ctrl-C in the terminal must not end it: this process needs it to release locks.
        detached: true,
        stdio: 'pipe',
        windowsHide: true,
      }
      this.#child = spawn(command, ['serve', ...args], own(options))
    } catch (error) {
      // The request that is being made gets the error later, as from a child that ends.
      process.nextTick(() => this.#finish(this.#startError(error)))
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
      if (child.pid === undefined) this.#finish(this.#startError(error))
    })
    child.on('exit', gone)
    child.on('close', (code, signal) => this.#finish(this.#endError(code, signal)))
    // There are no pipes if this process has no descriptors left.
    for (const pipe of child.stdio ?? []) pipe?.on('error', gone)
    child.stdout?.setEncoding('utf8').on('data', (text) => this.#receive(text))
    child.stderr?.setEncoding('utf8').on('data', (text) => {
      this.#stderr = (this.#stderr + text).slice(-MAX_STDERR)
    })
    this.#setReferenced(false)
  }

  /** Requests an operation, and returns the answer. The request is sent before this returns. */
  ask(operation, members) {
    if (this.#error !== undefined) throw this.#error
    const line = `{"${operation}":${jsonOf(members)}}\n`
    return new Promise((resolve, reject) => {
      this.#pending.push({ kinds: ANSWERS[operation], resolve, reject })
      this.#setReferenced(true)
      // Nothing is sent to a command that does not speak the protocol.
      if (this.#greeted) this.#child.stdin.write(line)
      else this.#unsent += line
    })
  }

  /** Removes a lease that has ended, or does not end with this child any more. */
  removeLease(key, owner) {
    if (this.leases.get(key) === owner) this.leases.delete(key)
  }

  /** Ends it after it has answered all requests; resolves when it has ended. */
  end() {
    this.usable = false
    this.#setReferenced(true)
    // Unsent requests are sent first.
    if (this.#unsent === '') this.#child?.stdin?.end()
    return this.#ended
  }

  /** Ends it at once. Only for a child that keeps no leases alive. */
  kill() {
    this.#child?.kill()
    return this.end()
  }

  /** Sets whether this child keeps the event loop of this process alive. */
  #setReferenced(held) {
    if (held === this.#isReferenced) return
    this.#isReferenced = held
    const method = held ? 'ref' : 'unref'
    for (const handle of [this.#child, ...(this.#child?.stdio ?? [])]) handle?.[method]()
  }

  #endIfUnused() {
    const kept = this.leases.size + this.tickets.size
    if (this.usable && this.#pending.length === 0 && kept === 0) {
      this.usable = false
      this.#child?.stdin?.end()
    }
  }

  #receive(text) {
    const lines = (this.#received + text).split('\n')
    this.#received = lines.pop()
    for (const line of lines) this.#receiveLine(line)
    if (this.#received.length > MAX_LENGTH) this.#failProtocol(this.#received)
  }

  #receiveLine(line) {
    if (this.#error !== undefined) return
    let answer
    try {
      answer = own(JSON.parse(line))
    } catch {
      return this.#failProtocol(line)
    }
    if (!this.#greeted) {
      const matches = Object.entries(GREETING).every(([key, value]) => answer[key] === value)
      if (!matches) return this.#failProtocol(line)
      this.#greeted = true
      if (this.#unsent !== '') this.#child.stdin.write(this.#unsent)
      this.#unsent = ''
      if (!this.usable) this.#child.stdin.end()
      return
    }
    const [request] = this.#pending
    const { error } = answer
    if (!request || !(error || request.kinds.some((kind) => kind in answer))) {
      return this.#failProtocol(line)
    }
    this.#pending.shift()
    if (error) request.reject(new CommandStoreError(error.message, error.temporary === true))
    else request.resolve(answer)
    if (this.#pending.length > 0) return
    this.#timer.refresh()
    if (this.usable) this.#setReferenced(false)
  }

  #failProtocol(line) {
    for (const pipe of this.#child.stdio) pipe.destroy()
    this.#child.kill('SIGKILL')
    const why =
      `\`${this.#command} serve\` does not speak version ${GREETING.version} of the protocol, which this ` +
      `package needs; install a \`verrou\` of the same version. It printed: ${line.slice(0, 200)}`
    this.#finish(new CommandStoreError(why))
  }

  #startError(error) {
    if (error.code === 'ENOENT') {
      return new CommandStoreError(
        `there is no command \`${this.#command}\`, which this store needs: install it with ` +
          '`cargo install --path host` in a copy of Verrou, or set its path by the option ' +
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

  /** Returns the error for requests without an answer. */
  #endError(code, signal) {
    const said = this.#stderr.trim() || (signal === null ? `code ${code}` : signal)
    // A command that exits at its start would do so again.
    if (!this.#greeted && signal === null) {
      return new CommandStoreError(`\`${this.#command} serve\` did not start: ${said}`)
    }
    return new CommandStoreError(`\`${this.#command} serve\` has ended: ${said}`, true)
  }

  #finish(error) {
    this.usable = false
    this.#error ??= error
    clearTimeout(this.#timer)
    for (const { reject } of this.#pending.splice(0)) reject(error)
    this.#end()
  }
}

/** The waiters for each name. A few children wait for one name after the other. */
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
      const timer = setTimeout(waiter.wake, Math.min(Math.ceil(atMost), MAX_TIMER))
      signal?.addEventListener('abort', waiter.wake)
      name.waiters.add(waiter)
      this.#startChild()
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

  /** Starts a child, or uses an idle one, if names are due. */
  #startChild() {
    if (this.#due.length === 0) return
    for (const child of this.#children) if (!child.usable) this.#children.delete(child)
    this.#idle = this.#idle.filter((child) => child.usable)
    if (this.#idle.length > 0 || this.#children.size < WAITING_CHILDREN) {
      this.#serveDueNames(this.#idle.pop())
    }
  }

  async #serveDueNames(child) {
    try {
      child ??= this.#start()
      this.#children.add(child)
    } catch (error) {
      return this.#fail(error)
    }
    while (this.#due.length > 0 && child.usable) {
      const name = this.#due.shift()
      try {
        // Its waiters may have left meanwhile.
        if (name.waiters.size > 0 && (await this.#holder(child, name.key)) === null) {
          // Only one waiter can acquire it. If that one does not, the next is woken.
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
    else this.#startChild()
  }

  /** Rejects the waiters for all names that are due. */
  #fail(error) {
    for (const name of this.#due.splice(0)) {
      fail(name, error)
      this.#names.delete(name.key)
    }
  }

  /** Returns the holder of the name, after a wait of one turn. */
  async #holder(child, key) {
    const turn = TURN * Math.min(1, WAITING_CHILDREN / this.#names.size)
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
