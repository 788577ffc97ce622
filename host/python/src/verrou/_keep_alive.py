"""The renewal of a lease while a `with` block runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from wasmtime.component import Record

LONGEST_PAUSE = 3600
"""The longest wait, in seconds: Python cannot wait for centuries at once."""


class Keeping(Enum):
    """The state of a lease that is being renewed."""

    HELD = 1
    RELEASED = 2
    LOST = 3


def poll(instance: Any, renewal: Any) -> tuple[Keeping, float]:
    """Polls `renewal`, a handle of `instance`. Returns the state, and the seconds until the next poll."""
    keeping = instance.call("[method]renewal.poll", renewal)
    if keeping is None:
        return Keeping.RELEASED, 0
    if isinstance(keeping, str):
        return Keeping.LOST, 0
    # `held`; or `unknown` while the store fails.
    pause = keeping.wait if isinstance(keeping, Record) else keeping
    return Keeping.HELD, min(pause / 1e9, LONGEST_PAUSE)


@contextmanager
def keep_alive(instance: Any, renewal: Any) -> Iterator[threading.Event]:
    """Polls `renewal` in a thread; yields an event that is set at the lease's loss."""
    ended, lost = threading.Event(), threading.Event()

    def keep() -> None:
        state, pause = Keeping.HELD, 0.0
        try:
            while not ended.wait(pause):
                state, pause = poll(instance, renewal)
                if state is not Keeping.HELD:
                    break
            if state is Keeping.LOST and not ended.is_set():
                lost.set()
        except BaseException:
            lost.set()
            raise
        finally:
            instance.close(renewal)

    keeper = threading.Thread(target=keep, name="keeps a lock", daemon=True)
    keeper.start()
    try:
        yield lost
    finally:
        ended.set()
        keeper.join()
