"""Who owns which page of the file: reserve -> commit -> (retire -> reclaim) -> free.

Any thread; one lock of rank 50. `resize`, `forget`, `poison` and `on_reserve` are called under it and must take no
ordered lock.

I1. header + live + reserved + free = the file's pages, each page in one of them (R16; retired extents are live here).
I2. Every change names pages that are in the state it takes them from, all of them; anything else is our bug: an
    AssertionError, nothing changed.
I3. The file has `total` pages: it grows at a reservation and shrinks at `truncate`. When the file refuses, nothing
    changed; where a growth was cut off and the file refuses to shrink again, it is longer, until the next of either.
I4. A change that is cut off at any step, by Ctrl-C or for want of memory, changed nothing: what is reserved near it is
    noted before and goes back to that, and what is free is then made anew from the rest.
I5. No page is reserved with a verified byte left from its last life (R4), nor with anything else that is remembered of
    it: `on_reserve`.
"""

from __future__ import annotations

import contextlib
import errno
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mmlsm import limits
from mmlsm.errors import CorruptionError, Error, StorageError
from mmlsm.locks import ALLOCATOR, ordered_lock
from mmlsm.settings import Allocation
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent, ExtentSet, FreeExtents


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceCounts:
    """One moment of an Allocator, in pages, and how often it did what since it was made."""

    total: int
    header: int
    live: int
    reserved: int
    free: int
    free_extents: int
    free_largest: int
    reservations: int
    given_back: int
    growths: int
    truncations: int
    truncated: int


Noted = tuple[tuple[int, int], list[Extent]]
"""An extent that is changed, and what was reserved at and beside it before."""


@dataclass(slots=True)
class Claim:
    """What somebody has reserved; changed as one with the reservation itself, so that it comes back exactly once."""

    extent: Extent | None = None


class Allocator:
    """The pages of one file. `live` is what is in use when it opens (the header is implied); all else is free.

    `resize(pages)` sets the file's size, `forget(first, count)` drops what is remembered of pages, `poison(extent)`
    overwrites freed pages in debug runs. CorruptionError when `live` does not fit in `total_pages`, which both come
    from a file.
    """

    def __init__(
        self,
        total_pages: int,
        live: Bitmap | Iterable[tuple[int, int]],
        *,
        policy: Allocation = "earliest",
        resize: Callable[[int], None],
        forget: Callable[[int, int], None],
        poison: Callable[[Extent], None] | None = None,
        debug: bool = False,
    ) -> None:
        # constant after construction
        self._lock = ordered_lock("allocator", ALLOCATOR, debug)
        self._best = policy == "best"
        self._resize = resize
        self._forget = forget
        self._poison = poison
        self.on_reserve: Callable[[Extent], object] | None = None
        """Called with each extent as it begins a new life; set once, before there are threads."""
        # guarded by _lock
        self._total = max(total_pages, limits.HEADER_PAGES)
        self._live = live.copy() if isinstance(live, Bitmap) else _marked(self._total, live)
        if self._live.pages > self._total:
            behind = next((extent for extent in self._live.extents() if extent.end > self._total), None)
            if behind is not None:
                raise CorruptionError(
                    f"the file has {total_pages} pages, but page {behind.end - 1} is in use: its end was cut off; "
                    "restore a backup",
                    page=behind.end - 1,
                )
        self._live.resize(self._total)
        self._live.set(0, limits.HEADER_PAGES)
        self._claims = ExtentSet()
        self._before: Noted | None = None
        self._broken: Noted | None = None
        self._gaps: FreeExtents | None = None
        self._live_pages = self._live.used_pages() - limits.HEADER_PAGES
        self._reservations = self._given_back = self._growths = self._truncations = self._truncated = 0
        if self._total > total_pages:
            resize(self._total)

    @property
    def _reserved(self) -> ExtentSet:
        """What is reserved; made anew after a change that was cut off (I4)."""
        broken = self._broken
        if broken is not None:
            (first, count), before = broken
            low = min(first, *(one.first for one in before)) if before else first
            high = max(first + count, *(one.end for one in before)) if before else first + count
            # The order of a SortedDict may be broken, what it holds as a dict is not.
            others = [one for one in dict.items(self._claims._counts) if not low <= one[0] < high]
            self._claims, self._broken = ExtentSet([*others, *before]), None
        return self._claims

    @property
    def _free(self) -> FreeExtents:
        """The free extents, made from all others when first asked for, so that opening does not wait for that."""
        gaps = self._gaps
        if gaps is None:
            gaps, end = FreeExtents(), 0
            for extent in self._settled().extents():
                if extent.first > end:
                    gaps.add(end, extent.first - end)
                end = extent.end
            if end < self._total:
                gaps.add(end, self._total - end)
            for first, count in self._reserved:
                gaps.remove(first, count)
            self._gaps = gaps
        return gaps

    def _settled(self) -> Bitmap:
        """What is live, in a bitmap of as many pages as the file has, also where a growth was cut off (I4)."""
        if self._live.pages != self._total:
            with contextlib.suppress(Error, MemoryError):  # a file that stays longer does no harm
                self._resize(self._total)
            self._live.resize(self._total)
        return self._live

    # reserve

    def reserve(self, count: int, claim: Claim | None = None, *, early: bool = False) -> Extent:
        """`count` contiguous pages: free ones by the policy, else at the end of the file, which grows.

        StorageError when the file cannot grow.
        """
        return self.reserve_up_to(count, count, claim, early=early)

    def reserve_up_to(self, most: int, least: int, claim: Claim | None = None, *, early: bool = False) -> Extent:
        """The earliest free extent of at least `least` pages, as far as `most` of them; else `most` at the file's end.

        The file's free tail counts as endless. Policy "best" takes the smallest extent of `most` pages where there is
        one, unless `early`: who moves something to the front of the file. What is not used is given back; it is noted
        in `claim`.

        StorageError when the file cannot grow.
        """
        assert 0 < least <= most, f"reserve {least} to {most} pages"
        with self._lock:
            self._before = None
            try:
                found = (self._free.smallest(most) if self._best and not early else None) or self._free.earliest(least)
                if found is None or found.end == self._total:
                    tail = self._tail()
                    first = tail.first if tail else self._total
                    if first + most > self._total:
                        self._grow(first + most)
                    found = Extent(first, most)
                extent = Extent(found.first, min(found.count, most))
                self._reserve(extent)
                self._reservations += 1
                if claim is not None:
                    claim.extent = extent
            except BaseException:
                self._undo()
                raise
            return extent

    def extend(self, extent: Extent, count: int, claim: Claim | None = None) -> Extent | None:
        """`extent`, reserved, made `count` pages longer in place; None when what follows is neither free nor the end.

        StorageError when the file cannot grow.
        """
        assert count > 0
        with self._lock:
            assert self._reserved.holds(*extent), f"{extent} is not reserved (I2)"
            self._before = None
            try:
                after = self._free.around(extent.end)
                room = after.count if after else 0
                if room < count:
                    if extent.end + room != self._total:
                        return None
                    self._grow(extent.end + count)
                self._reserve(Extent(extent.end, count))
                longer = Extent(extent.first, extent.count + count)
                if claim is not None:
                    claim.extent = longer
            except BaseException:
                self._undo()
                raise
            return longer

    def give_back(self, extent: tuple[int, int], claim: Claim | None = None, left: Extent | None = None) -> None:
        """Pages that were reserved and not used, all or a part, are free again; `left` is what `claim` then has."""
        with self._lock:
            self._before = None
            try:
                self._note(extent)
                free = self._free
                self._reserved.remove(*extent)
                free.add(*extent)
                self._given_back += extent[1]
                if claim is not None:
                    claim.extent = left
            except BaseException:
                self._undo()
                raise

    def commit(self, extent: tuple[int, int]) -> None:
        """Reserved pages, a part or the whole, are live from now on."""
        with self._lock:
            self._before, live = None, self._live_pages + extent[1]
            assert self._reserved.holds(*extent), f"{extent} is not reserved (I2)"
            try:
                self._note(extent)
                self._reserved.remove(*extent)
                self._live.set(*extent)
                self._live_pages = live
            except BaseException:
                self._undo()
                self._live.clear(*extent)
                raise

    def free(self, extent: tuple[int, int]) -> None:
        """Live pages are free from now on. Only the Reclaimer knows when that may be (R11)."""
        with self._lock:
            first, count = extent
            assert first >= limits.HEADER_PAGES, f"extent ({first}, {count}) has pages of the header (I2)"
            assert self._live.all_set(first, count), f"extent ({first}, {count}) is not live (I2)"
            if self._poison is not None:
                self._poison(Extent(first, count))
            self._before, live = None, self._live_pages - count
            try:
                self._free.add(first, count)
                self._live.clear(first, count)
                self._live_pages = live
            except BaseException:
                self._undo()
                self._live.set(first, count)
                raise

    def truncate(self) -> int:
        """Cut the file's free tail off; the pages that it had. StorageError, nothing changed, when the file refuses."""
        with self._lock:
            tail = self._tail()
            if tail is None:
                return 0
            self._before = None
            try:
                self._resize(tail.first)
                self._free.remove(*tail)
                self._live.resize(tail.first)
                self._total = tail.first
            except BaseException:
                self._undo()
                raise
            self._truncations += 1
            self._truncated += tail.count
            return tail.count

    # ask

    @property
    def total(self) -> int:
        """Pages of the file."""
        return self._total

    def live_extents(self) -> list[Extent]:
        """What is in use beside the header, retired extents too, in order, neighbours joined."""
        with self._lock:
            live = self._live.copy()
        live.clear(0, limits.HEADER_PAGES)
        return list(live.extents())

    def reserved_extents(self) -> list[Extent]:
        """What is reserved, in order, neighbours joined."""
        with self._lock:
            return list(self._reserved)

    def free_extents(self) -> list[Extent]:
        """What is free, in order."""
        with self._lock:
            return list(self._free)

    def is_live(self, extent: tuple[int, int]) -> bool:
        """Whether all of these pages are in use; any numbers will do, so that what a file says can be asked about."""
        first, count = extent
        with self._lock:
            return limits.HEADER_PAGES <= first < first + count <= self._total and self._live.all_set(first, count)

    def relocation_cut(self, most: int, least: int = 1) -> int | None:
        """From which page on to move what is live to free pages before it, so that the file can be cut there.

        The least page from which on there are no more live pages than `most`, nor than are free before it in pieces of
        `least`. None when the move would gain less than 1/16 of the file as `truncate` alone would leave it, and less
        than half of `most`: reserved pages stay where they are. Some 50 µs a GiB of file, and a microsecond for each
        free extent.
        """
        with self._lock:
            live, reserved, gaps = self._live.copy(), ExtentSet(self._reserved), list(self._free)
        return relocation_cut(live, reserved, gaps, most, least)

    def live_bits(self, extra_live: Iterable[tuple[int, int]] = (), drop: Iterable[tuple[int, int]] = ()) -> Bitmap:
        """The bitmap for a manifest: header and live pages, with `extra_live` (reserved) and without `drop` (live).

        A copy of its own, which later changes do not touch; compare it with the last installed one by `changed_since`.
        Cost: a copy of one bit a page.
        """
        with self._lock:
            bits = self._settled().copy()
            for first, count in extra_live:
                assert self._reserved.holds(first, count), f"extent ({first}, {count}) is not reserved (I2)"
                bits.set(first, count)
        for first, count in drop:
            assert bits.all_set(first, count), f"extent ({first}, {count}) is not live (I2)"
            bits.clear(first, count)
        return bits

    def counts(self) -> SpaceCounts:
        """Figures for `stats()`, of one moment."""
        with self._lock:
            return SpaceCounts(
                total=self._total,
                header=limits.HEADER_PAGES,
                live=self._live_pages,
                reserved=self._reserved.pages,
                free=self._free.pages,
                free_extents=len(self._free),
                free_largest=self._free.largest_pages(),
                reservations=self._reservations,
                given_back=self._given_back,
                growths=self._growths,
                truncations=self._truncations,
                truncated=self._truncated,
            )

    # under the lock

    def _tail(self) -> Extent | None:
        """The free extent that ends the file."""
        last = self._free.last()
        return last if last is not None and last.end == self._total else None

    def _grow(self, pages: int) -> None:
        """Make the file `pages` long; what is new is free."""
        if pages > limits.FILE_PAGES_MAX:
            raise StorageError(
                errno.ENOSPC,
                f"the file would have more than {limits.FILE_PAGES_MAX:,} pages of {limits.PAGE_BYTES} bytes, the most "
                "that the format can address: delete something, then compact()",
            )
        self._live.resize(pages)  # first: it tells of a growth that is cut off
        self._resize(pages)
        self._free.add(self._total, pages - self._total)
        self._total = pages
        self._growths += 1

    def _note(self, extent: tuple[int, int]) -> None:
        """What is reserved at and beside an extent that is about to be reserved or not any more, for `_undo`."""
        self._before = extent, self._reserved.touching(*extent)

    def _undo(self) -> None:
        """Go back to that (I4), as soon as somebody asks: no call is made here, so nothing can fail or cut in."""
        self._gaps = None
        if self._before is not None:
            self._broken = self._before

    def _reserve(self, extent: Extent) -> None:
        self._forget(*extent)
        self._note(extent)
        self._free.remove(*extent)
        self._reserved.add(*extent)
        if self.on_reserve is not None:
            self.on_reserve(extent)

    def _check(self) -> None:
        """Assert I1: every page has one owner."""
        with self._lock:
            self._free._check()
            self._reserved._check()
            assert self._live.pages == self._total
            assert self._live.used_pages() == self._live_pages + limits.HEADER_PAGES
            owned = Bitmap.from_extents(self._total, self._live.extents())
            for extent in (*self._free, *self._reserved):
                assert not owned.any_set(*extent), f"{extent} has two owners (I1)"
                owned.set(*extent)
            assert owned.used_pages() == self._total, "a page has no owner (I1)"


def relocation_cut(live: Bitmap, reserved: ExtentSet, gaps: Sequence[Extent], most: int, least: int) -> int | None:
    """See Allocator.relocation_cut. Pure; `gaps` is what is free, in order. The header stays where it is."""
    room = [0, *accumulate(gap.count // least * least for gap in gaps)]
    firsts = [gap.first for gap in gaps]
    cut, high, above = limits.HEADER_PAGES, live.pages, 0
    while cut < high:  # `above` is of `high`; it falls and the room before it grows, so halving finds the least
        middle = (cut + high) // 2
        more = live.used_within(middle, high - middle)
        before = bisect_left(firsts, middle)
        fits = room[before]
        if before and gaps[before - 1].end > middle:
            fits = room[before - 1] + (middle - gaps[before - 1].first) // least * least
        if above + more <= min(most, fits):
            above, high = above + more, middle
        else:
            cut = middle + 1
    last = reserved.last()
    fixed = last.end if last is not None else 0
    end = max(live.used_end(), fixed)
    return cut if end - max(cut, fixed) >= max(1, min(end / 16, most / 2)) else None


def _marked(pages: int, live: Iterable[tuple[int, int]]) -> Bitmap:
    """The bitmap of these extents and the header, of `pages` pages or as many as they need."""
    bits = Bitmap(pages)
    for first, count in live:
        bits.resize(max(bits.pages, first + count))
        kept = max(first, limits.HEADER_PAGES)
        if first + count > kept:
            assert not bits.any_set(kept, first + count - kept), f"extent ({kept}, {count}) is live twice (I2)"
            bits.set(kept, first + count - kept)
    return bits
