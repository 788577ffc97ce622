"""What a store is in Python: the `store` interface of `wit/store.wit`, as Python has it.

Any object with the methods of `Store` is one. Each method is one step that nobody else sees half
done. Lengths of time are whole nanoseconds; `None` is one without an end, or unknown.
"""

from typing import NamedTuple, Protocol


class Claim(NamedTuple):
    """Who wants which lock, and for how long."""

    name: str
    owner: str
    """32 lower-case hexadecimal digits, drawn anew for every acquisition."""
    ttl: int | None
    ephemeral: bool
    """Whether the record is to end with the client that made it, too."""


class Granted(NamedTuple):
    """Done as asked."""

    fencing_token: int | None = None
    """The grant's, when a claim was asked for and the store counts."""


class Refused(NamedTuple):
    """Not done: the name is another's, or there is nothing to act on."""

    remaining: int | None = None
    """For how long at most the name stays taken, as far as the store knows."""


class Holder(NamedTuple):
    """The holder of a name, without the owner token: with that token the lock can be released."""

    fencing_token: int | None
    remaining: int | None


class Abilities(NamedTuple):
    """What some stores can do and others cannot: see `abilities` in `wit/store.wit`."""

    expires: bool
    ephemeral: bool
    transfers: bool
    evicts: bool
    fences: bool


class StoreError(Exception):
    """A store that could not tell: its step may or may not have been taken."""

    def __init__(self, message: str, temporary: bool = False):
        super().__init__(message)
        self.temporary = temporary
        """Whether asking again may help."""


class Store(Protocol):
    """A place where leases are recorded. `wit/store.wit` says what each step means."""

    def acquire(self, claim: Claim) -> Granted | Refused: ...
    def extend(self, claim: Claim) -> Granted | Refused: ...
    def release(self, claim: Claim) -> Granted | Refused: ...
    def evict(self, name: str, only: int | None) -> Granted | Refused: ...
    def inspect(self, name: str) -> Holder | None: ...
    def detach(self, claim: Claim) -> Granted | Refused: ...
    def can(self) -> Abilities: ...
