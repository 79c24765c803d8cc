# cython: boundscheck=False, wraparound=False, binding=False, cdivision=True
"""The inner loop of a merge: k walks over leaves into one LeafWriter, without the GIL.

One merge owns a MergeCore. `step` gives the GIL up and works until it needs its owner: a source stands before a node
and is the next to come, so that the node is either taken over whole or its entries are wanted; the output is full; an
overflow key must be proved; a tombstone or a reference is to be decided about; or all is done.

I1. Sources are numbered newest first; of equal keys the newest is kept, and the others' overflow extents are noted in
    `dropped`. Overflow extents that are kept move by reference.
I2. No Python object is touched between two answers of `step`; the caller holds the segments.
I3. The merge reads through one window that covers all its inputs.
I4. A key that comes after a greater one is damage, and answered as ANSWER_DISORDER: nothing is made of it.
I5. A source that waits before a node competes with a lower bound of the node's keys; so when it wins, all other keys
    that are left are at or above that bound.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.format.leaf import entry_at, entry_end, key_reference_at, load_key, value_at
    from cython.cimports.mmlsm.memory import (
        Buffer,
        Int64s,
        Pointers,
        Window,
        at,
        compare,
        copy,
        cut,
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
    from mmlsm.memory import Buffer, Int64s, Pointers, Window, at, compare, copy, cut, load32, load64, part
    from mmlsm.read.tournament import Tournament
    from mmlsm.write.leaf_writer import LeafWriter

    DONE = 0
    FULL = 1
    DROPPED_FULL = 2
    TOMBSTONE = 3
    MOVE = 4
    DISORDER = 5
    FEED = 1000
    TOUCH = 2000
    FEED_LEAVES = 1024
    STRIDE = 8256
    DROPPED_MOST = 4096

ANSWER_DONE = 0
ANSWER_FULL = 1
ANSWER_DROPPED = 2
ANSWER_TOMBSTONE = 3
ANSWER_MOVE = 4
ANSWER_DISORDER = 5
ANSWER_FEED = 1000
ANSWER_TOUCH = 2000

KEEP = 0
DROP = 1
ASK = 2


@cython.final
@cython.cclass
class MergeCore:
    """Merges `sources` walks over leaves of `window` into `writer`.

    `tombstones` is KEEP, DROP or ASK (an answer ANSWER_TOMBSTONE for each, and `decide`). Entries that refer to
    overflow extents that reach beyond page `cut` are answered with ANSWER_MOVE, and `moved`; 0 moves none.
    """

    def __init__(self, window: Window, writer: LeafWriter, sources: int, tombstones: int, cut: int = 0) -> None:
        assert sources < ANSWER_TOUCH - ANSWER_FEED
        self.window = window
        self.writer = writer
        self.sources = sources
        self.tombstones = tombstones
        self.cut = cut
        self.tournament = Tournament(sources)
        self.feed = Int64s(sources * FEED_LEAVES)
        self.feed_at = Int64s(sources)
        self.feed_count = Int64s(sources)
        self.feed_first = Int64s(sources)
        self.feed_last = Int64s(sources)
        self.waiting = Int64s(sources)
        self.bounds: list = [None] * sources
        self.bound = Pointers(sources)
        self.bound_bytes = Int64s(sources)
        self.base = Int64s(sources)
        self.at_entry = Int64s(sources)
        self.entries = Int64s(sources)
        self.scratch = Buffer(sources * STRIDE)
        self.held = Buffer(65536)
        self.held_bytes = 0
        self.holding = False
        self.loading = -1
        self.replaying = -1
        self.verdict = 0
        self.references = Buffer(48)
        self.is_moved = False
        self.dropped = Int64s(2 * DROPPED_MOST + 4)
        self.dropped_count = 0
        self.entries_in = 0
        self.bytes_from = Int64s(sources)
        self.entries_from = Int64s(sources)
        self.tombstones_from = Int64s(sources)
        self.pages_kept = Int64s(sources)
        self.pages_dropped = Int64s(sources)

    def begin(self, bounds: list[bytes | None]) -> None:
        """Say for each source a lower bound of its keys, None for a source without any."""
        s: cython.Py_ssize_t
        for s in range(self.sources):
            self.set_bound(s, bounds[s])
            self.wait(s)
        self.tournament.build()

    def set_bound(self, s: cython.Py_ssize_t, bound: bytes | None) -> None:
        """What source s competes with when its leaves are used up; None: it has ended then."""
        key: bytes
        self.bounds[s] = bound
        if bound is None:
            self.bound_bytes.at[s] = -1
        else:
            key = bound
            self.bound.at[s] = key
            self.bound_bytes.at[s] = len(key)

    def give(
        self, s: cython.Py_ssize_t, leaves: list, first: cython.Py_ssize_t, last: cython.Py_ssize_t, bound: bytes | None
    ) -> None:
        """Leaves for a source that asked, by page number, at most FEED_LEAVES, all proved; then `bound`.

        Of the first of them the entries from `first` on; before `last`, unless that is -1, and then it is the only one.
        """
        i: cython.Py_ssize_t
        assert 0 < len(leaves) <= FEED_LEAVES
        for i in range(len(leaves)):
            self.feed.at[s * FEED_LEAVES + i] = leaves[i]
        self.feed_at.at[s] = 0
        self.feed_count.at[s] = len(leaves)
        self.feed_first.at[s] = first
        self.feed_last.at[s] = last
        self.waiting.at[s] = 0
        self.set_bound(s, bound)
        self.loading = s

    def move_on(self, s: cython.Py_ssize_t, bound: bytes | None) -> None:
        """A source that asked gives nothing now: its next key is not below `bound`, or it has ended (None)."""
        self.set_bound(s, bound)
        self.wait(s)
        self.replaying = s

    def leads(self, s: cython.Py_ssize_t, bound: bytes, strictly: cython.bint) -> bool:
        """Whether all keys of the other sources are at or above `bound`, or strictly above."""
        i: cython.Py_ssize_t
        c: cython.int
        key: bytes = bound
        for i in range(self.sources):
            if i != s and self.tournament.key_bytes.at[i] >= 0:
                c = compare(self.tournament.key.at[i], 0, self.tournament.key_bytes.at[i], key, 0, len(key))
                if c < 0 or (strictly and c == 0):
                    return False
        return True

    def has_written(self, bound: bytes) -> bool:
        """Whether the last key dealt with is `bound`."""
        key: bytes = bound
        return self.holding and compare(self.held.m8, 0, self.held_bytes, key, 0, len(key)) == 0

    def key(self) -> bytes:
        """The key of the entry that is being decided about."""
        s: cython.Py_ssize_t = self.tournament.tree.at[1]
        return cut(self.tournament.key.at[s], 0, self.tournament.key_bytes.at[s])

    def decide(self, keep: bool) -> None:
        """Whether the tombstone of ANSWER_TOMBSTONE stays."""
        self.verdict = 1 if keep else 2

    def wanted_references(self) -> tuple:
        """The packed references of key and value of the entry of ANSWER_MOVE, b"" for none."""
        s: cython.Py_ssize_t = self.tournament.tree.at[1]
        entry: int64_t = entry_at(self.window, self.base.at[s], self.at_entry.at[s])
        start: int64_t = value_at(self.window, entry)
        kind: cython.int = self.window.m8[entry]
        return (
            cut(self.window.m8, start - 24, start) if kind & 0x10 else b"",
            cut(self.window.m8, start, start + 24) if kind & 15 == 2 else b"",
        )

    def moved(self, key_reference: bytes, value_reference: bytes) -> None:
        """What the entry of ANSWER_MOVE refers to from now on; the caller retires what it referred to."""
        self.references.data[0:24] = key_reference.ljust(24)
        self.references.data[24:48] = value_reference.ljust(24)
        self.is_moved = True

    def take_dropped(self) -> list:
        """Overflow extents (first page, pages) whose entries were left out since the last call."""
        found: list = []
        for i in range(self.dropped_count):
            found.append((self.dropped.at[2 * i], self.dropped.at[2 * i + 1]))
        self.dropped_count = 0
        return found

    def read_from(self, s: cython.Py_ssize_t) -> tuple:
        """Of what was read of source s: entries, tombstones, bytes, overflow pages kept, overflow pages dropped."""
        return (
            self.entries_from.at[s], self.tombstones_from.at[s], self.bytes_from.at[s],
            self.pages_kept.at[s], self.pages_dropped.at[s],
        )  # fmt: skip

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

    def wait(self, s):
        """Let source s compete with its bound, or not at all when it has none."""
        self.waiting.at[s] = 1
        self.tournament.key_bytes.at[s] = self.bound_bytes.at[s]
        if self.bound_bytes.at[s] >= 0:
            self.tournament.key.at[s] = self.bound.at[s]

    def load(self, s):
        """Make the entry where source s stands its contestant, or its bound; DONE, or TOUCH plus s."""
        m16: u16s = self.window.m16
        m8: u8s = self.window.m8
        entry: int64_t
        while self.at_entry.at[s] >= self.entries.at[s]:
            if self.feed_at.at[s] >= self.feed_count.at[s]:
                self.wait(s)
                return 0
            self.base.at[s] = self.feed.at[s * FEED_LEAVES + self.feed_at.at[s]] << 12
            self.at_entry.at[s] = self.feed_first.at[s] if self.feed_at.at[s] == 0 else 0
            self.entries.at[s] = m16[(self.base.at[s] >> 1) + 2] if self.feed_last.at[s] < 0 else self.feed_last.at[s]
            self.feed_at.at[s] = self.feed_at.at[s] + 1
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

    def note(self, s, entry, kept):
        """Count the overflow pages of an entry of source s, and list them unless they are kept."""
        m8: u8s = self.window.m8
        start: int64_t
        i: cython.Py_ssize_t
        for i in range(2):
            if i == 0 and m8[entry] & 0x10:
                start = key_reference_at(self.window, entry)
            elif i == 1 and m8[entry] & 15 == 2:
                start = value_at(self.window, entry)
            else:
                continue
            if kept:
                self.pages_kept.at[s] = self.pages_kept.at[s] + load32(m8, start + 12)
                continue
            self.pages_dropped.at[s] = self.pages_dropped.at[s] + load32(m8, start + 12)
            self.dropped.at[2 * self.dropped_count] = load32(m8, start + 8)
            self.dropped.at[2 * self.dropped_count + 1] = load32(m8, start + 12)
            self.dropped_count += 1

    def is_beyond(self, entry):
        """Whether the entry refers to an extent that reaches to or beyond page `cut`."""
        m8: u8s = self.window.m8
        start: int64_t
        end: int64_t
        if m8[entry] & 0x10:
            start = key_reference_at(self.window, entry)
            end = load32(m8, start + 8)
            if end + load32(m8, start + 12) > self.cut:
                return True
        if m8[entry] & 15 != 2:
            return False
        start = value_at(self.window, entry)
        end = load32(m8, start + 8)
        return end + load32(m8, start + 12) > self.cut

    def emit(self, s):
        """Pass the winner's entry on or leave it out; DONE, or the answer that the owner must deal with."""
        m8: u8s = self.window.m8
        entry: int64_t = entry_at(self.window, self.base.at[s], self.at_entry.at[s])
        value: int64_t = value_at(self.window, entry)
        end: int64_t = entry_end(self.window, self.base.at[s], self.at_entry.at[s])
        key: u8s = self.tournament.key.at[s]
        key_bytes: cython.Py_ssize_t = self.tournament.key_bytes.at[s]
        kind: cython.int = m8[entry]
        dropping: cython.bint = False
        order: cython.int = 1
        if self.holding:
            order = compare(key, 0, key_bytes, self.held.m8, 0, self.held_bytes)
        if order < 0:
            return 5
        if order == 0:
            dropping = True
        elif kind & 15 == 1 and self.tombstones:
            if self.tombstones == 2 and self.verdict == 0:
                return TOMBSTONE
            dropping = self.tombstones == 1 or self.verdict == 2
        if not dropping:
            if self.cut and not self.is_moved and self.is_beyond(entry):
                return MOVE
            if self.is_moved:
                if self.writer.add(
                    kind, key, key_bytes, self.references.m8,
                    at(self.references.m8, 24) if kind & 15 == 2 else at(m8, value), end - value,
                ):
                    return 1
            elif self.writer.add(
                kind, key, key_bytes, at(m8, value - 24 if kind & 0x10 else 0), at(m8, value), end - value
            ):
                return 1
        if kind & 0x12:
            self.note(s, entry, not dropping)
        self.verdict = 0
        self.is_moved = False
        self.entries_in += 1
        self.entries_from.at[s] = self.entries_from.at[s] + 1
        self.bytes_from.at[s] = self.bytes_from.at[s] + key_bytes + end - value
        if kind & 15 == 1:
            self.tombstones_from.at[s] = self.tombstones_from.at[s] + 1
        copy(self.held.m8, 0, key, 0, key_bytes)
        self.held_bytes = key_bytes
        self.holding = True
        return 0

    def run(self):
        """The loop of `step`."""
        answer: cython.int
        s: cython.Py_ssize_t
        while True:
            if self.loading >= 0:
                answer = self.load(self.loading)
                if answer:
                    return answer
                self.replaying = self.loading
                self.loading = -1
            if self.replaying >= 0:
                self.tournament.replay(self.replaying)
                self.replaying = -1
            s = self.tournament.tree.at[1]
            if s < 0:
                return 0
            if self.waiting.at[s]:
                return FEED + s
            if self.dropped_count >= DROPPED_MOST - 2:
                return 2
            answer = self.emit(s)
            if answer:
                return answer
            self.at_entry.at[s] = self.at_entry.at[s] + 1
            self.loading = s
