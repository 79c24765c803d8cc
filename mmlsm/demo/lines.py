"""The demo over a file of `key<TAB>value` lines: loaded in random order by several threads, asked while it loads, and
at the end compared with the file byte by byte.

Some narrow ranges of keys are watched: whoever writes a key of such a range also counts it, in the same batch, so in
every snapshot the range's keys add up to its counters.

I1. All bytes of the file are read once and kept once; lines are found by their offsets, 8 bytes each.
I2. The counters' keys begin with COUNTERS and are deleted before the database is closed: what stays is the file.
"""

from __future__ import annotations

import bisect
import io
import itertools
import lzma
import random
from array import array
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final

from mmlsm.demo.crew import Crew, Tally, expect

if TYPE_CHECKING:
    from mmlsm import Database
    from mmlsm.cli.output import Tell
    from mmlsm.read.reader import Reader

COUNTERS: Final = b"\0mmlsm demo/"
TOTAL: Final = Struct("<QQ")
RANGES: Final = 16
RANGE_LINES: Final = 2000
LISTED_MOST: Final = 500
CHUNK_BYTES: Final = 1 << 20

Sums = tuple[int, int]


class BadData(Exception):
    """The data file is not what the demo can load."""


class Source:
    """The lines of a file, in memory. `starts` are the offsets of the lines in order of their keys, each key once."""

    def __init__(self, path: Path, most: int | None, tell: Tell) -> None:
        self.data = read_whole(path, most, tell)
        self.starts = array("Q")
        self.repeated = 0
        self.longest = 0
        self._find_lines(path)

    def __len__(self) -> int:
        return len(self.starts)

    def _find_lines(self, path: Path) -> None:
        before = None
        ordered = True
        at = 0
        append = self.starts.append
        for number, line in enumerate(io.BytesIO(self.data), 1):
            tab = line.find(b"\t")
            if tab < 0:
                raise BadData(f"{path}, line {number}: no tab between a key and a value")
            if tab > 65535:
                raise BadData(f"{path}, line {number}: a key of {tab:,} bytes, at most 65,535 are possible")
            key = line[:tab]
            if key.startswith(COUNTERS):
                raise BadData(f"{path}, line {number}: keys that begin with {COUNTERS!r} are the demo's own")
            ordered = ordered and (before is None or before < key)
            before = key
            append(at)
            at += len(line)
        if not self.starts:
            raise BadData(f"{path} has no lines")
        if not ordered:
            self._sort()

    def _sort(self) -> None:
        """Into the order of keys; of lines with the same key the last counts."""
        starts, self.starts = self.starts, array("Q")
        before = None
        for start in sorted(starts, key=self.key):
            key = self.key(start)
            if key == before:
                self.starts[-1] = start
                self.repeated += 1
            else:
                self.starts.append(start)
            before = key

    def key(self, start: int) -> bytes:
        """The key of the line at an offset."""
        return self.data[start : self.data.index(b"\t", start)]

    def pair(self, start: int) -> tuple[bytes, bytes]:
        """Key and value of the line at an offset."""
        tab = self.data.index(b"\t", start)
        return self.data[start:tab], self.data[tab + 1 : self.data.index(b"\n", tab)]

    def rank(self, key: bytes) -> int:
        """How many lines have a lesser key."""
        return bisect.bisect_left(self.starts, key, key=self.key)


def read_whole(path: Path, most: int | None, tell: Tell) -> bytes:
    """All bytes of a file, unpacked where its name ends in .xz; the last line ended."""
    chunks: list[bytes] = []
    size = path.stat().st_size
    lines = 0
    with path.open("rb") as raw, lzma.open(raw) if path.suffix == ".xz" else raw as file:
        while chunk := file.read(CHUNK_BYTES):
            if most is not None:
                found = chunk.count(b"\n")
                if lines + found >= most:
                    chunks.append(b"".join(io.BytesIO(chunk).readlines()[: most - lines]))
                    break
                lines += found
            chunks.append(chunk)
            if raw.seekable():  # a pipe has no places
                tell(raw.tell(), size)
    if chunks and not chunks[-1].endswith(b"\n"):
        chunks.append(b"\n")
    return b"".join(chunks)


class Lines:
    """The work; see `crew.Work`."""

    unit = "lines"

    def __init__(self, source: Source, plan_seed: int, batch: int) -> None:
        self.source = source
        self.batch = batch
        self.total: int | None = len(source)
        self.order = array("Q", source.starts)
        dice = random.Random(plan_seed)
        dice.shuffle(self.order)
        self.committed: list[int] = []
        """Where in `order` each batch begins whose commit has returned."""
        self._turns = itertools.count(0, batch)
        self.bounds = self._choose_ranges(dice)

    def _choose_ranges(self, dice: random.Random) -> list[bytes]:
        """First key and end of each watched range, in order."""
        starts = self.source.starts
        slot = len(starts) // RANGES
        span = min(RANGE_LINES, slot // 2)
        bounds = []
        for i in range(RANGES if span else 0):
            first = i * slot + dice.randrange(slot - span)
            bounds += [self.source.key(starts[first]), self.source.key(starts[first + span])]
        return bounds

    # -- writers

    def write(self, database: Database, index: int, tally: Tally, crew: Crew) -> None:
        """Take the next lines of the order, a batch at a time, until there are none."""
        order, pair, bounds = self.order, self.source.pair, self.bounds
        bisect_right = bisect.bisect_right
        own = [(0, 0)] * (len(bounds) // 2)
        count = size = 0
        while not crew.stopped:
            at = next(self._turns)
            if at >= len(order):
                return
            with database.batch() as batch:
                put = batch.put
                touched = set()
                for start in order[at : at + self.batch]:
                    key, value = pair(start)
                    put(key, value)
                    count += 1
                    size += len(key) + len(value)
                    place = bisect_right(bounds, key)
                    if place & 1:
                        place >>= 1
                        before = own[place]
                        own[place] = (before[0] + 1, before[1] + len(key) + len(value))
                        touched.add(place)
                for place in touched:
                    put(COUNTERS + b"range/%04d/%d" % (place, index), TOTAL.pack(*own[place]))
                put(COUNTERS + b"writer/%d" % index, TOTAL.pack(count, size))
            self.committed.append(at)
            tally.entries = count
            tally.bytes = size
            tally.commits += 1

    def note(self) -> str:
        """Nothing to add."""
        return ""

    # -- readers

    def ask(self, database: Database, dice: random.Random, tally: Tally) -> None:
        """One of the questions, to a new snapshot."""
        if not self.committed:
            return
        at = dice.choice(self.committed)
        start = self.order[dice.randrange(at, min(at + self.batch, len(self.order)))]
        with database.snapshot() as snapshot:
            chance = dice.random()
            if chance < 0.05 and self.bounds:
                self.ask_range(snapshot, dice.randrange(len(self.bounds) // 2), tally)
            elif chance < 0.3:
                self.ask_listing(snapshot, self.source.key(start), tally)
            else:
                self.ask_neighbours(snapshot, self.source.pair(start), tally)

    def ask_range(self, snapshot: Reader, place: int, tally: Tally) -> None:
        """A watched range must add up to its counters."""
        found = sums_of(snapshot.items(self.bounds[2 * place], self.bounds[2 * place + 1]))
        tally.entries += found[0]
        expect(f"watched range {place}", found, counters_of(snapshot, b"range/%04d/" % place))
        tally.checks["a watched range is the sum of its counters"] += 1

    def ask_listing(self, snapshot: Reader, key: bytes, tally: Tally) -> None:
        """The keys of a folder: in order, the asked one among them, and every pair a line of the source."""
        prefix = key[: key.rfind(b"/") + 1]
        source = self.source
        rank = source.rank(max(prefix, key[: len(prefix)]))
        seen = last = b""
        for found, value in snapshot.items(prefix=prefix, limit=LISTED_MOST):
            while rank < len(source) and source.key(source.starts[rank]) < found:
                rank += 1
            expect(f"listing of {prefix!r}", (found, value), source.pair(source.starts[rank]))
            last = found
            seen = found if found == key else seen
            tally.entries += 1
        if key <= last:
            expect(f"listing of {prefix!r}", seen, key)
        tally.checks["a folder's listing is what the source says"] += 1

    def ask_neighbours(self, snapshot: Reader, pair: tuple[bytes, bytes], tally: Tally) -> None:
        """get, floor, ceiling, and that the one after the one before is the one itself."""
        key = pair[0]
        expect(f"get {key!r}", snapshot.get(key), pair[1])
        expect(f"floor {key!r}", snapshot.floor(key), pair)
        expect(f"ceiling {key!r}", snapshot.ceiling(key), pair)
        higher = snapshot.higher(key)
        if higher is not None:
            expect(f"lower {higher[0]!r}", snapshot.lower(higher[0]), pair)
        expect(f"an absent key after {key!r}", snapshot.get(key + b"\0\t"), None)
        tally.entries += 5
        tally.checks["get, floor, ceiling, lower and higher agree"] += 1

    def sweep(self, database: Database, tally: Tally) -> None:
        """All entries must add up to the writers' totals."""
        with database.snapshot() as snapshot:
            low = sums_of(snapshot.items(stop=COUNTERS))
            high = sums_of(snapshot.items(start=COUNTERS + b"\xff"))
            found = (low[0] + high[0], low[1] + high[1])
            tally.entries += found[0]
            expect("all entries", found, counters_of(snapshot, b"writer/"))
        tally.checks["a whole snapshot adds up"] += 1

    # -- at the end

    def finish(self, database: Database) -> None:
        """Delete the counters, so that the database holds the lines and nothing else."""
        with database.batch() as batch:
            for key in database.keys(prefix=COUNTERS):
                batch.delete(key)

    def prove(self, database: Database, tell: Tell) -> list[tuple[str, str]]:
        """The database and the source, walked side by side, must be the same."""
        source = self.source
        pairs = iter(database.items())
        count = 0
        for start in source.starts:
            if next(pairs, None) != source.pair(start):
                expect(f"entry {count:,}", next(database.items(start=source.key(start), limit=1).__iter__(), None),
                       source.pair(start))
                expect(f"entry {count:,}", "another in a full scan", "the same as by its key")
            count += 1
            if count & 4095 == 0:
                tell(count, len(source))
        expect("entries after the last", next(pairs, None), None)
        dice = random.Random(count)
        for _ in range(min(count, 100_000)):
            key, value = source.pair(dice.choice(source.starts))
            expect(f"get {key!r}", database.get(key), value)
        expect("len", len(database), count)
        return [
            ("every line is there, and nothing else", f"{count:,} keys and values compared"),
            ("random keys are found", f"{min(count, 100_000):,} gets"),
        ]


def sums_of(pairs: object) -> Sums:
    """How many pairs, and the bytes of their keys and values."""
    count = size = 0
    for key, value in pairs:  # type: ignore[attr-defined]
        count += 1
        size += len(key) + len(value)
    return count, size


def counters_of(reader: Reader, name: bytes) -> Sums:
    """The sum of the counters whose names begin so."""
    count = size = 0
    for value in reader.values(prefix=COUNTERS + name):
        lines, bytes_ = TOTAL.unpack(value)
        count += lines
        size += bytes_
    return count, size
