# cython: boundscheck=False, wraparound=False, binding=False, cdivision=True
"""Segment: an immutable B+tree in the file, searched and walked in place.

Any thread may search a Segment; a SegmentSource belongs to one cursor. The caller holds a version that holds the
segment. Point reads keep the GIL: a descent is shorter than giving it up and taking it again.

I1. `record` and all fields are constant after construction, but for `filter_ready`, which only goes from False to True.
I2. A position is page << 16 | entry; it is valid as long as the version is held.
I3. Every child is checked for its kind and height on the way down, so a damaged file cannot make a search loop.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.format.leaf import entry_at, entry_end, load_key, value_at
    from cython.cimports.mmlsm.format.leaf import key_reference_at as leaf_reference_at
    from cython.cimports.mmlsm.format.leaf import search as leaf_search
    from cython.cimports.mmlsm.format.parent import (
        child_entries,
        child_page,
        child_pages,
        child_sum,
        separator_reference_at,
    )
    from cython.cimports.mmlsm.format.parent import search as parent_search
    from cython.cimports.mmlsm.memory import (
        Buffer,
        Int64s,
        Window,
        at,
        compare,
        cut,
        filter_holds,
        key_hash,
        load32,
        load64,
        prefetch,
        u8s,
        u16s,
    )
    from cython.cimports.mmlsm.read.pages import Pages
    from cython.cimports.mmlsm.read.source import Source
else:
    from mmlsm.format.leaf import entry_at, entry_end, load_key, value_at
    from mmlsm.format.leaf import key_reference_at as leaf_reference_at
    from mmlsm.format.leaf import search as leaf_search
    from mmlsm.format.parent import child_entries, child_page, child_pages, child_sum, separator_reference_at
    from mmlsm.format.parent import search as parent_search
    from mmlsm.memory import Buffer, Int64s, Window, at, compare, cut, filter_holds, key_hash, load32, load64, prefetch
    from mmlsm.read.pages import Pages
    from mmlsm.read.source import Source

    ABSENT = -1

from mmlsm.errors import CorruptionError
from mmlsm.format.manifest import Reference, SegmentRecord
from mmlsm.locks import RWLock
from mmlsm.read.pages import read_payload
from mmlsm.read.view import view_of


@cython.final
@cython.cclass
class Segment(Pages):
    """One segment of a version, opened: its record and the window to read it through."""

    def __init__(self, file, record: SegmentRecord, verify: str) -> None:
        Pages.__init__(self, file, file.whole_window(), verify, record.id)
        self.record = record
        self.lock = RWLock()
        self.root_page = record.root_page
        self.root_pages = record.root_pages
        self.root_sum = record.root_sum
        self.height = record.height
        self.first_key = record.first_key
        self.last_key = record.last_key
        self.entries = record.entries
        self.filter_ready = False
        self.filter_at = self.filter_blocks = 0
        self.node_pages = record.leaf_pages
        if record.root_page + record.root_pages > self.window.pages:
            self.root_page = 0  # never proved: each call that needs this segment meets the error, others do not
        if record.filter is not None and record.filter.page + record.filter.pages <= self.window.pages:
            self.filter_at = record.filter.page << 12
            self.filter_blocks = record.filter.length // 64

    def touch_root(self):
        """Prove the root page."""
        if self.root_page == 0:
            raise CorruptionError(
                f"segment {self.segment_id}: its root lies past the end of the file; it was cut, restore a backup",
                page=self.record.root_page,
                segment=self.segment_id,
            )
        return self.touch_node(self.root_page, self.root_pages, self.root_sum, self.height)

    def root_is_proved(self):
        """Whether the root was proved in this window, and as a node of its height."""
        w: Window = self.window
        return w.verified[self.root_page] == 1 and w.m8[(self.root_page << 12) + 3] == self.height

    def touch_child(self, base, i, height):
        """Prove child i, a node of that height, of the parent at `base`."""
        return self.touch_node(
            child_page(self.window, base, i), child_pages(self.window, base, i), child_sum(self.window, base, i), height
        )

    def may_hold(self, key, key_bytes, h):
        """False when the fences or the filter rule the key out; `h` is its key_hash."""
        if compare(key, 0, key_bytes, self.first_key, 0, len(self.first_key)) < 0:
            return False
        if compare(key, 0, key_bytes, self.last_key, 0, len(self.last_key)) > 0:
            return False
        if self.filter_blocks == 0:
            return True
        if not self.filter_ready:
            self.prove_extent(self.record.filter)
            self.filter_ready = not self.verify_always
        return filter_holds(self.window.m8, self.filter_at, self.filter_blocks, h)

    def leaf_for(self, key, key_bytes):
        """Page number of the leaf in whose range the key lies, proved."""
        w: Window = self.window
        page: int64_t = self.root_page
        child: int64_t
        base: int64_t
        i: int64_t
        height: cython.int = self.height
        if not self.root_is_proved():
            self.touch_root()
        while height > 0:
            base = page << 12
            i = parent_search(w, base, key, key_bytes)
            if i < 0:
                self.touch_key(separator_reference_at(w, base, -2 - i))
                continue
            child = child_page(w, base, i)
            prefetch(w.m8, child << 12)
            prefetch(w.m8, (child << 12) + 64)
            prefetch(w.m8, (child << 12) + 128)
            prefetch(w.m8, (child << 12) + 192)
            prefetch(w.m8, (child << 12) + 256)
            prefetch(w.m8, (child << 12) + 320)
            height -= 1
            if w.verified[child] != 1:
                self.touch_child(base, i, height)
            if w.m8[(child << 12) + 3] != height:
                raise_wrong_height(child, self.segment_id)
            page = child
        return page

    def find(self, key, key_bytes):
        """The position of the key's entry, or ABSENT."""
        page: int64_t = self.leaf_for(key, key_bytes)
        result: int64_t
        while True:
            result = leaf_search(self.window, page << 12, key, key_bytes)
            if result >= 0:
                break
            self.touch_key(leaf_reference_at(self.window, entry_at(self.window, page << 12, -2 - result)))
        if result & 1:
            return page << 16 | result >> 1
        return ABSENT

    def holds(self, key: bytes) -> bool:
        """Whether there is an entry of this key, a tombstone or not: by fences, then filter, then search."""
        return self.may_hold(key, len(key), key_hash(key, len(key))) and self.find(key, len(key)) != ABSENT

    def filter_lacks(self, key: bytes) -> bool:
        """Whether the filter, which was proved, rules the key out."""
        if self.filter_blocks == 0:
            return False
        return not filter_holds(self.window.m8, self.filter_at, self.filter_blocks, key_hash(key, len(key)))

    def first_at_or_above(self, page: int64_t, key: bytes) -> int:
        """Of the proved leaf at `page`, the index of the first entry that is not below `key`."""
        result: int64_t
        while True:
            result = leaf_search(self.window, page << 12, key, len(key))
            if result >= 0:
                return result >> 1
            self.touch_key(leaf_reference_at(self.window, entry_at(self.window, page << 12, -2 - result)))

    def kind_of(self, position):
        """VALUE, TOMBSTONE or OVERFLOW."""
        return self.window.m8[entry_at(self.window, (position >> 16) << 12, position & 0xFFFF)] & 15

    def value_of(self, position):
        """The value as bytes; None for a tombstone."""
        w: Window = self.window
        base: int64_t = (position >> 16) << 12
        i: cython.Py_ssize_t = position & 0xFFFF
        entry: int64_t = entry_at(w, base, i)
        kind: cython.int = w.m8[entry] & 15
        if kind == 0:
            return cut(w.m8, value_at(w, entry), entry_end(w, base, i))
        if kind == 1:
            return None
        return read_payload(self.file, self.reference_of(position), self.verify_never, self.segment_id)

    def reference_of(self, position):
        """The overflow reference of an entry of kind OVERFLOW."""
        start: int64_t = value_at(self.window, entry_at(self.window, (position >> 16) << 12, position & 0xFFFF))
        return Reference.unpack(cut(self.window.m8, start, start + 24))

    def value_length_of(self, position):
        """Bytes of the value, without reading it; 0 for a tombstone."""
        w: Window = self.window
        base: int64_t = (position >> 16) << 12
        i: cython.Py_ssize_t = position & 0xFFFF
        entry: int64_t = entry_at(w, base, i)
        if w.m8[entry] & 15 == 2:
            return cython.cast("int64_t", load64(w.m8, value_at(w, entry)))
        return entry_end(w, base, i) - value_at(w, entry)

    def view_at(self, position: int64_t, version: object) -> memoryview:
        """A memoryview of the value in the map that pins `version`; REQUIRES no tombstone."""
        w: Window = self.window
        base: int64_t = (position >> 16) << 12
        i: cython.Py_ssize_t = position & 0xFFFF
        entry: int64_t = entry_at(w, base, i)
        start: int64_t = value_at(w, entry)
        if w.m8[entry] & 15 == 2:
            reference = self.reference_of(position)
            self.touch_extent(reference)
            return view_of(version, self.file, w, reference.page << 12, reference.length)
        return view_of(version, self.file, w, start, entry_end(w, base, i) - start)

    def source(self, version: object) -> SegmentSource:
        """A new source over this segment; `version` is what its views will pin."""
        return SegmentSource(self, version)

    def rank(self, key: bytes) -> int:
        """About how many entries are below `key`, from the parents: off by at most the entries of one leaf."""
        w: Window = self.window
        page: int64_t = self.root_page
        base: int64_t
        i: int64_t
        j: int64_t
        total: int64_t = 0
        height: cython.int = self.height
        if not self.root_is_proved():
            self.touch_root()
        while height > 0:
            base = page << 12
            i = parent_search(w, base, key, len(key))
            if i < 0:
                self.touch_key(separator_reference_at(w, base, -2 - i))
                continue
            for j in range(i):
                total += child_entries(w, base, j)
            height -= 1
            page = child_page(w, base, i)
            if w.verified[page] != 1:
                self.touch_child(base, i, height)
            if w.m8[(page << 12) + 3] != height:
                raise_wrong_height(page, self.segment_id)
        i = leaf_search(w, page << 12, key, len(key))
        return total + (i >> 1 if i >= 0 else 0)


def raise_wrong_height(page: int, segment_id: int | None) -> None:
    """A child that is sound by itself but stands at the wrong place in the tree."""
    raise CorruptionError(f"page {page}: a node of another height was expected", page=page, segment=segment_id)


def raise_out_of_order(page: int, segment_id: int | None) -> None:
    """A leaf whose keys belong before, or are those that were just read."""
    raise CorruptionError(
        f"page {page}: the keys do not go on here; restore a backup, or salvage what is sound",
        page=page,
        segment=segment_id,
    )


@cython.final
@cython.cclass
class SegmentSource(Source):
    """A place in a segment: the path of parents, a leaf and an entry in it."""

    def __init__(self, segment: Segment, version: object) -> None:
        self.segment = segment
        self.version = version
        self.scratch = Buffer(8200)
        self.other = self.scratch
        self.path = Int64s(32)
        self.index = Int64s(32)
        self.valid = False

    def load(self):
        """Make entry i of the leaf at `base` the current one."""
        w: Window = self.segment.window
        entry: int64_t = entry_at(w, self.base, self.i)
        kind: cython.int = w.m8[entry]
        self.kind = kind & 15
        self.valid = True
        if not kind & 0x10:
            self.key_bytes = load_key(w, self.base, self.i, self.scratch.m8)
            self.key = self.scratch.m8
            return 0
        entry = leaf_reference_at(w, entry)
        if w.verified[load32(w.m8, entry + 8)] != 2 or self.segment.verify_always:
            self.segment.touch_key(entry)
        self.key = at(w.m8, cython.cast("int64_t", load32(w.m8, entry + 8)) << 12)
        self.key_bytes = load64(w.m8, entry)
        return 0

    def descend(self, page, level, to_last):
        """From the node at `page` on that level (0 is the root) to its first or last leaf entry."""
        segment: Segment = self.segment
        w: Window = segment.window
        i: cython.Py_ssize_t
        child: int64_t
        m16: u16s = w.m16
        while level < segment.height:
            i = m16[(page << 11) + 2] - 1 if to_last else 0
            self.path.at[level] = page
            self.index.at[level] = i
            child = child_page(w, page << 12, i)
            level += 1
            if w.verified[child] != 1:
                segment.touch_child(page << 12, i, segment.height - level)
            if w.m8[(child << 12) + 3] != segment.height - level:
                raise_wrong_height(child, segment.segment_id)
            page = child
        self.base = page << 12
        self.n = m16[(self.base >> 1) + 2]
        self.i = self.n - 1 if to_last else 0
        return self.load()

    def climb(self, step):
        """To the first entry of the next leaf (step 1) or the last of the one before (step -1)."""
        segment: Segment = self.segment
        w: Window = segment.window
        level: cython.int = segment.height - 1
        i: cython.Py_ssize_t
        page: int64_t
        m16: u16s = w.m16
        while level >= 0:
            page = self.path.at[level]
            i = self.index.at[level] + step
            if 0 <= i < m16[(page << 11) + 2]:
                self.index.at[level] = i
                level += 1
                if w.verified[child_page(w, page << 12, i)] != 1:
                    segment.touch_child(page << 12, i, segment.height - level)
                page = child_page(w, page << 12, i)
                if w.m8[(page << 12) + 3] != segment.height - level:
                    raise_wrong_height(page, segment.segment_id)
                return self.descend(page, level, step < 0)
            level -= 1
        self.valid = False
        return 0

    def onward(self, step):
        """As `climb`, from the current entry. Parents may be damaged behind right sums, and lead round and round: keys
        that do not go on are told."""
        key: u8s = self.key
        key_bytes: cython.Py_ssize_t = self.key_bytes
        last: Buffer = self.scratch
        if self.other is last:
            self.other = Buffer(8200)
        self.scratch, self.other = self.other, last
        self.climb(step)
        if self.valid and step * compare(self.key, 0, self.key_bytes, key, 0, key_bytes) <= 0:
            raise_out_of_order(self.base >> 12, self.segment.segment_id)
        return 0

    def first(self):
        segment: Segment = self.segment
        if not segment.root_is_proved():
            segment.touch_root()
        return self.descend(segment.root_page, 0, 0)

    def last(self):
        segment: Segment = self.segment
        if not segment.root_is_proved():
            segment.touch_root()
        return self.descend(segment.root_page, 0, 1)

    def next(self):
        self.i += 1
        if self.i < self.n:
            return self.load()
        return self.onward(1)

    def prev(self):
        self.i -= 1
        if self.i >= 0:
            return self.load()
        return self.onward(-1)

    def seek_ge(self, key, key_bytes):
        segment: Segment = self.segment
        w: Window = segment.window
        page: int64_t = segment.root_page
        base: int64_t
        i: int64_t
        level: cython.int = 0
        if not segment.root_is_proved():
            segment.touch_root()
        while level < segment.height:
            base = page << 12
            i = parent_search(w, base, key, key_bytes)
            if i < 0:
                segment.touch_key(separator_reference_at(w, base, -2 - i))
                continue
            self.path.at[level] = page
            self.index.at[level] = i
            level += 1
            page = child_page(w, base, i)
            if w.verified[page] != 1:
                segment.touch_child(base, i, segment.height - level)
            if w.m8[(page << 12) + 3] != segment.height - level:
                raise_wrong_height(page, segment.segment_id)
        self.base = page << 12
        self.n = w.m16[(self.base >> 1) + 2]
        while True:
            i = leaf_search(w, self.base, key, key_bytes)
            if i >= 0:
                break
            segment.touch_key(leaf_reference_at(w, entry_at(w, self.base, -2 - i)))
        self.i = i >> 1
        if self.i < self.n:
            return self.load()
        return self.climb(1)

    def seek_le(self, key, key_bytes):
        self.seek_ge(key, key_bytes)
        if not self.valid:
            return self.last()
        if compare(self.key, 0, self.key_bytes, key, 0, key_bytes) > 0:
            return self.prev()
        return 0

    def position(self):
        """The current entry as a position of the segment."""
        return (self.base >> 12) << 16 | self.i

    def value(self):
        return self.segment.value_of(self.position())

    def value_length(self):
        return self.segment.value_length_of(self.position())

    def view(self):
        return self.segment.view_at(self.position(), self.version)
