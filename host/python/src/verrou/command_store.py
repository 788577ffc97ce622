"""This machine's own stores, such as lease files and file locks, and those on servers, through the command `verrou serve`.

A Python program shares these locks with shell scripts and programs in Rust, and waits in one queue with them. A lease
that was not detached or serialized ends with this process, for any reason: its end of the pipe is then closed, and the
command ends, too. `host/cli/SERVE.md` describes the protocol.
"""

import collections
import itertools
import json
import queue
import subprocess
import threading
from contextlib import suppress
from typing import IO, Any

from .store import Busy, Capabilities, Claim, Granted, Holder, Notification, StoreError

GREETING = {"protocol": "verrou serve", "version": 1}


class CommandStore:
    """The store at `url`, such as `lease:/var/lib/verrou`; `None` means the command's own default."""

    def __init__(self, url: str | None = None, command: str = "verrou"):
        where = ["--store", url] if url else []
        self._answers = Answers()
        self._numbers = itertools.count(1)
        self._queued: dict[tuple[str, str], QueuedClaim] = {}
        self._process = subprocess.Popen(
            [command, "serve", *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # Ctrl-C in the terminal must not end it: this process needs it to release locks.
            process_group=0,
        )
        self._requests, output = self._process.stdin, self._process.stdout
        try:
            line = output.readline()
            greeting = json.loads(line) if line else {}
            if not line:
                raise self._ended()
            if "error" in greeting:
                raise failure(greeting)
            if any(greeting.get(key) != value for key, value in GREETING.items()):
                raise StoreError(
                    f"`{command} serve` does not speak version {GREETING['version']} of the protocol: {greeting}"
                )
        except BaseException:
            self._requests.close()
            output.close()
            self._process.wait()
            raise
        # Without a reference to this object, which closes the pipe when it is collected.
        self._reader = threading.Thread(
            target=self._answers.read, args=[output], name="reads answers of `verrou serve`", daemon=True
        )
        self._reader.start()

    def close(self) -> None:
        """Ends the leases that were neither released, detached nor serialized."""
        with suppress(BrokenPipeError):  # The command has ended already.
            self._requests.close()
        self._reader.join()
        self._process.wait()

    def acquire(self, claim: Claim) -> Granted | Busy:
        answer = self._ask("acquire", **members(claim))
        if "granted" not in answer:
            return Busy(answer["refused"])
        waiter = self._queued.get((claim.name, claim.owner))
        if waiter:
            # The command has left the queue.
            waiter.is_queued = False
        return Granted(answer["granted"])

    def extend(self, claim: Claim) -> bool:
        return self._is_done("extend", **members(claim))

    def renew(self, claim: Claim, fencing_token: int | None) -> str:
        return self._ask("renew", **members(claim), fencing_token=fencing_token)["renewed"]

    def release(self, claim: Claim) -> bool:
        return self._is_done("release", **members(claim))

    def detach(self, claim: Claim) -> bool:
        return self._is_done("detach", **members(claim))

    def force_release(self, name: str, only: int | None) -> bool:
        return self._is_done("evict", name=name, only=only)

    def holders(self, name: str) -> list[Holder]:
        holder = self._ask("inspect", name=name)["holder"]
        return [Holder(holder["fencing_token"], holder["remaining"])] if holder else []

    def join(self, claim: Claim) -> "QueuedClaim | None":
        number = next(self._numbers)
        waiter = QueuedClaim(self, claim, number)
        # The first notification may come before the answer.
        self._answers.waiters[number] = waiter
        try:
            waiter.is_queued = self._ask("notify", **members(claim), id=number)["queued"]
        finally:
            if not waiter.is_queued:
                del self._answers.waiters[number]
        if not waiter.is_queued:
            return None
        self._queued[claim.name, claim.owner] = waiter
        return waiter

    def capabilities(self) -> Capabilities:
        abilities = self._ask("abilities")["abilities"]
        # The protocol calls one of them by another name, and has no modes.
        names = {"force_releases": "evicts"}
        return Capabilities(*(abilities.get(names.get(name, name), False) for name in Capabilities._fields))

    def leave(self, claim: Claim, waiter: "QueuedClaim") -> None:
        """Removes a waiter from the queue, unless its claim was granted."""
        del self._answers.waiters[waiter.number]
        del self._queued[claim.name, claim.owner]
        if waiter.is_queued:
            self._ask("give_up", **members(claim))

    def _is_done(self, operation: str, **members: Any) -> bool:
        return "granted" in self._ask(operation, **members)

    def _ask(self, operation: str, **members: Any) -> dict[str, Any]:
        line = json.dumps({operation: members}) + "\n"
        with self._answers.mutex:
            if self._requests.closed:
                raise StoreError("this store is closed")
            try:
                slot = self._answers.expect()
                self._requests.write(line)
                self._requests.flush()
            except BrokenPipeError:
                pass  # The command has ended, and the reader of its answers says so.
            except BaseException:
                # A part of a request would spoil the next one.
                self._requests.close()
                raise
        answer = slot.get()
        if answer is None:
            raise self._ended()
        if "error" in answer:
            raise failure(answer)
        return answer

    def _ended(self) -> StoreError:
        # It ends with its input, if it sent an answer that is none.
        with self._answers.mutex, suppress(BrokenPipeError):
            self._requests.close()
        return StoreError(f"`verrou serve` has ended, with code {self._process.wait()}")


class QueuedClaim(Notification):
    """The place of a claim in the wait queue of the command's store."""

    def __init__(self, store: CommandStore, claim: Claim, number: int):
        super().__init__()
        self._store, self._claim, self.number, self.is_queued = store, claim, number, False

    def leave(self) -> None:
        self._store.leave(self._claim, self)


class Answers:
    """The answers of the command, in the order of the requests, and its notifications between them."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        """Held while a request is sent, so that requests and answers have the same order."""
        self.waiters: dict[int, QueuedClaim] = {}
        self._expected: collections.deque[queue.SimpleQueue[dict[str, Any] | None]] = collections.deque()
        self._has_ended = False

    def expect(self) -> "queue.SimpleQueue[dict[str, Any] | None]":
        """Returns the queue that gets the answer to the next request: `None` if the command has ended."""
        slot: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        if self._has_ended:
            slot.put(None)
        else:
            self._expected.append(slot)
        return slot

    def read(self, output: IO[str]) -> None:
        """Reads all lines of the command, until it ends."""
        try:
            with output:
                for line in output:
                    answer = json.loads(line)
                    if "notified" not in answer:
                        self._expected.popleft().put(answer)
                    elif waiter := self.waiters.get(answer["notified"]):
                        waiter.notify()
        finally:
            with self.mutex:
                self._has_ended = True
            for slot in self._expected:
                slot.put(None)
            for waiter in list(self.waiters.values()):
                waiter.notify()


def failure(answer: dict[str, Any]) -> StoreError:
    return StoreError(answer["error"]["message"], answer["error"]["temporary"])


def members(claim: Claim) -> dict[str, Any]:
    """Returns the members of a claim that the protocol has: every claim is exclusive there."""
    asked = claim._asdict()
    del asked["mode"]
    return asked
