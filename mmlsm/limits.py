"""Every bound of the engine in one place, with the relations between them asserted at import."""

from __future__ import annotations

from typing import Final

PAGE_BYTES: Final = 4096
"""The unit of addressing and allocation."""

FILE_PAGES_MAX: Final = 1 << 32
"""Page numbers are 32 bits wide: 16 TiB a file."""

HEADER_PAGES: Final = 3
"""Two superblock slots and the holder page."""

KEY_BYTES_MAX: Final = 65_535

LEAF_BYTES_MIN: Final = 4096
LEAF_BYTES_MAX: Final = 32_768
LEAF_BYTES_DEFAULT: Final = 8192

LEAF_ENTRIES_AIM: Final = 32
"""Leaves of a segment grow, up to LEAF_BYTES_MAX, until they hold about this many entries."""

NODE_HEADER_BYTES: Final = 32
"""Header of leaf and parent pages."""

KEY_INLINE_FRACTION: Final = 8
"""A key longer than leaf_bytes / 8 goes to an overflow extent."""

VALUE_INLINE_FRACTION: Final = 4
"""A value longer than leaf_bytes / 4 goes to an overflow extent."""

KEY_PART_BYTES: Final = 128
"""What a leaf or parent keeps inline of an overflow key."""

REFERENCE_BYTES: Final = 24
"""An overflow reference: u64 length, u32 first page, u32 pages, u64 sum."""

CHUNK_BYTES: Final = 65_536
"""Overflow payload carries one sum for each of these."""

HEIGHT_MAX: Final = 24
"""Parents above a leaf; far more than 2**32 leaves at the smallest fan-out need."""

NODE_ENTRIES_MAX: Final = 8192
"""Entries in a leaf, children in a parent."""

MEMTABLE_BYTES_MIN: Final = 4096
MEMTABLE_BYTES_DEFAULT: Final = 64 << 20
MEMTABLE_BYTES_MAX: Final = 1 << 40

GROUP_INTERVAL_S_MAX: Final = 86_400
"""A day, and less than any clock or lock overflows by. Who wants no syncs but their own asks for durability "off"."""

NUMBER_MAX: Final = 1 << 62
"""No generation, install, id, seq or count in a file is above this, so that sums and next ones fit into 64 bits."""

LARGE_VALUE_BYTES: Final = 1 << 20
"""A value at least this long is written to its extent before the commit instead of into the log."""

SEQ_CEILING_STEP: Final = 1 << 40
"""How far a durable superblock's seq ceiling runs ahead of the last commit."""

assert LEAF_BYTES_MIN % PAGE_BYTES == 0 and LEAF_BYTES_MAX // PAGE_BYTES <= 8
assert KEY_BYTES_MAX < CHUNK_BYTES, "an overflow key is one chunk, so one sum covers it"
assert KEY_PART_BYTES <= LEAF_BYTES_MIN // KEY_INLINE_FRACTION
assert MEMTABLE_BYTES_MAX <= FILE_PAGES_MAX * PAGE_BYTES // 16, "the log of all memtables that wait fits into a file"
assert LEAF_BYTES_MAX <= 0xFFFF, "offsets inside a page are 16 bits wide"
assert (
    LEAF_BYTES_MIN
    >= NODE_HEADER_BYTES + 2 * (LEAF_BYTES_MIN // KEY_INLINE_FRACTION + LEAF_BYTES_MIN // VALUE_INLINE_FRACTION + 32)
), "a leaf holds at least two entries of any size"
