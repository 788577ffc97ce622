"""An instance of the component `verrou.wasm`, and calls of its exports.

`_imports.py` describes how wasmtime-py passes values, which is the same in this direction.
"""

import collections
import functools
import secrets
import threading
import time
from pathlib import Path

import wasmtime
from wasmtime.component import Component, Func, Linker, Record, Variant

from . import _imports
from ._calls import KeepingFunc, define_import
from .errors import lock_error
from .store import Store, Waiter

COMPONENT = Path(__file__).with_name("verrou.wasm")
ENGINE = wasmtime.Engine()
# wasmtime-py keeps parts of a call in global variables, so only one call can run at a time, for all
# instances. No call waits for a lock.
ONE_CALL = threading.RLock()


def boot_time() -> int:
    """Returns the nanoseconds of a clock that includes suspensions, if the system has one."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def random_u64() -> int:
    return secrets.randbits(64)


@functools.cache
def compiled(component: Path) -> Component:
    if not component.exists():
        raise FileNotFoundError(
            f"{component} does not exist: this is the source of the package, without the component; "
            "`cargo xtask python` builds the wheel"
        )
    return Component.from_file(ENGINE, component)


class Instance:
    """The component with its imports: `store`, the clock `now`, and `random`."""

    def __init__(self, store, now=boot_time, random=random_u64, component=COMPONENT):
        self._dropped: collections.deque = collections.deque()
        self._troubles: list[BaseException] = []
        self._functions: dict[str, Func] = {}
        self._wasm = wasmtime.Store(ENGINE)
        linker = Linker(ENGINE)
        self._waiters = _imports.define(linker, self._define_import, store, now, random, self._troubles.append)
        self._instance = linker.instantiate(self._wasm, compiled(component))
        self._exports = self._instance.get_export_index(self._wasm, "verrou:lock/locks@0.1.0")

    def call(self, function: str, *arguments):
        """Calls the function of the interface `locks` with this name."""
        with ONE_CALL:
            called = self._functions.get(function) or self._function(function)
            result, trouble = self._enter(called, self._wasm, *arguments)
        if isinstance(result, Variant) and result.tag in ("ok", "err"):
            result = result.payload
        if isinstance(result, Record) and hasattr(result, "code"):
            raise lock_error(code(result.code), result.message, result.temporary) from trouble
        return result

    # `benchmarks/calls.py` replaces both by the calls of wasmtime-py.
    # `benchmarks/calls.py` replaces them by the calls of wasmtime-py.
    _keep_types = staticmethod(KeepingFunc.of)
    _define_import = staticmethod(define_import)

    def _function(self, name: str):
        """Returns the function of the interface `locks` with this name."""
        index = self._instance.get_export_index(self._wasm, name, self._exports)
        function = self._instance.get_func(self._wasm, index)
        self._functions[name] = self._keep_types(function, self._wasm)
        return self._functions[name]

    def close(self, handle) -> None:
        """Drops a handle."""
        with ONE_CALL:
            self._enter(handle.drop, self._wasm)

    def drop(self, handle) -> None:
        """Drops a handle with the next call: this method may be called during one."""
        self._dropped.append(handle)

    def waiter(self, attempt) -> Waiter | None:
        """Returns the waiter of an attempt that is to wait, if it has a place in the store's wait queue."""
        with ONE_CALL:
            pollable = self.call("[method]attempt.subscribe", attempt)
            return None if pollable is None else self._waiters.take(self._wasm, pollable)

    def _enter(self, work, *arguments):
        """Does `work` in the component; returns its result, and the last exception of the store."""
        self._troubles.clear()
        while self._dropped:
            self._dropped.popleft().drop(self._wasm)
        self._last_trouble()
        self._troubles.clear()
        return work(*arguments), self._last_trouble()

    def _last_trouble(self) -> Exception | None:
        trouble = self._troubles[-1] if self._troubles else None
        if trouble and not isinstance(trouble, Exception):
            raise trouble  # An interrupt, such as Ctrl-C.
        return trouble


def code(case: Variant) -> str:
    """Returns the code of a case of `error-code`."""
    if case.tag == "other":
        return case.payload
    of_locks = {"denied", "lost", "not-owner", "not-serializable"}
    if case.tag == "storage":
        return "E_LOCK_STORAGE_ERROR"
    name = f"lock-{case.tag}" if case.tag in of_locks else case.tag
    return "E_" + name.replace("-", "_").upper()
