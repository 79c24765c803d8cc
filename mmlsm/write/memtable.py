# cython: boundscheck=False, wraparound=False, binding=False
"""Memtable: the in-memory segment that takes commits; sealed once a successor takes over, then flushed.

One thread at a time applies commits, under the order lock; any thread reads (see read/entries.py for what that takes).

I1. A version older than the newest is unlinked only when the one above it is published and no registered snapshot
    lies between the two; the published seq and the pins were taken together, under the pins lock, before.
I2. A key has at most 2 * (pins + commits not yet published) + 4 versions.
I3. Applying a commit again, after an interruption, leaves what applying it once leaves; only the byte counts, which
    are estimates, may drift by that commit.
I4. Nothing is applied once `sealed`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.read.entries import Entry, EntryTable
else:
    from mmlsm.read.entries import Entry, EntryTable

if TYPE_CHECKING:
    from mmlsm.format.manifest import Reference
    from mmlsm.format.superblock import LogPosition

if not cython.compiled:  # compiled, they stand in memtable.pxd
    KEY_BYTES = 120
    VERSION_BYTES = 96
    REFERENCE_BYTES = 24
    SWEEP_LEAST = 4


@cython.cclass
class Memtable(EntryTable):
    """Commits from `log_start` on. Sizes in bytes: `data_bytes` of memory, all versions (an estimate); `live_bytes` of
    keys and newest values; `log_bytes` of log, kept by the Committer. `first_seq` is 0 while empty. `references` has
    every overflow reference ever applied, of unlinked versions too."""

    def __init__(self, log_start: LogPosition | None = None) -> None:
        EntryTable.__init__(self)
        self.log_start = log_start
        self.references: set[Reference] = set()
        self.log_bytes: int64_t = 0
        self.data_bytes: int64_t = 0
        self.live_bytes: int64_t = 0
        self.first_seq: int64_t = 0
        self.last_seq: int64_t = 0
        self.versions: int64_t = 0
        self.sealed = False
        self.applying = False

    @property
    def entry_count(self) -> int:
        """Keys, tombstones included."""
        return len(self.entries)

    def begin_at(self, position: LogPosition) -> None:
        """Its commits, none so far, will stand in the log from `position` on."""
        assert not self.entries, "the commits of a memtable would be lost"
        self.log_start = position

    def apply(
        self,
        items: Iterable[tuple[bytes, bytes | Reference | None]],
        seq: int64_t,
        published: int64_t,
        pins: tuple[int, ...],
    ) -> None:
        """Insert one commit (of a key given twice the later wins). `pins`: the registered seqs, ascending.

        REQUIRES the order lock. About 0.2 µs a pair compiled, 1 µs interpreted.
        """
        assert not self.sealed, "a commit came to a sealed memtable (I4)"
        assert seq >= self.last_seq, f"commit {seq} came after commit {self.last_seq}"
        live: int64_t = 0
        data: int64_t = 0
        count: int64_t = 0
        size: int64_t
        key: bytes
        old: Entry | None
        entry: Entry
        if self.applying:
            self.doubtful = True  # interrupted below: a key may be in `fresh` without being in `entries`
        self.applying = True
        try:
            for key, value in items:
                if isinstance(value, bytes):
                    size = len(value)
                else:
                    size = value_bytes(value)
                    if value is not None:
                        self.references.add(value)
                old = self.put_entry(key, value, seq)
                if old is None:
                    live += len(key) + size
                    data += len(key) + KEY_BYTES + size + VERSION_BYTES
                    count += 1
                    continue
                live += size - value_bytes(old.value)
                data += size
                if old.seq == seq:
                    data -= value_bytes(old.value)
                    continue
                data += VERSION_BYTES
                count += 1
                if old.older is not None:
                    entry = self.entries[key]
                    data -= self.trim(entry, published, pins, entry.depth >= entry.sweep_at)
        finally:
            self.live_bytes += live
            self.data_bytes += data
            self.versions += count
            if self.first_seq == 0:
                self.first_seq = seq
            self.last_seq = seq
        self.applying = False

    def trim(self, newest, published, pins, all_of_them):
        """Unlink versions that nobody sees (I1): those next to the newest two, or all; the bytes of what was unlinked.

        All are looked through whenever their number has doubled since: a cost of O(1) a commit (I2).
        """
        dropped: int64_t = 0
        newer: Entry | None = newest.older
        entry: Entry | None = newer.older
        while entry is not None:
            if newer.seq <= published and not pinned(pins, entry.seq, newer.seq):
                if newer.seq > self.trimmed:
                    self.trimmed = newer.seq  # before the unlinking: who misses the version sees why
                newer.older = entry.older
                newest.depth -= 1
                self.versions -= 1
                dropped += value_bytes(entry.value) + VERSION_BYTES
            elif all_of_them:
                newer = entry
            else:
                return dropped
            entry = newer.older
        if all_of_them:
            newest.sweep_at = 2 * newest.depth + SWEEP_LEAST
        return dropped

    def sorted_items(self) -> Iterator[tuple[bytes, bytes | Reference | None]]:
        """The newest version of each key, in key order. REQUIRES sealed, and `last_seq` published."""
        entry: Entry
        for key in self.sorted_keys():
            entry = self.entries[key]
            yield key, entry.value


def value_bytes(value):
    """Bytes that a value takes in a memtable or in a segment's leaf."""
    if value is None:
        return 0
    return len(value) if type(value) is bytes else REFERENCE_BYTES


def pinned(pins, low, high):
    """Whether some pin p has low <= p < high."""
    if not pins:
        return False
    at: cython.Py_ssize_t = bisect_left(pins, low)
    return at < len(pins) and pins[at] < high
