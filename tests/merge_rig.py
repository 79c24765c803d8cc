"""What the tests of merging share: segments in memory, merged, proved page by page."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mmlsm.check import Checker, Layout
from mmlsm.errors import StorageError
from mmlsm.format.manifest import Manifest, SegmentRecord
from mmlsm.format.superblock import Superblock
from mmlsm.limits import HEADER_PAGES
from mmlsm.read.segment import Segment
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.reclaim import Reclaimer
from mmlsm.write.merge_run import MergeResult, Workshop, merge_segments, rework
from segment_rig import Pairs, SegmentRig


def nothing(done: int, total: int) -> None:
    """A merge's pause that does nothing."""


class Refusing:
    """A channel whose n-th write, from 0 on, is refused, as on a full disk; None refuses none. `writes` counts them."""

    def __init__(self, channel: Any, refused: int | None = None) -> None:
        self.channel = channel
        self.refused = refused
        self.writes = 0

    def pwrite(self, offset: int, data: Any) -> None:
        self.writes += 1
        if self.writes - 1 == self.refused:
            raise StorageError(errno.ENOSPC, "the disk is full")
        self.channel.pwrite(offset, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.channel, name)


class MergeRig(SegmentRig):
    """A file in memory whose segments are merged."""

    def __init__(self, *, node_entries_max: int = 8192, leaf_bytes: int = 4096, **settings: Any) -> None:
        super().__init__(node_entries_max=node_entries_max, leaf_bytes=leaf_bytes)
        self.settings = replace(self.settings, **settings)
        self.reclaimer = Reclaimer(self.allocator)
        self.last_id = 1000

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def shop(self, pause: Callable[[int, int], None] = nothing) -> Workshop:
        return Workshop(self.file, self.channel, self.allocator, self.reclaimer, self.settings, 9, pause)

    def open(self, record: SegmentRecord | None) -> Segment | None:
        return None if record is None else Segment(self.file, record, "first-read")

    def merge(
        self,
        segments: Sequence[Segment],
        *,
        into: Segment | None = None,
        bottom: bool = True,
        older: Sequence[Segment] = (),
        bounds: tuple[bytes | None, bytes | None] = (None, None),
        pause: Callable[[int, int], None] = nothing,
    ) -> MergeResult:
        """Merge, and let go of what the result takes the place of."""
        result = merge_segments(
            self.shop(pause), list(segments), segment_id=self.next_id(), bottom=bottom, older=list(older),
            bounds=bounds, into=into, remainder_ids=self.next_id,
        )  # fmt: skip
        self.let_go(result)
        return result

    def rework(
        self,
        segment: Segment,
        *,
        cut: int = 0,
        fullness_min: float = 0.0,
        most: int = 1 << 30,
        pause: Callable[[int, int], None] = nothing,
    ) -> MergeResult | None:
        """As `merge`, of one segment's nodes that stand late or are not full."""
        result = rework(
            self.shop(pause), segment, segment_id=self.next_id(), cut=cut, fullness_min=fullness_min, most=most
        )
        if result is not None:
            self.let_go(result)
        return result

    def reserved(self) -> int:
        """Pages that segments have."""
        return sum(extent.count for extent in self.allocator.reserved_extents())

    def let_go(self, result: MergeResult) -> None:
        """What the merge unlinked is free at once, as if no reader were there; each page of it once."""
        for extents, _ in result.unlinked:
            for extent in extents:
                self.allocator.give_back(extent)

    def prove(self, *segments: Segment | None) -> None:
        """Every page that is reserved belongs to exactly one of these, and all that their records say is so."""
        records = tuple(segment.record for segment in segments if segment is not None)
        bits = Bitmap(self.allocator.total)
        bits.set(0, HEADER_PAGES)
        for extent in self.allocator.reserved_extents():
            bits.set(*extent)
        levels = tuple(((record,),) for record in records)
        manifest = Manifest(install=99, uuid=bytes(16), levels=levels, next_segment_id=1 << 40, file_pages=bits.pages)
        layout = Layout(Superblock(uuid=bytes(16), generation=1), manifest, bits, [], [], [], bits.pages)
        report = Checker(self.file, layout, None).run()
        assert report.ok, report.problems
        for record in records:
            if self.settings.node_entries_max > 3:  # three children cannot be two parents of two
                assert poor_parents(self, record) == [], "a parent with one child"


def poor_parents(rig: SegmentRig, record: SegmentRecord) -> list[int]:
    """Parents that have one child."""
    segment, found = Segment(rig.file, record, "first-read"), []
    nodes, height = [(record.root_page, record.root_pages, record.root_sum)], record.height
    while height:
        segment.touch_nodes(nodes, height)
        below = [(page, segment.children_of(page)) for page, _, _ in nodes]
        found += [page for page, children in below if len(children) < 2]
        nodes, height = [child for _, children in below for child in children], height - 1
    return found


def newest(layers: list[Pairs]) -> Pairs:
    """What layers, newest first, hold together."""
    found: Pairs = {}
    for layer in reversed(layers):
        found |= layer
    return dict(sorted(found.items()))


def live(pairs: Pairs) -> Pairs:
    """Without tombstones."""
    return {key: value for key, value in pairs.items() if value is not None}
