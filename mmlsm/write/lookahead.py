# cython: boundscheck=False, wraparound=False, binding=False
"""Which leaves of the destination have keys of a merge's sources in their range, told before the merge comes there.

So that leaves that are merged are given many at a time: each time that the merge asks, its thread must take the GIL
back, and beside busy threads it waits for that. Used by one thread; the caller holds the segments.

I1. Ranges are asked about in ascending order, so each source moves forward only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.mmlsm.memory import compare
    from cython.cimports.mmlsm.read.segment import SegmentSource
else:
    from mmlsm.memory import compare
    from mmlsm.read.segment import SegmentSource

if TYPE_CHECKING:
    from mmlsm.read.segment import Segment


@cython.final
@cython.cclass
class Lookahead:
    """Over `segments`; of keys from `stop` on it knows nothing."""

    def __init__(self, segments: list[Segment], stop: bytes | None) -> None:
        source: SegmentSource
        self.stop = stop
        self.sources = []
        for segment in segments:
            source = SegmentSource(segment, None)
            source.first()
            self.sources.append(source)

    def finds(self, low: bytes, high: bytes) -> bool:
        """Whether some source has a key with low <= key < high. Cost: a comparison a source, or a descent."""
        source: SegmentSource
        if self.stop is not None and low >= self.stop:
            return False
        for source in self.sources:
            if source.valid and compare(source.key, 0, source.key_bytes, low, 0, len(low)) < 0:
                source.seek_ge(low, len(low))
            if source.valid and compare(source.key, 0, source.key_bytes, high, 0, len(high)) < 0:
                return True
        return False
