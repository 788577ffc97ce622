"""An instance of the component `verrou.wasm`, and calls of its exports.

`component_imports.py` describes how wasmtime-py passes values, which is the same in this direction.
"""

import collections
import functools
import secrets
import threading
import time
from pathlib import Path

import wasmtime
from wasmtime.component import Component, Linker, Record, Variant

import component_imports

COMPONENT = Path(__file__).resolve().parents[2] / "target/component/verrou.wasm"
ENGINE = wasmtime.Engine()
# wasmtime-py keeps parts of a call in global variables, so only one call can run at a time, for all
# instances. No call waits for a lock.
ONE_CALL = threading.RLock()


class LockError(Exception):
    """The error of a lock; `code` is the same on every host."""

    def __init__(self, code: str, message: str, temporary: bool = False):
        super().__init__(f"{message} ({code})")
        self.code, self.temporary = code, temporary


def boot_time() -> int:
    """Returns the nanoseconds of a clock that includes suspensions, if the system has one."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def random_u64() -> int:
    return secrets.randbits(64)


@functools.cache
def compiled(component: Path) -> Component:
    if not component.exists():
        raise FileNotFoundError(f"{component} does not exist: `cargo xtask component` builds it")
    return Component.from_file(ENGINE, component)


class Instance:
    """The component with its three imports: `store`, the clock `now`, and `random`."""

    def __init__(self, store, now=boot_time, random=random_u64, component=COMPONENT):
        self._dropped: collections.deque = collections.deque()
        self._troubles: list[BaseException] = []
        self._wasm = wasmtime.Store(ENGINE)
        linker = Linker(ENGINE)
        component_imports.define(linker, store, now, random, self._troubles.append)
        self._instance = linker.instantiate(self._wasm, compiled(component))
        self._exports = self._instance.get_export_index(self._wasm, "verrou:lock/locks@0.1.0")

    def call(self, function: str, *arguments):
        """Calls the function of the interface `locks` with this name."""
        with ONE_CALL:
            while self._dropped:
                self._dropped.pop().drop(self._wasm)
            self._troubles.clear()
            index = self._instance.get_export_index(self._wasm, function, self._exports)
            result = self._instance.get_func(self._wasm, index)(self._wasm, *arguments)
            trouble = self._troubles[-1] if self._troubles else None
        if trouble and not isinstance(trouble, Exception):
            raise trouble  # An interrupt, such as Ctrl-C.
        if isinstance(result, Variant) and result.tag in ("ok", "err"):
            result = result.payload
        if isinstance(result, Record) and hasattr(result, "code"):
            raise LockError(code(result.code), result.message, result.temporary) from trouble
        return result

    def drop(self, handle) -> None:
        """Drops a handle with the next call: this method may be called during one."""
        self._dropped.append(handle)


def code(case: str) -> str:
    """Returns the code of a case of `error-code`."""
    lasting = {"lost": "LOCK_LOST", "storage": "LOCK_STORAGE_ERROR"}
    of_locks = {"not-owner", "not-serializable"}
    name = ("lock-" if case in of_locks else "") + case
    return "E_" + lasting.get(case, name.replace("-", "_").upper())
