# cython: boundscheck=False, wraparound=False, binding=False
"""Tournament: which of k sources is next, with log2(k) comparisons a step, made in place without building keys.

A winner tree (Knuth, TAOCP 3, 5.4.1). Belongs to one cursor or merge; `build` and `replay` run without the GIL.
The owner writes `key.at[s]` and `key_bytes.at[s]` (-1: exhausted) and replays s after each move of source s.

I1. `tree.at[1]` is the source with the least key (the greatest when `reverse`), -1 when all are exhausted.
I2. Among equal keys the source of the lowest number wins: owners number sources newest first (R9).
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.mmlsm.memory import Int64s, Pointers, compare
else:
    from mmlsm.memory import Int64s, Pointers, compare


@cython.final
@cython.cclass
class Tournament:
    """The tree over `size` sources, all exhausted at first."""

    def __init__(self, size: cython.Py_ssize_t) -> None:
        i: cython.Py_ssize_t
        self.size = size
        self.leaves = 1
        while self.leaves < size:
            self.leaves *= 2
        self.reverse = False
        self.key = Pointers(size)
        self.key_bytes = Int64s(size)
        self.tree = Int64s(2 * self.leaves)
        for i in range(size):
            self.key_bytes.at[i] = -1
        self.build()

    def better(self, a, b):
        """Of two sources (or -1) the one that comes first."""
        c: cython.int
        if a < 0:
            return b
        if b < 0:
            return a
        c = compare(self.key.at[a], 0, self.key_bytes.at[a], self.key.at[b], 0, self.key_bytes.at[b])
        if self.reverse:
            c = -c
        if c == 0:
            return a if a < b else b
        return a if c < 0 else b

    def build(self):
        """Play every match; after seeks of many sources, or a change of direction."""
        i: cython.Py_ssize_t
        for i in range(self.leaves):
            self.tree.at[self.leaves + i] = i if i < self.size and self.key_bytes.at[i] >= 0 else -1
        for i in range(self.leaves - 1, 0, -1):
            self.tree.at[i] = self.better(self.tree.at[2 * i], self.tree.at[2 * i + 1])

    def replay(self, contestant):
        """Play the matches of one source that has moved."""
        i: cython.Py_ssize_t = self.leaves + contestant
        self.tree.at[i] = contestant if self.key_bytes.at[contestant] >= 0 else -1
        i >>= 1
        while i > 0:
            self.tree.at[i] = self.better(self.tree.at[2 * i], self.tree.at[2 * i + 1])
            i >>= 1
