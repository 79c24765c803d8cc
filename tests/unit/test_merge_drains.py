"""Slices into the bottom of a database: how much space one takes, where the next begins, and what comes in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.limits import PAGE_BYTES
from mmlsm.write import merge_jobs
from mmlsm.write.merge_policy import Drain, TierMerge, shape_of, slice_target
from mmlsm.write.merge_run import MergeResult

Bounds = tuple[bytes | None, bytes | None]

SLICED: dict[str, Any] = {"auto_merge": False, "slice_bytes": 1 << 15, "leaf_bytes": 4096, "log_extent_bytes": 1 << 14}


class Slices:
    """Watches the slices that are merged, and what is reserved for each: in the middle of it, and at its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bounds: list[Bounds] = []
        self.reserved: list[int] = []
        self.failing: Callable[[], object] = lambda: None
        plain = merge_jobs.merge_segments

        def watching(shop: Any, segments: Any, **how: Any) -> MergeResult:
            self.failing()
            result = plain(shop, segments, **how)
            self.bounds.append(how["bounds"])
            self.reserved.append(shop.allocator.counts().reserved)
            return result

        monkeypatch.setattr(merge_jobs, "merge_segments", watching)


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Slices:
    return Slices(monkeypatch)


def keys(count: int) -> list[bytes]:
    return [b"%06d" % i for i in range(count)]


def fill(db: Any, pairs: dict[bytes, bytes]) -> None:
    """As one run."""
    items = list(pairs.items())
    for at in range(0, len(items), 500):
        db.update(items[at : at + 500])
    db._engine.flush()


def step(db: Any, plans: list[Any]) -> None:
    """Let the merge thread do these, which are made of the version that it finds, and nothing else."""
    merger = db._engine.merger
    done = len(plans)
    merger.choose = lambda version, request: plans.pop(0)(version) if plans else None
    merges = merger.merges
    try:
        db.compact(progress=lambda *_: None)
    finally:
        del merger.choose
    assert merger.merges >= merges + done


def all_that_drains(version: Any) -> Drain:
    shape = shape_of(merge_jobs.levels_of(version))
    return Drain(tuple(record.id for record in shape.draining or shape.upper()))


@pytest.mark.parametrize("pattern", ["random", "sequential"])
def test_what_a_slice_reserves_is_bounded_by_the_slice(open_db: Any, slices: Slices, pattern: str) -> None:
    """A tenth of 2 MB is overwritten everywhere; the file grows by few slices, and not by a second bottom."""
    db = open_db(**SLICED)
    rng = random.Random(pattern)
    model = {key: rng.randbytes(100) for key in keys(16_000)}
    fill(db, model)
    db.compact()
    assert slices.bounds == []
    before = db.stats()
    changed = rng.sample(keys(16_000), 1600) if pattern == "random" else keys(16_000)[7000:8600]
    update = {key: rng.randbytes(100) for key in changed}
    fill(db, update)
    model |= update
    shape = shape_of(merge_jobs.levels_of(db._engine.store.state.version))
    target = slice_target(shape.bottom, db._engine.store.settings)
    assert target < before.segments[0].pages * PAGE_BYTES / 4
    log = db.stats().space.reserved
    db.compact()
    assert len(slices.bounds) >= (4 if pattern == "random" else 1)
    assert max(slices.reserved) - log <= 1.2 * target / PAGE_BYTES + 16
    assert dict(db.items()) == model
    proof.prove(db)


def test_slices_go_on_where_they_were_after_reopening(open_db: Any, slices: Slices, path: Any) -> None:
    settings = SLICED
    db = open_db(**settings)
    rng = random.Random(1)
    model = {key: rng.randbytes(100) for key in keys(8000)}
    fill(db, model)
    db.compact()
    update = dict.fromkeys(rng.sample(keys(8000), 2000), b"new" * 20)
    fill(db, update)
    model |= update
    places = []
    for _ in range(4):
        step(db, [all_that_drains])
        places.append(db._engine.store.place)
        assert dict(db.items()) == model
        db.close()
        db = open_db(**settings)
        assert db._engine.store.place == places[-1], "the place is part of the manifest"
        assert [level for level, runs in enumerate(db.stats().levels) if runs] == [1, 2], "it still drains"
    assert places == sorted({*places} - {b""}), "each slice is behind the one before"
    for (start, stop), place in zip(slices.bounds, places, strict=True):
        assert stop == place
        assert start is None or start > b""
    starts = [start or b"" for start, _ in slices.bounds]
    assert starts == sorted(starts)
    db.compact()
    assert dict(db.items()) == model
    assert len(db.stats().segments) == 1


def test_the_slice_with_the_most_tombstones_goes_first(open_db: Any, slices: Slices) -> None:
    db = open_db(**SLICED)
    model = dict.fromkeys(keys(8000), b"old" * 30)
    fill(db, model)
    db.compact()
    with db.batch() as batch:
        for i, key in enumerate(keys(8000)):
            if 5000 <= i < 5600:
                batch.delete(key)
                del model[key]
            elif i % 8 == 0:
                batch.put(key, b"new")
                model[key] = b"new"
    db._engine.flush()
    before = db.stats()
    step(db, [all_that_drains])
    ((start, stop),) = slices.bounds
    assert start is not None
    assert stop is not None
    assert b"004500" < start < b"005600"
    assert start < stop < b"006600"
    after = db.stats()
    assert sum(s.tombstones for s in after.segments) < sum(s.tombstones for s in before.segments) / 2 + 1
    assert dict(db.items()) == model
    db.compact()
    assert dict(db.items()) == model


def test_a_slice_that_fails_is_tried_again_at_its_place(open_db: Any, slices: Slices) -> None:
    db = open_db(**SLICED)
    model = dict.fromkeys(keys(8000), b"old" * 30)
    fill(db, model)
    db.compact()
    fill(db, update := dict.fromkeys(keys(8000)[::3], b"new"))
    model |= update
    step(db, [all_that_drains])

    def fail() -> None:
        raise mmlsm.StorageError(5, "planted")

    slices.failing = fail
    with pytest.raises(mmlsm.StorageError):
        db.compact()
    slices.failing = lambda: None
    assert dict(db.items()) == model
    proof.prove(db)
    db.compact()
    assert len(db.stats().segments) == 1
    assert dict(db.items()) == model
    *sliced, last = slices.bounds
    assert last == (None, None), "all that was left"
    assert sliced[0][0] is None
    assert all(stop == start for (_, stop), (start, _) in pairwise(sliced))


# -- what comes in between


def test_the_newest_level_does_not_starve_while_runs_drain(open_db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes in the middle of a slice's merge: those of tier 0 are merged there, so it does not grow."""
    db = open_db(slice_bytes=1 << 17, leaf_bytes=4096, node_entries_max=16)
    merger = db._engine.merger
    merger.choose = lambda version, request: None
    model = dict.fromkeys(keys(8000), b"old" * 30)
    fill(db, model)
    fill(db, update := dict.fromkeys(keys(8000)[::2], b"new" * 30))
    model |= update
    running: list[TierMerge | Drain] = []
    inner: list[TierMerge | Drain] = []
    flushes = most = 0
    plain_run, plain_interrupt = merge_jobs.MergeJobs.run, merger.interrupt

    def run(jobs: Any, version: Any, chosen: TierMerge | Drain, *under_way: Any) -> None:
        inner.extend([chosen] if running else [])
        running.append(chosen)
        jobs.interrupt = interrupt
        try:
            plain_run(jobs, version, chosen, *under_way)
        finally:
            running.pop()

    def interrupt(tier: int, done: int, total: int) -> None:
        nonlocal flushes, most
        drains = shape_of(merge_jobs.levels_of(db._engine.store.state.version)).draining
        if len(running) == 1 and isinstance(running[0], Drain) and drains and flushes < 20:
            flushes += 1
            fill(db, update := {b"%06d" % (flushes * 100 + i): b"%d" % flushes for i in range(10)})
            model.update(update)
            most = max(most, len(db.stats().levels[0]))
        plain_interrupt(tier, done, total)

    monkeypatch.setattr(merge_jobs.MergeJobs, "run", run)
    del merger.choose
    db.compact()
    assert flushes == 20
    assert most == db._engine.store.settings.fan_out, "tier 0 was merged as soon as it was full"
    assert len(inner) >= 20 // most - 1
    assert all(isinstance(chosen, TierMerge) for chosen in inner)
    assert dict(db.items()) == model
    proof.prove(db)
