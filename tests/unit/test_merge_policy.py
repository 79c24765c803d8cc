"""The policy of merges, without a file: what is planned for made-up levels, and whole lives of a database on paper."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlsm.format.manifest import SegmentRecord
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.merge_policy import (
    DENSE,
    FLUSH_SHARE,
    TIER_LATE,
    Drain,
    Shape,
    Slice,
    TierMerge,
    level_name,
    next_slice,
    plan,
    runs_bound,
    shape_of,
    slice_target,
    tiers_most,
)

FAN_OUT = 4
SETTINGS = Settings(fan_out=FAN_OUT, bottom_ratio=4, memtable_bytes=64 * PAGE_BYTES)


def record(number: int, pages: int = 10, *, tombstones: int = 0, seq: tuple[int, int] | None = None) -> SegmentRecord:
    low, high = seq or (number, number)
    return SegmentRecord(
        id=number, installed=1, root_page=3, root_pages=1, root_sum=0, height=0, entries=pages * 100,
        tombstones=tombstones, data_bytes=pages * 4000, pages=pages, leaf_pages=1, first_key=b"a", last_key=b"z",
        seq_low=low, seq_high=high,
    )  # fmt: skip


def shape(tiers: Sequence[int], draining: int = 0, bottom: int | None = 100_000, pages: int = 10) -> Shape:
    """So many runs of `pages` in each tier and draining, numbered from 1 with the oldest; a bottom of so many pages."""
    number = sum(tiers) + draining

    def runs(count: int) -> tuple[SegmentRecord, ...]:
        nonlocal number
        number -= count
        return tuple(record(number + count - i, pages) for i in range(count))

    made = tuple(runs(count) for count in tiers)
    return Shape(made, runs(draining), None if bottom is None else record(1000, bottom))


def ids(records: Sequence[SegmentRecord]) -> tuple[int, ...]:
    return tuple(known.id for known in records)


# -- tiers


def test_nothing_is_planned_for_nothing_or_for_tiers_that_are_not_full() -> None:
    assert plan(Shape((), (), None), SETTINGS, idle=True) is None
    assert plan(shape([3, 3, 3]), SETTINGS) is None
    assert plan(shape([]), SETTINGS, idle=True) is None


def test_a_full_tier_becomes_one_run_of_the_next() -> None:
    present = shape([FAN_OUT + 1, 2])
    assert plan(present, SETTINGS) == TierMerge(ids(present.tiers[0]), 1)
    present = shape([2, FAN_OUT])
    assert plan(present, SETTINGS) == TierMerge(ids(present.tiers[1]), 2)


def test_a_run_that_would_fill_the_next_tier_takes_it_along() -> None:
    present = shape([FAN_OUT, FAN_OUT - 1, FAN_OUT - 2])
    assert plan(present, SETTINGS) == TierMerge(ids(present.tiers[0] + present.tiers[1]), 2)
    present = shape([FAN_OUT, FAN_OUT - 1, FAN_OUT - 1])
    assert plan(present, SETTINGS) == TierMerge(ids(present.upper()), 3)


# -- into the bottom


@pytest.mark.parametrize(("bottom", "drained"), [(4 * 40, True), (4 * 40 + 1, False)])
def test_a_tier_drains_when_it_is_worth_rewriting_the_bottom(bottom: int, drained: bool) -> None:
    """40 pages of tier 0, and four times that below."""
    present = shape([FAN_OUT], bottom=bottom)
    wanted = Drain(ids(present.upper())) if drained else TierMerge(ids(present.upper()), 1)
    assert plan(present, SETTINGS) == wanted


def test_what_drains_takes_all_that_is_older_with_it() -> None:
    present = shape([1, FAN_OUT, 2, 3], bottom=90 * 4)
    assert plan(present, SETTINGS) == Drain(ids(present.upper()[1:])), "nine runs of ten pages, not the newest"


def test_a_first_bottom_is_made_at_once() -> None:
    present = shape([FAN_OUT], bottom=None)
    assert plan(present, SETTINGS) == Drain(ids(present.upper()))


@pytest.mark.parametrize(("each", "drained"), [(40, True), (41, False)])
def test_only_what_is_overlapped_counts(each: int, drained: bool) -> None:
    present = shape([FAN_OUT], bottom=1 << 30)
    chosen = plan(present, SETTINGS, overlap_bytes=lambda _: each * PAGE_BYTES)
    assert isinstance(chosen, Drain) is drained
    # each of four runs overlaps all of a small bottom, which is rewritten once and not four times
    present = shape([FAN_OUT], bottom=4 * 40)
    assert isinstance(plan(present, SETTINGS, overlap_bytes=lambda _: 160 * PAGE_BYTES), Drain)


def test_while_runs_drain_only_the_first_tier_and_late_ones_come_before() -> None:
    present = shape([FAN_OUT - 1, TIER_LATE * FAN_OUT - 1], draining=2, bottom=1)
    assert plan(present, SETTINGS) == Drain(ids(present.draining)), "a full tier waits"
    present = shape([FAN_OUT, FAN_OUT - 2], draining=2, bottom=1)
    assert plan(present, SETTINGS) == TierMerge(ids(present.tiers[0]), 1), "the first does not; it drains not either"
    present = shape([1, TIER_LATE * FAN_OUT], draining=2, bottom=1)
    assert plan(present, SETTINGS) == TierMerge(ids(present.tiers[1]), 2), "nor does a late one"


# -- idle


def test_an_idle_database_merges_all_into_one_run() -> None:
    present = shape([1])
    assert plan(present, SETTINGS) is None
    assert plan(present, SETTINGS, idle=True) == Drain(ids(present.upper()))
    present = shape([1, 2], draining=2)
    assert plan(present, SETTINGS, idle=True) == Drain(ids(present.draining)), "what drains comes first"
    present = shape([0, 2], bottom=None)
    assert plan(present, SETTINGS, idle=True) == Drain(ids(present.upper()))


def test_tombstones_of_the_bottom_go_when_it_is_idle() -> None:
    clean = shape([])
    assert clean.bottom is not None
    with_tombstones = replace(clean, bottom=replace(clean.bottom, tombstones=1))
    assert plan(with_tombstones, SETTINGS, idle=True) == Drain(())
    assert plan(with_tombstones, SETTINGS) is None
    assert plan(clean, SETTINGS, idle=True) is None


# -- what comes in between


def test_below_a_merge_only_newer_tiers_come_in_between() -> None:
    present = shape([FAN_OUT, FAN_OUT, FAN_OUT], draining=3, bottom=1)
    assert plan(present, SETTINGS, below=0) is None
    assert plan(present, SETTINGS, below=1) == TierMerge(ids(present.tiers[0]), 1), "tier 1 is being merged"
    assert plan(present, SETTINGS, below=2) == TierMerge(ids(present.tiers[0] + present.tiers[1]), 2)
    quiet = shape([1, 1], draining=3, bottom=1)
    assert plan(quiet, SETTINGS, below=2, idle=True) is None, "no merge into the bottom within one into the bottom"
    assert plan(shape([FAN_OUT], bottom=None), SETTINGS, below=1) == TierMerge((4, 3, 2, 1), 1)


# -- slices


def pieces(*tombstones: int, entries: int = 100) -> list[Slice]:
    bounds: list[bytes | None] = [None, *(b"%02d" % i for i in range(1, len(tombstones))), None]
    return [Slice(bounds[i], bounds[i + 1], entries, count) for i, count in enumerate(tombstones)]


def test_slices_go_round() -> None:
    slices = pieces(0, 0, 0, 0)
    assert next_slice(slices, b"") == 0
    assert next_slice(slices, b"01") == 1
    assert next_slice(slices, b"01x") == 2
    assert next_slice(slices, b"03") == 3
    assert next_slice(slices, b"04") == 0, "past the last: around"
    assert next_slice(slices[2:], b"01") == 0, "what is gone is passed by"
    assert next_slice(pieces(0), b"99") == 0


def test_a_slice_of_many_tombstones_goes_first() -> None:
    some = int(DENSE * 100)
    assert next_slice(pieces(0, some + 1, some + 2, 0), b"") == 2
    assert next_slice(pieces(0, some, 0, 0), b"03") == 3, "not dense enough"
    assert next_slice([Slice(None, None, 0, 0)], b"") == 0


def test_slices_are_an_eighth_of_the_bottom_within_bounds() -> None:
    settings = Settings(slice_bytes=1 << 20)
    assert slice_target(None, settings) == 1 << 20
    assert slice_target(record(1, 10), settings) == 1 << 20
    assert slice_target(record(1, 4 * 256 * 8), settings) == 4 << 20
    assert slice_target(record(1, 1 << 30), settings) == 8 << 20


# -- levels


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(0, 2), st.booleans())
def test_levels_keep_their_roles(tiers: list[int], draining: int, bottom: bool) -> None:
    made = shape(tiers, draining, 5 if bottom else None)
    levels = made.levels()
    again = shape_of(levels)
    assert again.upper() == made.upper()
    assert (again.draining, again.bottom) == (made.draining, made.bottom)
    assert again.levels() == levels
    assert not levels or len(levels) >= 3
    assert all(len(run) == 1 for level in levels for run in level)


def test_two_levels_are_tiers() -> None:
    assert shape_of([((record(2),), (record(1),))]) == Shape(((record(2), record(1)),), (), None)
    assert shape_of([(), ((record(1),),)]) == Shape(((), (record(1),)), (), None)
    assert shape_of([]) == Shape((), (), None)


def test_each_level_has_a_name() -> None:
    assert [level_name(i, 5) for i in range(5)] == ["tier 0", "tier 1", "tier 2", "draining", "bottom"]
    assert [level_name(i, 2) for i in range(2)] == ["tier 0", "tier 1"]


@pytest.mark.parametrize(("pages", "tiers"), [(1, 1), (256, 1), (257, 2), (1024, 2), (1025, 3), (1 << 20, 7)])
def test_tiers_grow_with_the_logarithm_of_the_size(pages: int, tiers: int) -> None:
    """A flush is at least 16 pages, tier 0 drains 64 pages, worth a bottom of 256."""
    present = shape([], bottom=pages)
    assert tiers_most(present, SETTINGS) == tiers
    assert runs_bound(present.levels(), SETTINGS) == TIER_LATE * FAN_OUT * (tiers + 2) + 1


# -- a life on paper


class Paper:
    """A database of records alone: runs are sizes, a merge is a sum. `interrupts`: what comes in the middle of one."""

    def __init__(self, settings: Settings, slices: int) -> None:
        self.settings = settings
        self.slices = slices
        self.now = Shape((), (), None)
        self.last = 0
        self.left = 0
        self.flushed = self.written = 0
        self.most_tiers = 0
        self.in_between: Callable[[int], None] = lambda tier: None

    def flush(self, pages: int) -> None:
        self.last += 1
        tiers = self.now.tiers or ((),)
        self.now = replace(self.now, tiers=((record(self.last, pages), *tiers[0]), *tiers[1:]))
        self.flushed += pages
        self.prove()

    def made_of(self, records: Sequence[SegmentRecord], pages: int) -> SegmentRecord:
        self.last += 1
        self.written += pages
        seq = (min(known.seq_low for known in records), max(known.seq_high for known in records))
        return record(self.last, pages, seq=seq)

    def step(self, *, idle: bool = False, below: int | None = None) -> bool:
        chosen = plan(self.now, self.settings, idle=idle, below=below)
        if chosen is None:
            return False
        flat = self.now.upper()
        start = ids(flat).index(chosen.ids[0]) if chosen.ids else 0
        assert ids(flat[start : start + len(chosen.ids)]) == chosen.ids, "neighbours, newest first (I1)"
        named = flat[start : start + len(chosen.ids)]
        tiers = [tier for tier, runs in enumerate(self.now.tiers) if {*chosen.ids} & {*ids(runs)}]
        self.in_between(min(tiers, default=len(self.now.tiers)))
        if isinstance(chosen, TierMerge):
            made = self.made_of(named, sum(known.pages for known in named))
            tiers = self.without(chosen.ids)
            tiers += [()] * (chosen.into + 1 - len(tiers))
            tiers[chosen.into] = (made, *tiers[chosen.into])
            self.now = replace(self.now, tiers=tuple(tiers))
        else:
            assert below is None
            assert start + len(named) == len(flat), "all that is older goes along"
            self.drain(named)
        self.most_tiers = max(self.most_tiers, sum(map(bool, self.now.tiers)), len(self.now.tiers))
        self.prove()
        return True

    def drain(self, named: Sequence[SegmentRecord]) -> None:
        """One slice: its share of what drains, and of the bottom."""
        self.left = self.left or self.slices
        old = 0 if self.now.bottom is None else self.now.bottom.pages
        taken = [known.pages // self.left for known in named]
        bottom = self.made_of([*named, *([self.now.bottom] if self.now.bottom else [])], old + sum(taken))
        self.written -= old - old // self.slices - (old % self.slices > 0)  # the rest of the bottom by reference
        self.left -= 1
        rest = [replace(known, pages=known.pages - part) for known, part in zip(named, taken, strict=True)]
        self.now = Shape(tuple(self.without(ids(named))), tuple(rest) if self.left else (), bottom)

    def without(self, gone: Sequence[int]) -> list[tuple[SegmentRecord, ...]]:
        return [tuple(known for known in runs if known.id not in gone) for runs in self.now.tiers]

    def prove(self) -> None:
        """The order of age (I1): each run newer than the next, and than the bottom, but for what drains into it."""
        runs = self.now.upper()
        assert all(newer.seq_low > older.seq_high for newer, older in pairwise(runs))
        if self.now.bottom is not None and not self.now.draining:
            assert all(run.seq_low > self.now.bottom.seq_high for run in runs)
        assert shape_of(self.now.levels()).upper() == runs
        total = sum(run.pages for run in runs) + (self.now.bottom.pages if self.now.bottom else 0)
        assert total == self.flushed, "a page was lost on paper"


def run_of_life(seed: Any, settings: Settings, flushes: int, steps: int) -> Paper:
    """`flushes` flushes of full memtables and less, and so many merges for each."""
    rng = random.Random(seed)
    paper = Paper(settings, rng.choice([1, 3, 8]))
    full = settings.memtable_bytes // PAGE_BYTES

    def in_between(tier: int) -> None:
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            paper.flush(rng.randrange(full // FLUSH_SHARE, full + 1))
            outer, paper.in_between = paper.in_between, lambda tier: None
            paper.step(below=tier)
            paper.in_between = outer

    paper.in_between = in_between
    for _ in range(flushes):
        paper.flush(rng.randrange(full // FLUSH_SHARE, full + 1))
        for _ in range(steps):
            paper.step()
        levels = paper.now.levels()
        assert sum(map(len, levels)) <= runs_bound(levels, settings)
    return paper


@pytest.mark.parametrize("fan_out", [2, 4, 6])
@pytest.mark.parametrize("ratio", [1, 4])
def test_age_is_kept_runs_stay_few_and_little_is_written(fan_out: int, ratio: int, seed: int) -> None:
    """On paper, with uniform keys. Each page is written once as it is flushed, once for each tier that there ever was,
    once into the bottom, and takes `bottom_ratio` pages of the bottom along.
    """
    settings = replace(SETTINGS, fan_out=fan_out, bottom_ratio=ratio)
    for steps in (2, 5):
        paper = run_of_life(f"{seed} {steps}", settings, 600, steps)
        assert paper.written <= paper.flushed * (paper.most_tiers + 1 + ratio)
        assert paper.most_tiers <= tiers_most(replace(paper.now, tiers=()), settings)


def test_an_idle_database_ends_at_one_run_in_few_steps(seed: int) -> None:
    for flushes in (1, 7, 40, 333):
        paper = run_of_life(f"{seed} {flushes}", SETTINGS, flushes, 1)
        paper.in_between = lambda tier: None
        bound = len(paper.now.upper()) + 2 * paper.slices
        taken = 0
        while paper.step(idle=True):
            taken += 1
            assert taken <= bound
        assert paper.now.upper() == []
        assert paper.now.bottom is not None
        assert paper.now.bottom.pages == paper.flushed
