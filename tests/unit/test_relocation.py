"""Nodes and extents that move to the front of the file: by reference but for what stands late, and under readers."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from merge_rig import MergeRig, Refusing, poor_parents
from mmlsm.errors import StorageError
from mmlsm.format.leaf import entries_of
from mmlsm.format.manifest import Reference
from mmlsm.format.page import KEY_OVERFLOW, OVERFLOW
from mmlsm.limits import PAGE_BYTES
from mmlsm.read.segment import Segment
from mmlsm.write import merger
from segment_rig import check_segment

CHURN: dict[str, Any] = {
    "auto_merge": False, "leaf_bytes": 4096, "node_entries_max": 16, "log_extent_bytes": 1 << 14,
    "memtable_bytes": 1 << 20,
}  # fmt: skip


class Enough(Exception):
    """What a test interrupts a compaction with."""


def extents_of(rig: MergeRig, segment: Segment) -> list[tuple[int, int]]:
    """(page, pages) of all its nodes and overflow extents."""
    fresh = Segment(rig.file, segment.record, "first-read")
    nodes = [(fresh.record.root_page, fresh.record.root_pages, fresh.record.root_sum)]
    found = [node[:2] for node in nodes]
    for height in range(fresh.record.height, -1, -1):
        fresh.touch_nodes(nodes, height)
        if height:
            nodes = [child for page, _, _ in nodes for child in fresh.children_of(page)]
            found += [node[:2] for node in nodes]
    for page, _, _ in nodes:
        for _, kind, reference, value in entries_of(fresh.window, page):
            packed = [reference] if kind & KEY_OVERFLOW else []
            packed += [value] if kind & 15 == OVERFLOW else []
            found += [(Reference.unpack(one).page, Reference.unpack(one).pages) for one in packed]
    return found


def behind_a_gap(rig: MergeRig, gap: int, count: int = 600) -> tuple[Segment, dict[bytes, bytes]]:
    """A segment that stands behind free pages, with some long keys and values."""
    free = rig.allocator.reserve(gap)
    pairs = {
        b"%05d" % i + (b"k" * 700 if i % 50 == 0 else b""): bytes([i % 251]) * (9000 if i % 40 == 0 else 300)
        for i in range(count)
    }
    segment = rig.write({**pairs})
    rig.allocator.give_back(free)
    return segment, pairs


# -- one pass


@pytest.mark.parametrize("entries_max", [2, 5, 8192])
def test_all_that_stands_late_moves_before_the_cut(entries_max: int) -> None:
    rig = MergeRig(node_entries_max=entries_max)
    segment, pairs = behind_a_gap(rig, 2000)
    cut = 3 + 2000 + segment.record.pages // 2
    late = [extent for extent in extents_of(rig, segment) if sum(extent) > cut]
    assert late
    result = rig.rework(segment, cut=cut)
    assert result is not None
    made = rig.open(result.record)
    assert made is not None
    rig.prove(made)
    assert all(page < cut for page, pages in extents_of(rig, made)), "an extent across the cut stays"
    assert {*extents_of(rig, made)} & {*extents_of(rig, segment)}, "what stands early is taken over"
    assert rig.allocator.truncate() > 0
    assert rig.allocator.total <= cut + 3
    check_segment(rig.reader(made), {**pairs}, [*pairs][::7])
    assert rig.rework(made, cut=cut) is None, "there is nothing more to move"


def test_a_pass_moves_no_more_than_it_is_told() -> None:
    rig = MergeRig(node_entries_max=5, leaf_fullness_min=0)
    segment, pairs = behind_a_gap(rig, 2000)
    passes = 0
    while True:
        result = rig.rework(segment, cut=2003, most=10)
        if result is None:
            break
        passes += 1
        made = rig.open(result.record)
        assert made is not None
        rig.prove(made)
        assert result.bytes_written // PAGE_BYTES <= 10 + 8 + 10 * made.record.height
        assert dict(rig.reader(made).items()) == pairs
        segment = made
    assert passes >= 4
    assert all(page + pages <= 2003 for page, pages in extents_of(rig, segment)[1:])


def test_a_damaged_extent_that_is_to_be_moved_is_told_with_page_and_segment() -> None:
    rig = MergeRig()
    segment, pairs = behind_a_gap(rig, 2000)
    value = pairs[b"00040"]
    image = rig.file.pread(0, rig.file.bytes)
    rig.channel.pwrite(image.index(value), b"damage")
    before = rig.reserved()
    with pytest.raises(mmlsm.CorruptionError) as caught:
        rig.rework(segment, cut=2003)
    assert (caught.value.page, caught.value.segment) == (image.index(value) // PAGE_BYTES, segment.segment_id)
    assert rig.reserved() == before, "nothing is left reserved"


def test_leaves_that_are_not_full_are_filled() -> None:
    rig = MergeRig(leaf_fullness_min=0)
    pairs = {b"%05d" % i: b"v" * 100 for i in range(3000)}
    segment = rig.write({**pairs})
    for start in range(0, 3000, 60):
        gone = [b"%05d" % i for i in range(start, start + 20)]
        merged = rig.open(rig.merge([rig.write(dict.fromkeys(gone))], into=segment).record)
        assert merged is not None
        segment = merged
        pairs = {key: value for key, value in pairs.items() if key not in gone}
    before = segment.record.pages
    result = rig.rework(segment, fullness_min=0.9)
    assert result is not None
    made = rig.open(result.record)
    assert made is not None
    rig.prove(made)
    assert poor_parents(rig, made.record) == []
    assert made.record.pages < 0.85 * before
    assert made.record.pages <= 1.25 * sum(len(key) + len(value) for key, value in pairs.items()) / PAGE_BYTES + 2
    assert dict(rig.reader(made).items()) == pairs


# -- a database


def churn(db: Any, rng: random.Random, model: dict[bytes, bytes], rounds: int = 6) -> None:
    """Entries of 1,000 bytes, some of 40,000, written over and over and half of them deleted."""
    for round_ in range(rounds):
        for _ in range(200):
            key = b"%04d" % rng.randrange(1200)
            model[key] = rng.randbytes(40_000 if rng.random() < 0.02 else 996)
            db.put(key, model[key])
        for key in rng.sample(sorted(model), len(model) // 5):
            db.delete(key)
            del model[key]
        if round_ % 2:
            db.compact()
    db._engine.flush()


def live_bytes(model: dict[bytes, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in model.items())


def test_after_churn_a_compacted_file_is_little_more_than_what_is_live(
    open_db: Callable[..., Any], path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    db = open_db(**CHURN)
    model: dict[bytes, bytes] = {}
    churn(db, rng, model)
    db.compact()
    assert dict(db.items()) == model
    assert path.stat().st_size <= 1.15 * live_bytes(model) + (64 << 10)


@pytest.mark.parametrize("what", ["leaves", "extents"])
def test_what_moves_goes_to_the_earliest_pages_whatever_the_policy(what: str) -> None:
    """A hole that fits better stands behind the first."""
    rig = MergeRig()
    rig.allocator._best = True
    size = 9000 if what == "extents" else 300
    gaps = [rig.allocator.reserve(count) for count in (600, 1, 3 if what == "extents" else 512, 1)]
    segment = rig.write({b"%05d" % i: bytes([i % 251]) * size for i in range(60)})
    for gap in gaps[::2]:
        rig.allocator.give_back(gap)
    result = rig.rework(segment, cut=gaps[3].end)
    assert result is not None
    made = rig.open(result.record)
    assert made is not None
    assert all(page < gaps[0].end for page, _ in extents_of(rig, made))


def test_a_pinned_reader_reads_on_while_nodes_move_under_it(open_db: Callable[..., Any], path: Path) -> None:
    """What is freed is poisoned; a reader of each moment, and a cursor and a view that stand still, are right."""
    rng = random.Random(5)
    db = open_db(**CHURN)
    model: dict[bytes, bytes] = {}
    churn(db, rng, model)
    readers = [(db.snapshot(), dict(model))]
    key = next(key for key, value in model.items() if len(value) > 10_000)
    view, large = db.get_view(key), model[key]
    walked = iter(readers[0][0].items())
    seen = dict(next(walked) for _ in range(50))

    def look(done: int, total: int) -> None:
        reader, want = readers[-1]
        probe = rng.choice(sorted(want))
        assert reader[probe] == want[probe]
        seen.update(pair for pair in [next(walked, None)] if pair is not None)

    for _ in range(3):
        db.compact(progress=look)
        churn(db, rng, model, rounds=2)
        readers.append((db.snapshot(), dict(model)))
        for reader, want in readers:
            assert dict(reader.items()) == want
        proof.prove(db)
    seen.update(walked)
    assert seen == readers[0][1]
    assert view == large
    for reader, _ in readers:
        reader.close()
    readers.clear()
    view.release()
    del reader
    walked = iter(())
    db.compact()
    assert dict(db.items()) == model
    assert path.stat().st_size <= 1.2 * live_bytes(model) + (64 << 10)


def test_a_compaction_interrupted_anywhere_leaves_all_sound(
    open_db: Callable[..., Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its pauses, in the merge, in filling and in moving; then it is done after all."""
    db = open_db(**CHURN)
    model: dict[bytes, bytes] = {}
    churn(db, random.Random(7), model, rounds=4)
    thread = db._engine.merger
    plain = thread.interrupt
    allowed, reached = 0, 0

    def interrupt(tier: int, done: int, total: int) -> None:
        nonlocal reached
        reached += 1
        if reached > allowed:
            raise StorageError(28, "planted")
        plain(tier, done, total)

    monkeypatch.setattr(merger, "RETRY_S", 0.001)
    db.compact()
    churn(db, random.Random(8), model, rounds=1)
    thread.jobs.interrupt = interrupt
    failures = 0
    while True:
        reached = 0
        try:
            db.compact()
            break
        except StorageError:
            failures += 1
            allowed = allowed * 5 // 4 + 1
        proof.prove(db)
        assert dict(db.items()) == model
    assert failures >= 3
    thread.jobs.interrupt = plain
    gc.collect()  # the errors that were raised here hold what their frames held
    db.compact()
    assert dict(db.items()) == model
    assert path.stat().st_size <= 1.15 * live_bytes(model) + (64 << 10)


def test_a_compaction_whose_writes_fail_leaves_all_sound(
    open_db: Callable[..., Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merger, "RETRY_S", 0.001)
    db = open_db(**CHURN)
    model: dict[bytes, bytes] = {}
    churn(db, random.Random(9), model, rounds=3)
    db.compact()
    churn(db, random.Random(10), model, rounds=1)
    thread = db._engine.merger
    plain = thread.channel
    failures = refused = 0
    while True:
        thread.channel = thread.jobs.channel = Refusing(plain, refused)
        try:
            db.compact()
            break
        except StorageError:
            failures += 1
            refused += 1 + refused // 4
        proof.prove(db)
        assert dict(db.items()) == model
    thread.channel = thread.jobs.channel = plain
    assert failures >= 3
    gc.collect()  # the errors that were raised here hold what their frames held
    db.compact()
    db.close()
    with mmlsm.open(path) as again:
        assert dict(again.items()) == model
    assert path.stat().st_size <= 1.15 * live_bytes(model) + (64 << 10)
