"""Locks shared with the command `verrou`: the one that `VERROU` names, by default the one that Cargo built."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from pathlib import Path

from verrou import AsyncLocks, Claim, CommandStore, LockError, Locks, LockTimeout, StoreError

PROJECT = Path(__file__).resolve().parents[3]
VERROU = os.environ.get("VERROU") or str(PROJECT / "target/debug/verrou")

HOLDER = """
import sys, time
from verrou import CommandStore, Locks
lock = Locks(CommandStore(*sys.argv[1:])).lock("x", ttl=3600)
print(lock.acquire(), flush=True)
time.sleep(3600)
"""


# Holds the lock for a moment in each turn, as a program with work does.
PROGRAM = """
until [ -e "$3" ]; do
    "$VERROU" run x --ttl 60s -- sh -c 'echo "$1" >> "$0"; sleep 0.005' "$1" "$2" || exit
done
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

    def open(self, url: str, command: str = VERROU) -> CommandStore:
        store = CommandStore(url, command)
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

    def test_a_waiter_is_notified(self):
        for url in (self.url, f"file:{self.directory}/files"):
            with self.subTest(url):
                store, elsewhere = self.open(url), Locks(self.open(url))
                lock = elsewhere.lock("x", ttl=60)
                token = lock.acquire()
                tokens = []
                # Only a notification can end its pause in time.
                wait = lambda: tokens.append(Locks(store).lock("x").acquire(delay=3600, timeout=3600))
                waiter = threading.Thread(target=wait)
                waiter.start()
                self.until(lambda: store._queued)
                lock.release()
                waiter.join()
                self.assertEqual(len(tokens), 1)
                self.assertGreater(tokens[0], token)
                self.assertEqual(store._queued, {})
                self.assertEqual(store._answers.waiters, {})

    def until(self, condition):
        end = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.001)

    def test_a_waiter_that_stops_leaves_the_queue(self):
        lock = self.locks.lock("x", ttl=60)
        lock.acquire()
        store = self.open(self.url)
        with self.assertRaises(LockTimeout):
            Locks(store).lock("x").acquire(timeout=0.05, delay=0.01)
        self.assertEqual((store._queued, store._answers.waiters), ({}, {}))
        lock.release()
        # The lock would be reserved for a waiter that is still in the queue.
        self.verrou("run", "x", "--no-wait", "--", "true")

    def test_one_store_serves_many_waiting_tasks(self):
        async def main():
            locks, order = AsyncLocks(self.store), []
            lock = locks.lock("x", ttl=60)
            await lock.acquire()

            async def wait(number):
                async with locks.lock("x").held(delay=3600):
                    order.append(number)

            tasks = []
            for number in range(20):
                tasks.append(asyncio.create_task(wait(number)))
                while len(self.store._queued) <= number:
                    await asyncio.sleep(0.001)
            await lock.release()
            await asyncio.gather(*tasks)
            self.assertEqual(order, list(range(20)))
            self.assertEqual(self.store._queued, {})

        asyncio.run(main())

    def test_a_python_waiter_gets_its_share_beside_programs_that_take_turns(self):
        log, stop = Path(self.directory, "grants"), Path(self.directory, "stop")
        log.touch()
        environment = {**os.environ, "VERROU": VERROU, "VERROU_STORE": self.url}
        programs = [
            subprocess.Popen(["sh", "-c", PROGRAM, "sh", log, str(number), stop], env=environment)
            for number in range(3)
        ]
        try:
            self.until(lambda: {"0", "1", "2"} <= set(log.read_text().split()))
            lock, grants = self.locks.lock("x", ttl=60), 40
            with open(log, "a") as file:
                for _ in range(grants):
                    with lock.held(timeout=600):
                        print("python", file=file, flush=True)
                        time.sleep(0.005)
        finally:
            stop.touch()
            codes = [program.wait() for program in programs]
        self.assertEqual(codes, [0, 0, 0])
        lines = log.read_text().split()
        first, last = lines.index("python"), len(lines) - lines[::-1].index("python")
        native = len(lines[first:last]) - grants
        self.assertGreater(native, grants, "the programs did not contend for the lock")
        self.assertGreaterEqual(grants, 0.7 * native / len(programs), f"{grants} beside {native} in {len(programs)}")

    def test_an_answer_that_is_none_ends_the_store(self):
        command = Path(self.directory, "wrong")
        for answers, error in (("not JSON", "Expecting value"), ('{"protocol":"verrou serve","version":2}', "version 1")):
            command.write_text(f"#!/bin/sh\necho '{answers}'\ncat > /dev/null\n")
            command.chmod(0o755)
            with self.assertRaisesRegex((StoreError, ValueError), error):
                CommandStore(self.url, str(command))
        command.write_text(
            """#!/bin/sh\necho '{"protocol":"verrou serve","version":1}'\nread line\necho no\ncat > /dev/null\n"""
        )
        store = self.open(self.url, str(command))
        with unittest.mock.patch.object(threading, "excepthook"), self.assertRaisesRegex(StoreError, "has ended"):
            store.capabilities()
        with self.assertRaisesRegex(StoreError, "closed"):
            store.capabilities()

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
