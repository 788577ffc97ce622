"""This machine's own stores, lease files and file locks, through the command `verrou serve`.

A Python program shares these locks with shell scripts and programs in Rust. A lease that was not
detached or serialized ends with this process, for any reason: its end of the pipe is then closed, and the
command ends, too. `host/cli/SERVE.md` describes the protocol.
"""

import json
import subprocess
import threading

from .store import Busy, Capabilities, Claim, Granted, Holder, StoreError

GREETING = {"protocol": "verrou serve", "version": 1}


class CommandStore:
    """The store at `url`, such as `lease:/var/lib/verrou`; `None` means the command's own default."""

    def __init__(self, url: str | None = None, command: str = "verrou"):
        where = ["--store", url] if url else []
        self._mutex = threading.Lock()
        self._process = subprocess.Popen(
            [command, "serve", *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # Ctrl-C in the terminal must not end it: this process needs it to release locks.
            process_group=0,
        )
        try:
            greeting = self._receive()
            if "error" in greeting:
                raise StoreError(greeting["error"]["message"], greeting["error"]["temporary"])
            if any(greeting.get(key) != value for key, value in GREETING.items()):
                raise StoreError(
                    f"`{command} serve` does not speak version {GREETING['version']} of the protocol: {greeting}"
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the leases that were neither released, detached nor serialized."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # The command has ended already.
        self._process.stdout.close()
        self._process.wait()

    def acquire(self, claim: Claim):
        answer = self._ask("acquire", **members(claim))
        return Granted(answer["granted"]) if "granted" in answer else Busy(answer["refused"])

    def extend(self, claim: Claim):
        return self._is_done("extend", **members(claim))

    def renew(self, claim: Claim, fencing_token: int | None):
        return self._ask("renew", **members(claim), fencing_token=fencing_token)["renewed"]

    def release(self, claim: Claim):
        return self._is_done("release", **members(claim))

    def detach(self, claim: Claim):
        return self._is_done("detach", **members(claim))

    def force_release(self, name: str, only: int | None):
        return self._is_done("evict", name=name, only=only)

    def holders(self, name: str):
        holder = self._ask("inspect", name=name)["holder"]
        return [Holder(holder["fencing_token"], holder["remaining"])] if holder else []

    def join(self, claim: Claim):
        # The command answers one request after the other: a `wait` would delay the other threads.
        return None

    def capabilities(self):
        abilities = self._ask("abilities")["abilities"]
        # The protocol calls one of them by another name, and has no modes.
        names = {"force_releases": "evicts"}
        return Capabilities(*(abilities.get(names.get(name, name), False) for name in Capabilities._fields))

    def _is_done(self, operation: str, **members) -> bool:
        return "granted" in self._ask(operation, **members)

    def _ask(self, operation: str, **members) -> dict:
        with self._mutex:
            if self._process.stdin.closed:
                raise StoreError("this store is closed")
            try:
                self._process.stdin.write(json.dumps({operation: members}) + "\n")
                self._process.stdin.flush()
                answer = self._receive()
            except BaseException:
                # The next request would get the answer to this one.
                self.close()
                raise
        if "error" in answer:
            raise StoreError(answer["error"]["message"], answer["error"]["temporary"])
        return answer

    def _receive(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise StoreError(f"`verrou serve` has ended, with code {self._process.wait()}")
        return json.loads(line)


def members(claim: Claim) -> dict:
    """Returns the members of a claim that the protocol has: every claim is exclusive there."""
    asked = claim._asdict()
    del asked["mode"]
    return asked
