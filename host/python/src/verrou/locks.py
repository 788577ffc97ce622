"""Verrou's locks in Python: the component `verrou.wasm`, with any Python object as its store.

    locks = Locks(DictionaryStore())
    with locks.lock("my-resource", ttl=10).held(timeout=5) as held:
        print("fencing token", held.fencing_token)

Lengths of time are seconds here. Errors are `LockError`, with Verrou's code.
"""

import threading
import time
from contextlib import contextmanager, suppress
from numbers import Real
from typing import NamedTuple

from wasmtime.component import Record

from ._imports import record
from ._instance import Instance, LockError
from ._keep_alive import LONGEST_PAUSE, keep_alive
from .store import Holder, Process


class Locks:
    """The locks in one store."""

    def __init__(self, store):
        self._instance = Instance(store)

    def lock(self, name: str, ttl=30) -> "Lock":
        """Makes a lock called `name` whose leases last `ttl`; with `None` they do not expire."""
        handle = self._instance.call("[static]lock.create", name, nanoseconds(ttl, "E_INVALID_TTL"))
        return Lock(self._instance, handle)

    def restore(self, serialized: str) -> "Lock":
        """Restores a lock from the text of `Lock.serialize`, of any process and language."""
        handle = self._instance.call("[static]lock.restore", serialized, time.time_ns())
        return Lock(self._instance, handle)


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

    def __init__(self, instance: Instance, handle):
        self._instance, self._handle = instance, handle

    def __del__(self):
        self._instance.drop(self._handle)

    def _call(self, method: str, *arguments):
        return self._instance.call(f"[method]lock.{method}", self._handle, *arguments)

    def acquire(self, timeout=None, attempts=None, delay=None) -> int | None:
        """Waits for the lock, and returns its fencing token."""
        retry = record(
            attempts=None if attempts is None else min(max(attempts, 0), (1 << 32) - 1),
            delay=nanoseconds(delay, "E_INVALID_RETRY"),
            max_delay=None,
            timeout=nanoseconds(timeout, "E_INVALID_RETRY"),
        )
        acquiring = self._call("acquire", retry)
        return token(acquiring) if isinstance(acquiring, Record) else self._wait(acquiring)

    def _wait(self, attempt) -> int | None:
        try:
            while True:
                progress = self._instance.call("[method]attempt.poll", attempt)
                if progress.tag == "acquired":
                    return token(progress.payload)
                if progress.tag == "gave-up":
                    message = f"another owner held the lock through {progress.payload} attempts"
                    raise LockError("E_LOCK_TIMEOUT", message)
                pause = min(progress.payload / 1e9, LONGEST_PAUSE)
                if progress.tag == "wait":
                    self._instance.wait(attempt, pause)
                else:
                    time.sleep(pause)
        finally:
            # Leaves the wait queue.
            self._instance.close(attempt)

    @contextmanager
    def held(self, **retry):
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
        except LockError as error:
            if error.code != "E_LOCK_NOT_OWNER":
                raise
            raise LockError("E_LOCK_LOST", "the lease was lost while the lock was held") from error

    def run(self, work, **retry):
        """Calls `work` with the `Held` lock, and returns its result."""
        with self.held(**retry) as held:
            return work(held)

    def keep_alive(self):
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

    def extend(self) -> None:
        """Extends the lease to the lock's ttl from now."""
        self._call("extend")

    def detach(self) -> None:
        """Detaches the lease: from now on it ends by its ttl alone, and outlives this object and this process."""
        self._call("detach")

    def serialize(self) -> str:
        """Serializes the lease as text for `Locks.restore`, and detaches it."""
        return self._call("serialize", time.time_ns())

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


def token(grant: Record) -> int | None:
    """Returns the fencing token of a grant, or of a holder."""
    return getattr(grant, "fencing-token")


def holder(one: Record) -> Holder:
    process = one.process and Process(**vars(one.process))
    mode = one.mode.tag if one.mode.payload is None else one.mode.payload
    return Holder(token(one), one.remaining, one.since, process, one.detached, mode)


def nanoseconds(seconds, code: str) -> int | None:
    """Converts and checks a length of time: wasmtime-py would cut off excess bits."""
    if seconds is None:
        return None
    # A string times a number would be a long string.
    if not isinstance(seconds, Real):
        raise LockError(code, f"{seconds!r} is not a length of time; write a number of seconds")
    with suppress(ValueError, OverflowError):
        nanos = round(seconds * 1_000_000_000)
        if 0 <= nanos < 1 << 64:
            return nanos
    raise LockError(code, f"{seconds} is not a length of time; write seconds, from 0 to 18446744073")
