"""What broke the system in the author's notes, of merging and space, each as a test of its name.

Elsewhere: claims that a failed merge leaves (test_merge_slices), parents rewritten for a tiny promotion
(test_merge_reuse), starving of the newest level (test_merge_drains), files that never shrink (test_shrinking), files
that explode, and the second run into the same file (test_space).
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import mmlsm
import proof
from merge_rig import MergeRig, live, newest, poor_parents
from mmlsm.format.leaf import entries_of
from mmlsm.format.manifest import Reference
from mmlsm.format.page import OVERFLOW
from mmlsm.read.segment import Segment
from mmlsm.write import merge_jobs
from mmlsm.write.merge_policy import Drain, TierMerge, shape_of
from mmlsm.write.segment_writer import SegmentWriter
from segment_rig import Pairs, check_segment


def numbered(numbers: range, value: bytes = b"v" * 300) -> Pairs:
    return {b"%05d" % i: value for i in numbers}


# -- parents with one child


@pytest.mark.parametrize("fan", [4, 5])
def test_parents_with_one_child(fan: int) -> None:
    """However many leaves come, written or taken over, no parent is made of one."""
    for leaves in range(1, 3 * fan * fan):
        rig = MergeRig(node_entries_max=fan, leaf_fullness_min=0)
        bottom = rig.write(numbered(range(leaves * fan)))
        assert poor_parents(rig, bottom.record) == []
        if leaves % 3:
            continue
        for change in (numbered(range(leaves * fan, leaves * fan + fan)), {b"%05d" % fan: None, b"00000": b"new"}):
            made = rig.open(rig.merge([rig.write(dict(change))], into=bottom).record)
            assert made is not None
            rig.prove(made)
            assert poor_parents(rig, made.record) == []
            bottom = made


def test_parents_with_one_child_where_all_but_a_few_leaves_go() -> None:
    rig = MergeRig(node_entries_max=4, leaf_fullness_min=0)
    for kept in range(1, 60, 6):
        bottom = rig.write(numbered(range(600)))
        gone: Pairs = {key: None for key in numbered(range(600)) if not 300 <= int(key) < 300 + kept}
        made = rig.open(rig.merge([rig.write(gone)], into=bottom).record)
        assert made is not None
        rig.prove(made)
        check_segment(rig.reader(made), numbered(range(300, 300 + kept)), [])
        for extent in rig.allocator.reserved_extents():
            rig.allocator.give_back(extent)


# -- stack overflow on pages of one long key


@pytest.mark.parametrize("key_bytes", [500, 700])
def test_stack_overflow_on_pages_of_one_long_key(key_bytes: int) -> None:
    """Thousands of leaves of a key or two, in a tree as deep as can be, with room for few calls on the stack."""
    rig = MergeRig(node_entries_max=2, leaf_fullness_min=0)
    keys = [b"%05d" % i + b"k" * key_bytes for i in range(1500)]
    runs = [rig.write(dict.fromkeys(keys[start::2], b"v" * 1000)) for start in (0, 1)]
    failure: list[BaseException] = []
    made: list[Segment | None] = []

    def merge() -> None:
        try:
            made.append(rig.open(rig.merge(runs).record))
            made.append(rig.open(rig.merge([rig.write({keys[700]: None})], into=made[0]).record))
        except BaseException as error:
            failure.append(error)

    limit, stack = sys.getrecursionlimit(), threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=merge)
        sys.setrecursionlimit(150)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(stack)
    assert failure == []
    assert made[1] is not None
    assert made[1].record.height >= 10
    rig.prove(made[1])
    assert list(rig.reader(made[1])) == [key for key in keys if key != keys[700]]


# -- an empty iterator given to the segment writer


@pytest.mark.parametrize("with_filter", [0, 100])
def test_an_empty_iterator_given_to_the_segment_writer(with_filter: int) -> None:
    rig = MergeRig()
    writer = SegmentWriter(
        rig.channel, rig.allocator, rig.settings, birth=7, leaf_bytes=4096, expected_entries=with_filter
    )  # fmt: skip
    writer.add_items([])
    assert writer.finish(1, seq_low=1, seq_high=1) is None
    assert rig.allocator.reserved_extents() == []
    gone = rig.merge([rig.write({b"a": None})], bottom=False)
    assert gone.record is None, "a merge that nothing comes out of"
    assert gone.written == ()
    assert rig.allocator.reserved_extents() == []


def test_a_slice_without_a_key_changes_nothing() -> None:
    rig = MergeRig()
    source, bottom = rig.write(numbered(range(0, 2000, 100))), rig.write(numbered(range(500)))
    result = rig.merge([source], into=bottom, bounds=(b"00401", b"00499"))
    made, left = rig.open(result.record), rig.open(result.remainders[source.record.id])
    rig.prove(made, left)
    assert (made and made.record.entries, left and left.record.entries) == (500, 20)


# -- block lists that grew with the segment


def test_block_lists_that_grow_with_the_segment(open_db: Callable[..., Any]) -> None:
    """What a manifest says of a segment takes the same bytes whatever its size."""
    sizes = []
    for count in (100, 10_000):
        db = open_db(":memory:", auto_merge=False, leaf_bytes=4096, node_entries_max=64)
        db.update({b"%05d" % (i * 9999 // (count - 1)): b"v" * 50 for i in range(count)})
        db.compact()
        store = db._engine.store
        assert len(db.stats().segments) == 1
        sizes.append(len(replace(store.manifest, retired=(), bitmap=()).encode()))
        assert len(store.manifest.bitmap) == 1
        assert len(store.manifest.retired) <= 2
        db.close()
    assert sizes[0] == sizes[1]


# -- lists on error paths


def test_lists_on_error_paths(open_db: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that fails in the middle of another ends both; lists, pages and answers are as before."""
    db = open_db(auto_merge=True, slice_bytes=1 << 16, leaf_bytes=4096, node_entries_max=16)
    merger = db._engine.merger
    merger.choose = lambda version, request: None
    model = {key: value for key, value in numbered(range(3000)).items() if value is not None}
    for change in (model, update := dict.fromkeys([*model][::2], b"new")):
        db.update(change)
        db._engine.flush()
    model |= update
    plain_run, plain_merge, plain_interrupt = merge_jobs.MergeJobs.run, merge_jobs.merge_segments, merger.interrupt
    running: list[TierMerge | Drain] = []
    planted = 0

    def run(jobs: Any, version: Any, chosen: TierMerge | Drain, *under_way: Any) -> None:
        jobs.interrupt = interrupt
        running.append(chosen)
        try:
            plain_run(jobs, version, chosen, *under_way)
        finally:
            running.pop()

    def merge(*args: Any, **how: Any) -> Any:
        nonlocal planted
        if len(running) == 2 and not planted:
            planted = 1
            raise mmlsm.StorageError(28, "planted")
        return plain_merge(*args, **how)

    def interrupt(tier: int, done: int, total: int) -> None:
        if len(running) == 1 and db._engine.store.place and not planted:
            for _ in range(4):
                db.put(b"00000", b"between")
                db._engine.flush()
            model[b"00000"] = b"between"
        plain_interrupt(tier, done, total)

    monkeypatch.setattr(merge_jobs.MergeJobs, "run", run)
    monkeypatch.setattr(merge_jobs, "merge_segments", merge)
    del merger.choose
    with pytest.raises(mmlsm.StorageError, match="planted"):
        db.compact()
    assert planted
    log = sum(extent.count for extent in db._engine.committer.log.extents)
    assert db.stats().space.reserved == log, "nothing but the log is promised"
    assert dict(db.items()) == model
    proof.prove(db)
    db.compact()
    assert dict(db.items()) == model
    assert len(db.stats().segments) == 1


# -- pages freed under a reader through sharing


class Chain:
    """A database that is merged when it is told to, and what its newest segment refers to."""

    def __init__(self, open_db: Callable[..., Any]) -> None:
        self.db = open_db(auto_merge=False, node_entries_max=4, leaf_bytes=4096, leaf_fullness_min=0)
        self.store = self.db._engine.store
        self.merger = self.db._engine.merger
        self.model: dict[bytes, bytes] = {}

    def merge(self, change: Pairs) -> None:
        """These as a run, merged into the bottom; nothing else is done."""
        with self.db.batch() as batch:
            for key, value in change.items():
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
        self.db._engine.flush()
        self.model = live(newest([change, self.model]))
        install = self.store.manifest.install
        plans = [1]

        def choose(version: Any, request: Any) -> Drain | None:
            shape = shape_of(merge_jobs.levels_of(version))
            return Drain(tuple(record.id for record in shape.upper())) if plans and plans.pop() else None

        if any(self.db.stats().levels[:-1]):
            self.merger.choose = choose
            self.merger.wake()
            deadline = time.monotonic() + 20
            while self.store.manifest.install == install:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            del self.merger.choose
        assert dict(self.db.items()) == self.model

    def path_to(self, key: bytes) -> list[tuple[int, int]]:
        """The nodes above a key in the bottom, root first, and the extent of its value: (page, pages) each."""
        segment = self.store.state.version.segments[-1]
        node = (segment.record.root_page, segment.record.root_pages, segment.record.root_sum)
        found = [node[:2]]
        for height in range(segment.record.height, 0, -1):
            segment.touch_nodes([node], height)
            children = segment.children_of(node[0])
            below = [child for child in children if self.first_key(segment, child, height - 1) <= key]
            node = below[-1]
            found.append(node[:2])
        segment.touch_nodes([node], 0)
        for inline, kind, _, value in entries_of(segment.window, node[0]):
            if inline == key and kind & 15 == OVERFLOW:
                reference = Reference.unpack(value)
                found.append((reference.page, reference.pages))
        return found

    def first_key(self, segment: Any, node: tuple[int, int, int], height: int) -> bytes:
        segment.touch_nodes([node], height)
        while height:
            node, height = segment.children_of(node[0])[0], height - 1
            segment.touch_nodes([node], height)
        return bytes(entries_of(segment.window, node[0])[0][0])

    def settle(self) -> None:
        """Let the merge thread free what it may."""
        for _ in range(4):
            self.merger.wake()
            time.sleep(0.01)

    def are_live(self, nodes: list[tuple[int, int]]) -> list[bool]:
        return [self.store.allocator.is_live(node) for node in nodes]


@pytest.fixture
def chain(open_db: Callable[..., Any]) -> Chain:
    made = Chain(open_db)
    made.merge({b"%05d" % i: b"v" * 300 if i % 50 else bytes([65 + i % 26]) * 70_000 for i in range(600)})
    return made


def test_pages_freed_under_a_reader_through_sharing(chain: Chain) -> None:
    """Leaf, parents and overflow extent of segment A recycled into B; A retires but is read; B retires without them."""
    shared = chain.path_to(b"00100")[1:]
    assert len(shared) >= 4, "two parents or more, a leaf, an extent"
    assert shared[-1][1] >= 18, "of a value of 70,000 bytes"
    reader, a = chain.db.snapshot(), dict(chain.model)
    chain.merge({b"00590": b"changed"})
    assert chain.path_to(b"00100")[1:] == shared, "B has the same nodes"
    second, b = chain.db.snapshot(), dict(chain.model)
    chain.merge({b"00100": b"gone", b"00101": None})
    assert not {*chain.path_to(b"00100")} & {*shared}, "C has none of them"
    del_b = dict(chain.model)
    for _ in range(3):
        chain.settle()
        assert chain.are_live(shared) == [True] * len(shared)
        assert (dict(reader.items()), dict(second.items())) == (a, b)
    second.close()
    chain.settle()
    assert chain.are_live(shared) == [True] * len(shared), "freed under the reader of A"
    assert dict(reader.items()) == a
    reader.close()
    chain.settle()
    assert chain.are_live(shared) == [False] * len(shared)
    assert dict(chain.db.items()) == del_b
    proof.prove(chain.db)


def test_a_reader_of_what_recycled_the_pages_keeps_them_alone(chain: Chain) -> None:
    shared = chain.path_to(b"00100")[1:]
    first = chain.db.snapshot()
    chain.merge({b"00590": b"changed"})
    reader, b = chain.db.snapshot(), dict(chain.model)
    chain.merge({b"00100": b"gone"})
    first.close()
    chain.settle()
    assert chain.are_live(shared) == [True] * len(shared)
    assert dict(reader.items()) == b
    reader.close()
    chain.settle()
    assert chain.are_live(shared) == [False] * len(shared)


def test_readers_along_chains_of_reuse_see_their_versions(chain: Chain, seed: int) -> None:
    """Thirty merges that each take most over, a reader of each, let go in any order; freed pages are poisoned."""
    rng = random.Random(seed)
    readers: list[tuple[Any, dict[bytes, bytes]]] = []
    for _ in range(30):
        start = rng.randrange(600)
        values = [None, b"short", b"v" * 300, rng.randbytes(70_000)]
        chain.merge({b"%05d" % i: rng.choice(values) for i in range(start, start + rng.choice([1, 5, 20]))})
        readers.append((chain.db.snapshot(), dict(chain.model)))
        if rng.random() < 0.6:
            readers.pop(rng.randrange(len(readers)))[0].close()
        for reader, want in rng.sample(readers, min(2, len(readers))):
            assert dict(reader.items()) == want
    proof.prove(chain.db)
    while readers:
        reader, want = readers.pop(rng.randrange(len(readers)))
        assert dict(reader.items()) == want
        reader.close()
    chain.settle()
    assert chain.db.stats().space.retired <= 4, "all but what the last install took the place of came back"
