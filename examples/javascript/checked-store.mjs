/**
 * A store for the component, of a store that anyone wrote.
 *
 * An exception must not fly through the component, which would be left half-way. So whatever a
 * store throws, and whatever it says that is no reply, becomes the `store-error` of
 * `wit/store.wit`, and its user sees `E_LOCK_STORAGE_ERROR`.
 */
export function checkedStore(store) {
  const abilities = asAbilities(store.can());
  const asking = (step, as) => (...request) => {
    try {
      return as(store[step](...request));
    } catch (error) {
      const message = error instanceof Misspoken
        ? `the store's \`${step}\` returned ${error.message}`
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

/** What a store said is not what `wit/store.wit` lets it say. */
class Misspoken extends Error {}

function asReply(said) {
  if (said?.tag !== 'granted' && said?.tag !== 'refused') {
    misspoke(said, "{ tag: 'granted', val: token } or { tag: 'refused', val: nanoseconds }");
  }
  return { tag: said.tag, val: asInteger(said.val) };
}

function asHolder(said) {
  if (said === undefined || said === null) return undefined;
  const { fencingToken, remaining, then } = said;
  if (typeof said !== 'object' || then) {
    misspoke(said, 'undefined or { fencingToken, remaining }');
  }
  return { fencingToken: asInteger(fencingToken), remaining: asInteger(remaining) };
}

function asInteger(said) {
  if (said === undefined || said === null) return undefined;
  if (typeof said !== 'bigint' || said !== BigInt.asUintN(64, said)) {
    misspoke(said, 'undefined or a bigint of 64 bits');
  }
  return said;
}

function asAbilities(said) {
  const names = ['expires', 'ephemeral', 'transfers', 'evicts', 'fences'];
  const abilities = Object.fromEntries(names.map((name) => [name, said?.[name]]));
  const wrong = names.find((name) => typeof abilities[name] !== 'boolean');
  if (wrong) throw new TypeError(`the store's \`can\` has to say true or false for \`${wrong}\``);
  return Object.freeze(abilities);
}

function misspoke(said, expected) {
  const what = typeof said?.then === 'function' ? 'a promise (the steps are synchronous)' : show(said);
  throw new Misspoken(`${what} where there has to be ${expected}`);
}

function show(said) {
  if (typeof said === 'bigint') return `${said}n`;
  if (typeof said === 'object' && said !== null) return `an object with ${Object.keys(said).join(', ') || 'nothing'}`;
  return String(said);
}
