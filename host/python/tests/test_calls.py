"""The calls of the component read the types of its functions once."""

import gc
import unittest
from contextlib import ExitStack
from types import FunctionType
from unittest import mock

from verrou import DictionaryStore, Locks, LockTimeout
from verrou._calls import IMPORTED
from wasmtime import _ffi as ffi

READS = [
    name
    for name, value in vars(ffi).items()
    if isinstance(value, FunctionType)
    and (name.startswith("wasmtime_component_") and "_type_" in name or name == "wasmtime_component_func_type")
    and not name.endswith(("_delete", "_equal"))
]
"""The functions that read a type, or a part of one."""


class CallsTest(unittest.TestCase):
    def use(self, locks):
        lock, other = locks.lock("x", ttl=30), locks.lock("x")
        lock.acquire()
        lock.extend()
        lock.holders()
        lock.remaining()
        with self.assertRaises(LockTimeout):
            other.acquire(timeout=0)
        locks.restore(lock.serialize()).release()

    def test_types_are_read_by_the_first_calls_alone(self):
        self.assertGreater(len(READS), 10)
        locks = Locks(DictionaryStore())
        with ExitStack() as stack:
            patch = lambda name: stack.enter_context(mock.patch.object(ffi, name, wraps=getattr(ffi, name)))
            reads = {name: patch(name) for name in READS}
            count = lambda: sum(read.call_count for read in reads.values())
            self.use(locks)
            first = count()
            self.assertGreater(first, 50)
            self.use(locks)
            self.assertEqual(count(), first)

    def test_an_instance_that_is_collected_keeps_no_function(self):
        gc.collect()
        before = len(IMPORTED.handles)
        locks = Locks(DictionaryStore())
        self.use(locks)
        self.assertGreater(len(IMPORTED.handles), before)
        del locks
        gc.collect()
        self.assertEqual(len(IMPORTED.handles), before)


if __name__ == "__main__":
    unittest.main()
