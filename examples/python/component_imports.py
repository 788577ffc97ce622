"""What the component imports, made of a Python store, a clock and a source of randomness.

wasmtime-py passes a record as a `Record` whose attributes have the WIT's names, hyphens and all.
It passes a variant, an option or a result as the bare payload when its cases have different Python
types, and otherwise as a `Variant` with the case's name. So `result<reply, store-error>` is a
`Variant` (of the reply) or a `Record`; but `result<option<holder>, store-error>`, where both sides
can be a record, is a `Variant` called `ok` or `err`.
"""

from wasmtime.component import Linker, Record, Variant

from store import Abilities, Claim, Granted, Holder, Refused, StoreError


def record(**members) -> Record:
    """A record; `_` stands for the hyphen in its members' names."""
    made = Record()
    for name, value in members.items():
        setattr(made, name.replace("_", "-"), value)
    return made


def define(linker: Linker, store, now, random, on_trouble) -> None:
    """Defines the three imports. `on_trouble` gets whatever `store` raises."""
    # "Always the same", and there is no way to say that it failed: so it is asked once.
    abilities = record(**checked(store.can(), Abilities)._asdict())

    def step(ask, answer, tagged=False):
        def imported(_, *arguments):
            try:
                said = answer(ask(*arguments))
                return Variant("ok", said) if tagged else said
            # If anything were raised through the component it could not be used any more.
            except BaseException as error:
                on_trouble(error)
                temporary = getattr(error, "temporary", False) is True
                said = record(temporary=temporary, message=encodable(describe(error)))
                return Variant("err", said) if tagged else said

        return imported

    with linker.root() as root:
        with root.add_instance("verrou:lock/store@0.1.0") as imports:
            for name in ("acquire", "extend", "release", "detach"):
                ask = getattr(store, name)
                imports.add_func(name, step(lambda asked, ask=ask: ask(claim(asked)), reply))
            imports.add_func("evict", step(store.evict, reply))
            imports.add_func("inspect", step(store.inspect, holder, tagged=True))
            imports.add_func("can", lambda _: abilities)
        with root.add_instance("wasi:clocks/monotonic-clock@0.2.0") as imports:
            imports.add_func("now", lambda _: now())
        with root.add_instance("wasi:random/random@0.2.0") as imports:
            imports.add_func("get-random-u64", lambda _: random())


def claim(asked: Record) -> Claim:
    return Claim(asked.name, asked.owner, asked.ttl, asked.ephemeral)


def reply(said) -> Variant:
    if isinstance(said, Granted):
        return Variant("granted", u64(said.fencing_token))
    return Variant("refused", u64(checked(said, Refused).remaining))


def holder(said) -> Record | None:
    if said is None:
        return None
    token, remaining = checked(said, Holder)
    return record(fencing_token=u64(token), remaining=u64(remaining))


def checked(said, kind):
    if isinstance(said, kind):
        return said
    raise StoreError(f"the store said {said!r:.80}, where it has to say a `{kind.__name__}`")


def u64(said: int | None) -> int | None:
    # wasmtime-py would cut off what does not fit.
    if said is None or (type(said) is int and 0 <= said < 1 << 64):
        return said
    raise StoreError(f"the store said {said!r:.80}, where it has to say a whole number below 2^64")


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"


def encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
