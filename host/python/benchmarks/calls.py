"""Measures the calls of the component, with types that are read once and with wasmtime-py's own.

    python host/python/benchmarks/calls.py [ROUNDS]

Prints the processor time of one acquisition and release of a free lock in a dictionary, by both kinds of calls in turns, and
the shortest round of each, because other programs only lengthen a round.
"""

import sys
import time

from verrou import DictionaryStore, Locks
from verrou._instance import Instance

PAIRS = 200


class PlainInstance(Instance):
    """The component with wasmtime-py's own calls."""

    def _function(self, name):
        # It looks up the function at each call, as a user of wasmtime-py does.
        index = self._instance.get_export_index(self._wasm, name, self._exports)
        return self._instance.get_func(self._wasm, index)

    @staticmethod
    def _define_import(imports, name, function):
        imports.add_func(name, function)


def lock(kind):
    locks = Locks.__new__(Locks)
    locks._instance = kind(DictionaryStore())
    return locks.lock("x", ttl=30)


def measure(lock) -> float:
    """Returns the microseconds of processor time of one acquisition and release."""
    began = time.process_time_ns()
    for _ in range(PAIRS):
        lock.acquire()
        lock.release()
    return (time.process_time_ns() - began) / PAIRS / 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    locks = {"wasmtime-py's calls": lock(PlainInstance), "types read once": lock(Instance)}
    results = {name: [] for name in locks}
    for number in range(rounds + 1):
        for name, each in locks.items():
            time_of_one = measure(each)
            if number:  # The first round reads the types.
                results[name].append(time_of_one)
    for name, times in results.items():
        times.sort()
        print(f"{name}: {times[0]:.0f} µs, median {times[len(times) // 2]:.0f} µs")
    plain, kept = (times[len(times) // 2] for times in results.values())
    print(f"{plain / kept:.1f} times as fast")


if __name__ == "__main__":
    main()
