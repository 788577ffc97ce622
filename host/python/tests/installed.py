"""Uses the installed package, in a directory without any file of the project. `cargo xtask test` runs it."""

import os
import sys
import threading
import time
from importlib import metadata, resources

import verrou
from verrou import DictionaryStore, DirectoryLocks, Locks, SqliteStore

assert os.listdir() == [], "this directory is not empty"
assert verrou.__file__.startswith(sys.prefix), f"{verrou.__file__} is not of this environment"
assert metadata.version("verrou") == sys.argv[1], metadata.version("verrou")
assert resources.files(verrou).joinpath("py.typed").is_file()

os.mkdir("locks", mode=0o700)
for locks in Locks(DictionaryStore()), Locks(SqliteStore("locks.sqlite")), DirectoryLocks("locks"):
    lock, other = locks.lock("x", ttl=60), locks.lock("x")
    token = lock.acquire()
    assert token is not None
    lock.extend()
    assert 50 < lock.remaining() <= 60
    assert not other.try_acquire()
    lock.release()
    assert other.try_acquire()
    other.release()

# A thread that waits is notified by a release of the other: its retry delay is longer than its time limit.
store = DictionaryStore()
locks = Locks(store)
lock = locks.lock("x", ttl=60)
lock.acquire()
order = []


def wait():
    with locks.lock("x").held(delay=3600, timeout=60):
        order.append("acquired")


waiter = threading.Thread(target=wait)
waiter.start()
end = time.monotonic() + 60
while not store._queues and time.monotonic() < end:
    time.sleep(0.001)
order.append("released")
lock.release()
waiter.join()
assert order == ["released", "acquired"], order
print(f"verrou {metadata.version('verrou')} of {os.path.dirname(verrou.__file__)}")
