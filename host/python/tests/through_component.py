"""Serves a Python store *through the component* to the tests that every store must pass.

    python through_component.py dictionary
    python through_component.py sqlite FILE

Each line of standard input requests one operation of one client, and sets the time:

    {"client": 1, "now": 5000, "step": {"inspect": {"name": "x"}}}

The operations and their answers are those of `verrou serve`; `{"drop": {}}` ends a client. All clients
share one store, and each has its own instance of the component. The operations are done by the exports
of the component: a claim becomes a lock that is made, or restored from text, for that owner.
"""

import collections
import json
import sys
from contextlib import contextmanager

from wasmtime.component import Record

from verrou import DictionaryStore, LockError, SqliteStore
from verrou._imports import record
from verrou._instance import Instance

MILLISECOND = 1_000_000


class Client:
    """The operations of a store, done by the locks of an instance."""

    def __init__(self, store, now):
        self._store = store
        self._now = now
        self._ahead = 0
        self._random: collections.deque = collections.deque()
        self._instance = Instance(store, now=self._clock, random=self._random.popleft)

    def _clock(self):
        return self._now() + self._ahead

    @contextmanager
    def _handle(self, function, *arguments):
        handle = self._instance.call(function, *arguments)
        try:
            yield lambda method, *rest: self._instance.call(f"[method]{method}", handle, *rest)
        finally:
            self._instance.close(handle)

    def _lock(self, name, ttl=None):
        return self._handle("[static]lock.create", name, ttl)

    def _restored(self, name, owner, ttl=None, expires=None, fence=None):
        members = {"name": name, "owner": owner, "ttl": ttl, "expires": expires, "fence": fence}
        text = json.dumps({"version": 1, **members})
        return self._handle("[static]lock.restore", text, self._now())

    def acquire(self, name, owner, ttl, ephemeral):
        del ephemeral  # Every lock requests an ephemeral lease; `detach` makes it outlive the handle.
        self._random.extend((int(owner[:16], 16), int(owner[16:], 16)))
        once = record(attempts=1, delay=None, max_delay=None, timeout=None)
        with self._lock(name, ttl) as lock:
            acquiring = lock("lock.acquire", once)
            assert not self._random, "an owner is made of two numbers"
            if not isinstance(acquiring, Record):
                progress = self._instance.call("[method]attempt.poll", acquiring)
                self._instance.close(acquiring)
                assert progress.tag == "gave-up", progress
                return {"refused": None}
            token = getattr(acquiring, "fencing-token")
            assert lock("lock.fencing-token") == token
            lock("lock.detach")
            return {"granted": token}

    def extend(self, name, owner, ttl, ephemeral):
        with self._restored(name, owner) as lock:
            lock("lock.extend-for", ttl)
        return {"granted": None}

    def renew(self, name, owner, ttl, ephemeral, fencing_token):
        # A renewal is due when half of the remaining time has passed, and after ten seconds without an end.
        until_due, expires = 10_000 * MILLISECOND, None
        if ttl is not None:
            until_due, ttl, expires = 2 * MILLISECOND, ttl // MILLISECOND, self._now() // MILLISECOND + 3
        with self._restored(name, owner, ttl, expires, fencing_token) as lock:
            renewal = lock("lock.keep")
            self._ahead += until_due
            keeping = self._instance.call("[method]renewal.poll", renewal)
            self._instance.close(renewal)
        if isinstance(keeping, Record):
            return {"error": {"temporary": False, "message": keeping.why}}
        kinds = {int: "granted", type(None): "released", str: "lost"}
        return {"renewed": kinds[type(keeping)]}

    def release(self, name, owner, ttl, ephemeral):
        with self._restored(name, owner) as lock:
            lock("lock.release")
        return {"granted": None}

    def detach(self, name, owner, ttl, ephemeral):
        with self._restored(name, owner) as lock:
            lock("lock.detach")
        return {"granted": None}

    def evict(self, name, only):
        with self._lock(name) as lock:
            is_done = lock("lock.force-release", only)
        return {"granted": None} if is_done else {"refused": None}

    def inspect(self, name):
        with self._lock(name) as lock:
            holders = lock("lock.holders")
        if not holders:
            return {"holder": None}
        (holder,) = holders
        return {"holder": {"fencing_token": getattr(holder, "fencing-token"), "remaining": holder.remaining}}

    def abilities(self):
        has = self._store.capabilities()._asdict()
        return {"abilities": {"evicts": has.pop("force_releases"), **has}}


class Fixture:
    """A store, its time, and its clients by their numbers."""

    def __init__(self, kind, file=None):
        shared = DictionaryStore(self.time) if kind == "dictionary" else None
        self._open = lambda: shared or self._open_file(file)
        self._now = 0
        self._clients: dict[int, Client] = {}

    def time(self) -> int:
        return self._now

    def _open_file(self, file) -> SqliteStore:
        store = SqliteStore(file, self.time)
        # The tests have no loss of power, and writing to the disk would take most of the time.
        store._file.execute("PRAGMA synchronous = OFF")
        return store

    def answer(self, client: int, now: int, step: dict) -> dict:
        self._now = now
        ((kind, arguments),) = step.items()
        if kind == "drop":
            return {"dropped": bool(self._clients.pop(client, None))}
        if client not in self._clients:
            self._clients[client] = Client(self._open(), self.time)
        try:
            return getattr(self._clients[client], kind)(**arguments)
        except LockError as error:
            if error.code == "E_LOCK_NOT_OWNER":
                return {"refused": None}
            return {"error": {"temporary": error.temporary, "message": str(error)}}


if __name__ == "__main__":
    fixture = Fixture(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(fixture.answer(**json.loads(line))), flush=True)
