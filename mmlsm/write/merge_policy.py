"""What to merge next: a pure function of a version's levels.

Lazily levelled (Dayan, Idreos: Dostoevsky, 2018): every level but the last keeps some runs of like size (a tier), the
last keeps one (the bottom). Levels, newest first:

    tier 0 | tier 1 | ... | tier n-1 | draining | bottom

A flush makes a run of tier 0. `fan_out` runs of a tier become one of the next. When the tiers are worth a merge into
the bottom, their runs move to `draining` and go from there, a slice of the key space at a time, each slice an install
of its own: so a merge's peak space follows the slice and not the database, and small merges come in between.

I1. A plan keeps the order of age: it names neighbours, and what comes out stands where the newest of them stood.
I2. Nothing is read here but records: no file, no clock; equal levels give equal plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmlsm.format.manifest import Level, SegmentRecord
from mmlsm.limits import PAGE_BYTES

if TYPE_CHECKING:
    from mmlsm.settings import Settings

TIER_LATE = 2
"""A tier of this many times `fan_out` runs is merged even while others drain."""

FLUSH_SHARE = 4
"""A flushed run is taken to be at least 1/this of `memtable_bytes`, where the number of tiers is foretold."""

DENSE = 0.25
"""A slice of which this share are tombstones goes first."""

SOURCES_MOST = 64
"""Runs that one merge reads beside the bottom: what it takes of memory grows with their number, squared at worst."""


@dataclass(frozen=True, slots=True)
class TierMerge:
    """Merge the segments `ids`, newest first, whole, into one run, the newest of tier `into`."""

    ids: tuple[int, ...]
    into: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Merge the segments `ids`, newest first, into the bottom, slice by slice. None: the bottom is written alone."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """The keys start <= k < stop of the runs that drain (None: no bound), and what the largest of them holds there."""

    start: bytes | None
    stop: bytes | None
    entries: int
    tombstones: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Levels by their role. Runs newest first; each is one segment, its record."""

    tiers: tuple[tuple[SegmentRecord, ...], ...]
    draining: tuple[SegmentRecord, ...]
    bottom: SegmentRecord | None

    def upper(self) -> list[SegmentRecord]:
        """All but the bottom, newest first."""
        return [record for tier in self.tiers for record in tier] + list(self.draining)

    def without(self, ids: frozenset[int]) -> Shape:
        """The same without the segments that are being merged."""
        tiers = tuple(tuple(record for record in runs if record.id not in ids) for runs in self.tiers)
        return Shape(tiers, tuple(record for record in self.draining if record.id not in ids), self.bottom)

    def levels(self) -> tuple[Level, ...]:
        """As a manifest keeps them, without empty tiers at the end; nothing for nothing."""
        tiers = list(self.tiers)
        while len(tiers) > 1 and not tiers[-1]:
            tiers.pop()
        if not any(tiers) and not self.draining and self.bottom is None:
            return ()
        runs = [*(tiers or [()]), self.draining, () if self.bottom is None else (self.bottom,)]
        return tuple(tuple((record,) for record in level) for level in runs)


def shape_of(levels: Sequence[Level]) -> Shape:
    """The roles of a manifest's levels: all are tiers if there are fewer than three, or the last has several runs."""
    flat = [tuple(record for run in level for record in run) for level in levels]
    if len(flat) < 3 or len(flat[-1]) > 1:
        return Shape(tuple(flat), (), None)
    return Shape(tuple(flat[:-2]), flat[-2], flat[-1][0] if flat[-1] else None)


def age_fault(levels: Sequence[Level]) -> str | None:
    """What is out of the order of age, or None: going down, the last commit of a run never gets newer.

    But for the bottom, which has slices of what still drains.
    """
    before: SegmentRecord | None = None
    for record in shape_of(levels).upper():
        if before is not None and record.seq_high > before.seq_high:
            return f"segment {record.id} has newer commits than segment {before.id}, which stands before it"
        before = record
    return None


def level_name(index: int, count: int) -> str:
    """What level `index` of `count` is called."""
    if count >= 3 and index >= count - 2:
        return "bottom" if index == count - 1 else "draining"
    return f"tier {index}"


def plan(
    shape: Shape,
    settings: Settings,
    *,
    idle: bool = False,
    below: int | None = None,
    overlap_bytes: Callable[[SegmentRecord], int] | None = None,
) -> TierMerge | Drain | None:
    """The next merge, or None.

    `idle`: nothing has been written for a while, so converge to one run. `below`: a merge is under way on this thread,
    of runs that `shape` is without and of which the newest stands in that tier: only merges of tiers before it may come
    in between, so that what comes out stands before it.
    Of more than SOURCES_MOST runs the oldest are merged first.
    `overlap_bytes(record)` tells how much of the bottom lies between a record's fences; all of it where not given.
    """
    if idle and below is None:
        return plan_convergence(shape)
    fan_out = settings.fan_out
    for tier, runs in enumerate(shape.tiers if below is None else shape.tiers[:below]):
        late = tier > 0 and bool(shape.draining) and len(runs) < TIER_LATE * fan_out
        if len(runs) < fan_out or late:
            continue
        group, into = list(runs), tier + 1
        while into < len(shape.tiers) and len(shape.tiers[into]) + 1 >= fan_out and (below is None or into < below):
            group += shape.tiers[into]
            into += 1
        older = [record for deeper in shape.tiers[into:] for record in deeper]
        if below is None and not shape.draining and drains(group + older, shape.bottom, settings, overlap_bytes):
            return Drain(oldest(group + older))
        return TierMerge(oldest(group), into)
    if below is not None:
        return None
    if shape.draining:
        return Drain(oldest(shape.draining))
    return None


def oldest(records: Sequence[SegmentRecord]) -> tuple[int, ...]:
    """The ids of as many of these, newest first, as one merge takes."""
    return tuple(record.id for record in records[-SOURCES_MOST:])


def plan_convergence(shape: Shape) -> Drain | None:
    """The next merge on the way to one run without tombstones."""
    if shape.draining:
        return Drain(oldest(shape.draining))
    upper = shape.upper()
    if upper or (shape.bottom is not None and shape.bottom.tombstones):
        return Drain(oldest(upper))
    return None


def drains(
    group: Sequence[SegmentRecord],
    bottom: SegmentRecord | None,
    settings: Settings,
    overlap_bytes: Callable[[SegmentRecord], int] | None,
) -> bool:
    """Whether these runs, all that is older than them but the bottom included, are worth a merge into the bottom."""
    if bottom is None:
        return True
    whole = bottom.pages * PAGE_BYTES
    overlapped = whole
    if overlap_bytes is not None:
        overlapped = min(whole, sum(overlap_bytes(record) for record in group))
    return sum(record.pages for record in group) * PAGE_BYTES * settings.bottom_ratio >= overlapped


def next_slice(slices: Sequence[Slice], place: bytes) -> int:
    """Which slice comes next: the densest in tombstones if one is dense, else the first at or after `place`, around."""
    dense = max(range(len(slices)), key=lambda i: slices[i].tombstones / max(1, slices[i].entries))
    if slices[dense].tombstones > DENSE * slices[dense].entries:
        return dense
    return next((i for i, piece in enumerate(slices) if piece.start is not None and piece.start >= place and place), 0)


def slice_target(bottom: SegmentRecord | None, settings: Settings) -> int:
    """Bytes that a slice should read, source and bottom together."""
    size = bottom.pages * PAGE_BYTES if bottom is not None else 0
    return min(max(min(settings.slice_bytes, 2 * settings.memtable_bytes), size // 8), 8 * settings.slice_bytes)


def backlog(levels: Sequence[Level], settings: Settings) -> float:
    """How much waits for a merge into the bottom, beside what may: from 1 on commits wait for it.

    What may is three times what the tiers drain at, and at least 2 * fan_out memtables, for a small bottom.
    """
    shape = shape_of(levels)
    bottom = 0 if shape.bottom is None else shape.bottom.pages * PAGE_BYTES
    waiting = sum(record.pages for record in shape.upper()) * PAGE_BYTES
    return waiting / max(3 * bottom / settings.bottom_ratio, 2 * settings.fan_out * settings.memtable_bytes)


def tiers_most(shape: Shape, settings: Settings) -> int:
    """How many tiers a database of this size needs at most."""
    bottom = 0 if shape.bottom is None else shape.bottom.pages * PAGE_BYTES
    upper = sum(record.pages for record in shape.upper()) * PAGE_BYTES
    size, tiers = max(1, settings.memtable_bytes // FLUSH_SHARE) * settings.fan_out, 1
    while size * settings.bottom_ratio < max(bottom, upper):
        size *= settings.fan_out
        tiers += 1
    return max(tiers, len(shape.tiers))


def runs_bound(levels: Sequence[Level], settings: Settings) -> int:
    """Runs that there may be: commits wait for merges rather than go beyond.

    Each tier holds up to TIER_LATE * fan_out runs, tier 0 as many again; as many as tier 0 may drain; and the bottom.
    """
    tiers = tiers_most(shape_of(levels), settings)
    return TIER_LATE * settings.fan_out * (tiers + 2) + 1
