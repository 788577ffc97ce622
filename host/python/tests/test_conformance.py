"""The suite for stores: it passes on the stores of the package, and fails on each faulty store."""

import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from verrou import Busy, CommandStore, DictionaryStore, Granted, Holder, SqliteStore, StoreError, conformance

PROJECT = Path(__file__).resolve().parents[3]
VERROU = os.environ.get("VERROU") or str(PROJECT / "target/debug/verrou")
TTL = 10**9


class Faulty(DictionaryStore):
    """A store with other operations than those of a dictionary."""

    def __init__(self, **operations):
        self.true = DictionaryStore()
        for name, operation in operations.items():
            setattr(self, name, lambda *arguments, operation=operation: operation(self.true, *arguments))
        for name in ("acquire", "extend", "renew", "release", "force_release", "holders", "detach", "join", "capabilities"):
            if name not in operations:
                setattr(self, name, getattr(self.true, name))


def has(**capabilities):
    return lambda store: store.capabilities()._replace(**capabilities)


FAULTS = {
    # Each fault, with a case that must find it.
    "another_owner_is_refused_and_changes_nothing": {"acquire": lambda store, claim: Granted(1)},
    "another_owner_cannot_release": {"release": lambda store, claim: store.force_release(claim.name, None)},
    "a_release_frees_the_name": {"release": lambda store, claim: True},
    "a_second_release_is_refused": {"release": lambda store, claim: store.release(claim) or True},
    "a_free_name_is_granted": {"acquire": lambda store, claim: Granted() if store.acquire(claim) else None},
    "names_are_independent": {
        name: lambda store, claim, name=name: getattr(store, name)(claim._replace(name="all"))
        for name in ("acquire", "extend", "release")
    },
    "spellings_are_different_names": {
        "acquire": lambda store, claim: store.acquire(claim._replace(name=claim.name.casefold()))
    },
    "an_extension_can_shorten": {"extend": lambda store, claim: bool(store.holders(claim.name))},
    "a_record_without_ttl_does_not_end": {
        "acquire": lambda store, claim: store.acquire(claim._replace(ttl=claim.ttl or TTL))
    },
    "a_record_ends_with_its_ttl": {"acquire": lambda store, claim: store.acquire(claim._replace(ttl=None))},
    "a_refusal_never_overstates_the_remaining_time": {
        "acquire": lambda store, claim: (
            reply if isinstance(reply := store.acquire(claim), Granted) else Busy(reply.remaining and 2 * TTL)
        )
    },
    "holders_have_no_owner_token": {
        "holders": lambda store, name: [Leaky(*one) for one in store.holders(name)]
    },
    "a_force_release_can_require_a_fence": {
        "force_release": lambda store, name, only: store.force_release(name, None)
    },
    "a_force_release_frees_the_name": {"capabilities": has(force_releases=False)},
    "a_late_renewal_revives_the_lease": {"capabilities": has(revives=True)},
    "an_ephemeral_record_ends_with_its_client": {"capabilities": has(ephemeral=True)},
    "fences_grow_with_every_grant": {
        "acquire": lambda store, claim: (
            Granted(7) if isinstance(reply := store.acquire(claim), Granted) else reply
        )
    },
    "a_late_extension_is_refused": {
        "extend": lambda store, claim: store.extend(claim) or isinstance(store.acquire(claim), Granted)
    },
    "repeated_acquire_is_idempotent": {
        "acquire": lambda store, claim: store.release(claim) and store.acquire(claim) or store.acquire(claim)
    },
    "a_waiter_that_leaves_delays_no_other": {"join": lambda store, claim: Dead(store.join(claim))},
}


class Leaky(Holder):
    """A holder with the owner token."""

    def __repr__(self):
        return "".join(f"{owner:02x}" * 16 for owner in range(1, 9))


class Dead:
    """A waiter that never leaves the queue, and is never notified."""

    def __init__(self, waiter):
        self._waiter = waiter

    def wait(self, seconds):
        if self._waiter:
            raise OSError("no notification")

    def leave(self):
        pass


class Clock:
    """A clock that only the test sets forward."""

    def __init__(self):
        self._nanoseconds = TTL

    def now(self):
        return self._nanoseconds

    def advance(self, seconds):
        self._nanoseconds += round(seconds * 1e9)


class ConformanceTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def passes(self, source, ttl=TTL, **options):
        outcomes = conformance.run(source, ttl, **options)
        self.assertEqual(len(outcomes), len(conformance.CASES))
        self.assertEqual({name: error for name, error in outcomes.items() if error}, {})

    def test_a_dictionary_passes(self):
        clock = Clock()
        self.passes(DictionaryStore(clock.now), threads=1, sleep=clock.advance)

    def test_an_sqlite_file_passes(self):
        clock = Clock()
        open_store = lambda: SqliteStore(f"{self.directory}/locks", clock.now, patience=60)
        self.passes(open_store, threads=1, sleep=clock.advance)

    def test_the_stores_of_the_command_pass(self):
        for scheme in ("lease", "file"):
            with self.subTest(scheme):
                # Each operation must take much less than the ttl, also on a busy machine.
                self.passes(lambda: CommandStore(f"{scheme}:{self.directory}/{scheme}", VERROU), 3 * TTL)

    def test_each_fault_is_found_by_its_case(self):
        for name, operations in FAULTS.items():
            with self.subTest(name):
                outcomes = conformance.run(Faulty(**operations), TTL // 5, name)
                self.assertIsInstance(outcomes[name], Exception)

    def test_an_error_of_a_store_is_a_failure(self):
        def fail(store, *_):
            raise StoreError("broken")

        outcomes = conformance.run(Faulty(acquire=fail), TTL // 5, "a_free_name_is_granted")
        self.assertEqual(str(outcomes["a_free_name_is_granted"]), "broken")

    def test_the_command_line_prints_each_case(self):
        module = Path(self.directory, "mine.py")
        module.write_text(
            "from verrou import DictionaryStore\n"
            "store = DictionaryStore()\n"
            "class Wrong(DictionaryStore):\n"
            "    release = lambda self, claim: True\n"
            "wrong = Wrong()\n"
        )

        def run(*arguments):
            command = [sys.executable, "-m", "verrou.conformance", *arguments]
            done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
            return done.returncode, done.stdout.splitlines(), done.stderr

        code, lines, _ = run("mine:store", "--ttl", "500ms", "--only", "a_release")
        self.assertEqual((code, lines), (0, ["ok      a_release_frees_the_name", "1 passed, 0 failed"]))
        code, lines, _ = run("mine:wrong", "--only", "a_release")
        self.assertEqual((code, lines[-1]), (1, "0 passed, 1 failed"))
        self.assertIn("FAILED  a_release_frees_the_name: the holder: Holder(", lines[0])
        for wrong in ("mine", "mine:nothing", "nothing:store"):
            code, lines, error = run(wrong)
            self.assertEqual((code, lines), (2, []))
            self.assertIn("error: ", error)
        for options in (["--only", "no such case"], ["--ttl", "5"]):
            self.assertEqual(run("mine:store", *options)[0], 2)

    def test_the_names_are_those_of_the_suite_in_rust(self):
        macro = re.findall(r"\w+", (PROJECT / "src/conformance.rs").read_text())
        own = {
            "holders_have_no_owner_token",
            "a_wait_ends_and_changes_nothing",
            "a_waiter_that_leaves_delays_no_other",
            "the_longest_ttl_is_accepted",
            "clients_have_the_same_capabilities",
            "locks_exclude_each_other",
            "a_lock_times_out_and_is_restored_elsewhere",
            "a_lock_is_renewed_while_it_is_held",
        }
        others = {name for name in conformance.CASES if name not in macro}
        self.assertEqual(others, own)


if __name__ == "__main__":
    unittest.main()
