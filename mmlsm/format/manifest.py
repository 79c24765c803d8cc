"""The manifest: one version on disk, with its free space and its retirements (docs/format.md, "Manifest").

    header 32 | section | section | ...      section: u16 tag | u16 0 | u32 0 | u64 length | payload, padded to 8

Written copy-on-write at each install and named by the superblock. Everything here is an immutable value; any thread.

I1. `decode` is total: any bytes give a Manifest, a CorruptionError or a FormatError, at a cost within their length.
I2. What `encode` accepts `decode` gives back equal: both hold the value to `Manifest.fault`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.page import CODEC_RAW, KIND_MANIFEST

REFERENCE: Final = struct.Struct("<QIIQ")


class Reference(NamedTuple):
    """An extent named from elsewhere, with the sum that its content must have (R3). `length` in bytes; 24 bytes packed.

    A NamedTuple, because memtables make and hold many. `pages` 0 is "nothing there".
    """

    length: int
    page: int
    pages: int
    sum: int

    def pack(self) -> bytes:
        """The 24 bytes: u64 length, u32 page, u32 pages, u64 sum."""
        return REFERENCE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """The reference in the 24 bytes at `offset`, which the caller knows to be there; any bytes are one."""
        return cls._make(REFERENCE.unpack_from(data, offset))

    def plausible(self) -> bool:
        """Whether the extent is clear of the header, inside the largest file, and holds `length` bytes."""
        return (
            limits.HEADER_PAGES <= self.page
            and 0 < self.pages <= limits.FILE_PAGES_MAX - self.page
            and self.length <= self.pages * limits.PAGE_BYTES
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """What a version knows of one segment."""

    id: int
    installed: int
    """The install number that made it live."""
    root_page: int
    root_pages: int
    root_sum: int
    height: int
    entries: int
    tombstones: int
    data_bytes: int
    pages: int
    """All the pages it owns: leaves, parents, overflow extents, filter."""
    leaf_pages: int
    first_key: bytes
    last_key: bytes
    seq_low: int
    seq_high: int
    filter: Reference | None = None
    overflow: bool = False
    """Some entry refers to an overflow extent."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """Extents (first, count) that versions born <= v < died may read (R11)."""

    born: int
    died: int
    extents: tuple[tuple[int, int], ...]

    @property
    def pages(self) -> int:
        """Pages of all its extents."""
        return sum(count for _, count in self.extents)


Run = tuple[SegmentRecord, ...]
"""Segments with disjoint key ranges, in key order."""

Level = tuple[Run, ...]
"""Runs, newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One installed version."""

    install: int
    uuid: bytes
    levels: tuple[Level, ...] = ()
    """Newest first."""
    bitmap: tuple[tuple[int, int], ...] = ()
    """Page number and sum of each page of the free-space bitmap, in order."""
    retired: tuple[Retirement, ...] = ()
    next_segment_id: int = 1
    file_pages: int = limits.HEADER_PAGES
    live_bytes: int = 0
    rotation: tuple[bytes, ...] = ()
    """For each level the key from which its next slice is picked; fewer than levels when nothing was picked yet."""

    def segments(self) -> Iterator[SegmentRecord]:
        """Every segment, newest level and run first."""
        for level in self.levels:
            for run in level:
                yield from run
