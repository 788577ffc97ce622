"""Locks in a directory, shared by programs in Python and the command `verrou`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from verrou import DirectoryLocks, LockError
from verrou.directory_locks import COMPOSED

PROJECT = Path(__file__).resolve().parents[3]
VERROU = os.environ.get("VERROU") or str(PROJECT / "target/debug/verrou")

WORKER = """
import sys
from verrou import DirectoryLocks
directory, log, grants = sys.argv[1:]
lock = DirectoryLocks(directory).lock("x", ttl=60)
for _ in range(int(grants)):
    token = lock.acquire(delay=0.002)
    for word in ("begin", "end"):
        with open(log, "a") as file:
            file.write(f"{word} {token}\\n")
    lock.release()
"""

COMMAND = """
for _ in $(seq "$3"); do
    "$VERROU" run x --ttl 60s --retry-delay 2ms -- sh -c '
        echo "begin $VERROU_FENCE" >> "$0"; echo "end $VERROU_FENCE" >> "$0"' "$2" || exit
done
"""

HOLDER = """
import sys, time
from verrou import DirectoryLocks
lock = DirectoryLocks(sys.argv[1]).lock("x", ttl=2)
print(lock.acquire(), flush=True)
time.sleep(3600)
"""


class DirectoryLocksTest(unittest.TestCase):
    def setUp(self):
        self.assertTrue(Path(VERROU).exists(), f"{VERROU} does not exist: `cargo build` builds it")
        self.assertTrue(COMPOSED.exists(), f"{COMPOSED} does not exist: `cargo xtask python` builds it")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.locks = Path(directory.name, "locks")
        self.locks.mkdir(mode=0o700)
        self.log = Path(directory.name, "log")
        self.environment = {
            **os.environ,
            "VERROU": VERROU,
            "VERROU_STORE": f"wasi:{self.locks}",
        }

    def verrou(self, *words, expected=0) -> str:
        environment = self.environment
        done = subprocess.run([VERROU, *words], env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, expected, done.stderr)
        return done.stdout.strip()

    def python(self, program, *words, **options) -> subprocess.Popen:
        command = [sys.executable, "-B", "-c", program, *map(str, words)]
        return subprocess.Popen(command, env=self.environment, **options)

    def test_python_and_the_command_exclude_each_other(self):
        grants = 10
        words = [str(word) for word in (self.locks, self.log, grants)]
        shell = ["sh", "-c", COMMAND, "sh", *words]
        workers = [self.python(WORKER, *words) for _ in range(3)]
        workers += [subprocess.Popen(shell, env=self.environment) for _ in range(2)]
        for worker in workers:
            self.assertEqual(worker.wait(), 0)
        lines = self.log.read_text().splitlines()
        first = int(lines[0].removeprefix("begin "))
        tokens = range(first, first + grants * len(workers))
        self.assertEqual(lines, [f"{word} {token}" for token in tokens for word in ("begin", "end")])

    def test_the_command_takes_over_from_a_killed_program(self):
        with self.python(HOLDER, self.locks, stdout=subprocess.PIPE, text=True) as holder:
            token = int(holder.stdout.readline())
            holder.kill()
        self.assertEqual(holder.returncode, -signal.SIGKILL)
        [shown] = json.loads(self.verrou("list", "--json"))
        self.assertEqual(shown["fence"], token)
        next_token = self.verrou("run", "x", "--retry-delay", "10ms", "--", "sh", "-c", "echo $VERROU_FENCE")
        self.assertEqual(int(next_token), token + 1)

    def test_each_sees_the_locks_of_the_other(self):
        lock = DirectoryLocks(self.locks).lock("x", ttl=60)
        lock.acquire()
        self.verrou("run", "x", "--no-wait", "--", "true", expected=75)
        self.verrou("release", lock.serialize())
        self.assertFalse(lock.is_held())
        serialized = self.verrou("acquire", "x", "--ttl", "60s")
        self.assertFalse(lock.try_acquire())
        [holder] = lock.holders()
        self.assertEqual(holder.process.command, "verrou acquire")
        self.verrou("force-release", "x")
        self.verrou("release", serialized, expected=77)
        self.assertTrue(lock.try_acquire())
        lock.release()

    def test_a_corrupt_file_is_an_error_that_names_it(self):
        lock = DirectoryLocks(self.locks).lock("x", ttl=60)
        lock.acquire()
        lock.release()
        state = max(self.locks.glob("x.*/*.state"))
        state.write_text("")
        with self.assertRaises(LockError) as caught:
            lock.try_acquire()
        self.assertEqual(caught.exception.code, "E_LOCK_STORAGE_ERROR")
        self.assertIn(state.name, str(caught.exception))
