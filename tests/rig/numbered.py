"""Numbered commits: what each one writes is a function of its number, so that a crash leaves a state that can be told.

Commit n sets the counter to n and makes a batch that is a function of n. Numbers are given out inside write
transactions, so commit n follows n - 1 in the one order of commits, and the state after k of them is known without
whoever made them. `History` judges what a crash left.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import mmlsm
import proof
from mmlsm.limits import CHUNK_BYTES, LARGE_VALUE_BYTES
from mmlsm.settings import DURABILITIES, Settings

COUNTER = b"counter"
THREADS = 3
"""So many commit at once, so that many may be there of which nobody has spoken."""


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
        batch[b"large"] = bytes([number % 251]) * (LARGE_VALUE_BYTES + number % 5000)
    return batch


def write(transaction: Any, number: int) -> None:
    """Put what commit `number` writes into the transaction; most large values as streams, which go to extents."""
    transaction.put(COUNTER, b"%d" % number)
    for key, value in batch_of(number).items():
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, io.BytesIO(value) if len(value) >= CHUNK_BYTES and number % 4 else value)


class Replayed:
    """The state after any number of commits, counted on from the last that was asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.pairs: dict[bytes, bytes] = {}

    def at(self, count: int) -> dict[bytes, bytes]:
        """All pairs after `count` commits, but for the counter."""
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
        found = {key: value for key, value in db.items() if key != COUNTER}
        wrong = [key for key in found.keys() | want.keys() if found.get(key) != want.get(key)]
        assert not wrong, f"not the state after {count} commits: {len(wrong)} keys differ, among them {wrong[0]!r}"


class History:
    """What is known of one file over all its lives: what it must hold, and which seqs were given."""

    def __init__(self) -> None:
        self.count = 0
        """Commits that were there when it was last looked at: no later crash may take them."""
        self.promised = 0
        """Commits that are there whatever happens."""
        self.attempted = 0
        """Commits of which somebody may have tried to make the last."""
        self.seq = 0
        """The highest seq that any life gave."""
        self.named = False
        """Whether the file's name must be there."""
        self._replayed = Replayed()

    def hear(self, lines: list[str]) -> None:
        """Take in what one life said (tests/rig/kills/life.py): promises, and the seqs that it gave."""
        gave: dict[int, int] = {}
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "done":
                self.promised = max(self.promised, int(rest))
            elif word == "gave":
                number, seq = map(int, rest.split())
                assert number not in gave, f"commit {number} was made twice"
                gave[number] = seq
            elif word == "ready":
                self.named = True
        self.attempted = max([self.count, *gave]) + THREADS
        seqs = [gave[number] for number in sorted(gave)]
        assert seqs == sorted(set(seqs)), f"seqs do not ascend with the commits: {seqs}"
        if seqs:
            assert seqs[0] > self.seq, f"seq {seqs[0]} is given again: an earlier life gave {self.seq}"
            self.seq = seqs[-1]

    def check(self, path: Path) -> None:
        """After a crash: the file is sound, and holds exactly the first k commits, for a k that was promised."""
        if not self.named and (not path.exists() or not path.read_bytes().strip(b"\0")):
            assert self.promised == 0
            return
        assert path.exists(), "it was opened for writing, and its name is gone"
        proof.prove_file(path)
        with mmlsm.open(path, readonly=True) as db:
            count = int(db.get(COUNTER, b"0"))
            assert count >= self.promised, f"{self.promised} commits were promised, {count} are there"
            assert count <= self.attempted, f"{self.attempted} commits were attempted, {count} are there"
            self._replayed.check(db, count)
        self.count = self.promised = count

    def go_on(self, path: Path, rng: random.Random, settings: dict[str, Any]) -> None:
        """Open the file under debug, prove it, commit once more, close, and look again."""
        with mmlsm.Database(path, Settings(debug=True, **settings)) as db:
            self.named = True
            proof.prove(db)
            self._replayed.check(db, self.count)
            with db.begin(write=True) as transaction:
                write(transaction, self.count + 1)
                seq = transaction.commit(durability=rng.choice(DURABILITIES))
        self.hear([f"gave {self.count + 1} {seq}", f"done {self.count + 1}"])
        self.check(path)
