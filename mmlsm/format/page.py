"""What leaves and parents have in common: the 32-byte header, kinds, and how a reference is laid out.

    0  u8  kind      1  u8  codec (0: raw)    2  u8  pages taken     3  u8  height (a leaf's is 0)
    4  u16 count     6  u16 prefix bytes      8  u64 birth: the earliest install that could hold the page
    16 u32 bytes used                         20 u16 tombstones (leaf), bytes per sum (parent)
    22 u8  flags     23 u8 reserved           24 u64 reserved (0)    32 prefix ...

Any thread may call anything here. docs/format.md is the specification.
"""

from __future__ import annotations

from typing import Final

from mmlsm import limits
from mmlsm.errors import CorruptionError

KIND_LEAF: Final = 1
KIND_PARENT: Final = 2
KIND_MANIFEST: Final = 3

CODEC_RAW: Final = 0
FLAG_OVERFLOW: Final = 1
"""Some entry at or below this page refers to an overflow extent."""

VALUE: Final = 0
TOMBSTONE: Final = 1
OVERFLOW: Final = 2
KEY_OVERFLOW: Final = 0x10
"""Added to an entry's kind: the key is in an extent, its first 128 bytes are here."""

FAULTS: Final = {
    1: "unknown page kind",
    2: "unknown page codec",
    3: "page size in the header differs from the reference",
    4: "height in the header differs from the reference",
    5: "entry count out of range",
    6: "arrays do not fit in the page",
    7: "offsets out of order",
    8: "unknown entry kind",
    9: "entry does not fit",
    10: "key length out of range",
    11: "value of a tombstone is not empty",
    12: "damaged overflow reference",
    13: "bytes per sum differ from what this version knows",
    14: "separator out of range",
    15: "child out of range",
    16: "past the end of the file, which was cut",
}


def extent_pages(length: int) -> int:
    """Pages of the overflow extent for a payload of `length` bytes: payload, then its sums if it has several chunks."""
    if length <= limits.CHUNK_BYTES:
        return -(-length // limits.PAGE_BYTES)
    chunks = -(-length // limits.CHUNK_BYTES)
    return -(-((length + 7) // 8 * 8 + 8 * chunks) // limits.PAGE_BYTES)


def fault(code: int, page: int, segment: int | None) -> CorruptionError:
    """The error for a fault code of `leaf.fault_code` or `parent.fault_code`."""
    return CorruptionError(
        f"page {page}: {FAULTS.get(code, 'damaged')}; restore a backup, or salvage what is sound",
        page=page,
        segment=segment,
    )
