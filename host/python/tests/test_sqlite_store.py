"""Locks between processes, in an SQLite file."""

import multiprocessing
import os
import sqlite3
import tempfile
import time
import unittest
from pathlib import Path

from verrou import Claim, Granted, LockError, Locks, SqliteStore, StoreError

# Processes that share nothing: a forked process would inherit the connection of its parent.
PROCESSES = multiprocessing.get_context("spawn")


def count(directory: Path, rounds: int) -> None:
    """Increments a number in a file and appends the fencing tokens, which fails without exclusion."""
    lock = Locks(SqliteStore(directory / "locks", patience=60)).lock("x", ttl=60)
    for _ in range(rounds):
        with lock.held(delay=0.002, timeout=120) as held:
            # Fails if another process is inside.
            os.close(os.open(directory / "inside", os.O_CREAT | os.O_EXCL))
            counter = directory / "counter"
            counter.write_text(str(int(counter.read_text()) + 1))
            with open(directory / "tokens", "a") as tokens:
                tokens.write(f"{held.fencing_token}\n")
            os.unlink(directory / "inside")


def hold(directory: Path, ttl: float, held) -> None:
    """Holds a lock until it is killed."""
    lock = Locks(SqliteStore(directory / "locks")).lock("x", ttl=ttl)
    held.send(lock.acquire())
    time.sleep(3600)


class SqliteStoreTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def open(self, **options) -> SqliteStore:
        store = SqliteStore(self.directory / "locks", **options)
        self.addCleanup(store.close)
        return store

    def test_processes_exclude_each_other(self):
        (self.directory / "counter").write_text("0")
        workers = [PROCESSES.Process(target=count, args=(self.directory, 25)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual([worker.exitcode for worker in workers], [0] * 4)
        self.assertEqual((self.directory / "counter").read_text(), "100")
        tokens = [int(token) for token in (self.directory / "tokens").read_text().split()]
        self.assertEqual(tokens, list(range(1, 101)))

    def test_the_lease_of_a_killed_holder_expires(self):
        ours, theirs = PROCESSES.Pipe()
        holder = PROCESSES.Process(target=hold, args=(self.directory, 4, theirs))
        holder.start()
        token = ours.recv()
        holder.kill()
        holder.join()
        lock = Locks(self.open()).lock("x")
        self.assertFalse(lock.try_acquire())
        self.assertGreater(lock.acquire(timeout=60, delay=0.05), token)

    def test_fencing_tokens_grow_across_releases_force_releases_expiries_and_restarts(self):
        clock = [1]
        claim = Claim("x", "0" * 32, 10, True)
        for expected in range(1, 16, 4):
            store = self.open(now=lambda: clock[0])
            self.assertEqual(store.acquire(claim), Granted(expected))
            self.assertTrue(store.release(claim))
            self.assertEqual(store.acquire(claim), Granted(expected + 1))
            self.assertFalse(store.force_release("x", expected))
            self.assertTrue(store.force_release("x", expected + 1))
            self.assertEqual(store.acquire(claim), Granted(expected + 2))
            clock[0] += 10
            self.assertFalse(store.release(claim))
            self.assertEqual(store.acquire(claim), Granted(expected + 3))
            clock[0] += 10
            store.close()

    def test_a_busy_file_is_a_temporary_error(self):
        store = self.open(patience=0.01)
        other = sqlite3.connect(self.directory / "locks", isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        claim = Claim("x", "0" * 32, None, True)
        with self.assertRaises(StoreError) as caught:
            store.acquire(claim)
        self.assertTrue(caught.exception.temporary)
        self.assertEqual(caught.exception.code, "unavailable")
        other.execute("COMMIT")
        self.assertEqual(store.acquire(claim), Granted(1))

    def test_a_corrupt_file_is_a_permanent_error(self):
        store = self.open()
        Locks(store).lock("x").acquire()
        (self.directory / "locks").write_bytes(b"no database at all" * 1000)
        with self.assertRaises(LockError) as caught:
            Locks(store).lock("y").acquire(timeout=60)
        self.assertEqual(caught.exception.code, "E_LOCK_STORAGE_ERROR")
        self.assertFalse(caught.exception.temporary)
        with self.assertRaises(StoreError):
            SqliteStore(self.directory / "locks")
        with self.assertRaises(StoreError):
            SqliteStore(self.directory / "nothing/here")

    def test_the_longest_ttl_is_accepted(self):
        store = self.open()
        self.assertEqual(store.acquire(Claim("x", "0" * 32, (1 << 63) - 1, True)), Granted(1))
        (holder,) = store.holders("x")
        self.assertGreater(holder.remaining, 0)


if __name__ == "__main__":
    unittest.main()
