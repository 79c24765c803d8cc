"""What the tests of leaves, parents and segments share: a segment written to a file in memory, and its reader."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

from mmlsm.file import open_memory
from mmlsm.format.manifest import SegmentRecord
from mmlsm.limits import HEADER_PAGES
from mmlsm.read.life import Life
from mmlsm.read.reader import Reader, ReadState
from mmlsm.read.segment import Segment
from mmlsm.settings import Settings
from mmlsm.space.allocator import Allocator
from mmlsm.write.segment_writer import SegmentWriter

Pairs = dict[bytes, bytes | None]


class Runs:
    """A version's stand-in: segments, newest first."""

    install = 1
    seq = 1

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self._maps: dict[int, Any] = {}

    def pinned_map(self, file: Any, pages: int) -> Any:
        return file.pinned_map(pages, self)


class SegmentRig:
    """A file in memory that segments are written to."""

    def __init__(self, *, node_entries_max: int = 8192, leaf_bytes: int = 4096, begin: int = HEADER_PAGES) -> None:
        self.settings = Settings(debug=True, node_entries_max=node_entries_max, leaf_bytes=leaf_bytes)
        self.leaf_bytes = leaf_bytes
        self.file = open_memory()
        self.file.resize(HEADER_PAGES)
        self.allocator = Allocator(HEADER_PAGES, [], resize=self.file.resize, forget=self.file.forget)
        if begin > HEADER_PAGES:
            self.allocator.reserve(begin - HEADER_PAGES)
        self.channel = self.file.channel()
        self.records: list[SegmentRecord] = []

    def write(self, pairs: Pairs, *, with_filter: bool = False) -> Segment:
        writer = SegmentWriter(
            self.channel,
            self.allocator,
            self.settings,
            birth=7,
            leaf_bytes=self.leaf_bytes,
            expected_entries=len(pairs) if with_filter else 0,
        )
        writer.add_items(sorted(pairs.items()))
        record = writer.finish(len(self.records) + 1, seq_low=1, seq_high=2)
        assert record is not None
        self.records.append(record)
        return Segment(self.file, record, self.settings.verify)

    def reader(self, *segments: Segment) -> Reader:
        return Reader(ReadState((), Runs(segments), self.file, "first-read"), 1, Life())


def check_segment(reader: Reader, pairs: Pairs, probes: list[bytes] | None = None) -> None:
    """Every key, its neighbours, seeks from both sides, and walks both ways."""
    want = {key: value for key, value in sorted(pairs.items()) if value is not None}
    order = list(want)
    assert list(reader.items()) == list(want.items())
    assert list(reader.keys(reverse=True)) == order[::-1]
    if probes is None:
        probes = sorted({near for key in pairs for near in (key, key + b"\0", key[:-1], key[:-1] + b"\xff\xff")})
    cursor = reader.cursor()
    for probe in probes:
        probe = probe[:65535]
        assert reader.get(probe) == want.get(probe), probe[:50]
        for how, at in ((">=", bisect_left(order, probe)), ("<=", bisect_right(order, probe) - 1)):
            found = cursor.key if cursor.seek(probe, how) else None
            assert found == (order[at] if 0 <= at < len(order) else None), (probe[:50], how)
