/**
 * Wraps an arbitrary store for the component.
 *
 * An exception must not pass through the component, which would stop in the middle of an operation. So each
 * exception and each invalid reply of the store becomes the `store-error` of `wit/store.wit`, and the caller
 * gets `E_LOCK_STORAGE_ERROR`.
 */
export function checkedStore(store) {
  const abilities = asAbilities(store.can());
  const asking = (operation, as) => (...request) => {
    try {
      return as(store[operation](...request));
    } catch (error) {
      const message = error instanceof InvalidReply
        ? `the store's \`${operation}\` returned ${error.message}`
        : String(error?.message ?? error);
      throw { payload: { temporary: error?.temporary === true, message } };
    }
  };
  return {
    acquire: asking('acquire', asReply),
    extend: asking('extend', asReply),
    release: asking('release', asReply),
    evict: asking('evict', asReply),
    inspect: asking('inspect', asHolder),
    detach: asking('detach', asReply),
    can: () => abilities,
  };
}

/** The error for a reply that `wit/store.wit` does not allow. */
class InvalidReply extends Error {}

function asReply(reply) {
  if (reply?.tag !== 'granted' && reply?.tag !== 'refused') {
    refuse(reply, "{ tag: 'granted', val: token } or { tag: 'refused', val: nanoseconds }");
  }
  return { tag: reply.tag, val: asInteger(reply.val) };
}

function asHolder(reply) {
  if (reply === undefined || reply === null) return undefined;
  const { fencingToken, remaining, then } = reply;
  if (typeof reply !== 'object' || then) {
    refuse(reply, 'undefined or { fencingToken, remaining }');
  }
  return { fencingToken: asInteger(fencingToken), remaining: asInteger(remaining) };
}

function asInteger(value) {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'bigint' || value !== BigInt.asUintN(64, value)) {
    refuse(value, 'undefined or a bigint of 64 bits');
  }
  return value;
}

function asAbilities(reply) {
  const names = ['expires', 'ephemeral', 'transfers', 'evicts', 'fences'];
  const abilities = Object.fromEntries(names.map((name) => [name, reply?.[name]]));
  const wrong = names.find((name) => typeof abilities[name] !== 'boolean');
  if (wrong) throw new TypeError(`the store's \`can\` must return true or false for \`${wrong}\``);
  return Object.freeze(abilities);
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
