"""The program that tests/stress/test_kill.py kills, and what it commits, which both of them know.

Commit number n is the same whoever makes it and whenever: it sets the counter to n, and a batch that is a function of
n. Numbers are given out inside write transactions, so commit n follows n - 1 in the one order of commits.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from typing import Any

import mmlsm
from mmlsm.settings import Settings

COUNTER = b"counter"
OPENED = b"opened"
THREADS = 3


def batch_of(number: int) -> dict[bytes, bytes | None]:
    """What commit `number` writes, beside the counter; None deletes."""
    rng = random.Random(number)
    batch: dict[bytes, bytes | None] = {}
    for _ in range(rng.choice([1, 2, 5, 20])):
        key = b"key %03d" % rng.randrange(400)
        if rng.random() < 0.05:
            key = key * 100
        kind = rng.random()
        if kind < 0.2:
            batch[key] = None
        elif kind < 0.97:
            batch[key] = bytes([number % 256]) * rng.randrange(120)
        else:
            batch[key] = bytes([number % 256]) * rng.choice([3000, 20_000, 70_000])
    if number % 97 == 0:
        batch[b"large"] = bytes([number % 251]) * (1 << 20)
    return batch


class Replayed:
    """The state after any number of commits, counted on from the last that was asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.pairs: dict[bytes, bytes] = {}

    def at(self, count: int) -> dict[bytes, bytes]:
        if count < self.count:
            self.count, self.pairs = 0, {}
        while self.count < count:
            self.count += 1
            for key, value in batch_of(self.count).items():
                if value is None:
                    self.pairs.pop(key, None)
                else:
                    self.pairs[key] = value
        return self.pairs

    def check(self, db: Any, count: int) -> None:
        """The database is in the state after `count` commits, to the byte."""
        want = self.at(count)
        assert int(db.get(COUNTER, b"0")) == count
        found = {key: value for key, value in db.items() if key not in (COUNTER, OPENED)}
        wrong = [key for key in found.keys() | want.keys() if found.get(key) != want.get(key)]
        assert not wrong, f"not the state after {count} commits: {len(wrong)} keys differ, among them {wrong[0]!r}"

    def commit(self, db: Any, number: int, durability: str) -> None:
        """Make commit `number`."""
        with db.begin(write=True) as transaction:
            write(transaction, number)
            transaction.commit(durability=durability)


def write(transaction: Any, number: int) -> None:
    transaction.put(COUNTER, b"%d" % number)
    for key, value in batch_of(number).items():
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def commit_for_ever(db: Any, durability: str, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        with db.begin(write=True) as transaction:
            number = int(transaction.get(COUNTER, b"0")) + 1
            write(transaction, number)
            transaction.commit()
        if durability != "off":
            say(f"done {number}")
        elif rng.random() < 0.05:
            number = int(db.get(COUNTER))
            db.sync()
            say(f"done {number}")
        if rng.random() < 0.01:
            db.compact()


def main() -> None:
    what, path, durability, expected, seed = sys.argv[1:]
    sys.setswitchinterval(1e-4)
    say("opening")
    db = mmlsm.Database(
        path,
        Settings(
            durability=durability,  # type: ignore[arg-type]
            memtable_bytes=8192,
            leaf_bytes=4096,
            node_entries_max=8,
            log_extent_bytes=1 << 16,
            group_interval=0.005,
        ),
    )
    if what == "open":
        db[OPENED] = b""
        del db[OPENED]
        say("ready")
        return
    if what == "fork":
        db[b"before"] = b"the fork"
        say("ready")
        if not os.fork():  # it has given up what is its parent's by the time that it speaks
            say(str(os.getpid()))
        threading.Event().wait(60)
    assert int(db.get(COUNTER, b"0")) == int(expected)
    say("ready")
    threads = [
        threading.Thread(target=commit_for_ever, args=(db, durability, int(seed) * 10 + i)) for i in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
