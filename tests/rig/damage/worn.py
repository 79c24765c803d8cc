"""A sound file with all that there can be in one, to be damaged: whose each page is, and what each sum covers."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import mmlsm
from mmlsm.cli.pages_by_owner import Stretch, layout_of, nodes_of, walk
from mmlsm.format.manifest import Manifest, Reference
from mmlsm.format.superblock import Superblock
from mmlsm.limits import CHUNK_BYTES, PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.log_record import LINK_BYTES
from mmlsm.write.log_scan import scan_log
from mmlsm.write.recovery import Root

State = dict[bytes, bytes]

LENGTHS = (0, 5, 40, 700, 3000, 70_000)
"""Of values: some inline, some in an extent of one chunk, some in one of two."""


class Summed(NamedTuple):
    """Bytes of the file that one sum covers, or are one."""

    kind: str
    start: int
    stop: int


@dataclass
class Original:
    """What a sound file holds: `want`, its pairs. It lies at `path` in whatever state a test has put it into last."""

    path: Path
    image: bytes
    want: State
    stretches: list[Stretch]
    root: Root

    @property
    def superblock(self) -> Superblock:
        return self.root.superblock

    @property
    def manifest(self) -> Manifest:
        return self.root.manifest

    def extents(self, kind: str) -> list[tuple[int, int]]:
        """(first page, pages) of the stretches of one kind."""
        return [(first, count) for owner, first, count in self.stretches if owner.kind == kind]

    def pages(self, kind: str) -> list[int]:
        """The pages of one kind."""
        return [first + i for first, count in self.extents(kind) for i in range(count)]

    def damaged(self, *changes: tuple[int, bytes]) -> Path:
        """The file with these bytes put in at these places."""
        image = bytearray(self.image)
        for at, data in changes:
            image[at : at + len(data)] = data
        self.path.write_bytes(image)
        return self.path

    def flipped(self, at: int, mask: int = 0x40) -> Path:
        """The file with bits of one byte turned."""
        return self.damaged((at, bytes([self.image[at] ^ mask])))

    def without(self, *numbers: int) -> Path:
        """The file with these pages zeroed."""
        return self.damaged(*((number * PAGE_BYTES, bytes(PAGE_BYTES)) for number in numbers))

    @cached_property
    def summed(self) -> list[Summed]:
        """Everything in use that is under a sum."""
        found = [Summed("superblock", slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES) for slot in (0, 1)]
        start = self.superblock.manifest.page * PAGE_BYTES
        found.append(Summed("manifest", start, start + self.superblock.manifest.length))
        found += [Summed("bitmap", page * PAGE_BYTES, (page + 1) * PAGE_BYTES) for page, _ in self.manifest.bitmap]
        self.path.write_bytes(self.image)
        with mmlsm.open(self.path, readonly=True) as reader:
            file = reader._engine.file
            for record in self.manifest.segments():
                if record.filter is not None:
                    found += summed_extent("filter", record.filter)
                for page, pages, height, references in nodes_of(file, record, print):
                    kind = "parent" if height else "leaf"
                    found.append(Summed(kind, page * PAGE_BYTES, (page + pages) * PAGE_BYTES))
                    for reference in references:
                        found += summed_extent("overflow", reference)
            at = self.superblock.log
            for commit in scan_log(file, at, None):
                if commit.position.page != at.page:
                    found.append(Summed("log", at.offset, at.offset + LINK_BYTES))
                    at = commit.position._replace(offset=commit.position.page * PAGE_BYTES)
                found.append(Summed("log", at.offset, commit.position.offset))
                at = commit.position
                for _, value in commit.items:
                    if isinstance(value, Reference):
                        found += summed_extent("log value", value)
        return found


def summed_extent(kind: str, reference: Reference) -> Iterator[Summed]:
    """The payload of an overflow extent, and its sums."""
    start = reference.page * PAGE_BYTES
    yield Summed(kind, start, start + reference.length)
    if reference.length > CHUNK_BYTES:
        sums = start + (reference.length + 7) // 8 * 8
        yield Summed(kind, sums, sums + 8 * -(-reference.length // CHUNK_BYTES))


def worn(path: Path, *, seed: int = 1, rounds: int = 4, tidy: bool = False) -> Original:
    """A database of `rounds` runs, the newer of which overwrite and delete what the older have; the log has a few more.

    `tidy`: all in one run, closed, no log, so that nothing older lies below anything.
    """
    chance = random.Random(seed)
    want: State = {}
    settings = Settings(leaf_bytes=4096, node_entries_max=6, durability="off", auto_merge=False)
    database = mmlsm.Database(path, settings)
    for turn in range(rounds + 1):
        for _ in range(60 if turn < rounds else 12):
            key = b"%03d" % chance.randrange(150)
            if chance.random() < 0.03:
                key += b"k" * chance.choice([600, 5000])
            if chance.random() < 0.25:
                database.delete(key)
                want.pop(key, None)
            else:
                want[key] = chance.randbytes(chance.choices(LENGTHS, [2, 20, 20, 3, 1, 1])[0])
                database.put(key, want[key])
        if turn < rounds:
            database._engine.flush()
    want[b"075"] = chance.randbytes(70_000)
    database.put(b"075", io.BytesIO(want[b"075"]))
    if tidy:
        database.compact()
        database.close()
    else:
        database.sync()
    copy = path.with_suffix(".damaged")
    shutil.copy(path, copy)
    database.close()
    with mmlsm.open(copy, readonly=True) as reader:
        assert dict(reader.items()) == want
        stretches = walk(layout_of(reader._engine)).stretches
        return Original(copy, copy.read_bytes(), want, stretches, reader._engine.root)
