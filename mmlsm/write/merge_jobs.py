"""What the merge thread does with a plan: run the merge, install what came out, count it.

Only the merge thread calls anything here. Nothing is claimed in a place that outlives the claim: what is under way is
known to the calls that run it, so a merge that fails leaves nothing behind.

I1. A job pins its inputs by the version that it was planned for, and names them by segment id when it installs, for
    flushes and smaller merges may have been installed meanwhile.
I2. While a merge runs, `interrupt` is called about every MiB and at each parent that is opened: there the thread ends
    it, or lets merges of runs that are newer come in between, so that the newest level never starves. What comes in
    between stands before all that is under way; for that what takes long is set aside first, out of the newer tiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mmlsm.errors import CorruptionError
from mmlsm.format.manifest import Level, SegmentRecord
from mmlsm.limits import PAGE_BYTES
from mmlsm.write.merge_policy import Drain, Shape, Slice, TierMerge, next_slice, shape_of, slice_target
from mmlsm.write.merge_run import MergeResult, Workshop, merge_segments, rework
from mmlsm.write.merge_walk import Walk
from mmlsm.write.store import Edit, Store, sync_early

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.read.segment import Segment
    from mmlsm.read.version import Version
    from mmlsm.space.bitmap import Bitmap

LONG_MEMTABLES = 4
"""A merge of as many bytes as so many memtables is long."""

TOMBSTONES_WORTH = 0.02
"""From this share of tombstones on it is worth counting them slice by slice."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What the merges on this thread's stack work on. Merges of other runs, of tiers before `below`, into that at most,
    may come in between: they stand before all of it."""

    ids: frozenset[int] = frozenset()
    below: int = 0


NOTHING = UnderWay()

Interrupt = Callable[[UnderWay, int, int], None]
"""(under way, done, total); what it raises ends the merge."""


@dataclass(slots=True)
class Totals:
    """What merges into one level did since the database was opened."""

    merges: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    pages_reused: int = 0


@dataclass(slots=True)
class MergeJobs:
    """The jobs of one database. `merged` has totals by where merges went: "tier 1", "bottom", "rework".

    `installed` is the last install that was made here.
    """

    store: Store
    channel: Channel
    interrupt: Interrupt
    merged: dict[str, Totals] = field(default_factory=dict)
    entries: int = 0
    installed: int = 0
    slices: list[Slice] = field(default_factory=list)
    draining: frozenset[int] = frozenset()

    def end(self) -> None:
        """There will be no more: let go of who made this, so that no cycle keeps the file open."""
        self.interrupt = lambda under_way, done, total: None

    def run(self, version: Version, chosen: TierMerge | Drain, under_way: UnderWay = NOTHING) -> None:
        """Do what was planned for `version`, in the middle of what is under way."""
        self.prove_length()
        if isinstance(chosen, TierMerge):
            aside = self.is_long(version, chosen.ids) and self.set_aside(chosen.ids, chosen.into)
            # What comes in between goes into a tier before, so that it does not nest without end.
            below = chosen.into - 1 if aside else tier_of(version, chosen.ids)
            self.merge_tier(version, chosen, UnderWay(under_way.ids | set(chosen.ids), below))
        else:
            aside = self.is_long(version, chosen.ids) and self.set_aside(chosen.ids, None)
            tiers = len(shape_of(levels_of(version)).tiers)
            below = tiers if aside else tier_of(version, chosen.ids)
            self.drain(version, chosen, UnderWay(frozenset(chosen.ids), below))

    def prove_length(self) -> None:
        """CorruptionError where others have cut the file: to read through the map what is gone would kill."""
        space, file = self.store.allocator, self.store.file
        before, pages = space.total, file.pages
        if pages < min(before, space.total):  # we may have cut it in between
            raise CorruptionError(f"page {pages}: the file ends here, another program has cut it", page=pages)

    def is_long(self, version: Version, ids: tuple[int, ...]) -> bool:
        """Whether newer runs may come to wait while these are merged, and some of these are in the tiers."""
        pages = sum(segment.record.pages for segment in version.segments if segment.record.id in ids)
        few = pages * PAGE_BYTES < LONG_MEMTABLES * self.store.settings.memtable_bytes
        return not few and tier_of(version, ids) < len(shape_of(levels_of(version)).tiers)

    def set_aside(self, ids: tuple[int, ...], into: int | None) -> bool:
        """Install these runs in the front of tier `into`, or as draining: then newer tiers are free of them."""

        def levels(present: tuple[Level, ...], number: int) -> tuple[Level, ...]:
            shape = shape_of(present)
            moved = tuple(record for record in shape.upper() if record.id in ids)
            shape = shape.without(frozenset(ids))
            if into is None:
                return replace(shape, draining=moved).levels()
            tiers = [*shape.tiers, *[()] * (into + 1 - len(shape.tiers))]
            tiers[into] = (*moved, *tiers[into])
            return replace(shape, tiers=tuple(tiers)).levels()

        self.installed = self.store.install(self.channel, Edit(levels))
        return True

    def shop(self, under_way: UnderWay) -> Workshop:
        """What a merge works with, given what is under way with it."""
        store = self.store
        return Workshop(
            store.file,
            self.channel,
            store.allocator,
            store.reclaimer,
            store.settings,
            store.manifest.install + 1,
            lambda done, total: self.interrupt(under_way, done, total),
            unretired(store),
        )

    # -- tiers

    def merge_tier(self, version: Version, chosen: TierMerge, under_way: UnderWay) -> None:
        """Whole runs into one run of the next tier."""
        segments = [segment for segment in version.segments if segment.record.id in chosen.ids]
        after = [segment.record.id for segment in version.segments].index(chosen.ids[-1])
        result = merge_segments(
            self.shop(under_way),
            segments,
            segment_id=self.store.next_segment_id(),
            bottom=False,
            older=list(version.segments[after + 1 :]),
        )

        def change(shape: Shape, number: int) -> Shape:
            into = list(shape.tiers[chosen.into]) if chosen.into < len(shape.tiers) else []
            # Where they were set aside, what came in between stands before them.
            at = next((i for i, record in enumerate(into) if record.id in chosen.ids), 0)
            newer = into[:at]
            older = [record for record in into[at:] if record.id not in chosen.ids]
            made = [] if result.record is None else [replace(result.record, installed=number)]
            tiers = list(shape.without(frozenset(chosen.ids)).tiers)
            tiers += [()] * (chosen.into + 1 - len(tiers))
            tiers[chosen.into] = (*newer, *made, *older)
            return replace(shape, tiers=tuple(tiers))

        self.install(result, change, f"tier {chosen.into}")

    # -- the bottom

    def drain(self, version: Version, chosen: Drain, under_way: UnderWay) -> None:
        """A slice of runs, or all of small ones, into the bottom."""
        shape = shape_of(levels_of(version))
        segments = [segment for segment in version.segments if segment.record.id in chosen.ids]
        bottom = bottom_of(version)
        if self.draining != frozenset(chosen.ids) or not self.slices:
            target = slice_target(shape.bottom, self.store.settings)
            self.slices = cut_slices(segments, bottom, target, lambda: self.interrupt(under_way, 0, 0))
        index = next_slice(self.slices, self.store.place)
        piece = self.slices[index]
        bounds = (piece.start, piece.stop) if len(self.slices) > 1 else (None, None)
        result = merge_segments(
            self.shop(under_way),
            segments,
            segment_id=self.store.next_segment_id(),
            bottom=True,
            older=[],
            bounds=bounds,
            into=bottom,
            remainder_ids=self.store.next_segment_id,
        )

        def change(shape: Shape, number: int) -> Shape:
            others = shape.without(frozenset(chosen.ids))
            left = tuple(record for record in (result.remainders.get(i) for i in chosen.ids) if record is not None)
            record = None if result.record is None else replace(result.record, installed=number)
            return Shape(others.tiers, (*others.draining, *left), record)

        in_turn = piece.start is None or piece.start >= self.store.place
        self.install(result, change, "bottom", place=(piece.stop or b"") if in_turn else None)
        self.slices = [other for i, other in enumerate(self.slices) if i != index]
        self.draining = frozenset(record.id for record in result.remainders.values() if record is not None)

    def rework(self, version: Version, *, cut: int, fullness_min: float, most: int) -> int:
        """Write the bottom's leaves that stand at or above page `cut` or are less full than that anew, up to about
        `most` pages of them; how many pages the bottom became smaller by, -1 when there was nothing to do."""
        bottom = bottom_of(version)
        if bottom is None:
            return -1
        self.prove_length()
        result = rework(
            self.shop(UnderWay(below=len(version.levels))),
            bottom,
            segment_id=self.store.next_segment_id(),
            cut=cut,
            fullness_min=fullness_min,
            most=most,
        )
        if result is None:
            return -1

        def change(shape: Shape, number: int) -> Shape:
            return replace(shape, bottom=None if result.record is None else replace(result.record, installed=number))

        self.install(result, change, "rework")
        return bottom.record.pages - (result.record.pages if result.record is not None else 0)

    # -- both

    def install(
        self, result: MergeResult, change: Callable[[Shape, int], Shape], into: str, place: bytes | None = None
    ) -> None:
        """Put what came out in its place among whatever was installed meanwhile; `place`: where slices go on."""
        store = self.store

        def levels(present: tuple[Level, ...], number: int) -> tuple[Level, ...]:
            return change(shape_of(present), number).levels()

        edit = Edit(
            levels=levels,
            commit=list(result.written),
            retire=[(list(extents), born) for extents, born in result.unlinked],
            overflow=result.overflow,
            place=place,
        )
        try:
            sync_early(self.channel, result.bytes_written)
            self.installed = store.install(self.channel, edit)
        except BaseException:
            if store.file.failure is None:
                for extent in result.written:
                    store.allocator.give_back(extent)
            raise
        totals = self.merged.setdefault(into, Totals())
        totals.merges += 1
        totals.bytes_read += result.bytes_read
        totals.bytes_written += result.bytes_written
        totals.pages_reused += result.pages_reused
        self.entries += result.entries_in


def unretired(store: Store) -> Bitmap:
    """The pages that are live and not retired yet."""
    with store.install_lock:  # or an install in between could retire pages that the file has only had since
        bits, pending = store.allocator.live_bits(), store.reclaimer.pending()
    for retirement in pending:
        for first, count in retirement.extents:
            bits.clear(first, count)
    return bits


def levels_of(version: Version) -> tuple[Level, ...]:
    """A version's levels as its manifest had them."""
    return tuple(tuple(tuple(segment.record for segment in run) for run in level) for level in version.levels)


def bottom_of(version: Version) -> Segment | None:
    """The bottom's segment."""
    shape = shape_of(levels_of(version))
    return None if shape.bottom is None else version.segments[-1]


def bottom_node_pages(version: Version) -> int:
    """Pages that a node of the bottom takes at most."""
    bottom = bottom_of(version)
    return 1 if bottom is None else int(bottom.record.leaf_pages)


def tier_of(version: Version, ids: tuple[int, ...]) -> int:
    """The newest tier that one of these segments is in; the number of tiers where none is."""
    tiers = shape_of(levels_of(version)).tiers
    return next((i for i, runs in enumerate(tiers) if any(record.id in ids for record in runs)), len(tiers))


def overlap_bytes(segment: Segment | None, record: SegmentRecord) -> int:
    """About how many bytes of a segment lie between a record's fences. Cost: two descents."""
    if segment is None or record.last_key < segment.first_key or record.first_key > segment.last_key:
        return 0
    share = (segment.rank(record.last_key) - segment.rank(record.first_key)) / max(1, segment.entries)
    return int(min(1.0, max(0.0, share)) * segment.record.pages) * PAGE_BYTES


def rewritten_bytes(segments: list[Segment], bottom: Segment | None) -> int:
    """About how many bytes of these segments and of the bottom overlap with something of the others."""
    total = 0
    for segment in segments:
        others = [*(other for other in segments if other is not segment), bottom]
        overlap = sum(overlap_bytes(segment, other.record) for other in others if other is not None)
        total += min(segment.record.pages * PAGE_BYTES, overlap)
    if bottom is not None:
        overlap = sum(overlap_bytes(bottom, segment.record) for segment in segments)
        total += min(bottom.record.pages * PAGE_BYTES, overlap)
    return total


def cut_slices(
    segments: list[Segment], bottom: Segment | None, target: int, pause: Callable[[], object]
) -> list[Slice]:
    """Consecutive slices of the key space that read about `target` bytes each, source and overlap together.

    One, of everything, where no more than that overlaps with anything, for the rest is taken over. Cut between leaves
    of the source that has the most entries (R14). Cost: its parents, and its leaves where tombstones are worth
    counting.
    """
    if not segments:
        return [Slice(None, None, 0, 0)]
    largest = max(segments, key=lambda segment: segment.entries)
    size = rewritten_bytes(segments, bottom)
    if size <= target:
        return [Slice(None, None, largest.entries, largest.record.tombstones)]
    aim = largest.entries // max(1, -(-size // target))
    if aim >= largest.entries:
        return [Slice(None, None, largest.entries, largest.record.tombstones)]
    counting = largest.record.tombstones > TOMBSTONES_WORTH * largest.entries
    found: list[Slice] = []
    start: bytes | None = None
    entries = tombstones = 0
    walk = Walk(largest, pause)
    while walk.child is not None:
        if walk.height:
            walk.open(unlink=False)
            continue
        if entries >= aim:
            low = walk.low()
            found.append(Slice(start, low, entries, tombstones))
            start, entries, tombstones = low, 0, 0
        entries += walk.child.entries
        if counting:
            page = walk.take(unlink=False)[0]
            tombstones += largest.tombstones_of(page)
        else:
            walk.skip()
    found.append(Slice(start, None, entries, tombstones))
    return found
