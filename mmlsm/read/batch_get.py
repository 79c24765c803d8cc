# cython: boundscheck=False, wraparound=False, binding=False
"""BatchGet: many point reads of one state, level by level through the batch, so that cache misses overlap.

One thread owns it. A group of GROUP keys goes down a segment together, without the GIL: at each level all nodes are
asked for first and searched then. A key that meets a page not yet proved is looked up by hand afterwards.

I1. Without the GIL only pages marked as proved are read, and no Python object is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.format.leaf import entry_at
    from cython.cimports.mmlsm.format.leaf import search as leaf_search
    from cython.cimports.mmlsm.format.parent import child_page
    from cython.cimports.mmlsm.format.parent import search as parent_search
    from cython.cimports.mmlsm.memory import Int64s, Pointers, key_hash, prefetch
    from cython.cimports.mmlsm.read.entries import Entry, EntryTable
    from cython.cimports.mmlsm.read.segment import Segment
else:
    from mmlsm.format.leaf import entry_at
    from mmlsm.format.leaf import search as leaf_search
    from mmlsm.format.parent import child_page
    from mmlsm.format.parent import search as parent_search
    from mmlsm.memory import Int64s, Pointers, key_hash, prefetch
    from mmlsm.read.entries import Entry, EntryTable
    from mmlsm.read.segment import Segment

    NOT_HERE = -1
    BY_HAND = -2
    GROUP = 32

from mmlsm.format.manifest import Reference

if TYPE_CHECKING:
    from mmlsm.read.reader import ReadState


@cython.final
@cython.cclass
class BatchGet:
    """Looks `keys` (bytes) up in `state`; `run` answers values aligned with them, None where absent."""

    def __init__(self, state: ReadState, keys: list) -> None:
        i: cython.Py_ssize_t
        n: cython.Py_ssize_t = len(keys)
        self.state = state
        self.keys = keys
        self.values: list = [None] * n
        self.key = Pointers(n)
        self.key_bytes = Int64s(n)
        self.open = Int64s(n)
        self.open_count = n
        self.page = Int64s(GROUP)
        self.position = Int64s(n)
        for i in range(n):
            key: bytes = keys[i]
            self.key.at[i] = key
            self.key_bytes.at[i] = len(key)
            self.open.at[i] = i

    def run(self, seq: int64_t) -> list:
        """The values as of `seq`, which is registered."""
        segment: Segment
        self.search_tables(seq)
        for segment in self.state.segments:
            if self.open_count == 0:
                break
            self.search_segment(segment)
        return self.values

    def search_tables(self, seq):
        """Answer what the memtables know."""
        table: EntryTable
        entry: Entry
        i: cython.Py_ssize_t
        kept: cython.Py_ssize_t
        for table in self.state.tables:
            if not table.entries:
                continue
            kept = 0
            for i in range(self.open_count):
                at: int64_t = self.open.at[i]
                entry = table.lookup(self.keys[at], seq)
                if entry is None:
                    self.open.at[kept] = at
                    kept += 1
                elif isinstance(entry.value, Reference):
                    self.values[at] = self.state.read_reference(entry.value)
                else:
                    self.values[at] = entry.value
            self.open_count = kept
        return 0

    def search_segment(self, segment):
        """Answer what this segment knows."""
        i: cython.Py_ssize_t
        kept: cython.Py_ssize_t = 0
        chosen: cython.Py_ssize_t = 0
        left: list = []
        for i in range(self.open_count):
            at: int64_t = self.open.at[i]
            if segment.may_hold(
                self.key.at[at],
                self.key_bytes.at[at],
                key_hash(self.key.at[at], self.key_bytes.at[at]) if segment.filter_blocks else 0,
            ):
                self.open.at[chosen] = at
                chosen += 1
            else:
                left.append(at)
        if chosen and not segment.root_is_proved():
            segment.touch_root()
        with cython.nogil:
            i = 0
            while i < chosen:
                self.descend(segment, i, i + GROUP if i + GROUP < chosen else chosen)
                i += GROUP
        for i in range(chosen):
            at = self.open.at[i]
            position: int64_t = self.position.at[i]
            if position == BY_HAND:
                position = segment.find(self.key.at[at], self.key_bytes.at[at])
            if position == NOT_HERE:
                self.open.at[kept] = at
                kept += 1
            else:
                self.values[at] = segment.value_of(position)
        for i in range(len(left)):
            self.open.at[kept] = left[i]
            kept += 1
        self.open_count = kept
        return 0

    def descend(self, segment, start, stop):
        """Positions of the keys open[start:stop], which go down the tree abreast."""
        i: cython.Py_ssize_t
        line: cython.Py_ssize_t
        at: int64_t
        child: int64_t
        found: int64_t
        height: cython.int = segment.height
        for i in range(start, stop):
            self.page.at[i - start] = segment.root_page
        while height > 0:
            height -= 1
            for i in range(start, stop):
                if self.page.at[i - start] < 0:
                    continue
                at = self.open.at[i]
                found = parent_search(
                    segment.window, self.page.at[i - start] << 12, self.key.at[at], self.key_bytes.at[at]
                )
                child = -1
                if found >= 0:
                    child = child_page(segment.window, self.page.at[i - start] << 12, found)
                    if segment.window.verified[child] == 1:
                        for line in range(7):
                            prefetch(segment.window.m8, (child << 12) + 64 * line)
                    else:
                        child = -1
                self.page.at[i - start] = child
            for i in range(start, stop):
                child = self.page.at[i - start]
                if child >= 0 and segment.window.m8[(child << 12) + 3] != height:
                    self.page.at[i - start] = -1
        for i in range(start, stop):
            self.position.at[i] = BY_HAND
            if self.page.at[i - start] < 0:
                continue
            at = self.open.at[i]
            found = leaf_search(
                segment.window, self.page.at[i - start] << 12, self.key.at[at], self.key_bytes.at[at]
            )
            if found >= 0:
                if found & 1:
                    self.position.at[i] = self.page.at[i - start] << 16 | found >> 1
                    prefetch(segment.window.m8, entry_at(segment.window, self.page.at[i - start] << 12, found >> 1))
                else:
                    self.position.at[i] = NOT_HERE
