"""The demo over a tree of files: crawler threads index every file, readers ask the index while it grows.

    f/<path>    size, mtime and mode of a file                         "<QqI": bytes, ns, st_mode
    t/<folder>  how many files stand right in a folder, their bytes    "<QQ"
    w/<n>       how many files crawler n has written, their bytes      "<QQ"

I1. A folder's files, its total and the crawler's own total go into one atomic batch, so in every snapshot each folder
    adds up, each subtree does, and the whole does.
"""

from __future__ import annotations

import queue
import random
import stat
import threading
import time
from collections import deque
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final

import xxhash

from mmlsm.demo.crew import Crew, Tally, expect

if TYPE_CHECKING:
    from mmlsm import Database
    from mmlsm.cli.output import Tell
    from mmlsm.read.reader import Reader

FACTS: Final = Struct("<QqI")
TOTAL: Final = Struct("<QQ")
COMMIT_EVERY_S: Final = 0.1
HELD_S: Final = 1.0
HASH_MASK: Final = (1 << 64) - 1

Pair = tuple[bytes, bytes]
Sums = tuple[int, int]
Held = tuple[float, "Reader", Sums, bytes, list[Pair]]
"""When, the snapshot, its totals, a folder, and its listing."""


def without_nested(roots: tuple[Path, ...]) -> list[Path]:
    """The roots, resolved, without those that lie inside another."""
    resolved = sorted({root.resolve() for root in roots})
    return [root for root in resolved if not any(other in root.parents for other in resolved)]


def total_of(reader: Reader, prefix: bytes) -> Sums:
    """The sum of the totals whose keys begin with `prefix`."""
    count = size = 0
    for value in reader.values(prefix=prefix):
        files, bytes_ = TOTAL.unpack(value)
        count += files
        size += bytes_
    return count, size


def files_below(reader: Reader, prefix: bytes, tally: Tally) -> Sums:
    """How many files there are whose keys begin with `prefix`, and their bytes."""
    count = size = 0
    for value in reader.values(prefix=prefix):
        count += 1
        size += FACTS.unpack(value)[0]
    tally.entries += count
    return count, size


def listing(reader: Reader, folder: bytes) -> list[Pair]:
    """The files right in `folder`: a cursor that leaps over each folder in it."""
    prefix = b"f/" + folder.rstrip(b"/") + b"/"
    found = []
    with reader.cursor() as cursor:
        going = cursor.seek(prefix)
        while going:
            key = cursor.key
            if not key.startswith(prefix):
                break
            inner = key.find(b"/", len(prefix))
            if inner < 0:
                found.append((key, cursor.value))
                going = cursor.next()
            else:
                going = cursor.seek(key[:inner] + b"0")  # the byte after "/"
    return found


class Crawl:
    """The work; see `crew.Work`."""

    unit = "files"

    def __init__(self, roots: tuple[Path, ...], most: int | None, batch: int) -> None:
        self.total = most
        self.batch = batch
        self.folders: queue.Queue[Path] = queue.Queue()
        self.finished: list[tuple[bytes, int, int]] = []
        """(folder, files, bytes) of every folder whose commit has returned."""
        self.unreadable = 0
        self.hashes: dict[int, int] = {}
        self._left = most
        self._lock = threading.Lock()
        self._held: deque[Held] = deque()
        for root in without_nested(roots):
            self.folders.put(root)

    # -- crawlers

    def write(self, database: Database, index: int, tally: Tally, crew: Crew) -> None:
        """Take folders and index what stands in them, until there are none."""
        pending: list[tuple[bytes, list[tuple[bytes, int, bytes]]]] = []
        total: Sums = (0, 0)
        waiting = 0
        self.hashes[index] = 0
        committed = time.monotonic()
        while not crew.stopped:
            try:
                folder = self.folders.get(timeout=0.02)
            except queue.Empty:
                folder = None
            if folder is not None and self._left != 0:
                files = self.look(folder)
                waiting += len(files)
                pending.append((bytes(folder), files))
            if pending and (waiting >= self.batch or time.monotonic() - committed > COMMIT_EVERY_S or folder is None):
                total = self.commit(database, index, pending, total, tally)
                pending, waiting, committed = [], 0, time.monotonic()
            if folder is not None:
                self.folders.task_done()
            elif not self.folders.unfinished_tasks:
                return

    def look(self, folder: Path) -> list[tuple[bytes, int, bytes]]:
        """(path, size, facts) of the files in a folder; its folders go into the queue."""
        files = []
        try:
            children = list(folder.iterdir())
        except OSError:
            self.unreadable += 1
            return []
        for child in children:
            try:
                facts = child.lstat()
            except OSError:
                self.unreadable += 1
                continue
            if stat.S_ISDIR(facts.st_mode):
                self.folders.put(child)
            else:
                files.append((bytes(child), facts.st_size, FACTS.pack(facts.st_size, facts.st_mtime_ns, facts.st_mode)))
        if self._left is not None:
            with self._lock:
                del files[self._left :]
                self._left -= len(files)
        return files

    def commit(
        self,
        database: Database,
        index: int,
        pending: list[tuple[bytes, list[tuple[bytes, int, bytes]]]],
        total: Sums,
        tally: Tally,
    ) -> Sums:
        """Write whole folders, their totals and this crawler's (I1); the new total."""
        finished = []
        hashed = 0
        written = 0
        count, size = total
        with database.batch() as batch:
            for folder, files in pending:
                in_folder = sum(entry[1] for entry in files)
                for path, _, facts in files:
                    key = b"f/" + path
                    batch.put(key, facts)
                    hashed += xxhash.xxh3_64_intdigest(key + facts)
                    written += len(key) + len(facts)
                batch.put(b"t/" + folder, TOTAL.pack(len(files), in_folder))
                count += len(files)
                size += in_folder
                finished.append((folder, len(files), in_folder))
            batch.put(b"w/%d" % index, TOTAL.pack(count, size))
        self.finished += finished
        self.hashes[index] = (self.hashes[index] + hashed) & HASH_MASK
        tally.entries = count
        tally.bytes += written
        tally.commits += 1
        return count, size

    def note(self) -> str:
        """What still waits."""
        return f"{self.folders.qsize():,} folders wait"

    # -- readers

    def ask(self, database: Database, dice: random.Random, tally: Tally) -> None:
        """One of the questions, to a new snapshot."""
        if not self.finished:
            return
        held = self.take_held()
        if held is not None:
            self.look_again(held, tally)
            return
        folder, files, size = dice.choice(self.finished)
        with database.snapshot() as snapshot:
            if dice.random() < 0.2:
                self.ask_subtree(snapshot, folder, dice, tally)
            else:
                found = listing(snapshot, folder)
                tally.entries += len(found)
                self.ask_folder(found, folder, files, size)
                expect(f"total of {folder!r}", snapshot.get(b"t/" + folder), TOTAL.pack(files, size))
                tally.checks["a folder's files are its total"] += 1
                if found:
                    self.ask_neighbours(snapshot, dice.choice(found), tally)

    def ask_folder(self, found: list[Pair], folder: bytes, files: int, size: int) -> None:
        """The listing of a folder must be what its crawler wrote."""
        expect(f"files in {folder!r}", len(found), files)
        expect(f"bytes in {folder!r}", sum(FACTS.unpack(value)[0] for _, value in found), size)

    def ask_neighbours(self, snapshot: Reader, pair: Pair, tally: Tally) -> None:
        """get, floor, ceiling, and that the one after the one before is the one itself."""
        key = pair[0]
        expect(f"get {key!r}", snapshot.get(key), pair[1])
        expect(f"floor {key!r}", snapshot.floor(key), pair)
        expect(f"ceiling {key!r}", snapshot.ceiling(key), pair)
        higher, lower = snapshot.higher(key), snapshot.lower(key)
        if higher is not None:
            expect(f"lower {higher[0]!r}", snapshot.lower(higher[0]), pair)
        if lower is not None:
            expect(f"higher {lower[0]!r}", snapshot.higher(lower[0]), pair)
        expect(f"an absent key after {key!r}", snapshot.get(key + b"\0"), None)
        tally.entries += 7
        tally.checks["floor, ceiling, lower and higher agree"] += 1

    def ask_subtree(self, snapshot: Reader, folder: bytes, dice: random.Random, tally: Tally) -> None:
        """All files below a folder must add up to the totals of the folders below it."""
        parts = folder.split(b"/")
        top = b"/".join(parts[: max(4, len(parts) - dice.randrange(3))])
        count, size = total_of(snapshot, b"t/" + top + b"/")
        own = snapshot.get(b"t/" + top)
        files, bytes_ = TOTAL.unpack(own) if own is not None else (0, 0)
        found = files_below(snapshot, b"f/" + top + b"/", tally)
        expect(f"files below {top!r}", found, (count + files, size + bytes_))
        tally.checks["a subtree is the sum of its folders"] += 1

    def sweep(self, database: Database, tally: Tally) -> None:
        """All files must add up to the crawlers' totals; a snapshot is put by for a second look."""
        snapshot = database.snapshot()
        sums = files_below(snapshot, b"f/", tally)
        expect("all files", sums, total_of(snapshot, b"w/"))
        expect("all folders", total_of(snapshot, b"t/"), sums)
        tally.checks["a whole snapshot adds up"] += 1
        if len(self._held) < 4 and self.finished:
            folder = self.finished[-1][0]
            self._held.append((time.monotonic(), snapshot, sums, folder, listing(snapshot, folder)))

    def take_held(self) -> Held | None:
        """A snapshot that was held for long enough, if there is one."""
        try:
            held = self._held.popleft()
        except IndexError:
            return None
        if time.monotonic() - held[0] > HELD_S:
            return held
        self._held.appendleft(held)
        return None

    def look_again(self, held: Held, tally: Tally) -> None:
        """A snapshot that was held while the crawlers went on must be what it was."""
        _, snapshot, sums, folder, found = held
        expect("a held snapshot's crawlers", total_of(snapshot, b"w/"), sums)
        expect("a held snapshot's folders", total_of(snapshot, b"t/"), sums)
        expect(f"a held snapshot's {folder!r}", listing(snapshot, folder), found)
        tally.entries += len(found)
        tally.checks["a held snapshot stays as it was"] += 1

    # -- at the end

    def finish(self, database: Database) -> None:
        """Let the held snapshots go."""
        self._held.clear()

    def prove(self, database: Database, tell: Tell) -> list[tuple[str, str]]:
        """Every file that was indexed is there, as it was written, and nothing else."""
        count = size = hashed = 0
        expected = (sum(files for _, files, _ in self.finished), sum(bytes_ for _, _, bytes_ in self.finished))
        for key, value in database.items(prefix=b"f/"):
            count += 1
            size += FACTS.unpack(value)[0]
            hashed += xxhash.xxh3_64_intdigest(key + value)
            if count & 1023 == 0:
                tell(count, expected[0])
        expect("indexed files", (count, size), expected)
        expect("hash of all entries", hashed & HASH_MASK, sum(self.hashes.values()) & HASH_MASK)
        expect("crawlers' totals", total_of(database, b"w/"), expected)
        for folder, files, bytes_ in self.finished:
            expect(f"total of {folder!r}", database.get(b"t/" + folder), TOTAL.pack(files, bytes_))
        expect("number of folders", database.count(prefix=b"t/"), len(self.finished))
        return [
            ("every indexed file is there, as it was written", f"{count:,} files"),
            ("every folder's total is there", f"{len(self.finished):,} folders"),
        ]
