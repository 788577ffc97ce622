"""A store in a dictionary: locks between the threads of one process."""

import threading
import time
from typing import NamedTuple

from store import Abilities, Claim, Granted, Holder, Refused


class Record(NamedTuple):
    """The record of a name that was granted."""

    owner: str
    token: int
    ends: int | None

    def left(self, now: int) -> int | None:
        return None if self.ends is None else max(0, self.ends - now)


class DictionaryStore:
    """One store: all users of the object share its locks."""

    def __init__(self, now=time.monotonic_ns):
        self._now = now
        self._mutex = threading.Lock()
        self._records: dict[str, Record] = {}
        # One counter for all names grows for each of them, and needs no record of a free name.
        self._token = 0
        self._sweep_at = 64

    def acquire(self, claim: Claim):
        with self._mutex:
            now = self._now()
            self._sweep(now)
            record = self._held(claim.name, now)
            if record and record.owner != claim.owner:
                return Refused(record.left(now))
            if not record:
                self._token += 1
            token = record.token if record else self._token
            self._records[claim.name] = Record(claim.owner, token, end(claim, now))
            return Granted(token)

    def extend(self, claim: Claim):
        with self._mutex:
            now = self._now()
            record = self._held(claim.name, now)
            if not record or record.owner != claim.owner:
                return Refused()
            self._records[claim.name] = record._replace(ends=end(claim, now))
            return Granted()

    def release(self, claim: Claim):
        with self._mutex:
            record = self._held(claim.name, self._now())
            return self._free(claim.name, record and record.owner == claim.owner)

    def evict(self, name: str, only: int | None):
        with self._mutex:
            record = self._held(name, self._now())
            return self._free(name, record and only in (None, record.token))

    def inspect(self, name: str):
        with self._mutex:
            now = self._now()
            record = self._held(name, now)
            return record and Holder(record.token, record.left(now))

    def detach(self, claim: Claim):
        return Granted()

    def can(self):
        return Abilities(expires=True, ephemeral=False, transfers=True, evicts=True, fences=True)

    def _held(self, name: str, now: int) -> Record | None:
        """Returns the record of a name that is held."""
        record = self._records.get(name)
        return record if record and record.left(now) != 0 else None

    def _free(self, name: str, is_meant) -> Granted | Refused:
        if not is_meant:
            return Refused()
        del self._records[name]
        return Granted()

    def _sweep(self, now: int):
        """Removes expired records, when there are twice as many records as after the last time."""
        if len(self._records) >= self._sweep_at:
            held = {name: self._held(name, now) for name in self._records}
            self._records = {name: record for name, record in held.items() if record}
            self._sweep_at = max(64, 2 * len(self._records))


def end(claim: Claim, now: int) -> int | None:
    """Returns the end of a lease that is granted now."""
    return None if claim.ttl is None else now + claim.ttl
