"""One merge from beginning to end: segments in, one segment out.

Runs on the merge thread (or under `compact()`), holds no lock, and pins its inputs: the caller holds the version that
they come from (R15). What it wrote is reserved, not live, until the caller installs the result.

I1. A merge that fails or is stopped gives back every page that it reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.format.manifest import SegmentRecord
from mmlsm.read.pages import Pages
from mmlsm.space.extents import Extent, joined
from mmlsm.write import merge
from mmlsm.write.segment_writer import SegmentWriter

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.read.segment import Segment
    from mmlsm.settings import Settings
    from mmlsm.space.allocator import Allocator


class Stopped(Exception):
    """The merge was asked to stop; it has given everything back."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a finished merge leaves to install.

    `record` is None when no entry was left. `written` is reserved and becomes live; `unlinked` are the extents of the
    inputs that the result does not use, to be retired.
    """

    record: SegmentRecord | None
    written: tuple[Extent, ...]
    unlinked: tuple[tuple[tuple[Extent, ...], int], ...]
    bytes_written: int
    entries_in: int


class NodeWalk:
    """Proves the nodes of one segment in key order and remembers where they are."""

    def __init__(self, pages: Pages, record: SegmentRecord) -> None:
        self.pages = pages
        self.record = record
        self.extents: list[tuple[int, int]] = []
        if record.filter is not None:
            self.extents.append((record.filter.page, record.filter.pages))

    def birth(self, latest: int) -> int:
        """Since which install its nodes and filter could be seen, at most `latest`: what the root's header says."""
        header = self.pages.file.pread(self.record.root_page * limits.PAGE_BYTES, limits.NODE_HEADER_BYTES)
        return min(max(self.record.installed, int.from_bytes(header[8:16], "little")), latest)

    def leaves(self) -> Iterator[list[int]]:
        """Page numbers of the leaves, a parent's at a time."""
        root = (self.record.root_page, self.record.root_pages, self.record.root_sum)
        return self._below([root], self.record.height)

    def _below(self, nodes: list[tuple[int, int, int]], height: int) -> Iterator[list[int]]:
        self.pages.touch_nodes(nodes, height)
        self.extents += [(page, pages) for page, pages, _ in nodes]
        if height == 0:
            numbers = [page for page, _, _ in nodes]
            for at in range(0, len(numbers), 512):
                yield numbers[at : at + 512]
            return
        for page, _, _ in nodes:
            yield from self._below(self.pages.children_of(page), height - 1)


def merge_segments(
    file: File,
    channel: Channel,
    allocator: Allocator,
    settings: Settings,
    segments: list[Segment],
    *,
    drop_tombstones: bool,
    with_filter: bool,
    birth: int,
    segment_id: int,
    at_end: bool = False,
    pause: Callable[[int, int], None],
) -> MergeResult:
    """Merge `segments`, newest first, into one.

    `at_end` puts its nodes at the end of the file.
    `pause(done, total)` is called now and then with entries; what it raises stops the merge cleanly.
    """
    records = [segment.record for segment in segments]
    window = file.whole_window()
    walks = [NodeWalk(Pages(file, window, settings.verify, record.id), record) for record in records]
    total = sum(record.entries for record in records)
    writer = SegmentWriter(
        channel,
        allocator,
        settings,
        birth=birth,
        leaf_bytes=leaf_bytes_for(settings, records),
        expected_entries=total if with_filter else 0,
        at_end=at_end,
    )
    try:
        core = merge.MergeCore(window, writer.leaves, len(records), drop_tombstones)
        dropped = drive(core, writer, walks, lambda done: pause(done, total))
        record = writer.finish(
            segment_id,
            seq_low=min(record.seq_low for record in records),
            seq_high=max(record.seq_high for record in records),
        )
    except BaseException:
        writer.abandon()
        raise
    oldest = min(record.installed for record in records)
    unlinked = [(joined(walk.extents), walk.birth(birth - 1)) for walk in walks]
    unlinked.append((joined(dropped), oldest))
    written = tuple(writer.reserved)
    if record is not None:
        kept = sum(record.pages for record in records)
        kept -= sum(extent.count for extents, _ in unlinked for extent in extents)
        record = replace(record, pages=record.pages + kept, installed=oldest if record.overflow else birth)
    return MergeResult(record, written, tuple(unlinked), writer.bytes_written, core.entries_in)


def drive(
    core: merge.MergeCore, writer: SegmentWriter, walks: list[NodeWalk], pause: Callable[[int], None]
) -> list[tuple[int, int]]:
    """Serve the core until it is done; the overflow extents that were left out."""
    feeds = [walk.leaves() for walk in walks]
    dropped: list[tuple[int, int]] = []
    while (answer := core.step()) != merge.ANSWER_DONE:
        if answer == merge.ANSWER_FULL:
            writer.drain()
            pause(core.entries_in)
        elif answer == merge.ANSWER_DROPPED:
            dropped += core.take_dropped()
        elif answer >= merge.ANSWER_TOUCH:
            source = answer - merge.ANSWER_TOUCH
            walks[source].pages.prove_key(core.key_reference_of(source))
        else:
            source = answer - merge.ANSWER_FEED
            core.give(source, next(feeds[source], []))
    return dropped + core.take_dropped()


def leaf_bytes_for(settings: Settings, records: list[SegmentRecord]) -> int:
    """Node size of a segment made of these: enough for LEAF_ENTRIES_AIM of their mean entries, within the limits."""
    entries = sum(record.entries for record in records)
    mean = sum(record.data_bytes for record in records) // max(1, entries) + 12
    return node_bytes(settings, mean)


def node_bytes(settings: Settings, mean_entry_bytes: int) -> int:
    """The node size for entries of this mean size: doubled from `leaf_bytes` until LEAF_ENTRIES_AIM of them fit."""
    size = settings.leaf_bytes
    while size < limits.LEAF_BYTES_MAX and mean_entry_bytes * limits.LEAF_ENTRIES_AIM > size:
        size *= 2
    return min(size, limits.LEAF_BYTES_MAX)
