# cython: boundscheck=False, wraparound=False, binding=False
"""TableSource: a position in a memtable, or in a transaction's overlay, as of a seq.

One cursor owns it; the table may grow meanwhile. Keys are fetched in chunks, so a step takes no lock and costs no
search; keys that come later are of a later seq and invisible. Over an overlay (`live`) a step looks whether anything
was written or taken back, and if so fetches anew from where it stands.

I1. Only keys with a version at or before `seq` are stopped at.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.read.source import Source
else:
    from mmlsm.read.source import Source

from mmlsm.format.manifest import Reference

CHUNK_FIRST = 16
CHUNK_MOST = 512


@cython.final
@cython.cclass
class TableSource(Source):
    """Over `table`, an EntryTable; `state` is the ReadState that reads overflow values for it."""

    def __init__(self, table, state, seq: int64_t, live: bool) -> None:
        self.table = table
        self.state = state
        self.seq = seq
        self.live = live
        self.chunk: list[bytes] = []
        self.valid = False

    def use(self, key):
        """Stop at `key` if a version of it is visible; 1 if so."""
        entry = self.table.lookup(key, self.seq)
        if entry is None:
            return 0
        value = entry.value
        self.current = key
        self.current_value = value
        self.key = self.current
        self.key_bytes = len(key)
        self.kind = 1 if value is None else 0 if type(value) is bytes else 2
        self.valid = True
        return 1

    def walk(self, start, inclusive, descending):
        """Fetch keys from `start` on in that direction and stop at the first visible one."""
        limit: cython.int = CHUNK_FIRST
        self.descending = descending
        while True:
            self.known = self.table.changes
            fetch = self.table.keys_before if descending else self.table.keys_from
            self.chunk = fetch(start, inclusive, limit)
            self.at = -1
            if not self.chunk:
                self.valid = False
                return 0
            start = self.chunk[len(self.chunk) - 1]
            inclusive = False
            if self.walk_on():
                return 0
            limit = CHUNK_MOST

    def walk_on(self):
        """Stop at the next visible key of the chunk; 1, or 0 at the chunk's end."""
        key: bytes
        self.at += 1
        while self.at < len(self.chunk):
            key = self.chunk[self.at]
            # A key that a savepoint took back and that was put again stands twice in an overlay's order.
            if not (self.live and self.at > 0 and self.chunk[self.at - 1] == key) and self.use(key):
                return 1
            self.at += 1
        return 0

    def move(self, descending: cython.bint) -> cython.int:
        """One step in that direction; REQUIRES valid."""
        here: bytes = self.current
        if descending != self.descending or self.stale():
            return self.walk(here, False, descending)
        if self.walk_on():
            return 0
        return self.walk(self.chunk[len(self.chunk) - 1] if self.chunk else here, False, descending)

    def stale(self):
        return self.live and self.table.changes != self.known

    def next(self):
        return self.move(False)

    def prev(self):
        return self.move(True)

    def first(self):
        return self.walk(None, True, False)

    def last(self):
        return self.walk(None, True, True)

    def seek_ge(self, key, key_bytes):
        return self.walk(bytes(key[:key_bytes]), True, False)

    def seek_le(self, key, key_bytes):
        return self.walk(bytes(key[:key_bytes]), True, True)

    def value(self):
        value = self.current_value
        return self.state.read_reference(value) if isinstance(value, Reference) else value

    def value_length(self):
        value = self.current_value
        return 0 if value is None else value.length if isinstance(value, Reference) else len(value)

    def view(self):
        value = self.current_value
        if isinstance(value, Reference):
            if self.live:  # a transaction's own extent comes back when it is replaced, and no version pins it
                return memoryview(self.state.read_reference(value))
            return self.state.view_reference(value)
        return memoryview(value)
