"""The interface of a store in Python: `store` of `wit/store.wit`.

Any object with the methods of `Store` is a store. Each method is one atomic operation. Lengths of
time are whole nanoseconds; `None` means no limit, or unknown.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol


class Claim(NamedTuple):
    """A lock, its owner, and the lease's length: the record sent to a store."""

    name: str
    owner: str
    """The owner token: 32 lower-case hexadecimal digits, drawn for every acquisition."""
    ttl: int | None
    ephemeral: bool
    """Whether the record also ends with the client that made it."""
    mode: str | int = "exclusive"
    """Which other holders the name may have: `exclusive`, `shared`, or the number of permits."""


class Granted(NamedTuple):
    """The owner holds the name."""

    fencing_token: int | None = None
    """The fencing token, from a store with fencing tokens."""


class Busy(NamedTuple):
    """Another owner holds the name."""

    remaining: int | None = None
    """The longest time for which the name stays held, if the store can determine it."""


class Process(NamedTuple):
    """The process that acquired a lock, for display."""

    id: int
    host: str
    command: str


class Holder(NamedTuple):
    """A holder of a name, without the owner token: with that token the lock can be released."""

    fencing_token: int | None = None
    remaining: int | None = None
    since: int | None = None
    """The time of the grant since the start of 1970 (UTC), if the store records it."""
    process: Process | None = None
    detached: bool = False
    """Whether the lease was detached, so that `process` may have ended long ago."""
    mode: str | int = "exclusive"


class Capabilities(NamedTuple):
    """The capabilities of a store: see `capabilities` in `wit/types.wit`."""

    expires: bool = False
    ephemeral: bool = False
    transfers: bool = False
    force_releases: bool = False
    fences: bool = False
    revives: bool = False
    shared: bool = False
    permits: bool = False


class StoreError(Exception):
    """The failure of a store: the outcome of its operation is unknown."""

    def __init__(self, message: str, temporary: bool = False, code: str = ""):
        super().__init__(message)
        self.temporary = temporary
        """Whether a retry may succeed."""
        self.code = code
        """The kind of the failure: a case of `store-error-code` in `wit/types.wit`, or another name."""


class Waiter(Protocol):
    """The place of a claim in the store's wait queue.

    With a coroutine method `wait_async`, which has the arguments of `wait`, tasks are notified, too; otherwise they
    keep their places in the queue and try again after each delay. `Notification` has both methods.
    """

    def wait(self, seconds: float) -> None:
        """Waits until the claim may be granted, but at most for `seconds`."""

    def leave(self) -> None:
        """Leaves the queue, after the grant or without one."""


class Notification:
    """A flag that any thread sets, and for which a thread or a task waits: the waiting of a `Waiter`."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_set = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def notify(self) -> None:
        """Ends the current wait, or the next one."""
        with self._mutex:
            self._is_set.set()
            for callback in self._callbacks:
                callback()

    def wait(self, seconds: float) -> None:
        """Waits for a notification, but at most for `seconds`."""
        self._is_set.wait(seconds)
        self._is_set.clear()

    async def wait_async(self, seconds: float) -> None:
        """Waits as `wait` does, as a task."""
        loop, notified = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            # The loop of a task that was not awaited may be closed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(notified.set)

        with self._mutex:
            self._callbacks.append(wake)
            if self._is_set.is_set():
                notified.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await notified.wait()
        finally:
            with self._mutex:
                self._callbacks.remove(wake)
        self._is_set.clear()


class Store(Protocol):
    """A store of lease records. `wit/store.wit` documents each operation."""

    def acquire(self, claim: Claim) -> Granted | Busy: ...
    def extend(self, claim: Claim) -> bool: ...
    def release(self, claim: Claim) -> bool: ...
    def force_release(self, name: str, only: int | None) -> bool: ...
    def holders(self, name: str) -> list[Holder]: ...
    def detach(self, claim: Claim) -> bool: ...
    def capabilities(self) -> Capabilities: ...

    def renew(self, claim: Claim, fencing_token: int | None) -> str:
        """Returns `granted`, `released` or `lost`. This is the renewal of a store without `revives`."""
        return renewed_by_extension(self, claim)

    def join(self, claim: Claim) -> Waiter | None:
        """Joins the wait queue; returns `None` in a store without one."""
        return None


def renewed_by_extension(store: Store, claim: Claim) -> str:
    """Renews the lease as a store without the capability `revives` does."""
    return "granted" if store.extend(claim) else "lost"
