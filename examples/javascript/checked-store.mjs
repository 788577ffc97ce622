/**
 * Wraps an arbitrary store for the component.
 *
 * An exception must not pass through the component, which would stop in the middle of an operation. So each
 * exception and each invalid reply of the store becomes the `store-error` of `wit/types.wit`, and the caller
 * gets `E_LOCK_STORAGE_ERROR`.
 */
import { Waiter } from './wait-queue.mjs';

export function checkedStore(store) {
  const capabilities = asCapabilities(store.getCapabilities());
  const asking = (operation, as) => (...request) => {
    try {
      return as(store[operation](...request));
    } catch (error) {
      const message = error instanceof InvalidReply
        ? `the store's \`${operation}\` returned ${error.message}`
        : String(error?.message ?? error);
      throw { payload: { code: asCode(error?.code), message, temporary: error?.temporary === true } };
    }
  };
  return {
    acquire: asking('acquire', asAcquired),
    extend: asking('extend', asBoolean),
    renew: asking('renew', asRenewed),
    release: asking('release', asBoolean),
    forceRelease: asking('forceRelease', asBoolean),
    holders: asking('holders', asHolders),
    detach: asking('detach', asBoolean),
    getCapabilities: () => capabilities,
    join: (claim) => asWaiter(store, claim),
    Waiter,
  };
}

/** The error for a reply that `wit/store.wit` does not allow. */
class InvalidReply extends Error {}

/** The cases of `store-error-code` without a name of the store's choice. */
const CODES = ['unavailable', 'full', 'corrupt', 'denied', 'unsupported', 'invalid'];

/** Converts the `code` of an exception. */
function asCode(code) {
  return CODES.includes(code) ? { tag: code } : { tag: 'other', val: typeof code === 'string' ? code : '' };
}

function asAcquired(reply) {
  if (reply?.tag !== 'granted' && reply?.tag !== 'busy') {
    refuse(reply, "{ tag: 'granted', val: token } or { tag: 'busy', val: nanoseconds }");
  }
  return { tag: reply.tag, val: asInteger(reply.val) };
}

function asBoolean(reply) {
  if (typeof reply !== 'boolean') refuse(reply, 'true or false');
  return reply;
}

function asRenewed(reply) {
  if (!['granted', 'released', 'lost'].includes(reply)) refuse(reply, "'granted', 'released' or 'lost'");
  return reply;
}

function asHolders(reply) {
  if (!Array.isArray(reply)) refuse(reply, 'an array of holders');
  return reply.map(asHolder);
}

/** Converts a holder, of which a store need not return the members that it does not record. */
function asHolder(holder) {
  const expected = '{ fencingToken, mode, remaining, since, process, detached }';
  if (typeof holder !== 'object' || holder === null) refuse(holder, expected);
  const { fencingToken, mode = { tag: 'exclusive' }, remaining, since, process, detached = false } = holder;
  return {
    fencingToken: asInteger(fencingToken),
    mode: asMode(mode),
    remaining: asInteger(remaining),
    since: asInteger(since),
    process: asProcess(process),
    detached: asBoolean(detached),
  };
}

function asMode(mode) {
  const { tag, val } = mode ?? {};
  if (tag === 'exclusive' || tag === 'shared') return { tag };
  if (tag !== 'permit') refuse(mode, "{ tag: 'exclusive' }, { tag: 'shared' } or { tag: 'permit', val: permits }");
  return { tag, val: asSmallInteger(val) };
}

function asProcess(process) {
  if (process === undefined || process === null) return undefined;
  const { id, host, command } = process;
  for (const text of [host, command]) if (typeof text !== 'string') refuse(text, 'a string');
  return { id: asSmallInteger(id), host, command };
}

function asSmallInteger(value) {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) refuse(value, 'a whole number below 2^32');
  return value;
}

function asInteger(value) {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'bigint' || value !== BigInt.asUintN(64, value)) {
    refuse(value, 'undefined or a bigint of 64 bits');
  }
  return value;
}

/** Joins the store's wait queue, if it has one. Without a place there, a timer ends the wait. */
function asWaiter(store, claim) {
  try {
    const place = store.join(claim);
    return place ? new Waiter(place) : undefined;
  } catch {
    return undefined;
  }
}

function asCapabilities(reply) {
  const names = ['expires', 'ephemeral', 'transfers', 'forceReleases', 'fences', 'revives', 'shared', 'permits'];
  const capabilities = Object.fromEntries(names.map((name) => [name, reply?.[name]]));
  const wrong = names.find((name) => typeof capabilities[name] !== 'boolean');
  if (wrong) throw new TypeError(`the store's \`getCapabilities\` must return true or false for \`${wrong}\``);
  return Object.freeze(capabilities);
}

function refuse(value, expected) {
  const what = typeof value?.then === 'function' ? 'a promise (the functions are synchronous)' : show(value);
  throw new InvalidReply(`${what} instead of ${expected}`);
}

function show(value) {
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'object' && value !== null) return `an object with ${Object.keys(value).join(', ') || 'no members'}`;
  return String(value);
}
