"""Writes one segment bottom-up: leaves from a LeafWriter or taken over, parents above, overflow extents, a filter.

One thread owns a SegmentWriter from its first entry to `finish` or `abandon`. Nothing it writes is visible or counts
as used until the caller commits the reservations and installs the record (reserve -> commit, R8).

I1. Every page written lies in an extent of `reserved` once `finish` is done; what it did not use has been given back.
I2. A segment without entries is no segment: `finish` answers None and gives everything back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.format import page
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference, SegmentRecord
from mmlsm.memory import Buffer
from mmlsm.space.extents import Extent
from mmlsm.write.leaf_writer import LeafWriter
from mmlsm.write.node_writer import NodeWriter
from mmlsm.write.overflow import write_extent
from mmlsm.write.parent_writer import Child
from mmlsm.write.tree_writer import Opener, TreeWriter

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.settings import Settings
    from mmlsm.space.allocator import Allocator

Separator = tuple[bytes, bytes, int]
"""Inline bytes, a packed 24-byte reference or b"", the whole length."""

FILTER_BITS_PER_KEY = 10


class SegmentWriter:
    """Collects entries in key order into a new segment.

    `expected_entries` sizes the filter (0: no filter). `leaf_bytes` is this segment's node size. `early`: the nodes go
    into the earliest free pages, whatever the policy.
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
        early: bool = False,
    ) -> None:
        self.channel = channel
        self.allocator = allocator
        self.settings = settings
        self.birth = birth
        self.leaf_bytes = leaf_bytes
        self.filter_bits: Buffer | None = None
        if expected_entries:
            self.filter_bits = Buffer((expected_entries * FILTER_BITS_PER_KEY // 512 + 1) * 64)
        self.nodes = NodeWriter(channel, allocator, early)
        self.leaves = LeafWriter(leaf_bytes, birth, settings.node_entries_max, self.filter_bits)
        self.tree = TreeWriter(
            leaf_bytes, settings.node_entries_max, settings.leaf_fullness_min, birth, self.nodes.place
        )
        self.lower: Separator | None = None
        self.first_key: bytes | None = None
        self.last_key: Callable[[], bytes] | None = None
        self.entries = 0
        self.fresh = False
        self.overflow_extents: list[Extent] = []

    @property
    def reserved(self) -> list[Extent]:
        """The extents of all that was written."""
        return self.nodes.reserved

    @property
    def bytes_written(self) -> int:
        """Bytes of all that was written."""
        return self.nodes.bytes_written

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
        self.adopt(reference)
        return reference.pack()

    def adopt(self, reference: Reference) -> None:
        """An extent that the caller has written is this segment's."""
        extent = Extent(reference.page, reference.pages)
        self.nodes.keep(extent)
        self.overflow_extents.append(extent)

    def drain(self) -> None:
        """Take the finished leaves out of the leaf writer and give them pages and parents."""
        leaves = self.leaves
        out = memoryview(leaves.out.data)
        for i in range(leaves.leaves):
            start, end = leaves.leaf(i)
            data = out[start:end]
            separator, reference, length = self.lower or leaves.separator(i)
            self.lower = None
            entries, flags = data[4] | data[5] << 8, data[22]
            pages, overflow = (end - start) // limits.PAGE_BYTES, bool(flags & page.FLAG_OVERFLOW)
            first = self.nodes.place(data)
            self.tree.add(Child(separator, reference, length, first, pages, checksum(data), entries, overflow), 0)
            self.entries += entries
            self.fresh = True
        leaves.drained()

    def close_leaf(self) -> None:
        """Finish the open leaf as it is."""
        while not self.leaves.finish():
            self.drain()
        self.drain()

    def may_take_over(self, height: int) -> bool:
        """Whether what is open before it is full enough for a subtree of that height to come next."""
        used = self.leaves.open_bytes()
        return not self.is_poor() and self.tree.may_close_below(height, self.leaves.leaves + (used > 0))

    def is_poor(self) -> bool:
        """Whether the open leaf is too empty to be closed."""
        return 0 < self.leaves.fullness() < self.settings.leaf_fullness_min

    def share(self, coming_bytes: int) -> None:
        """A leaf of that many bytes, that could have stayed as it is, comes next, for the open one is too empty."""
        self.leaves.share(coming_bytes)

    def is_empty(self) -> bool:
        """Whether nothing has come yet."""
        return not self.entries and not self.leaves.entries and not self.leaves.open_bytes()

    def ends_fresh(self) -> bool:
        """Whether the last thing that came was written, and not taken over."""
        return self.fresh or bool(self.leaves.open_bytes()) or self.leaves.leaves > 0

    def take_over(
        self,
        child: Child,
        height: int,
        *,
        first_key: Callable[[], bytes],
        last_key: Callable[[], bytes],
        upper: Separator | None,
        opener: Opener,
    ) -> None:
        """Enter a node that is in the file already, with all below it.

        All its keys are below `upper`, which is not above any key to come; None where that is not known.
        """
        self.close_leaf()
        if self.tree.is_empty():
            self.first_key = first_key()
        self.tree.close_below(height)
        self.tree.add(child, height, opener)
        self.entries += child.entries
        self.last_key, self.lower, self.fresh = last_key, upper, False
        if upper is None:
            self.leaves.follow(last_key())

    def finish(self, segment_id: int, *, seq_low: int, seq_high: int) -> SegmentRecord | None:
        """Write all that is left; the record, not yet installed (`installed` = birth), or None without entries.

        Its pages, tombstones and bytes are those written here: the caller adds what was taken over.
        """
        self.close_leaf()
        if not self.entries:
            self.abandon()
            return None
        root, height = self.tree.finish()
        bits = self.write_filter()
        self.nodes.finish()
        return SegmentRecord(
            id=segment_id,
            installed=self.birth,
            root_page=root.page,
            root_pages=root.pages,
            root_sum=root.sum,
            height=height,
            entries=self.entries,
            tombstones=self.leaves.tombstones,
            data_bytes=self.leaves.data_bytes,
            pages=sum(extent.count for extent in self.reserved),
            leaf_pages=self.leaf_bytes // limits.PAGE_BYTES,
            first_key=self.leaves.first() if self.first_key is None else self.first_key,
            last_key=self.leaves.last() if self.fresh or self.last_key is None else self.last_key(),
            seq_low=seq_low,
            seq_high=seq_high,
            filter=bits,
            overflow=root.overflow,
        )

    def write_filter(self) -> Reference | None:
        """Write the filter's blocks as an extent."""
        if self.filter_bits is None:
            return None
        packed = self.spill(bytes(self.filter_bits.data))
        self.overflow_extents.pop()
        return Reference.unpack(packed)

    def abandon(self) -> None:
        """Give back every page; the writer is of no more use."""
        self.nodes.abandon()


def pack_value(value: object) -> object:
    """A memtable's value as LeafWriter.add_items wants it."""
    return bytearray(value.pack()) if isinstance(value, Reference) else value


