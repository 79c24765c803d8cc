"""Extents, and ordered sets of them. Not safe between threads: an owner (the Allocator) locks.

I1. The extents of a set are disjoint and do not touch: neighbours are one extent.
I2. `add` and `remove` are exact: what is there already, or is not there, is our bug and an AssertionError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from sortedcontainers import SortedDict, SortedList

EXACT_CLASS_PAGES: Final = 256
"""Free extents up to here have a size class for each count; above, eight classes for each power of two."""

EXACT_CLASS_BITS: Final = EXACT_CLASS_PAGES.bit_length()


class Extent(NamedTuple):
    """Contiguous pages: `count` of them from page `first` on."""

    first: int
    count: int  # type: ignore[assignment]  # the word of the format; nobody counts in a pair

    @property
    def end(self) -> int:
        """The page after the last."""
        return self.first + self.count


def joined(extents: Iterable[tuple[int, int]]) -> tuple[Extent, ...]:
    """The same pages in as few extents as there are runs, in order. AssertionError when a page is there twice."""
    result: list[Extent] = []
    first = end = -1
    for start, count in sorted(extents):
        assert start >= end, f"extent ({start}, {count}) overlaps ({first}, {end - first})"
        if start != end:
            if first >= 0:
                result.append(Extent(first, end - first))
            first = start
        end = start + count
    if first >= 0:
        result.append(Extent(first, end - first))
    return tuple(result)


class ExtentSet:
    """A set of pages, kept as ordered extents. Each change costs O(log extents)."""

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: SortedDict[int, int] = SortedDict()
        self.pages = 0
        for first, count in extents:
            self.add(first, count)

    def __iter__(self) -> Iterator[Extent]:
        for first, count in self._counts.items():
            yield Extent(first, count)

    def __len__(self) -> int:
        return len(self._counts)

    def last(self) -> Extent | None:
        """The extent with the highest pages."""
        return Extent(*self._counts.peekitem()) if self._counts else None

    def around(self, page: int) -> Extent | None:
        """The extent that has `page`."""
        i = self._counts.bisect_right(page)
        if i:
            first, count = self._counts.peekitem(i - 1)
            if page < first + count:
                return Extent(first, count)
        return None

    def holds(self, first: int, count: int) -> bool:
        """Whether all of these pages are in the set."""
        extent = self.around(first)
        return extent is not None and first + count <= extent.end

    def touching(self, first: int, count: int) -> list[Extent]:
        """The extents that have some of these pages, or a page beside them, in order."""
        counts, found = self._counts, []
        for i in range(max(0, counts.bisect_right(first) - 1), len(counts)):
            extent = Extent(*counts.peekitem(i))
            if extent.first > first + count:
                break
            if extent.end >= first:
                found.append(extent)
        return found

    def add(self, first: int, count: int) -> None:
        """Add pages of which none is in the set."""
        assert count > 0, f"extent ({first}, {count}) has no pages"
        counts = self._counts
        i = counts.bisect_right(first)
        before = counts.peekitem(i - 1) if i else None
        after = counts.peekitem(i) if i < len(counts) else None
        start, end = first, first + count
        assert before is None or before[0] + before[1] <= start, f"extent ({first}, {count}) overlaps {before} (I2)"
        assert after is None or end <= after[0], f"extent ({first}, {count}) overlaps {after} (I2)"
        if after is not None and after[0] == end:
            self._delete(after[0])
            end += after[1]
        if before is not None and before[0] + before[1] == start:
            self._delete(before[0])
            start = before[0]
        self._insert(start, end - start)
        self.pages += count

    def remove(self, first: int, count: int) -> None:
        """Remove pages that are all in the set."""
        assert count > 0, f"extent ({first}, {count}) has no pages"
        extent = self.around(first)
        assert extent is not None, f"extent ({first}, {count}) is not there (I2)"
        assert first + count <= extent.end, f"extent ({first}, {count}) is not all there (I2)"
        self.pages -= count
        self._delete(extent.first)
        if extent.first < first:
            self._insert(extent.first, first - extent.first)
        if first + count < extent.end:
            self._insert(first + count, extent.end - first - count)

    def _insert(self, first: int, count: int) -> None:
        self._counts[first] = count

    def _delete(self, first: int) -> None:
        del self._counts[first]

    def _check(self) -> None:
        """Assert I1 and the page count."""
        end = -1
        for first, count in self._counts.items():
            assert count > 0
            assert first > end, f"extent ({first}, {count}) after page {end} (I1)"
            end = first + count
        assert self.pages == sum(self._counts.values())


def size_class(count: int) -> int:
    """A number that never falls as `count` grows; all counts of one class up to EXACT_CLASS_PAGES are equal."""
    if count <= EXACT_CLASS_PAGES:
        return count
    bits = count.bit_length()
    return EXACT_CLASS_PAGES + 8 * (bits - EXACT_CLASS_BITS) + ((count >> (bits - 4)) & 7) + 1


class FreeExtents(ExtentSet):
    """An ExtentSet that finds the earliest, or the smallest, extent of a size without a walk over all of them.

    The firsts of each size class are kept in order. Every extent of a higher class fits, so only the request's own
    class, when it is not an exact one, is walked.
    """

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        self._classes: dict[int, SortedList[int]] = {}
        super().__init__(extents)

    def earliest(self, least: int) -> Extent | None:
        """The extent of at least `least` pages with the lowest pages. O(classes), some 400 at most."""
        own, found = size_class(least), -1
        for number, firsts in self._classes.items():
            if number > own:
                if found < 0 or firsts[0] < found:
                    found = firsts[0]
            elif number == own:
                for first in firsts:
                    if 0 <= found < first:
                        break
                    if self._counts[first] >= least:
                        found = first
                        break
        return Extent(found, self._counts[found]) if found >= 0 else None

    def smallest(self, least: int) -> Extent | None:
        """The smallest extent of at least `least` pages; of several the earliest."""
        for number in sorted(n for n in self._classes if n >= size_class(least)):
            firsts = self._classes[number]
            if number <= EXACT_CLASS_PAGES:
                return Extent(firsts[0], number)
            fitting = [(self._counts[first], first) for first in firsts if self._counts[first] >= least]
            if fitting:
                count, first = min(fitting)
                return Extent(first, count)
        return None

    def largest_pages(self) -> int:
        """Pages of the largest extent, 0 when there is none."""
        if not self._classes:
            return 0
        largest: int = max(self._counts[first] for first in self._classes[max(self._classes)])
        return largest

    def _insert(self, first: int, count: int) -> None:
        super()._insert(first, count)
        number = size_class(count)
        firsts = self._classes.get(number)
        if firsts is None:
            self._classes[number] = SortedList((first,))
        else:
            firsts.add(first)

    def _delete(self, first: int) -> None:
        number = size_class(self._counts[first])
        super()._delete(first)
        firsts = self._classes[number]
        firsts.remove(first)
        if not firsts:
            del self._classes[number]

    def _check(self) -> None:
        super()._check()
        filed = sorted((first, number) for number, firsts in self._classes.items() for first in firsts)
        assert filed == [(first, size_class(count)) for first, count in self._counts.items()]
