"""The component's imports, made of a Python store, a clock and a source of randomness.

wasmtime-py passes a record as a `Record` whose attributes have the names of the WIT, with hyphens.
It passes a variant, an option or a result as the bare payload when its cases have different Python
types, and otherwise as a `Variant` with the case's name. So `result<reply, store-error>` is a
`Variant` (of the reply) or a `Record`; but `result<option<holder>, store-error>`, where both sides
can be a record, is a `Variant` called `ok` or `err`.
"""

from wasmtime.component import Linker, Record, Variant

from store import Abilities, Claim, Granted, Holder, Refused, StoreError


def record(**members) -> Record:
    """Makes a record; `_` stands for the hyphen in the names of its members."""
    made = Record()
    for name, value in members.items():
        setattr(made, name.replace("_", "-"), value)
    return made


def define(linker: Linker, store, now, random, on_trouble) -> None:
    """Defines the three imports. `on_trouble` gets each exception of `store`."""
    # `can` returns the same at every call, and cannot return an error: so it is called once.
    abilities = record(**checked(store.can(), Abilities)._asdict())

    def operation(ask, answer, tagged=False):
        def imported(_, *arguments):
            try:
                result = answer(ask(*arguments))
                return Variant("ok", result) if tagged else result
            # After an exception through the component, it could not be used any more.
            except BaseException as error:
                on_trouble(error)
                temporary = getattr(error, "temporary", False) is True
                result = record(temporary=temporary, message=encodable(describe(error)))
                return Variant("err", result) if tagged else result

        return imported

    with linker.root() as root:
        with root.add_instance("verrou:lock/store@0.1.0") as imports:
            for name in ("acquire", "extend", "release", "detach"):
                ask = getattr(store, name)
                imports.add_func(name, operation(lambda asked, ask=ask: ask(claim(asked)), reply))
            imports.add_func("evict", operation(store.evict, reply))
            imports.add_func("inspect", operation(store.inspect, holder, tagged=True))
            imports.add_func("can", lambda _: abilities)
        with root.add_instance("wasi:clocks/monotonic-clock@0.2.0") as imports:
            imports.add_func("now", lambda _: now())
        with root.add_instance("wasi:random/random@0.2.0") as imports:
            imports.add_func("get-random-u64", lambda _: random())


def claim(asked: Record) -> Claim:
    return Claim(asked.name, asked.owner, asked.ttl, asked.ephemeral)


def reply(result) -> Variant:
    if isinstance(result, Granted):
        return Variant("granted", u64(result.fencing_token))
    return Variant("refused", u64(checked(result, Refused).remaining))


def holder(result) -> Record | None:
    if result is None:
        return None
    token, remaining = checked(result, Holder)
    return record(fencing_token=u64(token), remaining=u64(remaining))


def checked(result, kind):
    if isinstance(result, kind):
        return result
    raise StoreError(f"the store returned {result!r:.80} instead of a `{kind.__name__}`")


def u64(number: int | None) -> int | None:
    # wasmtime-py would cut off excess bits.
    if number is None or (type(number) is int and 0 <= number < 1 << 64):
        return number
    raise StoreError(f"the store returned {number!r:.80} instead of a whole number below 2^64")


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"


def encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
