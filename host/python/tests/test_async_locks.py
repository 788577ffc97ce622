"""Locks of tasks."""

import asyncio
import threading
import unittest

from verrou import AsyncLocks, DictionaryStore, Granted, InvalidName, LockLost, Locks, LockTimeout, NotOwner
from verrou.async_locks import CALLS


class AsyncLocksTest(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.store = DictionaryStore()
        self.locks = AsyncLocks(self.store)

    async def asyncSetUp(self):
        # The loop of the tests reports each callback that takes longer, as on a busy machine.
        asyncio.get_running_loop().slow_callback_duration = 60

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def until_queued(self, waiters):
        await self.until(lambda: len(self.store._queues.get("x", ())) == waiters)

    async def calls_end(self):
        """Waits until the calls that were submitted before have ended."""
        await asyncio.wrap_future(CALLS.submit(lambda: None))

    async def test_a_lock_is_held_and_released(self):
        lock, other = self.locks.lock("x", ttl=10), self.locks.lock("x")
        self.assertEqual(await lock.acquire(), 1)
        self.assertTrue(await lock.is_held() and await other.is_locked() and not await other.is_held())
        self.assertTrue(5 < await lock.remaining() <= 10)
        await lock.extend("1m")
        self.assertTrue(50 < await lock.remaining() <= 60)
        self.assertFalse(await lock.is_expired())
        self.assertFalse(await other.try_acquire())
        with self.assertRaises(LockTimeout):
            await other.acquire(timeout=0.01, delay=0.001)
        self.assertEqual(self.store._queues, {})
        (holder,) = await other.holders()
        self.assertEqual(holder.fencing_token, 1)
        await lock.release()
        with self.assertRaises(NotOwner):
            await lock.release()
        self.assertTrue(await other.try_acquire())
        self.assertTrue(await lock.force_release())

    async def test_a_lock_can_be_restored_by_a_thread(self):
        lock = self.locks.lock("x")
        await lock.acquire()
        restored = Locks(self.store).restore(await lock.serialize())
        self.assertTrue(restored.is_held())
        restored.release()

    async def test_invalid_names_are_refused(self):
        with self.assertRaises(InvalidName):
            await self.locks.lock("").try_acquire()

    async def test_tasks_exclude_each_other(self):
        count, tokens = [0], []

        async def work():
            for _ in range(10):
                async with self.locks.lock("x").held(delay=3600, timeout=60) as held:
                    seen = count[0]
                    await asyncio.sleep(0)
                    count[0] = seen + 1
                    tokens.append(held.fencing_token)

        await asyncio.gather(*(work() for _ in range(10)))
        self.assertEqual(count, [100])
        self.assertEqual(tokens, list(range(1, 101)))

    async def test_waiting_tasks_use_no_thread_and_are_served_in_order(self):
        lock = self.locks.lock("x")
        await lock.acquire()
        before, order = threading.active_count(), []

        async def wait(number):
            async with self.locks.lock("x", ttl=None).held(delay=3600):
                order.append(number)

        tasks = []
        for number in range(50):
            tasks.append(asyncio.create_task(wait(number)))
            await self.until_queued(number + 1)
        self.assertEqual(threading.active_count(), before)
        await lock.release()
        await asyncio.gather(*tasks)
        self.assertEqual(order, list(range(50)))
        self.assertEqual(self.store._queues, {})

    async def test_a_thread_notifies_a_task(self):
        lock = Locks(self.store).lock("x")
        lock.acquire()
        other = self.locks.lock("x")
        waiting = asyncio.create_task(other.acquire(delay=3600))
        await self.until_queued(1)
        lock.release()
        self.assertEqual(await waiting, 2)

    async def test_a_waiter_without_wait_async_is_polled(self):
        class Polled:
            def __init__(self, waiter):
                self.wait, self.leave = waiter.wait, waiter.leave

        join = self.store.join
        self.store.join = lambda claim: Polled(join(claim))
        lock, other = self.locks.lock("x"), self.locks.lock("x")
        await lock.acquire()
        waiting = asyncio.create_task(other.acquire(delay=0.001, timeout=60))
        await self.until_queued(1)
        await lock.release()
        self.assertEqual(await waiting, 2)

    async def test_a_cancelled_waiter_leaves_the_queue(self):
        lock, other = self.locks.lock("x"), self.locks.lock("x")
        await lock.acquire()
        waiting = asyncio.create_task(other.acquire(delay=3600))
        await self.until_queued(1)
        waiting.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await waiting
        await self.calls_end()
        self.assertEqual(self.store._queues, {})
        await lock.release()
        self.assertTrue(await other.try_acquire())

    async def cancelled_in_the_store(self, use):
        """Cancels the task `use(lock)` while its acquire request is in the store, which then grants it."""
        asked, go_on = threading.Event(), threading.Event()
        acquire = self.store.acquire

        def slow(claim):
            reply = acquire(claim)
            if isinstance(reply, Granted):
                asked.set()
                go_on.wait(60)
            return reply

        self.store.acquire = slow
        self.locks = AsyncLocks(self.store)
        task = asyncio.create_task(use(self.locks.lock("x", ttl=None)))
        await self.until(asked.is_set)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        go_on.set()
        # The first waits for the request, the second for its undoing.
        await self.calls_end()
        await self.calls_end()
        self.assertEqual(self.store.holders("x"), [])

    async def test_a_grant_to_a_cancelled_task_is_released(self):
        await self.cancelled_in_the_store(lambda lock: lock.acquire())
        self.store = DictionaryStore()
        await self.cancelled_in_the_store(lambda lock: lock.try_acquire())

    async def test_a_grant_to_a_cancelled_waiter_is_released(self):
        holder = Locks(self.store).lock("x")

        holder.acquire()

        async def wait(lock):
            waiting = asyncio.create_task(lock.acquire(delay=3600))
            await self.until_queued(1)
            holder.release()
            await waiting

        await self.cancelled_in_the_store(wait)
        self.assertEqual(self.store._queues, {})

    async def test_a_cancelled_block_releases_the_lock(self):
        inside = asyncio.Event()

        async def work():
            async with self.locks.lock("x"):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        self.assertEqual(len(self.store.holders("x")), 1)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(self.store.holders("x"), [])

    async def test_an_async_with_block_holds_the_lock(self):
        lock = self.locks.lock("x")
        for token in (1, 2):
            async with lock as held:
                self.assertEqual(held.fencing_token, token)
                self.assertTrue(await lock.is_held())
                with self.assertRaises(RuntimeError):
                    await lock.__aenter__()
            self.assertFalse(await lock.is_locked())

    async def test_a_loss_is_reported_at_once_and_at_the_end(self):
        with self.assertRaises(LockLost):
            async with self.locks.lock("x", ttl=2).held() as held:
                self.assertTrue(await self.locks.lock("x").force_release(held.fencing_token))
                async with asyncio.timeout(60):
                    await held.lost.wait()

    async def test_a_lease_is_renewed_during_a_block(self):
        renewed, twice = [], threading.Event()
        renew = self.store.renew

        def counted(claim, fencing_token):
            renewed.append(fencing_token)
            if len(renewed) > 1:
                twice.set()
            return renew(claim, fencing_token)

        self.store.renew = counted
        async with AsyncLocks(self.store).lock("x", ttl=1).held() as held:
            await self.until(twice.is_set)
            self.assertFalse(held.lost.is_set())
        self.assertEqual(set(renewed), {1})


if __name__ == "__main__":
    unittest.main()
