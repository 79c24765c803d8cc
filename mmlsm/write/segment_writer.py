"""Writes one segment bottom-up: leaves from a LeafWriter, parents above them, overflow extents, a filter.

One thread owns a SegmentWriter from its first entry to `finish` or `abandon`. Nothing it writes is visible or counts
as used until the caller commits the reservations and installs the record (reserve -> commit, R8).

I1. Every page written lies in an extent of `reserved` or in the open `run`; what `finish` did not use has been given
    back.
I2. A segment without entries is no segment: `finish` answers None and gives everything back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.format import page
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference, SegmentRecord
from mmlsm.memory import Buffer
from mmlsm.space.extents import Extent
from mmlsm.write.leaf_writer import LeafWriter
from mmlsm.write.overflow import write_extent
from mmlsm.write.parent_writer import Child, ParentWriter

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.settings import Settings
    from mmlsm.space.allocator import Allocator

RESERVE_PAGES = 512
FILTER_BITS_PER_KEY = 10


class SegmentWriter:
    """Collects entries in key order into a new segment.

    `expected_entries` sizes the filter (0: no filter). `leaf_bytes` is this segment's node size.
    """

    def __init__(
        self,
        channel: Channel,
        allocator: Allocator,
        settings: Settings,
        *,
        birth: int,
        leaf_bytes: int,
        expected_entries: int,
        at_end: bool = False,
    ) -> None:
        self.channel = channel
        self.allocator = allocator
        self.settings = settings
        self.birth = birth
        self.leaf_bytes = leaf_bytes
        self.at_end = at_end
        self.filter_bits: Buffer | None = None
        if expected_entries:
            self.filter_bits = Buffer((expected_entries * FILTER_BITS_PER_KEY // 512 + 1) * 64)
        self.leaves = LeafWriter(leaf_bytes, birth, settings.node_entries_max, self.filter_bits)
        self.parents: list[ParentWriter] = []
        self.reserved: list[Extent] = []
        self.run = Extent(0, 0)
        self.run_used = 0
        self.pending = bytearray()
        self.root: Child | None = None
        self.height = 0
        self.overflow_extents: list[Extent] = []
        self.bytes_written = 0

    def add_items(self, items: list[tuple[bytes, object]]) -> None:
        """Add pairs in key order; see LeafWriter.add_items for what a value may be."""
        at = 0
        while at < len(items):
            at = self.leaves.add_items(items, at, len(items), self.spill)
            if at < len(items):
                self.drain()

    def spill(self, payload: bytes) -> bytes:
        """Write an overflow extent of this segment; its packed reference."""
        reference = write_extent(self.channel, self.allocator, payload)
        extent = Extent(reference.page, reference.pages)
        self.reserved.append(extent)
        self.overflow_extents.append(extent)
        self.bytes_written += reference.pages * limits.PAGE_BYTES
        return reference.pack()

    def drain(self) -> None:
        """Take the finished leaves out of the leaf writer and give them pages and parents."""
        leaves = self.leaves
        out = memoryview(leaves.out.data)
        for i in range(leaves.leaves):
            start, end = leaves.leaf(i)
            separator, reference, length = leaves.separator(i)
            entries, flags = out[start + 4] | out[start + 5] << 8, out[start + 22]
            self.node(out[start:end], separator, reference, length, entries, bool(flags & page.FLAG_OVERFLOW), 0)
        leaves.drained()

    def node(
        self,
        data: memoryview | bytes,
        separator: bytes,
        reference: bytes,
        separator_bytes: int,
        entries: int,
        overflow: bool,
        height: int,
    ) -> None:
        """Place a finished node and enter it in the parent above."""
        first = self.place(data)
        pages = len(data) // limits.PAGE_BYTES
        child = Child(separator, reference, separator_bytes, first, pages, checksum(data), entries, overflow)
        if self.root is None and height == 0 and not self.parents:
            self.root = child
            return
        if height == len(self.parents):
            self.parents.append(ParentWriter(height + 1, self.leaf_bytes, self.settings.node_entries_max))
            if self.root is not None:
                self.parents[height].add(self.root)
                self.root = None
        self.enter(child, height)

    def enter(self, child: Child, height: int) -> None:
        """Add a child of the given height to its open parent, finishing that first when it is full."""
        parent = self.parents[height]
        if not parent.add(child):
            self.finish_parent(parent)
            parent.add(child)

    def finish_parent(self, parent: ParentWriter) -> None:
        """Write the open parent and start an empty one in its place."""
        data, entries, overflow = parent.encode(self.birth)
        lowest = parent.children[0]
        parent.start()
        self.node(
            data, lowest.separator, lowest.reference, lowest.separator_bytes, entries, overflow, parent.height
        )

    def place(self, data: memoryview | bytes) -> int:
        """The page number at which `data` will stand; written when its reservation is full."""
        pages = len(data) // limits.PAGE_BYTES
        if self.run_used + pages > self.run.count:
            self.write_pending()
            self.return_rest()
            self.run = self.allocator.reserve_up_to(RESERVE_PAGES, pages, at_end=self.at_end)
            self.run_used = 0
        first = self.run.first + self.run_used
        self.run_used += pages
        self.pending += data
        if len(self.pending) >= 1 << 20:
            self.write_pending()
        return first

    def write_pending(self) -> None:
        """Write what has been placed in the current reservation and not yet written."""
        if self.pending:
            offset = (self.run.first + self.run_used) * limits.PAGE_BYTES - len(self.pending)
            self.channel.pwrite(offset, self.pending)
            self.bytes_written += len(self.pending)
            self.pending = bytearray()

    def return_rest(self) -> None:
        """Close the current reservation: keep what was used, give the rest back."""
        rest = self.run.count - self.run_used
        if rest:
            self.allocator.give_back(Extent(self.run.first + self.run_used, rest))
        if self.run_used:
            self.reserved.append(Extent(self.run.first, self.run_used))
        self.run, self.run_used = Extent(0, 0), 0

    def finish(self, segment_id: int, *, seq_low: int, seq_high: int) -> SegmentRecord | None:
        """Write all that is left; the record, not yet installed (`installed` = birth), or None without entries."""
        while not self.leaves.finish():
            self.drain()
        self.drain()
        if not self.leaves.entries:
            self.abandon()
            return None
        root = self.finish_root()
        bits = self.write_filter()
        self.write_pending()
        self.return_rest()
        return SegmentRecord(
            id=segment_id,
            installed=self.birth,
            root_page=root.page,
            root_pages=root.pages,
            root_sum=root.sum,
            height=self.height,
            entries=self.leaves.entries,
            tombstones=self.leaves.tombstones,
            data_bytes=self.leaves.data_bytes,
            pages=sum(extent.count for extent in self.reserved),
            leaf_pages=self.leaf_bytes // limits.PAGE_BYTES,
            first_key=self.leaves.first(),
            last_key=self.leaves.last(),
            seq_low=seq_low,
            seq_high=seq_high,
            filter=bits,
            overflow=root.overflow,
        )

    def finish_root(self) -> Child:
        """Close the open parents from the bottom up; the root."""
        height = 0
        while height < len(self.parents):
            parent = self.parents[height]
            if height == len(self.parents) - 1:
                data, entries, overflow = parent.encode(self.birth)
                self.root = Child(
                    b"", b"", 0, self.place(data), len(data) // limits.PAGE_BYTES, checksum(data), entries, overflow
                )
                self.height = height + 1
            else:
                self.finish_parent(parent)
            height += 1
        assert self.root is not None
        return self.root

    def write_filter(self) -> Reference | None:
        """Write the filter's blocks as an extent."""
        if self.filter_bits is None:
            return None
        packed = self.spill(bytes(self.filter_bits.data))
        self.overflow_extents.pop()
        return Reference.unpack(packed)

    def abandon(self) -> None:
        """Give back every page; the writer is of no more use."""
        self.pending = bytearray()
        self.return_rest()
        for extent in self.reserved:
            self.allocator.give_back(extent)
        self.reserved = []


def pack_value(value: object) -> object:
    """A memtable's value as LeafWriter.add_items wants it."""
    return bytearray(value.pack()) if isinstance(value, Reference) else value


