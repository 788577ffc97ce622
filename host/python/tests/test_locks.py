"""Locks between threads, invalid arguments, and invalid replies of stores."""

import json
import pickle
import threading
import time
import unittest
from datetime import timedelta
from fractions import Fraction

from wasmtime.component import Variant

from verrou import (
    Busy,
    Capabilities,
    DictionaryStore,
    Granted,
    Holder,
    InvalidName,
    InvalidRetry,
    InvalidSerializedLock,
    InvalidTtl,
    LockError,
    LockLost,
    Locks,
    LockTimeout,
    NotOwner,
    Process,
    StoreError,
)
from verrou._instance import code
from verrou.errors import lock_error

GREATEST = Fraction((1 << 64) - 1, 10**9)
"""The longest length of time that the component accepts, in seconds."""


class Case(unittest.TestCase):
    def setUp(self):
        self.store = DictionaryStore()
        self.locks = Locks(self.store)

    def assert_fails(self, code, work, *arguments, **options) -> LockError:
        with self.assertRaises(LockError) as caught:
            work(*arguments, **options)
        self.assertEqual(caught.exception.code, code, caught.exception)
        return caught.exception


class HoldingTest(Case):
    def test_a_lock_is_held_and_released(self):
        lock, other = self.locks.lock("x", ttl=10), self.locks.lock("x")
        self.assertFalse(lock.is_locked())
        self.assertEqual(lock.acquire(), 1)
        self.assertTrue(lock.is_held() and other.is_locked() and not other.is_held())
        self.assertTrue(5 < lock.remaining() <= 10)
        self.assertFalse(other.try_acquire())
        self.assert_fails("E_LOCK_TIMEOUT", other.acquire, timeout=0)
        self.assert_fails("E_LOCK_TIMEOUT", other.acquire, attempts=2, delay=0.001)
        self.assert_fails("E_LOCK_NOT_OWNER", other.release)
        lock.extend()
        lock.release()
        self.assert_fails("E_LOCK_NOT_OWNER", lock.release)
        self.assertEqual(other.acquire(), 2)

    def test_a_timeout_is_kept(self):
        lock = self.locks.lock("x")
        lock.acquire()
        began = time.monotonic()
        self.assert_fails("E_LOCK_TIMEOUT", self.locks.lock("x").acquire, timeout=0.3, delay=0.05)
        self.assertGreaterEqual(time.monotonic() - began, 0.3)

    def test_run_returns_the_result_of_the_work_and_raises_its_error(self):
        lock = self.locks.lock("x")
        self.assertEqual(lock.run(lambda held: held.fencing_token * 42), 42)
        with self.assertRaises(ZeroDivisionError):
            lock.run(lambda held: 1 / 0)
        self.assertFalse(lock.is_locked())

    def test_a_lease_is_renewed_beyond_its_ttl(self):
        with self.locks.lock("x", ttl=2).held() as held:
            self.assertFalse(held.lost.wait(3))
            self.assertFalse(self.locks.lock("x").try_acquire())
        self.assertTrue(self.locks.lock("x").try_acquire())

    def test_a_renewal_passes_the_fencing_token(self):
        renewals, twice = [], threading.Event()

        def renew(claim, fencing_token):
            renewals.append((claim.name, claim.ttl, fencing_token))
            if len(renewals) > 1:
                twice.set()
            return DictionaryStore.renew(self.store, claim, fencing_token)

        self.store.renew = renew
        with Locks(self.store).lock("x", ttl=2).held() as held:
            self.assertTrue(twice.wait(60))
            self.assertFalse(held.lost.is_set())
        self.assertEqual(set(renewals), {("x", 2 * 10**9, held.fencing_token)})

    def test_a_renewal_ends_when_the_lock_is_released(self):
        renewed = threading.Event()
        self.store.renew = lambda *_: renewed.set() or "released"
        lock = Locks(self.store).lock("x", ttl=2)
        lock.acquire()
        with lock.keep_alive() as lost:
            self.assertTrue(renewed.wait(60))
            self.assertFalse(lost.wait(0.2))

    def test_a_lock_without_ttl_is_not_lost(self):
        with self.locks.lock("x", ttl=None).held() as held:
            self.assertFalse(held.lost.wait(0.1))

    def test_a_loss_is_reported_at_once_and_at_the_end(self):
        def work():
            with self.locks.lock("x", ttl=2).held() as held:
                self.assertTrue(self.locks.lock("x").force_release(held.fencing_token))
                self.assertTrue(held.lost.wait(60))

        self.assert_fails("E_LOCK_LOST", work)

    def test_a_force_release_can_require_a_fencing_token(self):
        lock = self.locks.lock("x")
        token = lock.acquire()
        for wrong in (-1, 0, token + 1, 1 << 64):
            self.assertFalse(lock.force_release(wrong), wrong)
        self.assertTrue(lock.force_release(token))
        self.assertFalse(lock.force_release())

    def test_a_lock_can_be_restored_elsewhere(self):
        lock, elsewhere = self.locks.lock("x", ttl=7), Locks(self.store)
        lock.acquire()
        text = lock.serialize()
        restored = elsewhere.restore(text)
        self.assertTrue(restored.is_held())
        self.assertTrue(3 < restored.remaining() <= 7.01)
        restored.extend()
        with restored.keep_alive() as lost:
            self.assertFalse(lost.is_set())
        restored.release()
        self.assert_fails("E_LOCK_NOT_OWNER", lock.release)

    def test_a_collected_lock_is_released_by_the_next_call(self):
        lock, other = self.locks.lock("x"), self.locks.lock("x")
        lock.acquire()
        del lock
        self.assertTrue(other.try_acquire())

    def test_a_detached_serialized_or_restored_lock_outlives_its_object(self):
        other = self.locks.lock("x")
        lock = self.locks.lock("x")
        lock.acquire()
        lock.detach()
        del lock
        self.assertFalse(other.try_acquire())
        other.force_release()
        lock = self.locks.lock("x")
        lock.acquire()
        text = lock.serialize()
        del lock
        self.assertFalse(other.try_acquire())
        restored = self.locks.restore(text)
        self.assertTrue(restored.is_held())
        del restored
        self.assertFalse(other.try_acquire())

    def test_a_release_notifies_the_head_waiter(self):
        lock = self.locks.lock("x")
        lock.acquire()
        order, waiters = [], []
        for number in range(3):
            waiter = threading.Thread(target=self.wait, args=(number, order))
            waiter.start()
            waiters.append(waiter)
            self.until_queued(number + 1)
        lock.release()
        for waiter in waiters:
            waiter.join()
        self.assertEqual(order, [0, 1, 2])
        self.assertEqual(self.store._queues, {})

    def wait(self, number, order):
        """Waits without retries: with a pause so long that only a notification can end it in time."""
        with self.locks.lock("x", ttl=None).held(delay=3600):
            order.append(number)

    def until_queued(self, waiters):
        end = time.monotonic() + 60
        while len(self.store._queues.get("x", ())) < waiters:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.001)

    def test_a_waiter_that_gives_up_leaves_the_queue(self):
        lock = self.locks.lock("x")
        lock.acquire()
        other = self.locks.lock("x")
        self.assert_fails("E_LOCK_TIMEOUT", other.acquire, timeout=0.05, delay=0.01)
        self.assertEqual(self.store._queues, {})

    def test_the_holders_of_a_lock_are_listed(self):
        lock = self.locks.lock("x")
        self.assertEqual(lock.holders(), [])
        token = lock.acquire()
        (holder,) = lock.holders()
        self.assertEqual(holder, Holder(token, holder.remaining))
        self.assertTrue(0 < holder.remaining <= 30 * 10**9)
        # A store may record more.
        process = Process(4242, "host", "nightly \ud800")
        full = Holder(7, None, 1_763_892_000_000_000_000, process, detached=True)
        self.store.holders = lambda name: [full, Holder(None, 5)]
        listed = Locks(self.store).lock("x").holders()
        printable = full._replace(process=process._replace(command="nightly ?"))
        self.assertEqual(listed, [printable, Holder(None, 5)])

    def count(self, make_locks):
        """Increments a counter a hundred times in ten threads, which loses increments without exclusion."""
        count, tokens = [0], []

        def work():
            locks = make_locks()
            for _ in range(10):
                with locks.lock("x").held(delay=0.001, timeout=60) as held:
                    seen = count[0]
                    time.sleep(0.0005)
                    count[0] = seen + 1
                    tokens.append(held.fencing_token)

        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(count, [100])
        self.assertEqual(tokens, list(range(1, 101)))

    def test_threads_exclude_each_other(self):
        self.count(lambda: self.locks)

    def test_threads_with_instances_of_their_own_exclude_each_other(self):
        self.count(lambda: Locks(self.store))


class ScopeTest(Case):
    def test_a_with_block_holds_the_lock(self):
        lock, other = self.locks.lock("x"), self.locks.lock("x")
        with lock as held:
            self.assertEqual(held.fencing_token, lock.fencing_token)
            self.assertFalse(other.try_acquire())
            with self.assertRaises(RuntimeError):
                lock.__enter__()
        self.assertFalse(other.is_locked())
        with self.assertRaises(ZeroDivisionError):
            with lock:
                1 / 0
        with lock:
            self.assertTrue(lock.is_held())
        self.assertTrue(other.try_acquire())

    def test_a_loss_ends_a_with_block_with_an_error(self):
        lock = self.locks.lock("x")
        with self.assertRaises(LockLost):
            with lock:
                lock.force_release()
        with lock:
            pass

    def test_a_lease_can_be_extended_to_any_ttl(self):
        lock = self.locks.lock("x", ttl="1m")
        lock.acquire()
        for ttl, least, most in ((3600, 3000, 3600), ("2h", 7000, 7200), (timedelta(seconds=5), 0, 5)):
            lock.extend(ttl)
            self.assertTrue(least < lock.remaining() <= most)
            (holder,) = lock.holders()
            self.assertTrue(least < holder.remaining / 1e9 <= most)
        lock.extend(None)
        self.assertIsNone(lock.remaining())
        lock.extend("none")
        self.assertEqual([holder.remaining for holder in lock.holders()], [None])
        lock.extend()
        self.assertTrue(50 < lock.remaining() <= 60)
        for wrong in (0, -1, "5", GREATEST):
            self.assert_fails("E_INVALID_TTL", lock.extend, wrong)
        self.assertTrue(lock.is_held())

    def test_an_expired_lease_is_expired(self):
        lock = self.locks.lock("x", ttl=0.01)
        self.assertFalse(lock.is_expired())
        lock.acquire()
        self.locks.lock("x").acquire(delay=0.005, timeout=60)
        self.assertTrue(lock.is_expired())
        self.assertEqual(lock.remaining(), 0)
        self.assert_fails("E_LOCK_NOT_OWNER", lock.extend)

    def test_a_lock_has_its_name_ttl_and_fencing_token(self):
        lock = self.locks.lock("x", ttl="500ms")
        self.assertEqual((lock.name, lock.ttl, lock.fencing_token), ("x", 0.5, None))
        lock.acquire()
        self.assertEqual(lock.fencing_token, 1)
        self.assertIsNone(self.locks.lock("x", ttl="none").ttl)

    def test_each_code_has_an_exception(self):
        lock = self.locks.lock("x")
        lock.acquire()
        for kind, base, work in (
            (LockTimeout, TimeoutError, lambda: self.locks.lock("x").acquire(timeout=0)),
            (InvalidName, ValueError, lambda: self.locks.lock("")),
            (InvalidTtl, ValueError, lambda: self.locks.lock("x", ttl=0)),
            (InvalidRetry, ValueError, lambda: lock.acquire(attempts=1.5)),
            (InvalidSerializedLock, ValueError, lambda: self.locks.restore("{}")),
            (NotOwner, LockError, lambda: self.locks.lock("x").release()),
        ):
            with self.assertRaises(kind) as caught:
                work()
            error = caught.exception
            self.assertIsInstance(error, base)
            self.assertIn(f"({kind.code})", str(error))
            copy = pickle.loads(pickle.dumps(error))
            self.assertEqual((type(copy), str(copy), copy.code, copy.temporary), (kind, str(error), kind.code, False))
        other = lock_error("E_LATER", "wrong", True)
        self.assertEqual((type(other), other.code, other.temporary), (LockError, "E_LATER", True))
        self.assertEqual(str(pickle.loads(pickle.dumps(other))), "wrong (E_LATER)")


class InvalidArgumentTest(Case):
    def test_invalid_names_are_refused(self):
        for name in ("", "n" * 1025, "n" * (1 << 20)):
            self.assert_fails("E_INVALID_NAME", self.locks.lock, name)
        self.assertTrue(self.locks.lock("n" * 1024).try_acquire())

    def test_invalid_ttls_are_refused(self):
        for ttl in (0, 1e-12, -1, GREATEST, 2 * GREATEST, float("nan"), float("inf"), 1 << 70, "5", "1M", [], b"5s"):
            self.assert_fails("E_INVALID_TTL", self.locks.lock, "x", ttl)
        # The longest ttl: 2^63 - 1 nanoseconds.
        self.assertTrue(self.locks.lock("x", Fraction((1 << 63) - 1, 10**9)).try_acquire())

    def test_invalid_retry_policies_are_refused(self):
        lock = self.locks.lock("x")
        for retry in ({"attempts": 0}, {"attempts": -5}, {"delay": 0}, {"delay": -1}, {"timeout": -1}):
            self.assert_fails("E_INVALID_RETRY", lock.acquire, **retry)
        self.assertEqual(lock.acquire(timeout=GREATEST, attempts=1 << 40), 1)

    def test_corrupt_serialized_locks_are_refused(self):
        lock = self.locks.lock("x")
        lock.acquire()
        text = lock.serialize()
        corrupt = [text[:length] for length in range(len(text))]
        corrupt += ["null", "[]", "{}", "x" * (1 << 20), text + text, text.replace('"x"', '""')]
        corrupt += [json.dumps({**json.loads(text), key: value}) for key, value in [
            ("owner", "0"), ("owner", None), ("ttl", 0), ("ttl", -1), ("fence", 0), ("name", 7),
        ]]
        for wrong in corrupt:
            self.assert_fails("E_INVALID_SERIALIZED_LOCK", self.locks.restore, wrong)
        newer = json.dumps({**json.loads(text), "version": 2})
        error = self.assert_fails("E_INVALID_SERIALIZED_LOCK", self.locks.restore, newer)
        self.assertIn("version 2", str(error))
        self.locks.restore(text).release()


class ErrorCodeTest(unittest.TestCase):
    def test_a_code_is_the_same_on_every_host(self):
        codes = {
            "invalid-name": "E_INVALID_NAME",
            "lost": "E_LOCK_LOST",
            "not-owner": "E_LOCK_NOT_OWNER",
            "storage": "E_LOCK_STORAGE_ERROR",
            "too-many-handles": "E_TOO_MANY_HANDLES",
            "denied": "E_LOCK_DENIED",
        }
        self.assertEqual({case: code(Variant(case)) for case in codes}, codes)
        self.assertEqual(code(Variant("other", "E_LATER")), "E_LATER")


class BrokenStoreTest(Case):
    STEPS = {
        "acquire": lambda lock: lock.try_acquire(),
        "extend": lambda lock: lock.extend(),
        "release": lambda lock: lock.release(),
        "holders": lambda lock: lock.is_locked(),
        "force_release": lambda lock: lock.force_release(),
    }

    def broken(self, step, trick):
        """Returns a lock in a store with one faulty operation. It is held, unless that operation is `acquire`."""
        store = DictionaryStore()
        true = getattr(store, step)
        wrong = [trick]
        setattr(store, step, lambda *arguments: (wrong[0] or true)(*arguments))
        wrong[0] = None
        lock = Locks(store).lock("x")
        if step != "acquire":
            lock.acquire()
        wrong[0] = trick
        return lock, wrong

    def test_an_exception_of_a_store_is_an_error_with_its_message(self):
        def trick(*_):
            raise OSError("the disk \ud800 is full")

        for step, use in self.STEPS.items():
            with self.subTest(step):
                lock, wrong = self.broken(step, trick)
                error = self.assert_fails("E_LOCK_STORAGE_ERROR", use, lock)
                self.assertIn("OSError: the disk ? is full", str(error))
                self.assertFalse(error.temporary)
                self.assertIsInstance(error.__cause__, OSError)
                wrong[0] = None
                use(lock)

    def test_an_invalid_reply_of_a_store_is_an_error(self):
        acquired = [None, 7, "granted", True, object(), Holder(1, 1), Granted("7"), Granted(0)]
        acquired += [Granted(-1), Granted(1 << 64), Granted(True), Granted(1.5), Busy(-1)]
        done = [None, 0, 1, "granted", Granted(), object()]
        one = [Holder(0), Holder("1"), Holder(1, -1), Holder(since=1 << 64), Holder(mode="none"), Holder(mode=-1)]
        one += [Holder(process="me"), Holder(process=Process(-1, "", "")), Holder(process=Process(1, None, ""))]
        one += [Holder(detached=None), 7, None, Granted(7)]
        replies = {"acquire": acquired, "holders": [None, 7, Holder(1), *([holder] for holder in one)]}
        for step, use in self.STEPS.items():
            for garbage in replies.get(step, done):
                with self.subTest(step, garbage=garbage):
                    lock, wrong = self.broken(step, lambda *_, garbage=garbage: garbage)
                    error = self.assert_fails("E_LOCK_STORAGE_ERROR", use, lock)
                    self.assertFalse(error.temporary)
                    wrong[0] = None
                    use(lock)

    def test_a_renewal_without_a_valid_reply_does_not_end_the_lease(self):
        def trick(*_):
            raise OSError("the disk is full")

        for wrong in (trick, lambda *_: "extended", lambda *_: True):
            renewed = threading.Event()
            self.store.renew = lambda *_, wrong=wrong: renewed.set() or wrong()
            with Locks(self.store).lock("x", ttl=2).held() as held:
                self.assertTrue(renewed.wait(60))
                self.assertFalse(held.lost.is_set())

    def test_a_store_that_cannot_queue_is_polled(self):
        def trick(*_):
            raise OSError("the disk is full")

        self.store.join = trick
        locks = Locks(self.store)
        lock, other = locks.lock("x"), locks.lock("x")
        lock.acquire()
        self.assert_fails("E_LOCK_TIMEOUT", other.acquire, attempts=3, delay=0.001)
        threading.Timer(0.05, lock.release).start()
        self.assertEqual(other.acquire(delay=0.01, timeout=60), 2)

    def test_an_error_of_a_store_can_have_a_code(self):
        for wrong in ("full", "denied", "E_MINE", "\ud800", 7, None):
            def trick(*_, wrong=wrong):
                raise StoreError("broken", code=wrong)

            lock, _ = self.broken("acquire", trick)
            error = self.assert_fails("E_LOCK_STORAGE_ERROR", lock.try_acquire)
            self.assertIn("broken", str(error))

    def test_a_store_need_not_count_grants(self):
        lock, _ = self.broken("acquire", lambda claim: Granted())
        self.assertIsNone(lock.acquire())
        self.assertTrue(lock.try_acquire())

    def test_a_temporary_error_is_retried(self):
        failures = [StoreError("busy", temporary=True)] * 2

        def trick(claim):
            if failures:
                raise failures.pop()
            return Granted(9)

        lock, _ = self.broken("acquire", trick)
        self.assertEqual(lock.acquire(timeout=60, delay=0.001), 9)
        self.assertEqual(failures, [])

    def test_an_interrupt_in_a_store_is_raised(self):
        def trick(*_):
            raise KeyboardInterrupt

        for step, use in self.STEPS.items():
            lock, wrong = self.broken(step, trick)
            with self.assertRaises(KeyboardInterrupt):
                use(lock)
            wrong[0] = None
            use(lock)

    def test_a_store_without_capabilities_is_refused(self):
        for wrong, kind in ((None, "Capabilities"), (Capabilities(fences=1), "bool")):
            self.store.capabilities = lambda wrong=wrong: wrong
            with self.assertRaisesRegex(StoreError, f"`{kind}`"):
                Locks(self.store)


if __name__ == "__main__":
    unittest.main()
