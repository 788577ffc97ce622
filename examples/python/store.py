"""The interface of a store in Python: `store` of `wit/store.wit`.

Any object with the methods of `Store` is a store. Each method is one atomic operation. Lengths of
time are whole nanoseconds; `None` means no limit, or unknown.
"""

from typing import NamedTuple, Protocol


class Claim(NamedTuple):
    """A lock, its owner, and the lease's length: the record sent to a store."""

    name: str
    owner: str
    """The owner token: 32 lower-case hexadecimal digits, drawn for every acquisition."""
    ttl: int | None
    ephemeral: bool
    """Whether the record also ends with the client that made it."""


class Granted(NamedTuple):
    """The operation was done."""

    fencing_token: int | None = None
    """The fencing token, if a store with fencing tokens has granted a claim."""


class Refused(NamedTuple):
    """The operation was not done: another owner holds the name, or there is no record to act on."""

    remaining: int | None = None
    """The longest time for which the name stays held, if the store can determine it."""


class Holder(NamedTuple):
    """The holder of a name, without the owner token: with that token the lock can be released."""

    fencing_token: int | None
    remaining: int | None


class Abilities(NamedTuple):
    """The capabilities of a store: see `abilities` in `wit/store.wit`."""

    expires: bool
    ephemeral: bool
    transfers: bool
    evicts: bool
    fences: bool


class StoreError(Exception):
    """The failure of a store: the outcome of its operation is unknown."""

    def __init__(self, message: str, temporary: bool = False):
        super().__init__(message)
        self.temporary = temporary
        """Whether a retry may succeed."""


class Store(Protocol):
    """A store of lease records. `wit/store.wit` documents each operation."""

    def acquire(self, claim: Claim) -> Granted | Refused: ...
    def extend(self, claim: Claim) -> Granted | Refused: ...
    def release(self, claim: Claim) -> Granted | Refused: ...
    def evict(self, name: str, only: int | None) -> Granted | Refused: ...
    def inspect(self, name: str) -> Holder | None: ...
    def detach(self, claim: Claim) -> Granted | Refused: ...
    def can(self) -> Abilities: ...
