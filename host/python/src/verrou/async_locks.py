"""The locks, for tasks of asyncio.

    locks = AsyncLocks(DictionaryStore())
    async with locks.lock("my-resource", ttl=10).held(timeout=5) as held:
        print("fencing token", held.fencing_token)

A task that waits uses no thread. All calls of the component run in one thread, because only one can run at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from wasmtime.component import Record

from ._durations import Duration
from ._keep_alive import Keeping, poll
from .errors import LockError, LockLost, NotOwner
from .locks import Lock, Locks, Own, retry_policy, token
from .store import Holder, Store

T = TypeVar("T")

CALLS = ThreadPoolExecutor(1, thread_name_prefix="verrou")
"""The thread that makes the calls of all tasks."""


async def call(work: Callable[[], T], undo: Callable[[T], Any] | None = None) -> T:
    """Runs `work` in the thread of calls. If the task is cancelled meanwhile, `undo` gets the result of `work`."""
    made: Future[T] = CALLS.submit(work)
    try:
        return await asyncio.shield(asyncio.wrap_future(made))
    except asyncio.CancelledError:
        if undo is not None:
            made.add_done_callback(partial(undone, undo))
        raise


def undone(undo: Callable[[T], Any], made: "Future[T]") -> None:
    if not made.cancelled() and made.exception() is None:
        CALLS.submit(undo, made.result())


class AsyncLocks:
    """The locks in one store, for tasks."""

    def __init__(self, store: Store):
        self._locks = Locks(store)

    def lock(self, name: str, ttl: Duration | None = 30) -> "AsyncLock":
        """Makes a lock as `Locks.lock` does. Its first use raises the error if the name or the ttl is invalid."""
        return AsyncLock(partial(self._locks.lock, name, ttl))

    def restore(self, serialized: str) -> "AsyncLock":
        """Restores a lock from the text of `serialize`. Its first use raises the error if the text is invalid."""
        return AsyncLock(partial(self._locks.restore, serialized))


class AsyncHeld(NamedTuple):
    """A lock that a task holds."""

    fencing_token: int | None
    lost: asyncio.Event
    """Set when the lease is lost while the block still runs."""


class AsyncLock:
    """A lock, for one task at a time: each task should make its own. The methods are those of `Lock`.

    A cancelled `acquire` leaves no lock and no place in the wait queue behind.
    """

    def __init__(self, make: Callable[[], Lock]):
        self._make, self._made = make, None
        self._block: AbstractAsyncContextManager[AsyncHeld] | None = None

    def _lock(self) -> Lock:
        """Returns the lock; only the thread of calls calls this."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _release(self, *_: Any) -> None:
        with suppress(LockError):
            self._lock().release()

    async def acquire(
        self,
        timeout: Duration | None = None,
        attempts: int | None = None,
        delay: Duration | None = None,
        max_delay: Duration | None = None,
    ) -> int | None:
        """Waits for the lock as `Lock.acquire` does, and returns its fencing token."""
        retry = retry_policy(timeout, attempts, delay, max_delay)
        acquiring = await call(lambda: self._lock()._begin(retry), self._cancel)
        if isinstance(acquiring, Record):
            return token(acquiring)
        try:
            while True:
                progress = await call(
                    lambda: self._lock()._poll(acquiring), lambda done: done.is_acquired and self._release()
                )
                if progress.is_acquired:
                    return progress.fencing_token
                wait = getattr(progress.waiter, "wait_async", asyncio.sleep)
                await wait(progress.pause)
        finally:
            # Leaves the wait queue, after the poll that is under way.
            CALLS.submit(self._lock()._instance.close, acquiring)

    def _cancel(self, acquiring: Any) -> None:
        """Undoes the first attempt of a cancelled task."""
        if isinstance(acquiring, Record):
            self._release()
        else:
            self._lock()._instance.close(acquiring)

    @asynccontextmanager
    async def held(self, **retry: Any) -> AsyncIterator[AsyncHeld]:
        """Acquires the lock as `acquire` does, and renews its lease during an `async with` block.

        If the lease was lost meanwhile the block ends with `LockLost`, even if it did its work.
        """
        token = await self.acquire(**retry)
        try:
            async with self.keep_alive() as lost:
                yield AsyncHeld(token, lost)
        except BaseException:
            await call(self._release)
            raise
        try:
            await self.release()
        except NotOwner as error:
            raise LockLost("the lease was lost while the lock was held") from error

    async def __aenter__(self) -> AsyncHeld:
        """Acquires the lock for an `async with` block, as `held()` does."""
        if self._block is not None:
            raise RuntimeError("this lock is in a `with` block already; make an `AsyncLock` for each task")
        block = self.held()
        held = await block.__aenter__()
        self._block = block
        return held

    async def __aexit__(self, *raised: Any) -> None:
        block, self._block = self._block, None
        assert block is not None, "the lock was entered"
        await block.__aexit__(*raised)

    @asynccontextmanager
    async def keep_alive(self) -> AsyncIterator[asyncio.Event]:
        """Renews the lease while an `async with` block runs; yields an event that is set when the lease is lost."""
        lost = asyncio.Event()
        close = lambda renewal: self._lock()._instance.close(renewal)
        renewal = await call(lambda: self._lock()._call("keep"), close)

        async def keep() -> None:
            try:
                while True:
                    state, pause = await call(lambda: poll(self._lock()._instance, renewal))
                    if state is not Keeping.HELD:
                        break
                    await asyncio.sleep(pause)
                if state is Keeping.LOST:
                    lost.set()
            except Exception:
                lost.set()
                raise

        keeper = asyncio.create_task(keep())
        try:
            yield lost
        finally:
            keeper.cancel()
            # After the poll that is under way.
            CALLS.submit(close, renewal)
            await asyncio.wait([keeper])

    async def try_acquire(self) -> bool:
        """Acquires the lock if it is free now, and returns whether it was."""
        return await call(lambda: self._lock().try_acquire(), lambda done: done and self._release())

    async def release(self) -> None:
        """Releases the lock."""
        await call(lambda: self._lock().release())

    async def force_release(self, only: int | None = None) -> bool:
        """Force-releases the lock, or only the grant with this fencing token."""
        return await call(lambda: self._lock().force_release(only))

    async def extend(self, ttl: Duration | None | Own = Own.TTL) -> None:
        """Extends the lease to `ttl` from now, by default the lock's own; `None` removes its expiry."""
        await call(lambda: self._lock().extend(ttl))

    async def detach(self) -> None:
        """Detaches the lease: from now on it ends by its ttl alone."""
        await call(lambda: self._lock().detach())

    async def serialize(self) -> str:
        """Serializes the lease as text for `restore`, and detaches it."""
        return await call(lambda: self._lock().serialize())

    async def is_expired(self) -> bool:
        """Returns whether the lease has expired; `False` when there is none, or it does not expire."""
        return await call(lambda: self._lock().is_expired())

    async def remaining(self) -> float | None:
        """Returns the remaining time of the lease; `None` when there is none, or it does not expire."""
        return await call(lambda: self._lock().remaining())

    async def holders(self) -> list[Holder]:
        """Returns the holders of the lock: none when it is free."""
        return await call(lambda: self._lock().holders())

    async def is_locked(self) -> bool:
        """Returns whether any owner holds the lock."""
        return await call(lambda: self._lock().is_locked())

    async def is_held(self) -> bool:
        """Returns whether this lock's latest acquisition holds it."""
        return await call(lambda: self._lock().is_held())
