# cython: boundscheck=False, wraparound=False, binding=False
"""EntryTable: keys with their versions, a dict for point reads that makes key order when somebody needs it.

What memtables and the overlays of transactions have in common. Any number of threads read; one at a time writes (the
memtable's writer holds the order lock, an overlay has one thread).

I1. A key's entry and its `older` chain go from new to old seq; `entries[key]` is the newest version.
I2. A key is in `fresh` before it is in `entries`, and leaves `fresh` only for `order`: a chunk of keys fetched after a
    version was published has its key. A chunk may also have keys that no version is visible of.
I3. A version that a registered snapshot sees is not unlinked. Who reads at a `seq` that is not registered looks
    afterwards, whatever it found, whether `trimmed` has passed it, and if so reads again at a newer seq.
I4. Writers take no lock here; making order is done under `ordering`, which nothing is taken below (rank 70).
I5. Ctrl-C at any step leaves at worst `order` dropped and `doubtful` or `remade` set: the next reader makes order anew.
"""

from __future__ import annotations

from itertools import chain, filterfalse, islice
from typing import Any

import cython
from sortedcontainers import SortedList

from mmlsm.locks import new_lock, within
from mmlsm.read.ordering import in_order

if cython.compiled:
    from cython.cimports.cpython.ref import Py_REFCNT
    from cython.cimports.libc.stdint import int64_t


@cython.final
@cython.no_gc
@cython.cclass
class Entry:
    """One version of a key. `value` is bytes, None (a tombstone) or a format.manifest.Reference.

    `depth` counts the versions below, `sweep_at` is the depth at which a memtable looks through all of them.
    Outside the collector: there is no way from a value to an entry.
    """

    if cython.compiled:

        def __dealloc__(self):
            # A long chain goes link by link; C recursion would end the process.
            entry: Entry = self.older
            self.older = None
            following: Entry
            while entry is not None and Py_REFCNT(entry) == 1:
                following = entry.older
                entry.older = None
                entry = following
                following = None
    else:
        __slots__ = ("depth", "older", "seq", "sweep_at", "value")

        seq: int
        value: Any
        older: Entry | None
        depth: int
        sweep_at: int


@cython.cclass
class EntryTable:
    """Keys to versions. `trimmed`: reads at a seq below it see all that they should only if the seq is registered."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.trimmed: int64_t = 0
        self.changes: int64_t = 0
        """Of an overlay: grows with each write, and with each that is taken back."""
        self.fresh: list[bytes] = []
        self.order: SortedList[bytes] | None = SortedList()
        self.ordering = new_lock()
        self.doubtful = False
        """Set by a writer that was interrupted and began anew: a key may be in `fresh` twice."""
        self.remade = False
        """The same, set by a reader that was."""

    def lookup(self, key: bytes, seq: int64_t) -> Entry | None:
        """The newest version of `key` with a seq at or before `seq`; about one dict access. See I3."""
        entry: Entry | None = self.entries.get(key)
        while entry is not None and entry.seq > seq:
            entry = entry.older
        return entry

    def put(self, key: bytes, value: object, seq: int64_t) -> None:
        """Make `value` the newest version of `key`; one of the same seq is replaced. For overlays: keeps all others."""
        self.put_entry(key, value, seq)
        self.changes += 1

    def put_entry(self, key: bytes, value: object, seq: int64_t) -> Entry | None:
        """`put`; what was the newest version before."""
        entry: Entry = Entry.__new__(Entry)
        old: Entry | None = self.entries.get(key)
        entry.seq = seq
        entry.value = value
        if old is None:
            entry.older = None
            entry.depth = 0
            entry.sweep_at = 4
            self.fresh.append(key)  # before `entries` has it (I2)
        else:
            entry.older = old.older if old.seq == seq else old
            entry.depth = old.depth if old.seq == seq else old.depth + 1
            entry.sweep_at = old.sweep_at
        self.entries[key] = entry
        return old

    def keys_from(self, key: bytes | None, inclusive: bool, limit: int) -> list[bytes]:
        """Up to `limit` keys from `key` (None: the least) on, ascending.

        O(log n) beside what the keys that came since the last call cost: about 2 µs each, less for many at once.
        """
        return within(self.ordering, self.some_keys, key, None, (inclusive, True), False, limit)

    def keys_before(self, key: bytes | None, inclusive: bool, limit: int) -> list[bytes]:
        """Up to `limit` keys from `key` (None: the greatest) down, descending. Cost as for `keys_from`."""
        return within(self.ordering, self.some_keys, None, key, (True, inclusive), True, limit)

    def sorted_keys(self) -> list[bytes]:
        """All keys, ascending."""
        return within(self.ordering, self.some_keys, None, None, (True, True), False, None)

    def some_keys(self, low, high, inclusive, reverse, limit) -> list[bytes]:
        """Keys from `low` to `high`. REQUIRES `ordering`."""
        return list(islice(self.in_order().irange(low, high, inclusive, reverse), limit))

    def in_order(self) -> SortedList:
        """All keys that came before the call, in order. REQUIRES `ordering`."""
        order = self.order
        # The list is never replaced, only shortened: a writer may be about to append to it.
        fresh: list = self.fresh
        count: cython.Py_ssize_t = len(fresh)
        if order is not None and count == 0:
            return order
        keys: list = fresh[:count]
        twice: cython.bint = self.remade
        self.remade = True
        self.order = None  # until it is whole again (I5)
        if order is None:
            twice = True  # some of what we take from `entries` may still come by way of `fresh`
            order = SortedList(chain.from_iterable(in_order(list(set(self.entries).union(keys)))))
        else:
            if twice or self.doubtful:
                keys = list(filterfalse(order.__contains__, dict.fromkeys(keys)))
            order.update(chain.from_iterable(in_order(keys)))
        self.order = order
        del fresh[:count]
        self.remade = twice
        return order

    def check(self) -> None:
        """Assert I1, I2 and that nothing is in order twice. For tests, while nobody writes."""
        keys = self.sorted_keys()
        assert keys == sorted(self.entries), "order and entries differ (I2)"
        for key in keys:
            entry: Entry = self.entries[key]
            depth: cython.int = 0
            newest: Entry = entry
            while entry.older is not None:
                assert entry.older.seq < entry.seq, f"versions of {key!r} are out of order (I1)"
                entry = entry.older
                depth += 1
            # More only after Ctrl-C in a trim.
            assert newest.depth >= depth, f"{key!r} has {depth} older versions, its entry says {newest.depth}"
