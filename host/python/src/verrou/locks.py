"""The locks, for programs with threads.

    locks = Locks(DictionaryStore())
    with locks.lock("my-resource", ttl=10).held(timeout=5) as held:
        print("fencing token", held.fencing_token)

Lengths of time are seconds, `timedelta`, or text such as `1m 30s`. Errors are subclasses of `LockError`, with Verrou's
codes.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from wasmtime.component import Record

from ._durations import Duration, nanoseconds
from ._imports import record
from ._instance import Instance
from ._keep_alive import LONGEST_PAUSE, keep_alive
from .errors import InvalidRetry, InvalidTtl, LockError, LockLost, LockTimeout, NotOwner
from .store import Holder, Process, Store, Waiter

T = TypeVar("T")


class Own(Enum):
    """The ttl of the lock itself."""

    TTL = "ttl"


class Locks:
    """The locks in one store."""

    def __init__(self, store: Store):
        self._instance = Instance(store)

    def lock(self, name: str, ttl: Duration | None = 30) -> "Lock":
        """Makes a lock called `name` whose leases last `ttl`; with `None`, or `"none"`, they do not expire."""
        handle = self._instance.call("[static]lock.create", name, ttl_of(ttl))
        return Lock(self._instance, handle)

    def restore(self, serialized: str) -> "Lock":
        """Restores a lock from the text of `Lock.serialize`, of any process and language."""
        handle = self._instance.call("[static]lock.restore", serialized, time.time_ns())
        return Lock(self._instance, handle)


class Progress(NamedTuple):
    """The state of an attempt."""

    is_acquired: bool
    fencing_token: int | None = None
    pause: float = 0
    """The longest time to the next poll, in seconds."""
    waiter: Waiter | None = None
    """The waiter whose notification ends the pause."""


class Held(NamedTuple):
    """A lock that is held."""

    fencing_token: int | None
    lost: threading.Event
    """Set when the lease is lost while the block still runs."""


class Lock:
    """A lock, for one thread at a time: each thread should make its own.

    A lock that is garbage collected is released by the next call of its `Locks`, unless it was detached,
    serialized or restored. The end of the program releases no lock.
    """

    def __init__(self, instance: Instance, handle: Any):
        self._instance, self._handle = instance, handle
        self._block: AbstractContextManager[Held] | None = None

    def __del__(self) -> None:
        self._instance.drop(self._handle)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._instance.call(f"[method]lock.{method}", self._handle, *arguments)

    def acquire(
        self,
        timeout: Duration | None = None,
        attempts: int | None = None,
        delay: Duration | None = None,
        max_delay: Duration | None = None,
    ) -> int | None:
        """Waits for the lock, and returns its fencing token.

        Raises `LockTimeout` after `timeout`, or after so many `attempts`; `None` is no limit. Attempts follow each
        other after `delay`, by default 250 ms, and as soon as the store notifies this waiter. With `max_delay`, each
        pause is a random part of a time that doubles from `delay` up to `max_delay`.
        """
        acquiring = self._begin(retry_policy(timeout, attempts, delay, max_delay))
        return token(acquiring) if isinstance(acquiring, Record) else self._wait(acquiring)

    def _begin(self, retry: Record) -> Any:
        """Makes the first attempt. Returns the grant, or the attempt that makes the others."""
        return self._call("acquire", retry)

    def _poll(self, attempt: Any) -> "Progress":
        """Polls an attempt."""
        progress = self._instance.call("[method]attempt.poll", attempt)
        if progress.tag == "acquired":
            return Progress(True, token(progress.payload))
        if progress.tag == "gave-up":
            raise LockTimeout(f"another owner held the lock through {progress.payload} attempts")
        waiter = self._instance.waiter(attempt) if progress.tag == "wait" else None
        return Progress(False, None, min(progress.payload / 1e9, LONGEST_PAUSE), waiter)

    def _wait(self, attempt: Any) -> int | None:
        try:
            while not (progress := self._poll(attempt)).is_acquired:
                if progress.waiter is None:
                    time.sleep(progress.pause)
                else:
                    progress.waiter.wait(progress.pause)
            return progress.fencing_token
        finally:
            # Leaves the wait queue.
            self._instance.close(attempt)

    @contextmanager
    def held(self, **retry: Any) -> "Iterator[Held]":
        """Acquires the lock as `acquire` does, and renews its lease during a `with` block.

        If the lease was lost meanwhile the block ends with E_LOCK_LOST, even if it did its work.
        """
        token = self.acquire(**retry)
        try:
            with self.keep_alive() as lost:
                yield Held(token, lost)
        except BaseException:
            with suppress(LockError):
                self.release()
            raise
        try:
            self.release()
        except NotOwner as error:
            raise LockLost("the lease was lost while the lock was held") from error

    def __enter__(self) -> "Held":
        """Acquires the lock for a `with` block, as `held()` does."""
        if self._block is not None:
            raise RuntimeError("this lock is in a `with` block already; make a `Lock` for each thread")
        block = self.held()
        held = block.__enter__()
        self._block = block
        return held

    def __exit__(self, *raised: Any) -> None:
        block, self._block = self._block, None
        assert block is not None, "the lock was entered"
        block.__exit__(*raised)

    def run(self, work: "Callable[[Held], T]", **retry: Any) -> T:
        """Calls `work` with the `Held` lock, and returns its result."""
        with self.held(**retry) as held:
            return work(held)

    def keep_alive(self) -> AbstractContextManager[threading.Event]:
        """Renews the lease while a `with` block runs; yields an event that is set when the lease is lost."""
        return keep_alive(self._instance, self._call("keep"))

    def try_acquire(self) -> bool:
        """Acquires the lock if it is free now, and returns whether it was."""
        return self._call("try-acquire") is not None

    def release(self) -> None:
        """Releases the lock."""
        self._call("release")

    def force_release(self, only: int | None = None) -> bool:
        """Force-releases the lock, or only the grant with this fencing token."""
        is_token = only is None or 0 < only < 1 << 64
        return is_token and self._call("force-release", only)

    def extend(self, ttl: Duration | None | Own = Own.TTL) -> None:
        """Extends the lease to `ttl` from now, by default the lock's own; `None` removes its expiry."""
        if isinstance(ttl, Own):
            self._call("extend")
        else:
            self._call("extend-for", ttl_of(ttl))

    def detach(self) -> None:
        """Detaches the lease: from now on it ends by its ttl alone, and outlives this object and this process."""
        self._call("detach")

    def serialize(self) -> str:
        """Serializes the lease as text for `Locks.restore`, and detaches it."""
        return self._call("serialize", time.time_ns())

    def is_expired(self) -> bool:
        """Returns whether the lease has expired; `False` when there is none, or it does not expire."""
        return self._call("is-expired")

    def remaining(self) -> float | None:
        """Returns the remaining time of the lease; `None` when there is none, or it does not expire."""
        left = self._call("remaining")
        return None if left is None else left / 1e9

    def holders(self) -> list[Holder]:
        """Returns the holders of the lock: none when it is free. Lengths of time are nanoseconds there."""
        return [holder(one) for one in self._call("holders")]

    def is_locked(self) -> bool:
        """Returns whether any owner holds the lock."""
        return self._call("is-locked")

    def is_held(self) -> bool:
        """Returns whether this lock's latest acquisition holds it."""
        return self._call("is-held")

    @property
    def fencing_token(self) -> int | None:
        """The fencing token of the latest acquisition, from a store with fencing tokens."""
        return self._call("fencing-token")

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._call("name")

    @property
    def ttl(self) -> float | None:
        """The length of the lock's leases in seconds; `None` if they do not expire."""
        ttl = self._call("ttl")
        return None if ttl is None else ttl / 1e9


def token(grant: Record) -> int | None:
    """Returns the fencing token of a grant, or of a holder."""
    return getattr(grant, "fencing-token")


def holder(one: Record) -> Holder:
    process = one.process and Process(**vars(one.process))
    mode = one.mode.tag if one.mode.payload is None else one.mode.payload
    return Holder(token(one), one.remaining, one.since, process, one.detached, mode)


def ttl_of(ttl: Duration | None) -> int | None:
    return None if ttl == "none" else nanoseconds(ttl, InvalidTtl)


def retry_policy(
    timeout: Duration | None, attempts: int | None, delay: Duration | None, max_delay: Duration | None
) -> Record:
    if attempts is not None and not isinstance(attempts, int):
        raise InvalidRetry(f"{attempts!r:.80} is not a number of attempts; write a whole number")
    return record(
        attempts=None if attempts is None else min(max(attempts, 0), (1 << 32) - 1),
        delay=nanoseconds(delay, InvalidRetry),
        max_delay=nanoseconds(max_delay, InvalidRetry),
        timeout=nanoseconds(timeout, InvalidRetry),
    )
