"""An actor of the benchmark with a lock of a Python package; actor.rs documents the requests."""

import os
import sys
import time


def make(kind, directory):
    if kind.startswith("filelock"):
        import filelock

        path = os.path.join(directory, "flock")
        if kind == "filelock-lease":
            lease = filelock.SoftFileLease(os.path.join(directory, "lease.lock"), lease_duration=10)
            return lease.acquire, lease.release
        options = {"poll_interval": 0.001} if kind == "filelock-1ms" else {}
        lock = filelock.FileLock(path, **options)
        return lock.acquire, lock.release
    if kind == "portalocker":
        import portalocker

        lock = portalocker.Lock(os.path.join(directory, "flock"), timeout=3600)
        return lock.acquire, lock.release
    if kind.startswith("redis"):
        import redis

        client = redis.Redis.from_url(os.environ["VERROU_BENCH_REDIS"])
        options = {"sleep": 0.001} if kind == "redis-1ms" else {}
        lock = client.lock("python", timeout=10, **options)
        return lock.acquire, lock.release
    raise ValueError(kind)


def pairs(acquire, release, times):
    began = time.monotonic_ns()
    for _ in range(times):
        acquire()
        release()
    return time.monotonic_ns() - began


def storm(acquire, release, seconds, hold):
    times = longest = 0
    end = time.monotonic_ns() + int(seconds * 1e9)
    while (asked := time.monotonic_ns()) < end:
        acquire()
        held = time.monotonic_ns()
        longest = max(longest, held - asked)
        while time.monotonic_ns() < held + hold * 1000:
            pass
        release()
        times += 1
    return f"{times} {longest}"


def main():
    acquire, release = make(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        match line.split():
            case ["pairs", times]:
                done = pairs(acquire, release, int(times))
            case ["acquire"]:
                acquire()
                done = f"{time.monotonic_ns()} {os.getpid()}"
            case ["release"]:
                done = time.monotonic_ns()
                release()
            case ["turn"]:
                acquire()
                done = time.monotonic_ns()
                release()
            case ["storm", seconds, hold]:
                done = storm(acquire, release, float(seconds), int(hold))
        print(done, flush=True)


main()
