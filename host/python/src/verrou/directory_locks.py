"""Locks in a directory, with no store in Python: the lock component with the store `provider-filesystem` inside.

    locks = DirectoryLocks("/var/lib/app/locks")
    with locks.lock("my-resource", ttl=10).held() as held:
        print("fencing token", held.fencing_token)

`verrou run --store wasi:/var/lib/app/locks` has the same locks.
"""

import collections
import os
from pathlib import Path

import wasmtime
from wasmtime.component import Func, Linker

from ._instance import COMPONENT, ENGINE, Instance, compiled
from .locks import Locks

COMPOSED = COMPONENT.with_name("locks-over-filesystem.wasm")


class DirectoryInstance(Instance):
    """The composed component in wasmtime's own WASI, with one preopened directory."""

    def __init__(self, directory: str | os.PathLike, component: Path = COMPOSED):
        self._dropped: collections.deque = collections.deque()
        self._troubles: list[BaseException] = []
        self._functions: dict[str, Func] = {}
        self._wasm = wasmtime.Store(ENGINE)
        wasi = wasmtime.WasiConfig()
        wasi.preopen_dir(os.fspath(directory), "locks")
        self._wasm.set_wasi(wasi)
        linker = Linker(ENGINE)
        linker.add_wasip2()
        self._instance = linker.instantiate(self._wasm, compiled(component))
        self._exports = self._instance.get_export_index(self._wasm, "verrou:lock/locks@0.1.0")


class DirectoryLocks(Locks):
    """The locks in one directory, which must exist."""

    def __init__(self, directory: str | os.PathLike):
        self._instance = DirectoryInstance(directory)
