"""Locks shared with the command `verrou`: the one that `VERROU` names, by default the one that Cargo built."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from verrou import Claim, CommandStore, LockError, Locks, StoreError

PROJECT = Path(__file__).resolve().parents[3]
VERROU = os.environ.get("VERROU") or str(PROJECT / "target/debug/verrou")

HOLDER = """
import sys, time
from verrou import CommandStore, Locks
lock = Locks(CommandStore(*sys.argv[1:])).lock("x", ttl=3600)
print(lock.acquire(), flush=True)
time.sleep(3600)
"""


class CommandStoreTest(unittest.TestCase):
    def setUp(self):
        self.assertTrue(Path(VERROU).exists(), f"{VERROU} does not exist: `cargo build` builds it")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.url = f"lease:{directory.name}/locks"
        self.store = self.open(self.url)
        self.locks = Locks(self.store)

    def open(self, url: str) -> CommandStore:
        store = CommandStore(url, VERROU)
        self.addCleanup(store.close)
        return store

    def verrou(self, *words, expected=0) -> str:
        environment = {**os.environ, "VERROU_STORE": self.url}
        done = subprocess.run([VERROU, *words], env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, expected, done.stderr)
        return done.stdout.strip()

    def is_held(self) -> bool:
        return json.loads(self.verrou("show", "x", "--json"))["held"]

    def test_the_command_line_releases_what_python_acquired(self):
        lock = self.locks.lock("x", ttl=60)
        token = lock.acquire()
        self.verrou("run", "x", "--no-wait", "--", "true", expected=75)
        text = lock.serialize()
        self.assertEqual(json.loads(text)["fence"], token)
        self.verrou("extend", text)
        self.verrou("release", text)
        self.assertFalse(lock.is_locked())
        with self.assertRaises(LockError) as caught:
            lock.release()
        self.assertEqual(caught.exception.code, "E_LOCK_NOT_OWNER")

    def test_python_releases_what_the_command_line_acquired(self):
        text = self.verrou("acquire", "x", "--ttl", "60s")
        self.assertFalse(self.locks.lock("x").try_acquire())
        lock = self.locks.restore(text)
        self.assertTrue(lock.is_held())
        self.assertTrue(50 < lock.remaining() <= 60.1)
        lock.extend()
        lock.release()
        self.assertFalse(self.is_held())
        self.verrou("release", text, expected=77)

    def test_a_serialized_lock_outlives_its_store(self):
        lock = self.locks.lock("x", ttl=60)
        lock.acquire()
        text = lock.serialize()
        self.store.close()
        self.assertTrue(self.is_held())
        self.verrou("release", text)

    def test_a_lock_ends_with_its_store(self):
        lock = self.locks.lock("x", ttl=3600)
        lock.acquire()
        self.assertTrue(self.is_held())
        self.store.close()
        self.verrou("run", "x", "--wait", "60s", "--", "true")

    def test_a_lock_ends_with_a_killed_process(self):
        holder = [sys.executable, "-c", HOLDER, self.url, VERROU]
        process = subprocess.Popen(holder, stdout=subprocess.PIPE)
        # Cleanups are called in reverse order.
        for cleanup in (process.stdout.close, process.wait, process.kill):
            self.addCleanup(cleanup)
        token = int(process.stdout.readline())
        self.assertFalse(self.locks.lock("x").try_acquire())
        process.kill()
        self.assertGreater(self.locks.lock("x").acquire(timeout=60, delay=0.01), token)

    def test_processes_exclude_each_other(self):
        example = [sys.executable, PROJECT / "examples/python/example.py", self.url, VERROU]
        (Path(self.directory) / "target").mkdir()
        running = [
            subprocess.Popen(example, cwd=self.directory, stdout=subprocess.DEVNULL) for _ in range(3)
        ]
        self.assertEqual([process.wait() for process in running], [0] * 3)
        self.assertEqual((Path(self.directory) / "target/counter.txt").read_text(), "30")

    def test_a_killed_command_is_an_error_and_a_loss(self):
        with self.assertRaises(LockError) as caught:
            with self.locks.lock("x", ttl=1).held() as held:
                os.kill(self.store._process.pid, signal.SIGKILL)
                self.assertTrue(held.lost.wait(60))
        self.assertEqual(caught.exception.code, "E_LOCK_STORAGE_ERROR")
        with self.assertRaises(LockError) as caught:
            self.locks.lock("x").acquire(timeout=60)
        self.assertEqual(caught.exception.code, "E_LOCK_STORAGE_ERROR")

    def test_a_renewal_never_shortens_a_lease(self):
        self.assertTrue(self.store.capabilities().revives)
        claim = Claim("x", "0" * 31 + "1", 3600 * 10**9, True)
        token = self.store.acquire(claim).fencing_token
        self.assertEqual(self.store.renew(claim._replace(ttl=10**9), token), "granted")
        (holder,) = self.store.holders("x")
        self.assertGreater(holder.remaining, 3000 * 10**9)
        self.assertEqual(self.store.renew(claim, token + 1), "lost")
        self.assertTrue(self.open(self.url).release(claim))
        self.assertEqual(self.store.renew(claim, token), "released")
        self.assertEqual(self.store.holders("x"), [])

    def test_a_lease_is_renewed_beyond_its_ttl(self):
        with self.locks.lock("x", ttl=1).held() as held:
            self.assertFalse(held.lost.wait(2))
            self.assertTrue(self.is_held())

    def test_a_file_lock_cannot_be_serialized(self):
        locks = Locks(self.open(f"file:{self.directory}/files"))
        with locks.lock("x").held():
            with self.assertRaises(LockError) as caught:
                lock = locks.lock("y")
                lock.acquire()
                lock.serialize()
            self.assertEqual(caught.exception.code, "E_LOCK_NOT_SERIALIZABLE")

    def test_a_store_that_cannot_be_opened_is_an_error(self):
        # The first is an error of the store, the second one of the command line.
        for url, why in [("lease:/proc/nothing", "/proc/nothing: cannot create"), ("memory:", "has ended, with code 64")]:
            with self.assertRaisesRegex(StoreError, why):
                CommandStore(url, VERROU)
        with self.assertRaises(FileNotFoundError):
            CommandStore(self.url, "/no/such/command")


if __name__ == "__main__":
    unittest.main()
