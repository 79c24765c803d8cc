"""Overflow extents: raw contiguous payload, one sum for each 64 KiB (docs/format.md, "Overflow").

Any thread with a channel of its own. A payload of one chunk has its sum in the reference; a longer one is followed, at
the next multiple of 8, by the sums of its chunks, and the reference has the sum of those.

I1. A failed write gives its reservation back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from mmlsm import limits
from mmlsm.errors import StorageError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.format.page import extent_pages
from mmlsm.read.given import exact
from mmlsm.read.pages import read_chunks
from mmlsm.space.allocator import Claim
from mmlsm.space.extents import Extent

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.space.allocator import Allocator
    from mmlsm.write.values import Gate

STREAM_PAGES = 256


def write_extent(channel: Channel | Gate, allocator: Allocator | Gate, payload: bytes) -> Reference:
    """Write `payload` (at least 1 byte) to a fresh reservation; not synced."""
    pages, claim = extent_pages(len(payload)), Claim()
    try:
        extent = allocator.reserve(pages, claim)
        sums = chunk_sums(payload)
        padded = -len(payload) % 8
        tail = b"" if len(sums) == 1 else bytes(padded) + struct.pack(f"<{len(sums)}Q", *sums)
        blank = bytes(-(len(payload) + len(tail)) % limits.PAGE_BYTES)
        offset = extent.first * limits.PAGE_BYTES
        if len(payload) <= limits.CHUNK_BYTES:
            channel.pwrite(offset, payload + tail + blank)
        else:
            channel.pwrite(offset, payload)
            channel.pwrite(offset + len(payload), tail + blank)
    except BaseException:
        if claim.extent is not None:
            allocator.give_back(claim.extent, claim)
        raise
    return Reference(len(payload), extent.first, pages, reference_sum(sums))


def move_extent(
    file: File,
    channel: Channel,
    allocator: Allocator,
    old: Reference,
    pause: Callable[[], object],
    segment_id: int | None = None,
) -> Reference | None:
    """Copy an extent to the earliest pages that have room for it, its sums with it; the old one stays as it is.

    None where there is no room before it.

    CorruptionError that names the segment, nothing left reserved, when the old one is damaged. `pause` is called for
    each MiB.
    """
    for _ in read_chunks(file, old, 0, old.length, segment_id=segment_id):
        pass
    place = allocator.reserve(old.pages, early=True)
    if place.first > old.page:
        allocator.give_back(place)
        return None
    try:
        for at in range(0, old.pages, STREAM_PAGES):
            count = min(STREAM_PAGES, old.pages - at)
            channel.pwrite((place.first + at) * limits.PAGE_BYTES,
                           file.pread((old.page + at) * limits.PAGE_BYTES, count * limits.PAGE_BYTES))  # fmt: skip
            pause()
    except BaseException:
        allocator.give_back(place)
        raise
    return old._replace(page=place.first)


def chunk_sums(payload: bytes) -> list[int]:
    """The checksum of each 64 KiB of `payload`."""
    view = memoryview(payload)
    return [checksum(view[at : at + limits.CHUNK_BYTES]) for at in range(0, len(payload), limits.CHUNK_BYTES)]


def reference_sum(sums: list[int]) -> int:
    """What the reference carries: the only sum, or the sum of the sums."""
    return sums[0] if len(sums) == 1 else checksum(struct.pack(f"<{len(sums)}Q", *sums))


def write_stream(file: File, channel: Gate, allocator: Gate, stream: BinaryIO) -> Reference | bytes:
    """Write a stream of unknown length, never whole in memory; short content comes back as bytes, nothing written.

    The reservation doubles in place where it can; where it cannot, what was written moves to a larger one.
    """
    chunk = read_chunk(stream)
    if len(chunk) < limits.CHUNK_BYTES:
        return chunk
    claim = Claim()
    try:
        extent = allocator.reserve(STREAM_PAGES, claim)
        length, sums = 0, []
        while chunk:
            extent = make_room(file, channel, allocator, claim, length, len(chunk))
            channel.pwrite(extent.first * limits.PAGE_BYTES + length, chunk)
            sums.append(checksum(chunk))
            length += len(chunk)
            chunk = read_chunk(stream) if len(chunk) == limits.CHUNK_BYTES else b""
        if len(sums) > 1:
            tail = bytes(-length % 8) + struct.pack(f"<{len(sums)}Q", *sums)
            channel.pwrite(extent.first * limits.PAGE_BYTES + length, tail)
        pages = extent_pages(length)
        if pages < extent.count:
            rest = Extent(extent.first + pages, extent.count - pages)
            allocator.give_back(rest, claim, Extent(extent.first, pages))
    except BaseException:
        if claim.extent is not None:
            allocator.give_back(claim.extent, claim)
        raise
    return Reference(length, extent.first, pages, reference_sum(sums))


def read_chunk(stream: BinaryIO) -> bytes:
    """Exactly 64 KiB from the stream, or less at its end. TypeError or ValueError when it is no binary stream."""
    parts, missing = [], limits.CHUNK_BYTES
    while missing:
        given = stream.read(missing)
        part = exact(given)
        if part is None:
            raise TypeError(f"the stream's read() gave {type(given).__name__}: open it blocking and in binary mode")
        if len(part) > missing:
            raise ValueError(f"the stream's read({missing}) gave {len(part)} bytes, more than was asked for")
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def make_room(file: File, channel: Gate, allocator: Gate, claim: Claim, length: int, more: int) -> Extent:
    """A reservation that holds `length` written bytes, `more` to come and all sums; the old one, or a larger."""
    extent = claim.extent
    assert extent is not None
    assert more <= limits.CHUNK_BYTES <= extent.count * limits.PAGE_BYTES // 4, "doubling makes room for a chunk"
    if extent_pages(length + more) + 1 <= extent.count:
        return extent
    grown = allocator.extend(extent, extent.count, claim)
    if grown is not None:
        return grown
    other = Claim()
    try:
        larger = allocator.reserve(extent.count * 2, other)
        for at in range(0, length, 1 << 20):
            data = file.pread(extent.first * limits.PAGE_BYTES + at, min(1 << 20, length - at))
            if len(data) < min(1 << 20, length - at):
                raise StorageError(5, "the file became shorter while a value was written")
            channel.pwrite(larger.first * limits.PAGE_BYTES + at, data)
        allocator.give_back(extent, claim, larger)
    except BaseException:
        if other.extent is not None and other.extent != claim.extent:
            allocator.give_back(other.extent, other)
        raise
    return larger
