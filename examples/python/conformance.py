"""Serves a Python store *through the component* to the tests that every store must pass.

    python conformance.py dictionary
    python conformance.py sqlite FILE

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

from component_imports import record
from component_instance import Instance, LockError
from dictionary_store import DictionaryStore
from sqlite_store import SqliteStore


class Client:
    """The operations of a store, done by the locks of an instance."""

    def __init__(self, store, now):
        self._store = store
        self._now = now
        self._random: collections.deque = collections.deque()
        self._instance = Instance(store, now=now, random=self._random.popleft)

    @contextmanager
    def _handle(self, function, *arguments):
        handle = self._instance.call(function, *arguments)
        try:
            yield lambda method, *rest: self._instance.call(f"[method]{method}", handle, *rest)
        finally:
            self._instance.drop(handle)

    def _lock(self, name, ttl=None):
        return self._handle("[constructor]lock", name, ttl)

    def _restored(self, name, owner):
        unknown = dict.fromkeys(("ttl", "expires", "fence"))
        text = json.dumps({"version": 1, "name": name, "owner": owner, **unknown})
        return self._handle("[static]lock.restore", text, self._now())

    def acquire(self, name, owner, ttl, ephemeral):
        del ephemeral  # Every lock requests an ephemeral lease; `serialize` detaches it.
        self._random.extend((int(owner[:16], 16), int(owner[16:], 16)))
        once = record(attempts=1, delay=None, max_delay=None, timeout=None)
        with self._lock(name, ttl) as lock:
            attempt = lock("lock.acquire", once)
            progress = self._instance.call("[method]attempt.poll", attempt)
            self._instance.drop(attempt)
            assert not self._random, "an owner is made of two numbers"
            if progress.tag == "gave-up":
                return {"refused": None}
            assert progress.tag == "acquired", progress
            assert lock("lock.fencing-token") == progress.payload
            return {"granted": progress.payload}

    def extend(self, name, owner, ttl, ephemeral):
        with self._restored(name, owner) as lock:
            lock("lock.extend-for", ttl)
        return {"granted": None}

    def release(self, name, owner, ttl, ephemeral):
        with self._restored(name, owner) as lock:
            lock("lock.release")
        return {"granted": None}

    def detach(self, name, owner, ttl, ephemeral):
        with self._restored(name, owner) as lock:
            lock("lock.serialize", self._now())
        return {"granted": None}

    def evict(self, name, only):
        with self._lock(name) as lock:
            evicted = lock("lock.force-release", only)
        return {"granted": None} if evicted else {"refused": None}

    def inspect(self, name):
        with self._lock(name) as lock:
            holder = lock("lock.holder")
        members = holder and {key.replace("-", "_"): value for key, value in vars(holder).items()}
        return {"holder": members}

    def abilities(self):
        return {"abilities": self._store.can()._asdict()}


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
