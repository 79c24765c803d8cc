"""Many runs: no merge reads more of them at once than it has room for, and merges in between do not nest for ever."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.channel import Channel
from mmlsm.read.segment import Segment
from mmlsm.settings import Settings
from mmlsm.write import merge_jobs, merge_policy
from mmlsm.write.merge_jobs import NOTHING, MergeJobs, UnderWay
from mmlsm.write.merge_policy import Drain, TierMerge


def many_runs(path: Path, count: int, **settings: Any) -> mmlsm.Database:
    """`count` runs of a few keys, of which each has some of its neighbours'."""
    db = mmlsm.Database(path, Settings(**{"durability": "off", "auto_merge": False, **settings}))
    for i in range(count):
        db.update({b"%06d" % (2 * i + j): b"%d %d" % (i, j) for j in range(3)})
        db._engine.flush()
    assert db.stats().runs == count
    return db


def prove_many(db: mmlsm.Database, count: int) -> None:
    want = {b"%06d" % (2 * i + j): b"%d %d" % (i, j) for i in range(count) for j in range(3)}
    assert dict(db.items()) == dict(sorted(want.items()))
    assert db.verify().problems == []


def test_more_runs_than_a_merge_takes_are_compacted_in_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    merge = merge_jobs.merge_segments

    def watched(shop: Any, segments: list[Segment], **more: Any) -> Any:
        taken.append(len(segments))
        return merge(shop, segments, **more)

    monkeypatch.setattr(merge_jobs, "merge_segments", watched)
    count = 2 * merge_policy.SOURCES_MOST + 20
    with many_runs(path, count) as db:
        db.compact()
        assert db.stats().runs == 1
        prove_many(db, count)
    assert max(taken) == merge_policy.SOURCES_MOST


@pytest.mark.parametrize("slice_bytes", [1 << 12, 1 << 20])
@pytest.mark.parametrize("most", [2, 5])
def test_what_drains_stays_in_order_when_not_all_of_it_is_merged_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, most: int, slice_bytes: int
) -> None:
    with many_runs(path, 23, slice_bytes=slice_bytes, memtable_bytes=4096, leaf_bytes=4096) as db:
        monkeypatch.setattr(merge_policy, "SOURCES_MOST", most)
        db.compact()
        prove_many(db, 23)
    # All that a writer before this bound left as draining, and newer runs above.
    monkeypatch.setattr(merge_policy, "SOURCES_MOST", 64)
    path.unlink()
    with many_runs(path, 17, slice_bytes=slice_bytes, memtable_bytes=4096, leaf_bytes=4096) as db:
        store = db._engine.store
        assert store is not None
        ids = tuple(segment.record.id for segment in store.state.version.segments)
        db._engine.merger.step()  # makes its jobs
        assert db._engine.merger.jobs is not None
        db._engine.merger.jobs.set_aside(ids, None)
        monkeypatch.setattr(merge_policy, "SOURCES_MOST", most)
        db.compact()
        prove_many(db, 17)


def test_merges_in_between_go_into_newer_and_newer_tiers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested: list[tuple[int, ...]] = []
    under: list[int] = []
    room: list[tuple[int, int]] = []
    run, pwrite, merge_tier = MergeJobs.run, Channel.pwrite, MergeJobs.merge_tier

    def watched(self: MergeJobs, version: Any, chosen: TierMerge | Drain, under_way: UnderWay = NOTHING) -> None:
        under.append(under_way.below)
        if len(under) > 1:
            assert isinstance(chosen, TierMerge)
            nested.append((chosen.into, *reversed(under[1:])))
        try:
            run(self, version, chosen, under_way)
        finally:
            under.pop()

    def noted(self: MergeJobs, version: Any, chosen: TierMerge, under_way: UnderWay) -> None:
        room.append((under_way.below, chosen.into))
        merge_tier(self, version, chosen, under_way)

    def slow(self: Channel, offset: int, data: Any) -> Any:
        if threading.current_thread().name == merges:
            time.sleep(0.01)
        return pwrite(self, offset, data)

    monkeypatch.setattr(MergeJobs, "run", watched)
    monkeypatch.setattr(MergeJobs, "merge_tier", noted)
    monkeypatch.setattr(MergeJobs, "is_long", lambda self, version, ids: bool(ids))
    monkeypatch.setattr(Channel, "pwrite", slow)
    with mmlsm.Database(path, Settings(durability="off", memtable_bytes=4096, fan_out=2, leaf_bytes=4096)) as db:
        merges = db._engine.merger.name
        for i in range(400):
            db[b"%06d" % (i * 7919 % 1000)] = bytes(1000)
        assert db._engine.merger.fault is None
        stats = db.stats()
        assert stats.runs <= stats.runs_bound
    assert nested, "nothing came in between"
    assert all(below < into for below, into in room), "what comes in between could be long itself, and so on"
    for into, below, *others in nested:
        assert into <= below
        assert all(newer < older for newer, older in pairwise([below, *others])), nested
