# cython: boundscheck=False, wraparound=False, binding=False, cdivision=True
"""The inner loop of a merge: k walks over leaves into one LeafWriter, without the GIL.

One merge owns a MergeCore. `step` gives the GIL up and works until it needs its owner: a source wants leaves (proved
by the owner, a parent's children at a time), the output is full, an overflow key must be proved, or all is done.

I1. Sources are numbered newest first; of equal keys the newest is kept, and the others' overflow extents are noted in
    `dropped`. Overflow extents that are kept move by reference.
I2. No Python object is touched between two answers of `step`; the caller holds the segments.
I3. The merge reads through one window that covers all its inputs.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.format.leaf import entry_at, entry_end, key_reference_at, load_key, value_at
    from cython.cimports.mmlsm.memory import (
        Buffer,
        Int64s,
        Window,
        at,
        compare,
        copy,
        load32,
        load64,
        part,
        u8s,
        u16s,
    )
    from cython.cimports.mmlsm.read.tournament import Tournament
    from cython.cimports.mmlsm.write.leaf_writer import LeafWriter
else:
    from mmlsm.format.leaf import entry_at, entry_end, key_reference_at, load_key, value_at
    from mmlsm.memory import Buffer, Int64s, Window, at, compare, copy, load32, load64, part
    from mmlsm.read.tournament import Tournament
    from mmlsm.write.leaf_writer import LeafWriter

    DONE = 0
    FULL = 1
    DROPPED_FULL = 2
    FEED = 1000
    TOUCH = 2000
    FEED_LEAVES = 1024
    STRIDE = 8256
    DROPPED_MOST = 4096

ANSWER_DONE = 0
ANSWER_FULL = 1
ANSWER_DROPPED = 2
ANSWER_FEED = 1000
ANSWER_TOUCH = 2000


@cython.final
@cython.cclass
class MergeCore:
    """Merges `sources` walks over leaves of `window` into `writer`."""

    def __init__(self, window: Window, writer: LeafWriter, sources: int, drop_tombstones: bool) -> None:
        self.window = window
        self.writer = writer
        self.sources = sources
        self.drop_tombstones = drop_tombstones
        self.tournament = Tournament(sources)
        self.feed = Int64s(sources * FEED_LEAVES)
        self.feed_at = Int64s(sources)
        self.feed_count = Int64s(sources)
        self.ended = Int64s(sources)
        self.base = Int64s(sources)
        self.at_entry = Int64s(sources)
        self.entries = Int64s(sources)
        self.scratch = Buffer(sources * STRIDE)
        self.held = Buffer(65536)
        self.held_bytes = 0
        self.holding = False
        self.loading = -1
        self.primed = 0
        self.dropped = Int64s(2 * DROPPED_MOST + 4)
        self.dropped_count = 0
        self.entries_in = 0

    def give(self, source: cython.Py_ssize_t, leaves: list) -> None:
        """More leaves for a source that asked, by page number, at most FEED_LEAVES; none: it has ended."""
        i: cython.Py_ssize_t
        if not leaves:
            self.ended.at[source] = 1
            return
        assert len(leaves) <= FEED_LEAVES
        for i in range(len(leaves)):
            self.feed.at[source * FEED_LEAVES + i] = leaves[i]
        self.feed_at.at[source] = 0
        self.feed_count.at[source] = len(leaves)

    def take_dropped(self) -> list:
        """Overflow extents (first page, pages) whose entries were left out since the last call."""
        found = [(self.dropped.at[2 * i], self.dropped.at[2 * i + 1]) for i in range(self.dropped_count)]
        self.dropped_count = 0
        return found

    def key_reference_of(self, source: int) -> int:
        """Byte offset of the key reference of the entry that `source` stands on, after ANSWER_TOUCH."""
        return key_reference_at(
            self.window, entry_at(self.window, self.base.at[source], self.at_entry.at[source])
        )

    def step(self) -> int:
        """Work on until the owner is needed: one of the ANSWER_ values, plus the source's number for the last two."""
        answer: cython.int
        with cython.nogil:
            answer = self.run()
        return answer

    def load(self, s):
        """Make the entry where source s stands its contestant; DONE, or FEED or TOUCH plus s."""
        m16: u16s = self.window.m16
        m8: u8s = self.window.m8
        entry: int64_t
        while self.at_entry.at[s] >= self.entries.at[s]:
            if self.feed_at.at[s] >= self.feed_count.at[s]:
                if self.ended.at[s]:
                    self.tournament.key_bytes.at[s] = -1
                    return 0
                return FEED + s
            self.base.at[s] = self.feed.at[s * FEED_LEAVES + self.feed_at.at[s]] << 12
            self.feed_at.at[s] = self.feed_at.at[s] + 1
            self.entries.at[s] = m16[(self.base.at[s] >> 1) + 2]
            self.at_entry.at[s] = 0
        entry = entry_at(self.window, self.base.at[s], self.at_entry.at[s])
        if m8[entry] & 0x10:
            entry = key_reference_at(self.window, entry)
            if self.window.verified[load32(m8, entry + 8)] != 2:
                return TOUCH + s
            self.tournament.key.at[s] = at(m8, cython.cast("int64_t", load32(m8, entry + 8)) << 12)
            self.tournament.key_bytes.at[s] = load64(m8, entry)
            return 0
        self.tournament.key_bytes.at[s] = load_key(
            self.window, self.base.at[s], self.at_entry.at[s], part(self.scratch.m8, s * STRIDE)
        )
        self.tournament.key.at[s] = at(self.scratch.m8, s * STRIDE)
        return 0

    def drop(self, entry):
        """Note the overflow extents of an entry that is left out."""
        m8: u8s = self.window.m8
        start: int64_t
        if m8[entry] & 0x10:
            start = key_reference_at(self.window, entry)
            self.dropped.at[2 * self.dropped_count] = load32(m8, start + 8)
            self.dropped.at[2 * self.dropped_count + 1] = load32(m8, start + 12)
            self.dropped_count += 1
        if m8[entry] & 15 == 2:
            start = value_at(self.window, entry)
            self.dropped.at[2 * self.dropped_count] = load32(m8, start + 8)
            self.dropped.at[2 * self.dropped_count + 1] = load32(m8, start + 12)
            self.dropped_count += 1

    def emit(self, s):
        """Deal with the winner's entry: pass it on or leave it out; 0, or 1 when the output is full."""
        m8: u8s = self.window.m8
        entry: int64_t = entry_at(self.window, self.base.at[s], self.at_entry.at[s])
        value: int64_t
        end: int64_t
        key: u8s = self.tournament.key.at[s]
        key_bytes: cython.Py_ssize_t = self.tournament.key_bytes.at[s]
        kind: cython.int = m8[entry]
        if self.holding and compare(key, 0, key_bytes, self.held.m8, 0, self.held_bytes) == 0:
            self.drop(entry)
            return 0
        if not (kind & 15 == 1 and self.drop_tombstones):
            value = value_at(self.window, entry)
            end = entry_end(self.window, self.base.at[s], self.at_entry.at[s])
            if self.writer.add(
                kind, key, key_bytes, at(m8, value - 24 if kind & 0x10 else 0), at(m8, value), end - value
            ):
                return 1
        else:
            self.drop(entry)
        copy(self.held.m8, 0, key, 0, key_bytes)
        self.held_bytes = key_bytes
        self.holding = True
        return 0

    def run(self):
        """The loop of `step`."""
        answer: cython.int
        s: cython.Py_ssize_t
        while self.primed < self.sources:
            answer = self.load(self.primed)
            if answer:
                return answer
            self.primed += 1
            if self.primed == self.sources:
                self.tournament.build()
        while True:
            if self.loading >= 0:
                answer = self.load(self.loading)
                if answer:
                    return answer
                self.tournament.replay(self.loading)
                self.loading = -1
            s = self.tournament.tree.at[1]
            if s < 0:
                return 0
            if self.dropped_count >= DROPPED_MOST - 2:
                return 2
            if self.emit(s):
                return 1
            self.entries_in += 1
            self.at_entry.at[s] = self.at_entry.at[s] + 1
            self.loading = s
