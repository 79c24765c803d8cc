"""Nodes without a manifest: trees put together by what stands in their pages alone. The last resort.

A parent's sums prove its children, but nothing proves the topmost nodes, nor that they were in use: free pages hold
older ones. So what comes of this is an order of guesses, the latest birth first, and all of it is to be called
uncertain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmlsm import limits
from mmlsm.format import parent
from mmlsm.format.manifest import NODE_PAGES_MAX, Manifest, SegmentRecord
from mmlsm.rescue.orphans import Orphan, orphans_in

if TYPE_CHECKING:
    from mmlsm.file import File

LAST_KEY: Final = b"\xff" * limits.KEY_BYTES_MAX


def manifest_of(file: File) -> Manifest:
    """A manifest of one level: a run for each sound node that no other sound node refers to, the youngest first."""
    found = list(orphans_in(file, [(limits.HEADER_PAGES, file.pages - limits.HEADER_PAGES)]))
    window = file.whole_window()
    below = {
        (number, total)
        for orphan in found
        if orphan.height
        for _, _, _, number, _, total, _, _ in parent.children_of(window, orphan.page)
    }
    tops = [orphan for orphan in found if (orphan.page, orphan.sum) not in below]
    tops.sort(key=lambda orphan: -orphan.birth)
    runs = tuple((record_of(orphan, i),) for i, orphan in enumerate(tops, 1))
    return Manifest(install=0, uuid=bytes(16), levels=(runs,), next_segment_id=len(runs) + 1)


def record_of(orphan: Orphan, number: int) -> SegmentRecord:
    """A segment of which only the root is known."""
    return SegmentRecord(
        id=number,
        installed=0,
        root_page=orphan.page,
        root_pages=orphan.pages,
        root_sum=orphan.sum,
        height=orphan.height,
        entries=orphan.entries,
        tombstones=0,
        data_bytes=0,
        pages=orphan.pages,
        leaf_pages=NODE_PAGES_MAX,
        first_key=b"",
        last_key=LAST_KEY,
        seq_low=0,
        seq_high=0,
    )
