# cython: boundscheck=False, wraparound=False, binding=False
"""The first touch of a page: through `pread`, outside the GIL, with its sum and structure proved (R3, R4).

Any thread. Two threads that meet an untouched page at once both prove it; the result is the same.

I1. Nothing is read through the map before the page's byte in `window.verified` says that it is sound (1: a leaf or
    parent, 2: an overflow extent), so a bad medium or a shortened file is an exception and no signal.
I2. With verify="never" sums are not looked at, but structure still is: no read leaves a page.
I3. With verify="always" a node's byte is never set, so every visit proves it anew.
"""

from __future__ import annotations

import struct

import cython

from mmlsm import limits
from mmlsm.errors import CorruptionError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import NODE_PAGES_MAX, Reference
from mmlsm.format.page import fault

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.format.leaf import fault_code as leaf_fault
    from cython.cimports.mmlsm.format.parent import child_page, child_pages, child_sum
    from cython.cimports.mmlsm.format.parent import fault_code as parent_fault
    from cython.cimports.mmlsm.memory import Window, cut, load32, load64, u8s
else:
    from mmlsm.format.leaf import fault_code as leaf_fault
    from mmlsm.format.parent import child_page, child_pages, child_sum
    from mmlsm.format.parent import fault_code as parent_fault
    from mmlsm.memory import Window, cut, load32, load64


@cython.cclass
class Pages:
    """The window onto one file with what it takes to prove a page: base of Segment."""

    def __init__(self, file, window: Window, verify: str, segment_id: int | None) -> None:
        self.file = file
        self.window = window
        self.segment_id = segment_id
        self.node_pages = NODE_PAGES_MAX
        self.file_pages = 0
        self.verify_always = verify == "always"
        self.verify_never = verify == "never"

    def touch_node(self, page, pages, expected, height):
        """Prove the leaf (height 0) or parent at `page`; CorruptionError names what is wrong."""
        return self.judge(read_node(self.file, page, pages, self.segment_id), page, expected, height)

    def judge(self, data, page, expected, height):
        """Prove the bytes of a node that were read from `page`, and remember that they are sound."""
        m8: u8s = data
        code: cython.int
        if not self.verify_never and checksum(data) != expected:
            raise CorruptionError(
                f"page {page}: the checksum differs; restore a backup, or salvage what is sound",
                page=page,
                segment=self.segment_id,
            )
        code = self.structure_fault(m8, len(data), height, self.file_pages)
        if code:  # it may refer to what the file has only had since we looked
            self.file_pages = max(self.file_pages, min(self.window.pages, self.file.pages))
            code = self.structure_fault(m8, len(data), height, self.file_pages)
        if code and self.structure_fault(m8, len(data), height, limits.FILE_PAGES_MAX) == 0:
            raise CorruptionError(
                f"page {page}: it refers to pages past the end of the file, which was cut; restore a backup, or "
                "salvage what is sound",
                page=page,
                segment=self.segment_id,
            )
        if code == 0 and m8[3] != height:
            code = 4
        if code == 0 and m8[2] > self.node_pages:
            code = 3
        if code:
            raise fault(code, page, self.segment_id)
        if not self.verify_always:
            self.window.verified[page] = 1
        return 0

    def structure_fault(self, m8, size, height, limit):
        """What is wrong with the structure of a node that may refer to the first `limit` pages."""
        key_max: cython.Py_ssize_t = (self.node_pages << 12) // limits.KEY_INLINE_FRACTION
        if height == 0:
            return leaf_fault(m8, size, limit, key_max)
        return parent_fault(m8, size, limit, key_max)

    def allow_references_past_the_end(self) -> None:
        """Call a node sound though the file was cut before what it refers to. What is read there must not be read
        through the map, nor noted as proved."""
        self.file_pages = limits.FILE_PAGES_MAX

    def touch_anew(self, node: tuple[int, int, int], height: cython.int) -> None:
        """Prove a node (page, pages, sum) again, whatever is remembered of it."""
        page, pages, expected = node
        self.touch_node(page, pages, expected, height)

    def children_of(self, page: int64_t) -> list[tuple[int, int, int]]:
        """(page, pages, sum) of each child of the proved parent at `page`, in key order."""
        base: int64_t = page << 12
        n: cython.Py_ssize_t = self.window.m16[(base >> 1) + 2]
        w: Window = self.window
        children: list = []
        for i in range(n):
            children.append((child_page(w, base, i), child_pages(w, base, i), child_sum(w, base, i)))
        return children

    def birth_of(self, page: int64_t) -> int:
        """The install number in the header of the proved node at `page`: since when it can be seen, at the earliest."""
        return load64(self.window.m8, (page << 12) + 8)

    def used_of(self, page: int64_t) -> int:
        """Bytes in use of the proved node at `page`."""
        return load32(self.window.m8, (page << 12) + 16)

    def tombstones_of(self, page: int64_t) -> int:
        """Tombstones in the proved leaf at `page`."""
        return load32(self.window.m8, (page << 12) + 20) & 0xFFFF

    def overflow_of(self, page: int64_t) -> bool:
        """Whether the header of the proved node at `page` says that there are overflow extents below."""
        return (load32(self.window.m8, (page << 12) + 20) >> 16 & 1) != 0

    def count_of(self, page: int64_t) -> int:
        """Entries of the proved leaf at `page`, or children of a parent."""
        return self.window.m16[(page << 11) + 2]

    def is_proved(self, page: int64_t) -> bool:
        """Whether the node at `page` was proved in this window."""
        return self.window.verified[page] == 1

    def touch_nodes(self, nodes: list[tuple[int, int, int]], height: cython.int) -> None:
        """Prove nodes (page, pages, sum) of one height, reading neighbours of up to 1 MiB in one go.

        Those that were proved before must still be there: others may have cut the file since.
        """
        at: cython.Py_ssize_t = 0
        while at < len(nodes):
            first, count, _ = nodes[at]
            if self.is_proved(first):
                if first + count > self.file.pages:
                    raise fault(16, first, self.segment_id)
                if self.window.m8[(first << 12) + 3] != height:  # proved as a node of another place in the tree
                    raise fault(4, first, self.segment_id)
                at += 1
                continue
            end: cython.Py_ssize_t = at + 1
            while end < len(nodes) and nodes[end][0] == first + count and count < 256:
                count += nodes[end][1]
                end += 1
            data = read_node(self.file, first, count, self.segment_id)
            for page, pages, expected in nodes[at:end]:
                start = (page - first) * limits.PAGE_BYTES
                self.judge(data[start : start + pages * limits.PAGE_BYTES], page, expected, height)
            at = end

    def touch_key(self, reference_at):
        """Prove the overflow extent of a key or separator, whose reference stands at that byte of the file."""
        self.touch_extent(Reference.unpack(cut(self.window.m8, reference_at, reference_at + 24)))
        return 0

    def prove_key(self, reference_at: int64_t) -> None:
        """`touch_key` for Python callers."""
        self.touch_key(reference_at)

    def touch_extent(self, reference: Reference) -> None:
        """Prove all of an overflow extent, unless it was, so that it may be read through the map."""
        if self.verify_always or self.window.verified[reference.page] != 2:
            self.prove_extent(reference)

    def prove_extent(self, reference: Reference) -> None:
        """Prove all of an overflow extent, whatever is remembered of it."""
        page: cython.longlong = reference.page
        for _ in read_chunks(self.file, reference, 0, reference.length, self.verify_never, self.segment_id):
            pass
        self.window.verified[page] = 2


def read_node(file, page: int, pages: int, segment_id: int | None) -> bytes:
    """The bytes of a node; CorruptionError where the file ends before."""
    data: bytes = file.pread(page * limits.PAGE_BYTES, pages * limits.PAGE_BYTES)
    if len(data) != pages * limits.PAGE_BYTES:
        raise CorruptionError(
            f"page {page}: the file is shorter than what refers to it; it was cut, restore a backup",
            page=page,
            segment=segment_id,
        )
    return data


def damaged_extent(reference: Reference, at: int, segment_id: int | None) -> CorruptionError:
    """The error for an overflow extent whose bytes are not what was written, from that one of the file on."""
    page = at // limits.PAGE_BYTES
    return CorruptionError(
        f"page {page}: the overflow extent of {reference.length} bytes from page {reference.page} on is damaged or cut "
        "short",
        page=page,
        segment=segment_id,
    )


def read_sums(file, reference: Reference, segment_id: int | None) -> tuple[int, ...]:
    """The checksum of each chunk of an overflow extent."""
    if reference.length <= limits.CHUNK_BYTES:
        return (reference.sum,)
    count = -(-reference.length // limits.CHUNK_BYTES)
    start = reference.page * limits.PAGE_BYTES + (reference.length + 7) // 8 * 8
    data = file.pread(start, 8 * count)
    if len(data) != 8 * count or checksum(data) != reference.sum:
        raise damaged_extent(reference, start, segment_id)
    return struct.unpack(f"<{count}Q", data)


def read_chunks(file, reference: Reference, start: int, stop: int, verify_never: bool = False,
                segment_id: int | None = None, sums: tuple[int, ...] | None = None):
    """Yield payload[start:stop] of an overflow extent in pieces of at most 64 KiB, each proved before it is given."""
    if sums is None:
        sums = () if verify_never else read_sums(file, reference, segment_id)
    base = reference.page * limits.PAGE_BYTES
    for i in range(start // limits.CHUNK_BYTES, -(-stop // limits.CHUNK_BYTES)):
        at = i * limits.CHUNK_BYTES
        size = min(limits.CHUNK_BYTES, reference.length - at)
        data = file.pread(base + at, size)
        if len(data) != size or (not verify_never and checksum(data) != sums[i]):
            raise damaged_extent(reference, base + at, segment_id)
        yield data[max(start - at, 0) : stop - at]


def read_payload(file, reference: Reference, verify_never: bool = False, segment_id: int | None = None) -> bytes:
    """The whole payload of an overflow extent, proved."""
    return b"".join(read_chunks(file, reference, 0, reference.length, verify_never, segment_id))
