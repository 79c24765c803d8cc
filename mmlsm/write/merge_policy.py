"""Which runs to merge next: a pure function of the runs' sizes.

Size-tiered to begin with (the policy that "universal" compaction is known by): runs are ordered newest first; the
newest ones are merged together once there are enough of similar size, and an idle database converges to one run.

I1. A plan names neighbours: a contiguous range of runs, so that newer still stands before older.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RUNS_MIN: Final = 4
"""Runs of similar size that are worth a merge."""

SIZE_RATIO: Final = 2
"""A run joins a merge when it is at most this many times as large as all newer ones together."""

RUNS_SLOW: Final = 12
"""From this many runs on commits are slowed."""

RUNS_STOP: Final = 24
"""With this many runs commits wait for a merge."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Merge runs[first:last], newest first; `bottom`: no older run is left below them."""

    first: int
    last: int
    bottom: bool


def plan(sizes: Sequence[int], *, idle: bool, has_tombstones: bool = False) -> MergePlan | None:
    """The next merge for runs of these sizes (bytes, newest first), or None.

    `idle`: nothing has been written for a while, so converge; `has_tombstones`: of the only run, when it is alone.
    """
    count = len(sizes)
    if count == 1 and idle and has_tombstones:
        return MergePlan(0, 1, True)
    if count < 2:
        return None
    if idle:
        return MergePlan(0, count, True)
    total, last = sizes[0], 1
    while last < count and sizes[last] <= SIZE_RATIO * total:
        total += sizes[last]
        last += 1
    if last >= RUNS_MIN:
        return MergePlan(0, last, last == count)
    if count >= RUNS_SLOW:
        return MergePlan(0, count, True)
    return None
