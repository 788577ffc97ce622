"""The component's imports, made of a Python store, a clock and a source of randomness.

wasmtime-py passes a record as a `Record` whose attributes have the names of the WIT, with hyphens, a
list as a `list`, an enum as a `str`, and flags as a `set` of names. It passes a variant, an option or a
result as the bare payload when its cases have different Python types, and otherwise as a `Variant` with
the case's name. So `result<acquired, store-error>` is a `Variant` (of the reply) or a `Record`; but
`result<option<grant>, lock-error>`, where both sides can be a record, is a `Variant` called `ok` or `err`.
"""

import itertools

from wasmtime.component import Linker, Record, ResourceHost, ResourceType, Variant

from .store import Busy, Capabilities, Claim, Granted, Holder, Process, StoreError

ERROR_CODES = {"unavailable", "full", "corrupt", "denied", "unsupported", "invalid"}
"""The cases of `store-error-code` without a name of the store's choice."""
# The numbers of the types of the host's resources.
WAITER, POLLABLE = 1, 2


def record(**members) -> Record:
    """Makes a record; `_` stands for the hyphen in the names of its members."""
    made = Record()
    for name, value in members.items():
        setattr(made, name.replace("_", "-"), value)
    return made


class Waiters:
    """The waiters behind the component's handles: a `waiter`, and each `pollable` of it."""

    def __init__(self):
        self._waiters: dict[int, object] = {}
        self._numbers = itertools.count(1)

    def add(self, waiter, kind: int) -> ResourceHost:
        number = next(self._numbers)
        self._waiters[number] = waiter
        return ResourceHost.own(number, kind)

    def get(self, context, handle):
        """Returns the waiter of a handle that the component keeps."""
        return self._waiters[handle.to_host(context).rep]

    def take(self, context, handle):
        """Returns the waiter of a handle that the component has given away."""
        return self._waiters.pop(handle.to_host(context).rep)

    def remove(self, number: int):
        return self._waiters.pop(number)


def define(linker: Linker, define_import, store, now, random, on_trouble) -> Waiters:
    """Defines the imports by `define_import`. `on_trouble` gets each exception of `store`."""
    # `get-capabilities` returns the same at every call, and cannot return an error: so it is called once.
    capabilities = names(checked(store.capabilities(), Capabilities))
    waiters = Waiters()

    def operation(ask, answer):
        def imported(_, *arguments):
            try:
                return answer(ask(*arguments))
            # After an exception through the component, it could not be used any more.
            except BaseException as error:
                on_trouble(error)
                return store_error(error)

        return imported

    def about(ask):
        """Returns the function `ask` of the store, for a claim in the component's form."""
        return lambda asked, *more: ask(claim(asked), *more)

    def join(_, asked):
        try:
            waiter = store.join(claim(asked))
        except BaseException as error:
            # The attempt is polled without a queue.
            on_trouble(error)
            return None
        return None if waiter is None else waiters.add(waiter, WAITER)

    def leave(_, number):
        try:
            waiters.remove(number).leave()
        except BaseException as error:
            on_trouble(error)

    with linker.root() as root:
        with root.add_instance("wasi:io/poll@0.2.0") as imports:
            forget = lambda _, number: waiters.remove(number)
            imports.add_resource("pollable", ResourceType.host(POLLABLE), forget)
        with root.add_instance("verrou:lock/store@0.1.0") as imports:
            imports.add_resource("waiter", ResourceType.host(WAITER), leave)
            define_import(imports, "join", join)
            define_import(
                imports,
                "[method]waiter.subscribe",
                lambda context, waiter: waiters.add(waiters.get(context, waiter), POLLABLE),
            )
            define_import(imports, "acquire", operation(about(store.acquire), acquired))
            define_import(imports, "renew", operation(about(store.renew), renewed))
            for name in ("extend", "release", "detach"):
                define_import(imports, name, operation(about(getattr(store, name)), done))
            define_import(imports, "force-release", operation(store.force_release, done))
            define_import(imports, "holders", operation(store.holders, holders))
            define_import(imports, "get-capabilities", lambda _: capabilities)
        with root.add_instance("wasi:clocks/monotonic-clock@0.2.0") as imports:
            define_import(imports, "now", lambda _: now())
        with root.add_instance("wasi:random/random@0.2.0") as imports:
            define_import(imports, "get-random-u64", lambda _: random())
    return waiters


def claim(asked: Record) -> Claim:
    mode = asked.mode.tag if asked.mode.payload is None else asked.mode.payload
    return Claim(asked.name, asked.owner, asked.ttl, asked.ephemeral, mode)


def acquired(result) -> Variant:
    if isinstance(result, Granted):
        return Variant("granted", u64(result.fencing_token))
    return Variant("busy", u64(checked(result, Busy).remaining))


def done(result) -> bool:
    return checked(result, bool)


def renewed(result) -> str:
    if result in ("granted", "released", "lost"):
        return result
    raise StoreError(f"the store returned {result!r:.80} instead of `granted`, `released` or `lost`")


def holders(result) -> list[Record]:
    return [holder(checked(one, Holder)) for one in checked(result, list)]


def holder(one: Holder) -> Record:
    return record(
        fencing_token=u64(one.fencing_token),
        mode=mode(one.mode),
        remaining=u64(one.remaining),
        since=u64(one.since),
        process=None if one.process is None else process(checked(one.process, Process)),
        detached=checked(one.detached, bool),
    )


def mode(value: str | int) -> Variant:
    if value in ("exclusive", "shared"):
        return Variant(value)
    return Variant("permit", whole(value, 32))


def process(one: Process) -> Record:
    host, command = (encodable(checked(text, str)) for text in (one.host, one.command))
    return record(id=whole(one.id, 32), host=host, command=command)


def names(capabilities: Capabilities) -> set[str]:
    has = capabilities._asdict().items()
    return {name.replace("_", "-") for name, is_there in has if checked(is_there, bool)}


def checked(result, kind):
    if isinstance(result, kind):
        return result
    raise StoreError(f"the store returned {result!r:.80} instead of a `{kind.__name__}`")


def u64(number: int | None) -> int | None:
    return None if number is None else whole(number, 64)


def whole(number: int, bits: int) -> int:
    # wasmtime-py would cut off excess bits.
    if type(number) is int and 0 <= number < 1 << bits:
        return number
    raise StoreError(f"the store returned {number!r:.80} instead of a whole number below 2^{bits}")


def store_error(error: BaseException) -> Record:
    code = getattr(error, "code", "") if isinstance(error, StoreError) else ""
    return record(
        code=Variant(code) if code in ERROR_CODES else Variant("other", encodable(str(code))),
        message=encodable(describe(error)),
        temporary=getattr(error, "temporary", False) is True,
    )


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"


def encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
