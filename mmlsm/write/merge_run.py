"""One merge from beginning to end: segments in; one segment out, and what is left of those that were merged in part.

Runs on the merge thread, holds no lock, and pins its inputs: the caller holds the version that they come from (R15).
What it wrote is reserved, not live, until the caller installs the result.

I1. A merge that fails or is stopped gives back every page that it reserved.
I2. A node is taken over by reference only where no other source has a key in its range; so what a merge writes follows
    the overlap, not the size of what it merges into.
I3. What is taken over holds no tombstone where tombstones are dropped. Nothing is taken over into a segment that gets a
    new filter, for its keys would be missing there; what is left of a source keeps the source's filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.errors import CorruptionError
from mmlsm.format.manifest import Reference, SegmentRecord
from mmlsm.read.pages import Pages
from mmlsm.space.extents import Extent
from mmlsm.write import merge
from mmlsm.write.lookahead import Lookahead
from mmlsm.write.merge_inputs import Input, Kept, Merged, Remainder
from mmlsm.write.merge_walk import take_away
from mmlsm.write.overflow import move_extent
from mmlsm.write.segment_writer import SegmentWriter

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.read.segment import Segment
    from mmlsm.settings import Settings
    from mmlsm.space.allocator import Allocator
    from mmlsm.space.bitmap import Bitmap
    from mmlsm.space.reclaim import Reclaimer


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every merge of one database works with.

    `pause(done, total)` is called now and then with entries; what it raises stops the merge cleanly.
    """

    file: File
    channel: Channel
    allocator: Allocator
    reclaimer: Reclaimer
    settings: Settings
    birth: int
    pause: Callable[[int, int], None]
    own: Bitmap | None = None
    """What may be unlinked, each page once: what is live and not retired, without what was unlinked since."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a finished merge leaves to install.

    `record` is None when no entry was left; `remainders` are what stays of sources merged in part, by their id, None
    for nothing. `written` is reserved and becomes live; `unlinked` (extents, born) is to be retired.
    """

    record: SegmentRecord | None
    remainders: dict[int, SegmentRecord | None]
    written: tuple[Extent, ...]
    unlinked: tuple[tuple[list[Extent], int], ...]
    bytes_read: int
    bytes_written: int
    entries_in: int
    pages_reused: int
    overflow: tuple[int, ...]
    """First pages of the overflow extents among what was written."""


class Run:
    """A merge under way: one core, one writer, and what is to be retired once it is installed."""

    def __init__(self, shop: Workshop, writer: SegmentWriter, inputs: list[Input], tombstones: int, cut: int) -> None:
        self.shop = shop
        self.writer = writer
        self.inputs = inputs
        self.window = shop.file.whole_window()
        self.core = merge.MergeCore(self.window, writer.leaves, len(inputs), tombstones, cut)
        self.dropped: list[tuple[int, int]] = []
        self.moved_pages = 0
        self.older: list[Segment] = []
        self.total = 0

    def drive(self, total: int) -> None:
        """Serve the core until it is done; `total` entries at most are in it."""
        self.total = total
        for source in self.inputs:
            source.walk.unlinked.own, source.walk.unlinked.newest = self.shop.own, self.shop.birth
            source.walk.on_open = self.pause
        try:
            self.core.begin([source.walk.low() for source in self.inputs])
            while (answer := self.core.step()) != merge.ANSWER_DONE:
                self.answer(answer)
            self.dropped += self.core.take_dropped()
        finally:
            for source in self.inputs:
                source.walk.on_open = None  # no cycle keeps the buffers until the next garbage collection

    def answer(self, answer: int) -> None:
        """Do what the core needs."""
        core = self.core
        if answer == merge.ANSWER_FULL:
            self.writer.drain()
            self.pause()
        elif answer == merge.ANSWER_DROPPED:
            self.dropped += core.take_dropped()
        elif answer == merge.ANSWER_TOMBSTONE:
            key = core.key()
            core.decide(any(segment.holds(key) for segment in self.older))
        elif answer == merge.ANSWER_MOVE:
            self.move()
        elif answer == merge.ANSWER_DISORDER:
            raise damaged_inputs(self.inputs, "has keys out of order")
        elif answer >= merge.ANSWER_TOUCH:
            source = answer - merge.ANSWER_TOUCH
            segment = self.inputs[source].walk.segment
            # Through the core's window: a segment that was opened before the file grew may have another.
            pages = Pages(self.shop.file, self.window, self.shop.settings.verify, segment.segment_id)
            pages.prove_key(core.key_reference_of(source))
        else:
            source = answer - merge.ANSWER_FEED
            self.inputs[source].serve(core, source, self.writer)

    def move(self) -> None:
        """Copy the extents of an entry that reach beyond the cut to earlier pages, where there is room for them.

        REQUIRES one input: merges of several have no cut.
        """
        moved = []
        (source,) = self.inputs
        segment_id, shop = source.walk.segment.segment_id, self.shop
        for packed in self.core.wanted_references():
            old = Reference.unpack(packed) if packed else None
            if old is not None and old.page + old.pages > self.core.cut:
                new = move_extent(shop.file, shop.channel, shop.allocator, old, self.pause, segment_id)
                if new is not None:
                    self.writer.adopt(new)
                    self.dropped.append((old.page, old.pages))
                    self.moved_pages += old.pages
                    packed = new.pack()
            moved.append(packed)
        self.core.moved(*moved)

    def pause(self) -> None:
        """Between two pieces of work."""
        if self.core.entries_in > self.total:
            raise damaged_inputs(self.inputs, "has more entries than its record says")
        self.shop.pause(self.core.entries_in, self.total)


def merge_segments(
    shop: Workshop,
    segments: list[Segment],
    *,
    segment_id: int,
    bottom: bool,
    older: list[Segment],
    bounds: tuple[bytes | None, bytes | None] = (None, None),
    into: Segment | None = None,
    remainder_ids: Callable[[], int] | None = None,
) -> MergeResult:
    """Merge `segments`, newest first, into one, which takes the place of `into` too, when that is given: the bottom.

    `bounds`: only the keys from the first to before the second, of all but `into`; what is left of each source gets an
    id of `remainder_ids`. `bottom`: nothing is older, so tombstones go; else they go where none of the `older` segments
    may hold the key. Only the bottom has no filter, and takes nodes over by reference.
    """
    settings = shop.settings
    whole = bounds == (None, None)
    untouched = {segment.record.id: segment.record for segment in segments if not meets(segment.record, *bounds)}
    segments = [segment for segment in segments if segment.record.id not in untouched]
    sources = [*segments, *([into] if into is not None else [])]
    if not sources:
        return MergeResult(None, dict(untouched), (), (), 0, 0, 0, 0, ())
    records = [segment.record for segment in sources]
    total = sum(record.entries for record in records)
    inputs: list[Input] = []
    for segment in sources:
        reuse = settings.reuse and bottom and (whole or segment is into) and not segment.record.tombstones
        if not whole and segment is not into:
            inputs.append(Kept(segment, *bounds))
        else:
            others = [other for other in sources if other is not segment]
            ahead = Lookahead(others, bounds[1]) if reuse else None
            inputs.append(Merged(segment, settings, reuse=reuse, ahead=ahead))
    writer = SegmentWriter(
        shop.channel,
        shop.allocator,
        settings,
        birth=shop.birth,
        leaf_bytes=node_bytes_for(settings, records, into),
        expected_entries=0 if bottom else total,
    )
    run = Run(shop, writer, inputs, merge.DROP if bottom else merge.ASK, 0)
    run.older = older
    leftovers: list[Leftover] = []
    try:
        run.drive(total)
        record = writer.finish(
            segment_id,
            seq_low=min(record.seq_low for record in records),
            seq_high=max(record.seq_high for record in records),
        )
        if not whole:
            for number, segment in enumerate(segments):
                assert remainder_ids is not None
                leftovers.append(cut_out(shop, segment, bounds, run.core.read_from(number), remainder_ids()))
        return collect(run, record, leftovers, untouched)
    except BaseException:
        writer.abandon()
        for leftover in leftovers:
            for extent in leftover.reserved:
                shop.allocator.give_back(extent)
        raise


def damaged_inputs(inputs: list[Input], what: str) -> CorruptionError:
    """The error for a merge that finds that what it reads cannot be."""
    ids = [source.walk.segment.segment_id for source in inputs]
    return CorruptionError(
        f"segment {' or '.join(map(str, ids))} {what}; restore a backup, or salvage what is sound",
        segment=ids[0] if len(ids) == 1 else None,
    )


def meets(record: SegmentRecord, start: bytes | None, stop: bytes | None) -> bool:
    """Whether the keys start <= k < stop may have some of a segment's."""
    return (stop is None or record.first_key < stop) and (start is None or record.last_key >= start)


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is left of a source merged in part, and what was written for it."""

    source: Segment
    record: SegmentRecord | None
    reserved: list[Extent]
    overflow: list[Extent]
    bytes_written: int
    unlinked: list[tuple[list[Extent], int]]


def cut_out(
    shop: Workshop,
    segment: Segment,
    bounds: tuple[bytes | None, bytes | None],
    read: tuple[int, int, int, int, int],
    segment_id: int,
) -> Leftover:
    """`segment` without the keys between the bounds, by reference but for the nodes on both edges.

    `read` is what was merged of it: entries, tombstones, bytes, overflow pages kept and dropped.
    """
    record = segment.record
    source = Remainder(segment, shop.settings, *bounds)
    writer = like(shop, record)
    run = Run(shop, writer, [source], merge.KEEP, 0)
    try:
        run.drive(record.entries)
        left = writer.finish(segment_id, seq_low=record.seq_low, seq_high=record.seq_high)
    except BaseException:
        writer.abandon()
        raise
    walk = source.walk
    if left is None:
        walk.unlink_filter()
    else:
        entries, tombstones, size, kept, dropped = read
        if left.entries != record.entries - entries:
            writer.abandon()
            raise CorruptionError(
                f"segment {record.id}: its parents and its leaves differ in their entries; restore a backup",
                segment=record.id,
            )
        left = replace(
            left,
            installed=record.installed,
            tombstones=record.tombstones - tombstones,
            data_bytes=record.data_bytes - size,
            pages=left.pages + record.pages - walk.unlinked.pages - kept - dropped,
            filter=record.filter,
        )
    return Leftover(
        segment, left, writer.reserved, writer.overflow_extents, writer.bytes_written, walk.unlinked.grouped()
    )


def like(shop: Workshop, record: SegmentRecord, *, early: bool = False) -> SegmentWriter:
    """A writer of nodes of a segment's size, without a filter."""
    return SegmentWriter(
        shop.channel,
        shop.allocator,
        shop.settings,
        birth=shop.birth,
        leaf_bytes=record.leaf_pages * limits.PAGE_BYTES,
        expected_entries=0,
        early=early,
    )


def collect(
    run: Run,
    record: SegmentRecord | None,
    leftovers: list[Leftover],
    untouched: dict[int, SegmentRecord] | None = None,
) -> MergeResult:
    """The result of a merge that has been written; `untouched` are sources that had nothing between the bounds."""
    for first, count in run.dropped:
        take_away(run.shop.own, first, count)
    partial = {leftover.source for leftover in leftovers}
    unlinked = run.shop.reclaimer.grouped_by_birth(run.dropped)
    kept_pages = taken_bytes = reused = 0
    for number, source in enumerate(run.inputs):
        before = source.walk.segment.record
        _, _, size, kept, dropped = run.core.read_from(number)
        if source.walk.segment in partial:
            kept_pages += kept
            continue
        source.walk.unlink_filter()
        left = before.pages - source.walk.unlinked.pages - dropped
        kept_pages += left
        reused += left - kept
        taken_bytes += before.data_bytes - size
        unlinked += source.walk.unlinked.grouped()
    for leftover in leftovers:
        unlinked += leftover.unlinked
    if record is not None:
        record = replace(
            record,
            pages=record.pages + kept_pages - run.moved_pages,
            data_bytes=record.data_bytes + taken_bytes,
        )
    made = [leftover.record for leftover in leftovers] + [record]
    if any(one is not None and one.fault() is not None for one in made):
        raise damaged_inputs(run.inputs, "is not as its record says")
    writer = run.writer
    remainders: dict[int, SegmentRecord | None] = dict(untouched or {})
    remainders |= {leftover.source.record.id: leftover.record for leftover in leftovers}
    reserved = [*writer.reserved, *(extent for leftover in leftovers for extent in leftover.reserved)]
    overflow = [*writer.overflow_extents, *(extent for leftover in leftovers for extent in leftover.overflow)]
    return MergeResult(
        record=record,
        remainders=remainders,
        written=tuple(reserved),
        unlinked=tuple(unlinked),
        bytes_read=sum(run.core.read_from(number)[2] for number in range(len(run.inputs))),
        bytes_written=writer.bytes_written + sum(leftover.bytes_written for leftover in leftovers),
        entries_in=run.core.entries_in,
        pages_reused=reused,
        overflow=tuple(extent.first for extent in overflow),
    )


def rework(
    shop: Workshop, segment: Segment, *, segment_id: int, cut: int, fullness_min: float, most: int
) -> MergeResult | None:
    """Write those leaves and extents of the bottom anew that stand at or above page `cut`, or that are less full than
    that; about `most` pages of them, into the earliest free ones. None where there was nothing to do."""
    record = segment.record
    writer = like(shop, record, early=True)
    source = Merged(segment, shop.settings, reuse=True)
    source.rework(cut, fullness_min, most)
    run = Run(shop, writer, [source], merge.DROP, cut)
    try:
        run.drive(record.entries)
        if not run.core.entries_in and not (cut and source.walk.unlinked.reaches(cut)):
            writer.abandon()
            return None
        made = writer.finish(segment_id, seq_low=record.seq_low, seq_high=record.seq_high)
        return collect(run, made, [])
    except BaseException:
        writer.abandon()
        raise


def node_bytes_for(settings: Settings, records: list[SegmentRecord], into: Segment | None) -> int:
    """Node size of a segment made of these: enough for LEAF_ENTRIES_AIM of their mean entries, within the limits.

    Where nodes are taken over, not less than theirs, so that their separators fit.
    """
    entries = sum(record.entries for record in records)
    mean = sum(record.data_bytes for record in records) // max(1, entries) + 12
    return max(node_bytes(settings, mean), *(record.leaf_pages * limits.PAGE_BYTES for record in records))


def node_bytes(settings: Settings, mean_entry_bytes: int) -> int:
    """The node size for entries of this mean size: doubled from `leaf_bytes` until LEAF_ENTRIES_AIM of them fit."""
    size = settings.leaf_bytes
    while size < limits.LEAF_BYTES_MAX and mean_entry_bytes * limits.LEAF_ENTRIES_AIM > size:
        size *= 2
    return min(size, limits.LEAF_BYTES_MAX)
