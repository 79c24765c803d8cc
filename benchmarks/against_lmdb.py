"""mmlsm beside py-lmdb, in one process, as three ratios of time: random get, full scan, random fill.

The two take turns within each round, so that what else the machine does falls on both; each ratio is the median over
the rounds of that round's ratio, mmlsm's time divided by py-lmdb's: less than 1 means that mmlsm is faster. Absolute
figures do not travel between machines, ratios do.

    python benchmarks/against_lmdb.py [--entries N] [--rounds N] [--json] [--directory PATH]

What is measured: keys of 16 random bytes, values of 100 bytes.
get    random present keys, `bytes` back; py-lmdb inside one read transaction, which is its fastest way
scan   `for key, value in db.items()` beside `for key, value in cursor`, everything
fill   all entries in random order, 1,000 to a transaction, no sync on either side (durability="off", sync=False);
       then once more with what it takes to be safe on the disk: close() here, sync(True) and close() there
get and scan are measured after mmlsm's compact(), whose time is printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
from keysets import random_pairs

import mmlsm
import mmlsm.memory

BATCH = 1000
GETS_MOST = 200_000
FILL_ROUNDS_MOST = 3
TARGETS = {"get": 0.8, "scan": 0.9, "fill": 0.9}

Pairs = list[tuple[bytes, bytes]]


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes, with no garbage collection of what the other side left behind."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    work()
    taken = time.perf_counter() - start
    gc.enable()
    return taken


class Ours:
    """mmlsm at a path."""

    name = "mmlsm"

    def __init__(self, path: Path, entries: int) -> None:
        self.path = path
        self.db = mmlsm.open(path, durability="off")

    def fill(self, pairs: Pairs) -> None:
        for at in range(0, len(pairs), BATCH):
            with self.db.batch() as batch:
                put = batch.put
                for key, value in pairs[at : at + BATCH]:
                    put(key, value)

    def close(self) -> None:
        self.db.close()

    def get(self, keys: list[bytes]) -> None:
        get = self.db.get
        for key in keys:
            get(key)

    def scan(self) -> int:
        count = 0
        for _key, _value in self.db.items():
            count += 1
        return count

    def value(self, key: bytes) -> bytes | None:
        return self.db.get(key)

    def settle(self) -> None:
        """Merge everything and open anew, as a reader finds it."""
        self.db.compact()
        self.db.close()
        self.db = mmlsm.open(self.path)


class Theirs:
    """py-lmdb at a path, read through one transaction."""

    name = "py-lmdb"

    def __init__(self, path: Path, entries: int) -> None:
        self.env = lmdb.open(str(path), map_size=(64 << 20) + entries * 1024, subdir=False, sync=False)
        self.reading: lmdb.Transaction | None = None

    def fill(self, pairs: Pairs) -> None:
        for at in range(0, len(pairs), BATCH):
            with self.env.begin(write=True) as transaction:
                put = transaction.put
                for key, value in pairs[at : at + BATCH]:
                    put(key, value)

    def close(self) -> None:
        if self.reading is not None:
            self.reading.abort()
        self.env.sync(True)
        self.env.close()

    def get(self, keys: list[bytes]) -> None:
        assert self.reading is not None
        get = self.reading.get
        for key in keys:
            get(key)

    def scan(self) -> int:
        assert self.reading is not None
        count = 0
        for _key, _value in self.reading.cursor():
            count += 1
        return count

    def value(self, key: bytes) -> bytes | None:
        assert self.reading is not None
        found: bytes | None = self.reading.get(key)
        return found

    def settle(self) -> None:
        """Begin the transaction that all reads go through."""
        self.reading = self.env.begin()


def turns(rounds: int, work: Callable[[type[Ours] | type[Theirs]], float]) -> dict[str, list[float]]:
    """`work` for both sides in each round, the first to go changing from round to round."""
    taken: dict[str, list[float]] = {Ours.name: [], Theirs.name: []}
    for turn in range(rounds):
        for side in (Ours, Theirs) if turn % 2 else (Theirs, Ours):
            taken[side.name].append(work(side))
    return taken


def measured(entries: int, rounds: int, directory: Path) -> dict[str, Any]:
    pairs = random_pairs(entries)
    keys = [key for key, _ in random.Random(2).sample(pairs, min(entries, GETS_MOST))]
    closing: dict[str, list[float]] = {Ours.name: [], Theirs.name: []}
    settling: dict[str, float] = {}
    stores: dict[type, Ours | Theirs] = {}

    def path(side: type[Ours] | type[Theirs]) -> Path:
        return directory / side.name / "data"

    def fill(side: type[Ours] | type[Theirs]) -> float:
        shutil.rmtree(path(side).parent, ignore_errors=True)
        path(side).parent.mkdir()
        store = side(path(side), entries)
        taken = seconds(lambda: store.fill(pairs))
        closing[side.name].append(taken + seconds(store.close))
        return taken

    fills = turns(min(rounds, FILL_ROUNDS_MOST), fill)
    for side in (Ours, Theirs):
        stores[side] = store = side(path(side), entries)
        settling[side.name] = seconds(store.settle)
        assert store.scan() == entries, f"{side.name} has lost entries"
        assert all(store.value(key) == value for key, value in pairs[:: max(1, entries // 10_000)])
        store.get(keys)
    gets = turns(rounds, lambda side: seconds(lambda: stores[side].get(keys)))
    scans = turns(rounds, lambda side: seconds(stores[side].scan))
    for store in stores.values():
        store.close()
    return {
        "python": sys.version.split()[0],
        "compiled": mmlsm.memory.COMPILED,
        "entries": entries,
        "rounds": rounds,
        "compact_s": settling[Ours.name],
        "file_bytes": {side.name: path(side).stat().st_size for side in (Ours, Theirs)},
        "get": compared(gets, len(keys)),
        "scan": compared(scans, entries),
        "fill": compared(fills, entries),
        "fill_and_close": compared(closing, entries),
    }


def compared(taken: dict[str, list[float]], operations: int) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(taken[Ours.name], taken[Theirs.name], strict=True)]
    each = {f"{name}_ns": statistics.median(times) / operations * 1e9 for name, times in taken.items()}
    return {"ratio": statistics.median(ratios), "ratios": ratios, **each}


def printed(figures: dict[str, Any]) -> None:
    print(
        f"{figures['entries']:,} entries, {figures['rounds']} rounds, Python {figures['python']}, mmlsm "
        f"{'compiled' if figures['compiled'] else 'INTERPRETED: these figures say nothing about a usual installation'}"
    )
    print(f"{'':16}{'mmlsm':>12}{'py-lmdb':>12}   time, mmlsm / py-lmdb")
    for name in ("get", "scan", "fill", "fill_and_close"):
        row = figures[name]
        target = f"(aim: at most {TARGETS[name]})" if name in TARGETS else ""
        print(
            f"{name.replace('_', ' '):16}{row['mmlsm_ns']:>9,.0f} ns{row['py-lmdb_ns']:>9,.0f} ns"
            f"{row['ratio']:>9.2f}   from {min(row['ratios']):.2f} to {max(row['ratios']):.2f}   {target}"
        )
    sizes = figures["file_bytes"]
    print(
        f"file {sizes['mmlsm'] >> 20} MiB beside {sizes['py-lmdb'] >> 20} MiB; compact: {figures['compact_s']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--directory", type=Path, help="where the files go meanwhile (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        figures = measured(arguments.entries, arguments.rounds, Path(directory))
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        printed(figures)


if __name__ == "__main__":
    main()
