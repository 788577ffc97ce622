"""A store in an SQLite file: locks between the processes of one machine.

Time is that of the wall clock, the only one that continues after a reboot: when it is set back
leases last longer, when it is set forward they expire earlier. Not for files on a network.
"""

import sqlite3
import threading
import time
from contextlib import contextmanager

from .store import Busy, Capabilities, Claim, Granted, Holder, StoreError, renewed_by_extension

# A free name keeps its row, and so its fencing token.
SCHEMA = """
    CREATE TABLE IF NOT EXISTS locks (
        name TEXT PRIMARY KEY,
        owner TEXT,
        token INTEGER NOT NULL,
        ends INTEGER
    ) WITHOUT ROWID
"""
HELD = "owner IS NOT NULL AND (ends IS NULL OR ends > :now)"
CODES = {
    sqlite3.SQLITE_BUSY: "unavailable",
    sqlite3.SQLITE_LOCKED: "unavailable",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "denied",
}
"""The codes of `store-error-code` for those of SQLite."""
GREATEST = (1 << 63) - 1
"""The greatest integer of SQLite. As a time, it is in the year 2262."""


class SqliteStore:
    """The store in the file `path`: for one process, which must not fork while it uses it."""

    def __init__(self, path, now=time.time_ns, patience=5):
        self._now = now
        self._mutex = threading.Lock()
        # Only explicit transactions; waits up to `patience` seconds for other processes.
        with reported():
            self._file = sqlite3.connect(
                path, timeout=patience, isolation_level=None, check_same_thread=False
            )
        with self._transaction():
            self._file.execute(SCHEMA)

    def close(self):
        self._file.close()

    def acquire(self, claim: Claim):
        with self._transaction():
            owner, holder = self._held(claim.name)
            if holder and owner != claim.owner:
                return Busy(holder.remaining)
            token = holder.fencing_token if holder else self._last_token(claim.name) + 1
            self._file.execute(
                "INSERT OR REPLACE INTO locks VALUES (?, ?, ?, ?)",
                (claim.name, claim.owner, token, self._end(claim)),
            )
            return Granted(token)

    def extend(self, claim: Claim):
        return self._change("ends = :ends", claim.name, "owner = :who", claim.owner, self._end(claim))

    def renew(self, claim: Claim, fencing_token: int | None):
        return renewed_by_extension(self, claim)

    def release(self, claim: Claim):
        return self._change("owner = NULL", claim.name, "owner = :who", claim.owner)

    def force_release(self, name: str, only: int | None):
        # No token is greater than SQLite's greatest integer.
        only = None if only is None else min(only, GREATEST)
        return self._change("owner = NULL", name, "(:who IS NULL OR token = :who)", only)

    def holders(self, name: str):
        with self._mutex, reported():
            holder = self._held(name)[1]
            return [holder] if holder else []

    def detach(self, claim: Claim):
        return True

    def join(self, claim: Claim):
        # SQLite notifies no other process of a change: waiters try again after a while.
        return None

    def capabilities(self):
        return Capabilities(expires=True, transfers=True, force_releases=True, fences=True)

    @contextmanager
    def _transaction(self):
        """Runs an operation atomically and durably."""
        with self._mutex, reported():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._file.execute("COMMIT")
            finally:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")

    def _held(self, name: str) -> tuple[str | None, Holder | None]:
        """Returns the owner token, which no answer contains, and the holder."""
        now = self._now()
        query = f"SELECT owner, token, ends FROM locks WHERE name = :name AND {HELD}"
        row = self._file.execute(query, {"name": name, "now": now}).fetchone()
        if row is None:
            return None, None
        owner, token, ends = row
        return owner, Holder(token, None if ends is None else ends - now)

    def _last_token(self, name: str) -> int:
        row = self._file.execute("SELECT token FROM locks WHERE name = ?", (name,)).fetchone()
        return row[0] if row else 0

    def _change(self, what: str, name: str, whose: str, who, ends=None):
        with self._transaction():
            values = {"name": name, "who": who, "ends": ends, "now": self._now()}
            update = f"UPDATE locks SET {what} WHERE name = :name AND {whose} AND {HELD}"
            changed = self._file.execute(update, values).rowcount
            return changed > 0

    def _end(self, claim: Claim) -> int | None:
        return None if claim.ttl is None else min(self._now() + claim.ttl, GREATEST)


@contextmanager
def reported():
    """Converts errors of SQLite. An error is temporary if another process kept the file locked for too long."""
    try:
        yield
    except sqlite3.Error as error:
        # Some of its errors have no code.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        code = CODES.get(kind, "")
        raise StoreError(f"SQLite says: {error}", temporary=code == "unavailable", code=code) from error
