"""Verrou's locks in Python: named locks with leases, and a fencing token on every grant.

    from verrou import Locks, SqliteStore

    locks = Locks(SqliteStore("/var/lib/my-program/locks.sqlite"))
    with locks.lock("nightly", ttl=30).held(timeout=10) as held:
        print("fencing token", held.fencing_token)

`AsyncLocks` has the same locks for tasks of asyncio.
"""

from ._durations import Duration
from .async_locks import AsyncHeld, AsyncLock, AsyncLocks
from .command_store import CommandStore
from .dictionary_store import DictionaryStore
from .directory_locks import DirectoryLocks
from .errors import (
    InvalidName,
    InvalidRetry,
    InvalidSerializedLock,
    InvalidTtl,
    LockDenied,
    LockError,
    LockLost,
    LockTimeout,
    NotOwner,
    NotSerializable,
    StorageError,
    TooManyHandles,
)
from .locks import Held, Lock, Locks
from .sqlite_store import SqliteStore
from .store import Busy, Capabilities, Claim, Granted, Holder, Notification, Process, Store, StoreError, Waiter

__all__ = [
    "AsyncHeld",
    "AsyncLock",
    "AsyncLocks",
    "Busy",
    "Capabilities",
    "Claim",
    "CommandStore",
    "DictionaryStore",
    "DirectoryLocks",
    "Duration",
    "Granted",
    "Held",
    "Holder",
    "InvalidName",
    "InvalidRetry",
    "InvalidSerializedLock",
    "InvalidTtl",
    "Lock",
    "LockDenied",
    "LockError",
    "LockLost",
    "LockTimeout",
    "Locks",
    "NotOwner",
    "NotSerializable",
    "Notification",
    "Process",
    "SqliteStore",
    "StorageError",
    "Store",
    "StoreError",
    "TooManyHandles",
    "Waiter",
]
