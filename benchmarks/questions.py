"""Small questions of the notes, answered in counts and ratios: locks beside many threads, ten runs into one file, free
space as bitmap pages or as a list, a tournament that compares in place.

    python benchmarks/questions.py [--directory PATH]
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import mmlsm

KEYS = 100_000
ROUNDS = 5


def in_threads(count: int, work: Callable[[int], None], total: int) -> float:
    """Seconds that `count` threads need to do `total` pieces of work together."""
    threads = [threading.Thread(target=work, args=(total // count,)) for _ in range(count)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def contention(directory: Path) -> None:
    """The same gets, and the same snapshots with a get each, by more and more threads, beside one thread's time."""
    with mmlsm.open(directory / "locks.db", durability="off") as db:
        db.update({b"%08d" % i: bytes(50) for i in range(KEYS)})
        db.compact()

        def gets(times: int) -> None:
            for i in range(times):
                db.get(b"%08d" % (i * 7919 % KEYS))

        def snapshots(times: int) -> None:
            for i in range(times):
                with db.snapshot() as still:
                    still.get(b"%08d" % (i * 7919 % KEYS))

        for name, work, total in (("gets", gets, 400_000), ("snapshots with a get", snapshots, 40_000)):
            ratios: dict[int, list[float]] = {2: [], 4: [], 16: [], 64: []}
            for _ in range(ROUNDS):
                alone = in_threads(1, work, total)
                for count, found in ratios.items():
                    found.append(in_threads(count, work, total) / alone)
            medians = ", ".join(f"{count} threads {statistics.median(found):.2f}" for count, found in ratios.items())
            print(f"{name}, time of one thread's for the same work: {medians}")


def ten_runs(directory: Path) -> None:
    """Ten identical runs into one file: the last beside the first, in time and size."""
    path, seconds, sizes, lists = directory / "runs.db", [], [], []
    for _ in range(10):
        rng, begun = random.Random(1), time.perf_counter()
        with mmlsm.open(path, durability="off", memtable_bytes=1 << 20) as db:
            for _ in range(KEYS):
                db.put(b"%08d" % rng.randrange(KEYS), rng.randbytes(100))
            space = db.stats().space
            lists.append((space.free_extents, -(-space.total // 32768)))
            db.compact()
        seconds.append(time.perf_counter() - begun)
        sizes.append(path.stat().st_size)
    later = statistics.median(seconds[5:]) / statistics.median(seconds[:1])
    print(f"ten runs into one file: the last five beside the first: time {later:.2f}, size {max(sizes) / sizes[0]:.2f}")
    extents, pages = max(lists)
    print(f"free space: at most {extents} extents, {8 * extents:,} bytes as a list; {pages} bitmap pages of 4 KiB")


def tournament(directory: Path) -> None:
    """A scan of eight runs, keys compared in place, beside heapq.merge of the same pairs as objects in memory."""
    with mmlsm.open(directory / "eight.db", durability="off", auto_merge=False) as db:
        runs = [[(b"%08d" % i, bytes(50)) for i in range(first, KEYS, 8)] for first in range(8)]
        for run in runs:
            db.update(run)
            db._engine.flush()
        ratios = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            deque(db.items(), maxlen=0)
            middle = time.perf_counter()
            deque(heapq.merge(*runs), maxlen=0)
            ratios.append((middle - begun) / (time.perf_counter() - middle))
    print(f"a scan of eight runs, time of heapq.merge over pairs in memory: {statistics.median(ratios):.2f}")


def main() -> None:
    """Print the answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", help="where the databases may be, for their time")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().directory) as directory:
        contention(Path(directory))
        ten_runs(Path(directory))
        tournament(Path(directory))


if __name__ == "__main__":
    main()
