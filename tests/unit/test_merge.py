"""Merges: the newest of equal keys, tombstones that may go, overflow extents that move, a stop at any moment."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmlsm
import proof
from merge_rig import MergeRig, live, newest
from mmlsm.read.segment import Segment
from mmlsm.write.merge_policy import TierMerge
from mmlsm.write.merge_run import MergeResult
from segment_rig import Pairs, check_segment


class Enough(Exception):
    """What a test stops a merge with."""


def eventually(what: str, ready: Callable[[], bool], patience_s: float = 30) -> None:
    """Wait for the merge thread to bring it about."""
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, f"not in {patience_s} seconds: {what}"
        time.sleep(0.01)


def merged(rig: MergeRig, layers: list[Pairs], *, older: Segment | None = None) -> tuple[MergeResult, Segment | None]:
    """Segments of these layers, newest first, merged over what is older, and the segment made of them."""
    segments = [rig.write(dict(layer)) for layer in layers]
    result = rig.merge(segments, bottom=older is None, older=() if older is None else (older,))
    return result, rig.open(result.record)


@pytest.mark.parametrize("entries_max", [2, 5, 8192])
@pytest.mark.parametrize("bottom", [True, False])
def test_random_layers(entries_max: int, bottom: bool, seed: int) -> None:
    rng = random.Random(f"{entries_max} {bottom} {seed}")
    for _ in range(8):
        rig = MergeRig(node_entries_max=entries_max)
        keys = [b"%02d" % i * rng.choice([1, 1, 1, 400]) for i in range(40)] + [b"", b"\0", b"\xff" * 700]
        layers = []
        for _ in range(rng.randrange(1, 6)):
            layer: Pairs = {
                key: None if rng.random() < 0.3 else rng.randbytes(rng.choice([0, 3, 60, 1500, 70_000]))
                for key in keys
                if rng.random() < rng.choice([0.1, 0.9])
            }
            layers.append(layer or {b"only": None})
        older = None if bottom else rig.write(dict.fromkeys([*keys, b"only"], b"old"))
        result, segment = merged(rig, layers, older=older)
        want = newest(layers)
        kept = live(want) if bottom else want
        assert result.entries_in == sum(map(len, layers))
        rig.prove(segment, older)  # every page is the result's, or let go: nothing is lost between them
        if segment is None:
            assert not kept
            continue
        assert (segment.record.entries, segment.record.tombstones) == (len(kept), len(kept) - len(live(want)))
        assert (segment.record.first_key, segment.record.last_key) == (min(kept), max(kept))
        check_segment(rig.reader(segment), want)


def test_nothing_left_is_no_segment() -> None:
    rig = MergeRig()
    result, segment = merged(rig, [{b"a": None, b"b": None}, {b"a": b"1", b"b": bytes(5000)}])
    assert segment is None
    assert result.record is None
    assert result.written == ()
    assert rig.allocator.reserved_extents() == []


def test_a_merge_that_is_stopped_gives_everything_back() -> None:
    rig = MergeRig(node_entries_max=4)
    segments = [rig.write({b"%d %05d" % (layer, i): bytes(900) for i in range(3000)}) for layer in range(2)]
    before = rig.allocator.reserved_extents()

    def stop(done: int, total: int) -> None:
        assert 0 <= done <= total == 6000
        raise Enough

    with pytest.raises(Enough):
        rig.merge(segments, pause=stop)
    assert rig.allocator.reserved_extents() == before
    rig.prove(*segments)


def test_progress_that_raises_stops_a_compaction_cleanly(open_db: Any) -> None:
    db = open_db(auto_merge=False, node_entries_max=8, leaf_bytes=4096)
    want = {}
    for layer in range(3):
        pairs = {b"%05d" % i: b"%d" % layer * 300 for i in range(layer, 6000, 2)}
        want |= pairs
        db.update(pairs)
        db._engine.flush()
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.compact(progress=progress)
    assert all(done <= total for done, total in seen)
    proof.prove(db)
    assert dict(db.items()) == want
    db.compact(progress=lambda done, total: None)
    assert len(db.stats().segments) == 1
    assert dict(db.items()) == want


OLDER: Pairs = {b"%05d" % i: None if i % 5 == 0 else b"old" for i in range(0, 4000, 2)}


def kept_over(rig: MergeRig, older: list[Segment], keys: list[bytes]) -> set[bytes]:
    """Of tombstones merged over what is older, those that stay."""
    result = rig.merge([rig.write(dict.fromkeys(keys))], bottom=False, older=older)
    made = rig.open(result.record)
    return set() if made is None else {key for key in keys if made.holds(key)}


def damage(rig: MergeRig, segment: Segment, *, all_but_filter: bool) -> Segment:
    """Nothing of it can be read any more, or nothing but its filter; opened anew."""
    reference = segment.record.filter
    assert reference is not None
    for extent in rig.allocator.reserved_extents():
        for page in range(extent.first, extent.first + extent.count):
            if not (all_but_filter and reference.page <= page < reference.page + reference.pages):
                rig.channel.pwrite(page * 4096, b"damage" * 600)
    fresh = rig.open(segment.record)
    assert fresh is not None
    with pytest.raises(mmlsm.CorruptionError):
        fresh.holds(b"00002")
    return fresh


def test_tombstones_stay_over_keys_that_are_older_and_over_older_tombstones() -> None:
    for with_filter in (False, True):
        rig = MergeRig(node_entries_max=8)
        parts: list[Pairs] = [{key: OLDER[key] for key in OLDER if int(key) // 2 % 3 == part} for part in range(3)]
        older = [rig.write(layer, with_filter=with_filter) for layer in parts]
        keys = [b"%05d" % i for i in range(4000)]
        assert kept_over(rig, older, keys) == set(OLDER), "by search: each key between the fences, there or not"


def test_tombstones_before_or_behind_all_that_is_older_go_by_the_fences_alone() -> None:
    rig = MergeRig(node_entries_max=8)
    older = damage(rig, rig.write(dict(OLDER), with_filter=True), all_but_filter=False)
    assert kept_over(rig, [older], [b"", b"00000"[:4], b"03998\0", b"9"]) == set()
    for fence in (b"00000", b"03998"):
        with pytest.raises(mmlsm.CorruptionError):
            kept_over(rig, [older], [fence])


def test_tombstones_between_the_fences_go_by_the_filter_alone() -> None:
    rig = MergeRig(node_entries_max=8)
    sound = rig.write(dict(OLDER), with_filter=True)
    older = damage(rig, sound, all_but_filter=True)
    gone = 0
    for i in range(1, 1001, 2):
        try:
            assert kept_over(rig, [older], [b"%05d" % i]) == set()
            gone += 1
        except mmlsm.CorruptionError:
            pass  # one of the few that the filter does not know: it was searched for
    assert gone >= 480
    with pytest.raises(mmlsm.CorruptionError):
        kept_over(rig, [older], [b"00004"])


def test_tombstones_go_when_nothing_older_can_hold_the_key(open_db: Any) -> None:
    db = open_db(auto_merge=False)
    db.update({b"%d" % i: b"" for i in range(100)})
    db._engine.flush()
    with db.batch() as batch:
        for i in range(100):
            batch.delete(b"%d" % i)
    db._engine.flush()
    assert sum(segment.tombstones for segment in db.stats().segments) == 100
    db.compact()
    assert db.stats().segments == ()
    assert len(db) == 0


def test_a_tombstone_stays_while_something_older_may_hold_its_key(open_db: Any) -> None:
    db = open_db(auto_merge=False)
    db.update({b"a": b"old", b"b": b"old"})
    db._engine.flush()
    db.delete(b"a")
    db._engine.flush()
    db[b"c"] = b"new"
    db._engine.flush()
    plans = [TierMerge(tuple(segment.id for segment in db.stats().segments[:2]), 1)]
    merger = db._engine.merger
    merger.choose = lambda version, request: plans.pop() if plans else None
    merger.wake()
    eventually("the two newest are one", lambda: len(db.stats().segments) == 2)
    del merger.choose
    assert [segment.tombstones for segment in db.stats().segments] == [1, 0]
    assert list(db.items()) == [(b"b", b"old"), (b"c", b"new")]
    db.compact()
    assert [segment.tombstones for segment in db.stats().segments] == [0]
    assert list(db.items()) == [(b"b", b"old"), (b"c", b"new")]


def test_an_idle_database_converges_to_one_run(open_db: Any) -> None:
    db = open_db(memtable_bytes=4096)
    want = {}
    for i in range(400):
        want[b"%03d" % (i % 130)] = b"%d" % i * 10
        db.put(b"%03d" % (i % 130), want[b"%03d" % (i % 130)])
    db._engine.flush()
    eventually("one run", lambda: len(db.stats().segments) == 1)
    assert dict(db.items()) == want


def test_many_small_commits_leave_few_runs(open_db: Any) -> None:
    db = open_db(memtable_bytes=4096)
    most = 0
    for i in range(3000):
        db.put(b"%05d" % (i * 7919 % 3000), bytes(40))
        if i % 100 == 0:
            most = max(most, len(db.stats().levels[0]) if db.stats().levels else 0)
    assert most <= 24
    assert len(db) == 3000


def test_writes_go_on_beside_a_compaction(open_db: Any) -> None:
    db = open_db(auto_merge=False)
    db.update({b"%05d" % i: bytes(200) for i in range(5000)})
    done = threading.Event()

    def compact() -> None:
        for _ in range(3):
            db.compact()
        done.set()

    thread = threading.Thread(target=compact)
    thread.start()
    n = 0
    while not done.is_set():
        db.put(b"n", b"%d" % n)
        assert db[b"n"] == b"%d" % n
        n += 1
    thread.join()
    assert len(db) == 5001
    assert isinstance(db.stats(), mmlsm.Stats)
