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
from typing import Any, Final, NamedTuple, Self

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.page import CODEC_RAW, KIND_MANIFEST

REFERENCE: Final = struct.Struct("<QIIQ")
HEADER: Final = struct.Struct("<BBHIQQQ")
SECTION: Final = struct.Struct("<HHIQ")
GENERAL: Final = struct.Struct("<16s4Q")
COUNT: Final = struct.Struct("<I")
RECORD: Final = struct.Struct("<9QI6H")
BITMAP_PAGE: Final = struct.Struct("<IIQ")
RETIREMENT: Final = struct.Struct("<QQII")
EXTENT: Final = struct.Struct("<II")

TAG_GENERAL: Final = 1
TAG_LEVELS: Final = 2
TAG_BITMAP: Final = 3
TAG_RETIRED: Final = 4
TAG_OPTIONAL: Final = 0x8000
TAG_ROTATION: Final = TAG_OPTIONAL | 1
RESERVED_TAGS: Final = {5: "named snapshots", 6: "namespaces", 7: "range tombstones", 8: "authentication"}
"""What the next tags are kept for; this version refuses them."""

FLAG_OVERFLOW: Final = 1
FLAG_FILTER: Final = 2

BITMAP_PAGE_BITS: Final = limits.PAGE_BYTES * 8
NODE_PAGES_MAX: Final = limits.LEAF_BYTES_MAX // limits.PAGE_BYTES


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
            self.page >= limits.HEADER_PAGES
            and 0 < self.pages <= limits.FILE_PAGES_MAX - self.page
            and self.length <= self.pages * limits.PAGE_BYTES
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """What a version knows of one segment."""

    id: int
    installed: int
    """The install number that made it live; where it refers to overflow extents that were there before it, the first
    install that could see one of them."""
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

    def fault(self) -> str | None:
        """What cannot be, or None."""
        if not (1 <= self.root_pages <= NODE_PAGES_MAX and 1 <= self.leaf_pages <= NODE_PAGES_MAX):
            return "node size out of range"
        if self.height > limits.HEIGHT_MAX:
            return "height out of range"
        counts = (self.id, self.entries, self.data_bytes, self.pages, self.seq_high)
        if max(counts) > limits.NUMBER_MAX or min(*counts, self.tombstones) < 0:
            return "a number is out of range"
        if self.tombstones > self.entries:
            return "more tombstones than entries"
        if self.first_key > self.last_key or self.seq_low > self.seq_high:
            return "range out of order"
        if self.filter is not None and not self.filter.plausible():
            return "filter out of range"
        return None


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
    """Pages of the file that the bitmap tells of; the file itself may have become longer, or its free tail be gone."""
    live_bytes: int = 0
    """Bytes of keys and values in all its segments."""
    rotation: tuple[bytes, ...] = ()
    """For each level the key from which its next slice is picked; fewer than levels when nothing was picked yet."""

    def segments(self) -> Iterator[SegmentRecord]:
        """Every segment, newest level and run first."""
        for level in self.levels:
            for run in level:
                yield from run

    def fault(self) -> str | None:
        """What cannot be, or None. Cost: one look at each segment and retired extent."""
        if not limits.HEADER_PAGES <= self.file_pages <= limits.FILE_PAGES_MAX:
            return "the file's size is out of range"
        if max(self.install, self.next_segment_id, self.live_bytes) > limits.NUMBER_MAX:
            return "a number is out of range"
        if sum(record.data_bytes + record.entries for record in self.segments()) > limits.NUMBER_MAX:
            return "its segments are too large"
        if len(self.rotation) > len(self.levels):
            return "more rotation keys than levels"
        if self.bitmap and len(self.bitmap) != -(-self.file_pages // BITMAP_PAGE_BITS):
            return "the bitmap's pages do not fit the file's size"
        if any(not limits.HEADER_PAGES <= page < self.file_pages for page, _ in self.bitmap):
            return "a bitmap page is out of range"
        return self._levels_fault() or self._retired_fault()

    def _levels_fault(self) -> str | None:
        ids: set[int] = set()
        for level in self.levels:
            for run in level:
                last_key = None
                for record in run:
                    fault = record.fault()
                    if fault is not None:
                        return f"segment {record.id}: {fault}"
                    if record.id in ids or record.id >= self.next_segment_id or record.installed > self.install:
                        return f"segment {record.id}: its id or install number cannot be"
                    if not limits.HEADER_PAGES <= record.root_page <= self.file_pages - record.root_pages:
                        return f"segment {record.id}: its root is out of range"
                    if record.filter is not None and record.filter.page + record.filter.pages > self.file_pages:
                        return f"segment {record.id}: its filter is out of range"
                    if last_key is not None and record.first_key <= last_key:
                        return f"segment {record.id}: its keys overlap its predecessor's"
                    ids.add(record.id)
                    last_key = record.last_key
        return None

    def _retired_fault(self) -> str | None:
        end = limits.HEADER_PAGES
        for first, count in sorted(extent for retirement in self.retired for extent in retirement.extents):
            if first < end or count < 1 or first + count > self.file_pages:
                return f"retired extent ({first}, {count}) overlaps another or is out of range"
            end = first + count
        for retirement in self.retired:
            if not retirement.born <= retirement.died <= self.install:
                return f"a retirement born at {retirement.born} and died at {retirement.died} cannot be"
        return None

    def encode(self) -> bytes:
        """Its bytes, of any length; the writer pads them to pages."""
        assert len(self.uuid) == 16, "a UUID has 16 bytes"
        assert self.fault() is None, f"manifest: {self.fault()} (I2)"
        sections = [
            (TAG_GENERAL, GENERAL.pack(self.uuid, self.next_segment_id, self.file_pages, self.live_bytes, 0)),
            (TAG_LEVELS, self._encode_levels()),
            (TAG_BITMAP, b"".join([BITMAP_PAGE.pack(page, 0, total) for page, total in self.bitmap])),
            (TAG_RETIRED, self._encode_retired()),
        ]
        if self.rotation:
            keys = b"".join([COUNT.pack(len(key)) + key for key in self.rotation])
            sections.append((TAG_ROTATION, COUNT.pack(len(self.rotation)) + keys))
        body = b"".join(
            [SECTION.pack(tag, 0, 0, len(data)) + data + bytes(-len(data) % 8) for tag, data in sections]
        )
        return HEADER.pack(KIND_MANIFEST, CODEC_RAW, 0, len(sections), self.install, HEADER.size + len(body), 0) + body

    def _encode_levels(self) -> bytes:
        parts = [COUNT.pack(len(self.levels))]
        for level in self.levels:
            parts.append(COUNT.pack(len(level)))
            for run in level:
                parts.append(COUNT.pack(len(run)))
                parts.extend(_encode_record(record) for record in run)
        return b"".join(parts)

    def _encode_retired(self) -> bytes:
        parts = [COUNT.pack(len(self.retired))]
        for retirement in self.retired:
            parts.append(RETIREMENT.pack(retirement.born, retirement.died, len(retirement.extents), 0))
            parts.extend(EXTENT.pack(*extent) for extent in retirement.extents)
        return b"".join(parts)


def _encode_record(record: SegmentRecord) -> bytes:
    flags = (FLAG_OVERFLOW if record.overflow else 0) | (0 if record.filter is None else FLAG_FILTER)
    fixed = RECORD.pack(
        record.id,
        record.installed,
        record.root_sum,
        record.entries,
        record.tombstones,
        record.data_bytes,
        record.pages,
        record.seq_low,
        record.seq_high,
        record.root_page,
        record.root_pages,
        record.height,
        record.leaf_pages,
        flags,
        len(record.first_key),
        len(record.last_key),
    )
    packed = b"" if record.filter is None else record.filter.pack()
    return fixed + packed + record.first_key + record.last_key


class _Input:
    """Bytes taken from the front; running out is a CorruptionError."""

    def __init__(self, data: bytes, page: int | None) -> None:
        self.data = data
        self.at = 0
        self.page = page

    def damaged(self, what: str) -> CorruptionError:
        return CorruptionError(f"manifest: {what}; restore a backup", page=self.page)

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.damaged("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def count(self) -> int:
        """A u32 of things that follow. Each takes at least a byte, so a loop over them ends with the data."""
        return int(self.fields(COUNT)[0])

    def inner(self, count: int) -> _Input:
        return _Input(self.take(count), self.page)

    def finish(self) -> None:
        """Nothing but zeros may be left."""
        if self.data[self.at :].strip(b"\0"):
            raise self.damaged("bytes are left over")


def decode(data: bytes, expected_sum: int | None = None, page: int | None = None) -> Manifest:
    """The manifest in `data`, which may be padded with zeros; `expected_sum`, that of all of `data`, is checked first.

    CorruptionError names `page`. FormatError: a codec or a section that this program does not know. Cost: linear.
    """
    data = bytes(data)
    source = _Input(data, page)
    if expected_sum is not None and checksum(data) != expected_sum:
        raise source.damaged("its sum is wrong")
    kind, codec, _, sections, install, length, _ = source.fields(HEADER)
    if kind != KIND_MANIFEST:
        raise source.damaged(f"page kind {kind} instead of {KIND_MANIFEST}")
    if codec != CODEC_RAW:
        raise FormatError(f"the manifest has codec {codec}, which this mmlsm does not know: use a newer mmlsm")
    if not HEADER.size <= length <= len(data):
        raise source.damaged("its length is wrong")
    body = source.inner(length - HEADER.size)
    source.finish()
    found = _split(body, sections)
    for tag in (TAG_GENERAL, TAG_LEVELS, TAG_BITMAP, TAG_RETIRED):
        if tag not in found:
            raise source.damaged(f"section {tag} is missing")
    uuid, next_segment_id, file_pages, live_bytes, _ = found[TAG_GENERAL].fields(GENERAL)
    manifest = Manifest(
        install=install,
        uuid=uuid,
        levels=_decode_levels(found[TAG_LEVELS]),
        bitmap=_decode_bitmap(found[TAG_BITMAP]),
        retired=_decode_retired(found[TAG_RETIRED]),
        next_segment_id=next_segment_id,
        file_pages=file_pages,
        live_bytes=live_bytes,
        rotation=_decode_rotation(found[TAG_ROTATION]) if TAG_ROTATION in found else (),
    )
    for section in found.values():
        section.finish()
    fault = manifest.fault()
    if fault is not None:
        raise source.damaged(fault)
    return manifest


def _split(body: _Input, sections: int) -> dict[int, _Input]:
    """The known sections by tag, unknown optional ones skipped."""
    found: dict[int, _Input] = {}
    for _ in range(sections):
        tag, _, _, length = body.fields(SECTION)
        section = body.inner(length)
        body.take(-length % 8)
        if tag in found:
            raise body.damaged(f"section {tag} is there twice")
        if tag in (TAG_GENERAL, TAG_LEVELS, TAG_BITMAP, TAG_RETIRED, TAG_ROTATION):
            found[tag] = section
        elif not tag & TAG_OPTIONAL:
            name = RESERVED_TAGS.get(tag, "of unknown use")
            raise FormatError(
                f"the manifest has a section {tag} ({name}) that this mmlsm does not know: nothing was changed; "
                "use a newer mmlsm"
            )
    body.finish()
    return found


def _decode_levels(source: _Input) -> tuple[Level, ...]:
    levels: list[Level] = []
    for _ in range(source.count()):
        runs: list[Run] = []
        for _ in range(source.count()):
            runs.append(tuple([_decode_record(source) for _ in range(source.count())]))
        levels.append(tuple(runs))
    return tuple(levels)


def _decode_record(source: _Input) -> SegmentRecord:
    number, installed, root_sum, entries, tombstones, data_bytes, pages, *rest = source.fields(RECORD)
    seq_low, seq_high, root_page, root_pages, height, leaf_pages, flags, first_bytes, last_bytes = rest
    if flags & ~(FLAG_OVERFLOW | FLAG_FILTER):
        raise FormatError(f"segment {number} has flags {flags:#x} that this mmlsm does not know: use a newer mmlsm")
    return SegmentRecord(
        id=number,
        installed=installed,
        root_page=root_page,
        root_pages=root_pages,
        root_sum=root_sum,
        height=height,
        entries=entries,
        tombstones=tombstones,
        data_bytes=data_bytes,
        pages=pages,
        leaf_pages=leaf_pages,
        filter=Reference.unpack(source.take(REFERENCE.size)) if flags & FLAG_FILTER else None,
        first_key=source.take(first_bytes),
        last_key=source.take(last_bytes),
        seq_low=seq_low,
        seq_high=seq_high,
        overflow=bool(flags & FLAG_OVERFLOW),
    )


def _decode_bitmap(source: _Input) -> tuple[tuple[int, int], ...]:
    if len(source.data) % BITMAP_PAGE.size:
        raise source.damaged("its bitmap section has an odd length")
    return tuple([(page, total) for page, _, total in BITMAP_PAGE.iter_unpack(source.take(len(source.data)))])


def _decode_retired(source: _Input) -> tuple[Retirement, ...]:
    retired: list[Retirement] = []
    for _ in range(source.count()):
        born, died, extents, _ = source.fields(RETIREMENT)
        data = source.take(extents * EXTENT.size)
        retired.append(Retirement(born, died, tuple(EXTENT.iter_unpack(data))))
    return tuple(retired)


def _decode_rotation(source: _Input) -> tuple[bytes, ...]:
    return tuple([source.take(source.count()) for _ in range(source.count())])
