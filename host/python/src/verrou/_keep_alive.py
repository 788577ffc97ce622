"""The renewal of a lease while a `with` block runs."""

import threading
from contextlib import contextmanager

from wasmtime.component import Record

LONGEST_PAUSE = 3600
"""The longest wait, in seconds: Python cannot wait for centuries at once."""


@contextmanager
def keep_alive(instance, renewal):
    """Polls `renewal`, a handle of `instance`, in a thread; yields an event that is set at the lease's loss."""
    ended, lost = threading.Event(), threading.Event()

    def keep():
        pause = 0
        try:
            while not ended.wait(min(pause / 1e9, LONGEST_PAUSE)):
                keeping = instance.call("[method]renewal.poll", renewal)
                if keeping is None:
                    return  # `released`
                if isinstance(keeping, str):
                    break  # `lost`
                # `held`; or `unknown` while the store fails.
                pause = keeping.wait if isinstance(keeping, Record) else keeping
            if not ended.is_set():
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
