"""Sorting many keys without keeping the GIL: a quicksort's first step, then small sorts.

Any thread. Not a compiled module on purpose: between bytecodes the interpreter lets other threads run.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator

KEYS_A_SORT = 8192
"""Keys sorted in one go, some milliseconds."""


def in_order(keys: list[bytes]) -> Iterator[list[bytes]]:
    """The keys in order, a piece at a time: one sort of all would keep every other thread waiting for the GIL."""
    if len(keys) <= KEYS_A_SORT:
        yield sorted(keys)
        return
    bounds = sorted(random.sample(keys, len(keys) // KEYS_A_SORT))
    pieces: list[list[bytes]] = [[] for _ in range(len(bounds) + 1)]
    for key in keys:
        pieces[bisect_right(bounds, key)].append(key)
    for piece in pieces:
        piece.sort()
        yield piece
