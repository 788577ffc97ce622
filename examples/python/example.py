"""Increments a number in a file, one at a time, for any number of such programs.

    python example.py                                 between the threads of one process
    python example.py sqlite:target/locks.sqlite      between processes, in an SQLite file
    python example.py lease:target/locks verrou       between processes, in lease files, by the command `verrou`
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verrou import CommandStore, DictionaryStore, LockError, Locks, SqliteStore, StoreError

COUNTER = Path("target/counter.txt")


def open_store(where: str | None = None, command: str = "verrou"):
    if where is None:
        return DictionaryStore()
    if where.startswith("sqlite:"):
        return SqliteStore(where.removeprefix("sqlite:"))
    return CommandStore(where, command)


def count(locks: Locks, rounds: int) -> None:
    # A lease of ten seconds is renewed as long as the work takes; after a crash it expires.
    lock = locks.lock("counter", ttl=10)
    for _ in range(rounds):
        # Makes an attempt every ten milliseconds, for a minute at most.
        with lock.held(timeout=60, delay=0.01) as held:
            number = int(COUNTER.read_text()) if COUNTER.exists() else 0
            COUNTER.write_text(str(number + 1))
            # The resource that a lock guards should refuse a smaller token than the greatest that it has accepted.
            print(f"{number + 1}, under fencing token {held.fencing_token}", flush=True)


def main() -> None:
    try:
        locks = Locks(open_store(*sys.argv[1:]))
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(count, [locks, locks], [5, 5]))
    except (LockError, StoreError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
