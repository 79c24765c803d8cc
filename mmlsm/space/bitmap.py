"""The disk form of free space: a bit for each page of the file, set when it is in use (docs/format.md, "Bitmap").

Bit `i` of bitmap page `p` is file page `p * 32768 + i`; within a byte the lowest bit is the lowest page. Not safe
between threads: an owner (the Allocator) locks, or has a copy of its own.

I1. Bits past `pages`, up to the end of the last bitmap page, are zero.
I2. `dirty` has every bitmap page that changed since `clean()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from mmlsm import limits
from mmlsm.errors import CorruptionError
from mmlsm.space.extents import Extent

BITMAP_PAGE_BITS: Final = limits.PAGE_BYTES * 8
"""File pages that one bitmap page tells of: 128 MiB of file."""

_USED: Final = re.compile(rb"\xff+|[^\x00\xff]+")


def _runs(byte: int) -> tuple[tuple[int, int], ...]:
    """The runs of ones in a byte as (first bit, count)."""
    bits = [i for i in range(8) if byte >> i & 1]
    starts = [i for i in bits if i - 1 not in bits]
    return tuple((i, next(n for n in range(1, 9) if i + n not in bits)) for i in starts)


_RUNS: Final = tuple(_runs(byte) for byte in range(256))


class Bitmap:
    """Bits for `pages` pages, all clear to begin with. Changes of ranges cost a slice, not a step a bit."""

    __hash__ = None  # type: ignore[assignment]  # mutable, and equal by content

    def __init__(self, pages: int = 0) -> None:
        self.pages = pages
        self._bits = bytearray(self.page_count * limits.PAGE_BYTES)
        self.dirty: set[int] = set()

    @classmethod
    def from_extents(cls, pages: int, extents: Iterable[tuple[int, int]]) -> Bitmap:
        """Bits set for the pages of `extents`, all of it dirty."""
        bitmap = cls(pages)
        bitmap.dirty.update(range(bitmap.page_count))
        for first, count in extents:
            bitmap.set(first, count)
        return bitmap

    @classmethod
    def from_pages(cls, pages: int, data: Iterable[bytes], page: int | None = None) -> Bitmap:
        """What a file's bitmap pages say, nothing dirty. CorruptionError of `page` when they are not for `pages`."""
        bits = bytearray().join(data)
        if len(bits) != -(-pages // BITMAP_PAGE_BITS) * limits.PAGE_BYTES or not _is_zero(bits[(pages + 7) // 8 :]):
            raise CorruptionError(f"the free-space bitmap is not one of {pages} pages; restore a backup", page=page)
        if pages % 8 and bits[pages // 8] >> pages % 8:
            raise CorruptionError(f"the free-space bitmap marks pages past its {pages}; restore a backup", page=page)
        bitmap = cls()
        bitmap.pages, bitmap._bits = pages, bits
        return bitmap

    @property
    def page_count(self) -> int:
        """Bitmap pages that this takes in the file."""
        return -(-self.pages // BITMAP_PAGE_BITS)

    def page_bytes(self, index: int) -> bytes:
        """The 4096 bytes of bitmap page `index`."""
        return bytes(self._bits[index * limits.PAGE_BYTES : (index + 1) * limits.PAGE_BYTES])

    def set(self, first: int, count: int) -> None:
        """Mark pages as used, whatever they were."""
        start, end, low, high = self._range(first, count)
        bits = self._bits
        if start == end:
            bits[start] |= low & high
        else:
            first_byte, last_byte = bits[start] | low, bits[end] | high
            bits[start + 1 : end] = b"\xff" * (end - start - 1)
            bits[start], bits[end] = first_byte, last_byte  # nothing from here on takes memory

    def clear(self, first: int, count: int) -> None:
        """Mark pages as free, whatever they were."""
        start, end, low, high = self._range(first, count)
        bits = self._bits
        if start == end:
            bits[start] &= ~(low & high)
        else:
            first_byte, last_byte = bits[start] & ~low, bits[end] & ~high
            bits[start + 1 : end] = bytes(end - start - 1)
            bits[start], bits[end] = first_byte, last_byte

    def all_set(self, first: int, count: int) -> bool:
        """Whether every one of the pages is used."""
        start, end, low, high = self._span(first, count)
        bits = self._bits
        if start == end:
            return bits[start] & low & high == low & high
        middle = bits[start + 1 : end]
        return bits[start] & low == low and bits[end] & high == high and middle == b"\xff" * len(middle)

    def any_set(self, first: int, count: int) -> bool:
        """Whether some of the pages is used."""
        start, end, low, high = self._span(first, count)
        bits = self._bits
        if start == end:
            return bool(bits[start] & low & high)
        return bool(bits[start] & low or bits[end] & high or bits[start + 1 : end].strip(b"\0"))

    def resize(self, pages: int) -> None:
        """Change the number of pages: new ones are free, none that goes is used. Cut off, it may be done again."""
        assert pages >= self.pages or not self.any_set(pages, self.pages - pages), "a used page is cut off"
        before, after = self.page_count, -(-pages // BITMAP_PAGE_BITS)
        size = after * limits.PAGE_BYTES
        if size > len(self._bits):
            self._bits += bytes(size - len(self._bits))
        self.pages = pages
        del self._bits[size:]
        if after > before:
            self.dirty.update(range(before, after))
        elif after < before:
            self.dirty = {index for index in self.dirty if index < after}

    def extents(self) -> Iterator[Extent]:
        """The runs of used pages, in order, as they are now. Long runs and gaps cost next to nothing."""
        start = end = 0
        for match in _USED.finditer(self._marked()):  # the search itself takes zeros one by one
            group, page = match.group(), match.start() * 8
            runs = [(0, 8 * len(group))] if group[0] == 0xFF else None
            for first, count in runs or _mixed(group):
                if page + first != end:
                    if end > start:
                        yield Extent(start, end - start)
                    start = page + first
                end = page + first + count
        if end > start:
            yield Extent(start, end - start)

    def gaps(self, end: int) -> Iterator[Extent]:
        """The runs of free pages before page `end`, in order; behind those that it has all are free."""
        at = 0
        for first, count in self.extents():
            if min(first, end) > at:
                yield Extent(at, min(first, end) - at)
            at = first + count
        if end > at:
            yield Extent(at, end - at)

    def used_pages(self) -> int:
        """How many pages are used."""
        return _ones(memoryview(self._bits))

    def used_within(self, first: int, count: int) -> int:
        """How many of these pages are used. Some 10 µs a GiB of file."""
        if count <= 0:
            return 0
        start, end, low, high = self._span(first, count)
        bits = self._bits
        if start == end:
            return (bits[start] & low & high).bit_count()
        middle = _ones(memoryview(bits)[start + 1 : end])
        return (bits[start] & low).bit_count() + middle + (bits[end] & high).bit_count()

    def used_end(self) -> int:
        """The page after the last used one, 0 when none is."""
        bytes_used = len(self._marked())
        return 8 * (bytes_used - 1) + self._bits[bytes_used - 1].bit_length() if bytes_used else 0

    def _marked(self) -> bytearray:
        """The bits up to the last byte that has one. Zeros are stripped one by one, so none past `pages` (I1)."""
        return self._bits[: (self.pages + 7) // 8].rstrip(b"\0")

    def clean(self) -> None:
        """Begin to collect `dirty` anew: what is here now is in the file."""
        self.dirty = set()

    def changed_since(self, other: Bitmap) -> list[int]:
        """The bitmap pages that are not as in `other`, which may be of another size. Cost: one comparison of memory."""
        return [index for index in range(self.page_count) if self.page_bytes(index) != other.page_bytes(index)]

    def copy(self) -> Bitmap:
        """An independent equal one, as dirty as this."""
        bitmap = Bitmap()
        bitmap.pages, bitmap._bits, bitmap.dirty = self.pages, self._bits[:], set(self.dirty)
        return bitmap

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        return self.pages == other.pages and self._bits == other._bits

    def __repr__(self) -> str:
        return f"<Bitmap of {self.pages} pages, {self.used_pages()} used>"

    def _span(self, first: int, count: int) -> tuple[int, int, int, int]:
        """First and last byte of a range of pages, and the masks of what they have of it."""
        last = first + count - 1
        assert 0 <= first <= last < self.pages, f"extent ({first}, {count}) is not within {self.pages} pages"
        return first >> 3, last >> 3, 0xFF << (first & 7) & 0xFF, (2 << (last & 7)) - 1

    def _range(self, first: int, count: int) -> tuple[int, int, int, int]:
        """`_span` of a range that is about to change."""
        span = self._span(first, count)
        self.dirty.update(range(first // BITMAP_PAGE_BITS, (first + count - 1) // BITMAP_PAGE_BITS + 1))
        return span


def _is_zero(bits: bytearray) -> bool:
    return bits == bytes(len(bits))


def _ones(bits: memoryview) -> int:
    """How many bits are set."""
    step = 1 << 16
    return sum(int.from_bytes(bits[at : at + step], "little").bit_count() for at in range(0, len(bits), step))


def _mixed(group: bytes) -> Iterator[tuple[int, int]]:
    """The runs of ones in bytes that are neither all ones nor all zeros, from their own first bit on."""
    for at, byte in enumerate(group):
        for first, count in _RUNS[byte]:
            yield at * 8 + first, count
