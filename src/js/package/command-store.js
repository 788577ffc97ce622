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
  notify: ['queued'],
  release: ['granted', 'refused'],
  renew: ['renewed'],
}

/** The maximum length of an answer, in characters. */
const MAX_LENGTH = 64 * 1024

/** The maximum length of a lock's name, in bytes. */
const MAX_NAME = 1_024

/** How much of the command's standard error is kept, in characters. */
const MAX_STDERR = 4 * 1024

/** The time between two looks at a key for which a waiter without an owner waits, in ms. */
const LOOK = 100

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
  /** `wait` ends by a notification. */
  notifies = true

  #start
  #server
  /** Each rejects one wait. */
  #waits = new Set()
  #fences = new Map()
  /** The owner of each name that was granted, and neither released nor detached, if `close` has to release it. */
  #granted
  #saving = new Set()
  #closing

  /**
   * Makes a store; `args` and the variables of `env` name it for the command. `options` inherit nothing. `outlive` is
   * whether leases outlive the command that acquired them.
   */
  constructor(args, env, options, outlive) {
    const { command = commandOfEnvironment() || 'verrou', idle = DEFAULT_IDLE, label } = options
    if (typeof command !== 'string' || command === '') throw invalid('`command`', 'the path of a command', command)
    if (typeof idle !== 'number' || !(idle >= 0)) throw invalid('`idle`', 'a number of milliseconds from 0', idle)
    if (label !== undefined) {
      if (typeof label !== 'string') throw invalid('`label`', 'a string', label)
      args = [...args, `--label=${label}`]
    }
    if (outlive) this.#granted = new Map()
    this.#start = () => new ServeProcess(command, args, env, idle)
  }

  async save(name, owner, ttl) {
    const key = keyOf(name)
    const saving = this.#save(key, owner, claim(key, owner, ttl))
    this.#saving.add(saving)
    try {
      return await saving
    } finally {
      this.#saving.delete(saving)
    }
  }

  async #save(key, owner, wanted) {
    const server = this.#usableServer()
    const { granted } = await server.ask('acquire', wanted)
    if (granted === undefined) {
      server.tickets.get(ownerKey(key, owner))?.refused()
      return false
    }
    server.removeTicket(ownerKey(key, owner))
    server.leases.set(key, owner)
    this.#granted?.set(key, owner)
    this.#keepFence(key, owner, granted)
    return true
  }

  async delete(name, owner) {
    const key = keyOf(name)
    const released = claim(key, owner, null)
    this.#fences.delete(ownerKey(key, owner))
    const server = this.#usableServer()
    const answer = await server.ask('release', released)
    this.#removeLease(server, key, owner)
    assertOwner(key, answer)
  }

  async forceDelete(name) {
    const key = keyOf(name)
    const server = this.#usableServer()
    const holder = server.leases.get(key)
    await server.ask('evict', { name: key, only: null })
    if (holder !== undefined) this.#removeLease(server, key, holder)
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

  async holder(name) {
    const { holder } = await this.#usableServer().ask('inspect', { name: keyOf(name) })
    if (holder === null) return null
    const { fencing_token: fence = null, remaining = null } = own(holder)
    return { fence, remaining: remaining === null ? null : remaining / 1e6 }
  }

  async wait(name, atMost, signal, owner) {
    const key = keyOf(name)
    if (typeof atMost !== 'number') throw invalid('`atMost`', 'a number of milliseconds', atMost)
    signalOf(signal)
    if (owner !== undefined) checkedOwner(owner)
    await this.#limited(atMost, signal, (end, fail) =>
      owner === undefined ? this.#look(key, end, fail) : this.#queue(key, owner, end, fail)
    )
  }

  /** Ends the ticket that `wait` took for `owner`. */
  giveUp(name, owner) {
    const key = keyOf(name)
    const left = claim(key, owner, null)
    const server = this.#server
    if (!server?.usable || !server.removeTicket(ownerKey(key, owner))) return
    // A child that has ended keeps no tickets.
    server.ask('give_up', left).catch(() => {})
  }

  /** Resolves when the child has ended that keeps the lease of `owner` alive, or when `signal` is aborted. */
  async watch(name, owner, signal) {
    const key = keyOf(name)
    checkedOwner(owner)
    signalOf(signal)
    const server = this.#server
    if (server?.leases.get(key) !== owner) return this.#limited(Infinity, signal, () => () => {})
    await this.#limited(Infinity, signal, (end) => server.atEnd(end))
  }

  /** Sends the request to the child that keeps the lease alive before it returns. */
  async detach(name, owner) {
    const key = keyOf(name)
    const detached = claim(key, owner, null)
    const server = this.#usableServer()
    const answer = await server.ask('detach', detached)
    this.#removeLease(server, key, owner)
    assertOwner(key, answer)
  }

  close() {
    // Later requests are refused.
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close() {
    for (const fail of [...this.#waits]) fail(new CommandStoreError('this store is closed'))
    // A grant on its way is released, too.
    if (this.#granted !== undefined) await Promise.allSettled(this.#saving)
    const failed = await this.#releaseGranted()
    await this.#server?.end()
    if (failed.length === 0) return
    const names = failed.map(([key]) => `\`${key}\``).join(', ')
    const [[, , reason]] = failed
    throw new CommandStoreError(
      `the store was closed, but could not release ${names}; each stays held until its ttl has passed: ${reason.message}`,
      reason.temporary,
      { cause: reason }
    )
  }

  /** Releases the leases that would outlive the command. Returns the names of those that failed, with the errors. */
  async #releaseGranted() {
    const failed = await this.#releaseAll([...(this.#granted ?? [])])
    // The leases also outlive a command that has died meanwhile.
    return failed.length > 0 && !this.#server.usable ? this.#releaseAll(failed) : failed
  }

  async #releaseAll(grants) {
    if (grants.length > 0 && !this.#server.usable) this.#server = this.#start()
    const released = grants.map(async ([key, owner]) => {
      try {
        await this.#server.ask('release', claim(key, owner, null))
        return undefined
      } catch (reason) {
        return [key, owner, reason]
      }
    })
    return (await Promise.all(released)).filter((failure) => failure !== undefined)
  }

  #assertOpen() {
    if (this.#closing !== undefined) throw new CommandStoreError('this store is closed')
  }

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    await this.close()
  }

  /** Returns the child that does the operations and keeps the leases alive. */
  #usableServer() {
    this.#assertOpen()
    if (!this.#server?.usable) this.#server = this.#start()
    return this.#server
  }

  /**
   * Returns a promise that the function `begin` settles by its arguments `end()` and `fail(error)`. It resolves also
   * after `atMost` milliseconds and when `signal` is aborted, and the end of the store rejects it. `begin` returns a
   * function that ends its work.
   */
  #limited(atMost, signal, begin) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted || !(atMost > 0)) return resolve()
      let stop
      const settled = (settle) => (value) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', end)
        this.#waits.delete(fail)
        stop?.()
        settle(value)
      }
      const end = settled(() => resolve())
      const fail = settled(reject)
      const timer = setTimeout(end, Math.min(Math.ceil(atMost), MAX_TIMER))
      signal?.addEventListener('abort', end)
      this.#waits.add(fail)
      try {
        stop = begin(end, fail)
      } catch (error) {
        fail(error)
      }
    })
  }

  /** Waits in the queue for `key`, with the ticket of `owner`, which is taken by the first wait. */
  #queue(key, owner, end, fail) {
    const server = this.#usableServer()
    return server.queuedTicket(ownerKey(key, owner), claim(key, owner, null)).wait(end, fail)
  }

  /** Looks whether `key` is free until it is. */
  #look(key, end, fail) {
    let timer
    const look = () => {
      const asked = new Promise((resolve) => resolve(this.#usableServer().ask('inspect', { name: key })))
      const again = ({ holder }) => (holder === null ? end() : (timer = setTimeout(look, LOOK)))
      asked.then(again, fail)
    }
    look()
    return () => clearTimeout(timer)
  }

  #removeLease(server, key, owner) {
    server.removeLease(key, owner)
    if (this.#granted?.get(key) === owner) this.#granted.delete(key)
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
  tickets = new Map()

  #command
  #child
  #timer
  #greeted = false
  #unsent = ''
  #pending = []
  /** The tickets by their numbers in notifications. */
  #numbered = new Map()
  #lastNumber = 0
  /** Are called when it ends. */
  #watches = new Set()
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

  /** Returns the ticket of `claim`, which will be notified: takes it, or lets it wait on. */
  queuedTicket(key, claim) {
    const ticket = this.tickets.get(key) ?? this.#newTicket(key)
    if (!ticket.needsRequest) return ticket
    ticket.requested()
    const failed = (error) => {
      if (this.tickets.get(key) === ticket) this.removeTicket(key)
      ticket.fail(error)
    }
    this.ask('notify', { ...claim, id: ticket.number }).then(({ queued }) => {
      if (!queued) failed(new CommandStoreError('this store has no wait queue'))
    }, failed)
    return ticket
  }

  #newTicket(key) {
    const ticket = new Ticket(++this.#lastNumber)
    this.tickets.set(key, ticket)
    this.#numbered.set(ticket.number, ticket)
    return ticket
  }

  /** Removes a ticket that has ended. Returns whether there was one. */
  removeTicket(key) {
    const ticket = this.tickets.get(key)
    if (ticket !== undefined) this.#numbered.delete(ticket.number)
    return this.tickets.delete(key)
  }

  /** Calls `callback` when it ends. Returns a function that revokes this. */
  atEnd(callback) {
    if (this.#error !== undefined) {
      callback()
      return () => {}
    }
    this.#watches.add(callback)
    return () => this.#watches.delete(callback)
  }

  /** Ends it after it has answered all requests; resolves when it has ended. */
  end() {
    this.usable = false
    this.#setReferenced(true)
    // Unsent requests are sent first.
    if (this.#unsent === '') this.#child?.stdin?.end()
    return this.#ended
  }

  /** Sets whether this child keeps the event loop of this process alive. */
  #setReferenced(held) {
    if (held === this.#isReferenced) return
    this.#isReferenced = held
    // Deno throws for a process that did not start.
    if (this.#child?.pid === undefined) return
    const method = held ? 'ref' : 'unref'
    // The pipes of Bun have no such methods; there the child alone keeps the process alive.
    for (const handle of [this.#child, ...(this.#child.stdio ?? [])]) handle?.[method]?.()
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
      const { error } = answer
      if (error) return this.#finish(this.#notStarted(error.message, error.temporary === true))
      const matches = Object.entries(GREETING).every(([key, value]) => answer[key] === value)
      if (!matches) return this.#failProtocol(line)
      this.#greeted = true
      if (this.#unsent !== '') this.#child.stdin.write(this.#unsent)
      this.#unsent = ''
      if (!this.usable) this.#child.stdin.end()
      return
    }
    if ('notified' in answer) return this.#numbered.get(answer.notified)?.notify()
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
      return this.#notStarted(said, false)
    }
    return new CommandStoreError(`\`${this.#command} serve\` has ended: ${said}`, true)
  }

  #notStarted(why, temporary) {
    return new CommandStoreError(`\`${this.#command} serve\` did not start: ${why}`, temporary)
  }

  #finish(error) {
    this.usable = false
    this.#error ??= error
    clearTimeout(this.#timer)
    for (const { reject } of this.#pending.splice(0)) reject(error)
    for (const ticket of this.tickets.values()) ticket.fail(error)
    this.tickets.clear()
    this.#numbered.clear()
    for (const callback of [...this.#watches]) callback()
    this.#watches.clear()
    this.#end()
  }
}

/** A ticket in a wait queue, which is notified when its owner may acquire the lock. */
class Ticket {
  /** Whether the child will notify it. */
  #isAwaited = false
  /** Whether it was notified since its last wait. */
  #isDue = false
  #waits = new Set()

  constructor(number) {
    this.number = number
  }

  /** Whether it is notified again only after a request. */
  get needsRequest() {
    return !this.#isAwaited && !this.#isDue
  }

  requested() {
    this.#isAwaited = true
  }

  /** Records that its owner was refused: the child waits on. A notification that came before may be for a later release. */
  refused() {
    this.#isAwaited = true
  }

  /** Ends the waits, or else the next one. */
  notify() {
    this.#isAwaited = false
    this.#isDue = this.#waits.size === 0
    for (const { end } of [...this.#waits]) end()
  }

  /** Rejects the waits. */
  fail(error) {
    for (const { fail } of [...this.#waits]) fail(error)
  }

  /** Calls `end` at the next notification, or `fail` with an error. Returns a function that revokes this. */
  wait(end, fail) {
    if (this.#isDue) {
      this.#isDue = false
      end()
      return () => {}
    }
    const wait = { end, fail }
    this.#waits.add(wait)
    return () => this.#waits.delete(wait)
  }
}
