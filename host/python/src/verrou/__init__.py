"""Verrou's locks in Python: named locks with leases, and a fencing token on every grant.

    from verrou import Locks, SqliteStore

    locks = Locks(SqliteStore("/var/lib/my-program/locks.sqlite"))
    with locks.lock("nightly", ttl=30).held(timeout=10) as held:
        print("fencing token", held.fencing_token)
"""

from ._instance import LockError
from .command_store import CommandStore
from .dictionary_store import DictionaryStore
from .directory_locks import DirectoryLocks
from .locks import Held, Lock, Locks
from .sqlite_store import SqliteStore
from .store import Busy, Capabilities, Claim, Granted, Holder, Process, Store, StoreError, Waiter

__all__ = [
    "Busy",
    "Capabilities",
    "Claim",
    "CommandStore",
    "DictionaryStore",
    "DirectoryLocks",
    "Granted",
    "Held",
    "Holder",
    "Lock",
    "LockError",
    "Locks",
    "Process",
    "SqliteStore",
    "Store",
    "StoreError",
    "Waiter",
]
