"""What merges take over by reference: in proportion to what they touch, as the settings ask, over chains of merges."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from merge_rig import MergeRig, newest
from mmlsm.format.parent import children_of
from mmlsm.limits import PAGE_BYTES
from mmlsm.read.segment import Segment
from mmlsm.write.parent_writer import Child
from mmlsm.write.segment_writer import SegmentWriter
from segment_rig import Pairs, check_segment

Nodes = list[tuple[int, int, int]]
"""Page, pages and sum of each node of one height."""


def by_height(rig: MergeRig, segment: Segment) -> list[Nodes]:
    """The nodes of each height, leaves first. Reads the parents."""
    fresh = Segment(rig.file, segment.record, "first-read")
    found: list[Nodes] = [[(fresh.record.root_page, fresh.record.root_pages, fresh.record.root_sum)]]
    for height in range(fresh.record.height, 0, -1):
        fresh.touch_nodes(found[0], height)
        found.insert(0, [child for page, _, _ in found[0] for child in fresh.children_of(page)])
    return found


def pages_of(nodes: Nodes) -> set[int]:
    return {page for page, _, _ in nodes}


# -- in proportion

ENTRIES = 30
"""Of a leaf; 36 would fit. Entries are so small that the nodes' size stays as it is (LEAF_ENTRIES_AIM)."""

OLD, NEW = b"o" * 100, b"n" * 100


def key_of(leaf: int, entry: int) -> bytes:
    return b"%07d.%02d" % (leaf, entry)


def leaf_pairs(leaf: int, value: bytes = OLD) -> Pairs:
    return {key_of(leaf, entry): value for entry in range(ENTRIES)}


def huge(rig: MergeRig, leaves: int, real: set[int]) -> Segment:
    """A segment of so many leaves, of which only `real` are there: whoever reads another finds zeros and a bad sum."""
    first = rig.allocator.reserve(leaves).first
    writer = SegmentWriter(
        rig.channel, rig.allocator, rig.settings, birth=7, leaf_bytes=4096, expected_entries=0
    )  # fmt: skip
    for leaf in range(leaves):
        separator = b"%07d" % leaf
        if leaf in real:
            writer.add_items(list(leaf_pairs(leaf).items()))
            writer.close_leaf()
            continue
        writer.take_over(
            Child(separator, b"", len(separator), first + leaf, 1, 1, ENTRIES, False),
            0,
            first_key=bytes,
            last_key=bytes,
            upper=(b"%07d" % (leaf + 1), b"", 7),
            opener=lambda child, height: [],
        )
    record = writer.finish(1, seq_low=1, seq_high=2)
    assert record is not None
    for leaf in real:
        rig.allocator.give_back((first + leaf, 1))
    record = replace(record, pages=record.pages + leaves - len(real), data_bytes=record.entries * 110)
    return Segment(rig.file, record, "first-read")


def touched_nodes(rig: MergeRig, segment: Segment, leaves: Sequence[int]) -> int:
    """The nodes on the paths from the root to these leaves."""
    count = len(leaves)
    below = [1] * len(by_height(rig, segment)[0])
    marked = {*leaves}
    for nodes in by_height(rig, segment)[1:]:
        sums, now, at = [], set(), 0
        for number, (page, _, _) in enumerate(nodes):
            children = len(segment.children_of(page))
            sums.append(sum(below[at : at + children]))
            if any(child in marked for child in range(at, at + children)):
                now.add(number)
            at += children
        below, marked = sums, now
        count += len(marked)
    return count


def begun(rig: MergeRig, source: Segment) -> set[int]:
    """The leaves of a huge segment in which a leaf of the source may begin, as far as its separators tell."""
    below = [child for page, _, _ in by_height(rig, source)[1] for child in children_of(source.window, page)]
    return {int(separator.ljust(7, b"0")) - 1 for separator, *_ in below if 0 < len(separator) < 7}


def test_a_few_keys_into_a_huge_segment_write_their_leaves_and_ancestors(mode: str) -> None:
    """The notes' system wrote 639 parents for 348 keys. Here most leaves are not even there to be read."""
    leaves = 500_000 if mode == "compiled" else 100_000
    rig = MergeRig()
    changes = [
        [key_of((2 * i + 1) * leaves // 696, i % ENTRIES) for i in range(348)],
        [key_of(leaves // 2 + i // ENTRIES, i % ENTRIES) for i in range(348)],
        [key_of(leaves // 3, 0)],
    ]
    sources, touched = [], []
    for keys in changes:
        sources.append(rig.write(dict.fromkeys(keys, NEW)))
        touched.append({int(key[:7]) for key in keys} | (begun(rig, sources[-1]) if len(keys) > 1 else set()))
    real = {near for some in touched for leaf in some for near in range(leaf, leaf + 3)}
    bottom = huge(rig, leaves, real | {0, leaves - 1})
    height = bottom.record.height
    assert height >= 2
    for keys, source, some in zip(changes, sources, touched, strict=True):
        nodes = touched_nodes(rig, bottom, some)
        before = bottom.record
        result = rig.merge([source], into=bottom)
        made = rig.open(result.record)
        assert made is not None
        assert (made.record.entries, made.record.height) == (before.entries, height)
        written = result.bytes_written // PAGE_BYTES
        assert written <= nodes + height, "more than the leaves and their ancestors"
        assert written <= len(keys) * (height + 1) + source.record.pages * (height + 1)
        assert result.pages_reused >= before.pages - nodes - height
        for key in (*keys[::20], keys[-1]):
            assert rig.reader(made).get(key) == NEW
        bottom = made


# -- what does not overlap


@pytest.mark.parametrize(
    ("entries_max", "fullness_min", "count"), [(4, 0, 1000), (32, 0.5, 32 * 30), (32, 0.5, 1000), (8192, 0.5, 1000)]
)
def test_keys_behind_all_others_rewrite_no_leaf_but_the_last(entries_max: int, fullness_min: float, count: int) -> None:
    """Row 69 of the notes, merges whose parts do not overlap: both are taken over, but for where they meet."""
    rig = MergeRig(node_entries_max=entries_max, leaf_fullness_min=fullness_min)
    model: Pairs = {b"%06d" % i: bytes(100) for i in range(count)}
    bottom = rig.write(dict(model))
    for start in range(count, 5 * count, count):
        pairs: Pairs = {b"%06d" % i: bytes(100) for i in range(start, start + count)}
        source = rig.write(dict(pairs))
        left, right = by_height(rig, bottom)[0], by_height(rig, source)[0]
        result = rig.merge([source], into=bottom)
        made = rig.open(result.record)
        assert made is not None
        rig.prove(made)
        kept = pages_of(by_height(rig, made)[0])
        if count % entries_max == 0:
            assert pages_of(left[:-1] + right[1:]) <= kept, "a leaf was written anew that nothing came into"
        # a last leaf that is poor shares with the one before it
        assert pages_of(left[:-2] + right[2:-2]) <= kept, "a leaf was written anew that nothing came into"
        assert result.bytes_written // PAGE_BYTES <= 4 + 4 * made.record.height
        model |= pairs
        bottom = made
    assert dict(rig.reader(bottom).items()) == model


def test_runs_side_by_side_become_one_by_reference() -> None:
    rig = MergeRig()
    runs = [rig.write({b"%d%04d" % (run, i): bytes(100) for i in range(500)}) for run in (2, 0, 1, 3)]
    pages = sum(run.record.pages for run in runs)
    result = rig.merge(runs)
    made = rig.open(result.record)
    assert made is not None
    rig.prove(made)
    assert result.pages_reused >= pages - 4 * 3
    assert result.bytes_written // PAGE_BYTES <= 4 * 3
    assert made.record.entries == 2000


def test_a_merge_of_whole_runs_over_older_ones_takes_nothing_over() -> None:
    """Its run has a filter, where the keys of what is taken over would be missing."""
    rig = MergeRig()
    older = rig.write({b"9": b""})
    runs = [rig.write({b"%d%04d" % (run, i): bytes(100) for i in range(500)}) for run in (0, 1)]
    result = rig.merge(runs, bottom=False, older=[older])
    made = rig.open(result.record)
    assert made is not None
    rig.prove(made, older)
    assert made.record.filter is not None
    assert result.pages_reused == 0
    check_segment(rig.reader(made), {b"%d%04d" % (run, i): bytes(100) for run in (0, 1) for i in range(500)})


# -- settings


def base(rig: MergeRig, fullness: int = ENTRIES, leaves: int = 60) -> tuple[Segment, Pairs]:
    """So many leaves of `fullness` entries each; 36 would fit."""
    writer = SegmentWriter(
        rig.channel, rig.allocator, rig.settings, birth=7, leaf_bytes=4096, expected_entries=0
    )  # fmt: skip
    pairs: Pairs = {}
    for leaf in range(leaves):
        some: Pairs = dict([*leaf_pairs(leaf).items()][:fullness])
        writer.add_items(list(some.items()))
        writer.close_leaf()
        pairs |= some
    record = writer.finish(1, seq_low=1, seq_high=2)
    assert record is not None
    return Segment(rig.file, record, "first-read"), pairs


def leaves_left(rig: MergeRig, changed: Sequence[int], *, fullness: int = ENTRIES) -> tuple[int, int]:
    """How many of 60 leaves are where they were after a merge into the first key of some, and how many there are."""
    bottom, pairs = base(rig, fullness)
    before = pages_of(by_height(rig, bottom)[0])
    change: Pairs = {key_of(leaf, 0): NEW for leaf in changed}
    made = rig.open(rig.merge([rig.write(dict(change))], into=bottom).record)
    assert made is not None
    rig.prove(made)
    check_segment(rig.reader(made), pairs | change)
    after = by_height(rig, made)[0]
    return len(before & pages_of(after)), len(after)


def test_settings_of_reuse_are_obeyed() -> None:
    """Runs of eleven leaves without a change, and one of ten, the last."""
    changed = [0, 12, 24, 36, 48, 59]
    assert leaves_left(MergeRig(), changed) == (54, 60)
    assert leaves_left(MergeRig(reuse_leaves_min=11), changed)[0] == 44
    assert leaves_left(MergeRig(reuse_leaves_min=12), changed)[0] == 0
    assert leaves_left(MergeRig(reuse=False), changed)[0] == 0


def test_an_underfull_neighbour_is_written_anew_with_what_is_before() -> None:
    """Leaves of 13 entries are about a third full."""
    left, leaves = leaves_left(MergeRig(leaf_fullness_min=0.5), [20], fullness=13)
    assert left <= 20
    assert leaves < 60 - 20
    assert leaves_left(MergeRig(leaf_fullness_min=0.25), [20], fullness=13) == (59, 60), "full enough for that setting"
    assert leaves_left(MergeRig(leaf_fullness_min=0), [20], fullness=2) == (59, 60)
    assert leaves_left(MergeRig(leaf_fullness_min=0.5), [20], fullness=20) == (59, 60)


@pytest.mark.parametrize("gone", [20, 25, 29, 30])
def test_a_leaf_that_becomes_poor_shares_with_the_next(gone: int) -> None:
    rig = MergeRig()
    bottom, pairs = base(rig)
    change: Pairs = {key_of(20, entry): None for entry in range(gone)}
    before = pages_of(by_height(rig, bottom)[0])
    made = rig.open(rig.merge([rig.write(dict(change))], into=bottom).record)
    assert made is not None
    rig.prove(made)
    check_segment(rig.reader(made), pairs | change)
    after = by_height(rig, made)[0]
    assert min(made.used_of(page) for page, _, _ in after) >= PAGE_BYTES // 2
    assert len(before & pages_of(after)) == (58 if gone < 30 else 59), "no more than the two"


@pytest.mark.parametrize("fullness_min", [0.3, 0.5, 0.7])
def test_leaves_and_parents_stay_full_over_many_merges(fullness_min: float, seed: int) -> None:
    rng = random.Random(seed)
    rig = MergeRig(leaf_fullness_min=fullness_min)
    keys = [b"%05d" % i for i in range(3000)]
    model: Pairs = {key: rng.randbytes(rng.randrange(100)) for key in keys}
    bottom = rig.write(dict(model))
    for _ in range(12):
        start = rng.randrange(3000)
        some = rng.sample(keys[start : start + 600], min(120, 3000 - start))
        layer: Pairs = {key: None if rng.random() < 0.6 else rng.randbytes(rng.randrange(100)) for key in some}
        made = rig.open(rig.merge([rig.write(dict(layer))], into=bottom).record)
        assert made is not None
        model = {key: value for key, value in newest([layer, model]).items() if value is not None}
        bottom = made
        rig.prove(bottom)
    assert dict(rig.reader(bottom).items()) == model
    leaves = by_height(rig, bottom)[0]
    used = sum(bottom.used_of(page) for page, _, _ in leaves)
    assert used >= fullness_min * len(leaves) * PAGE_BYTES


# -- chains


@pytest.mark.parametrize("entries_max", [2, 3, 8, 8192])
def test_chains_of_five_reusing_merges_verify(entries_max: int, seed: int) -> None:
    """Row 60 of the notes: a node has another parent after each merge; separators in extents outlive none of theirs."""
    rng = random.Random(f"{entries_max} {seed}")
    rig = MergeRig(node_entries_max=entries_max, leaf_fullness_min=rng.choice([0, 0.5]))
    keys = [b"s" * 600 + b"%03d" % i for i in range(60)] + [b"t%03d" % i * rng.choice([1, 200]) for i in range(60)]
    model: Pairs = {key: rng.randbytes(rng.choice([3, 400, 2000])) for key in keys[::2]}
    bottom = rig.write(dict(model))
    reused = 0
    for _ in range(5):
        start = rng.randrange(len(keys))
        layer: Pairs = {key: rng.choice([None, b"short", bytes(3000)]) for key in keys[start : start + 6]}
        result = rig.merge([rig.write(dict(layer))], into=bottom)
        made = rig.open(result.record)
        assert made is not None
        model = {key: value for key, value in newest([layer, model]).items() if value is not None}
        reused += result.pages_reused
        bottom = made
        rig.prove(bottom)
        check_segment(rig.reader(bottom), model)
    assert reused or entries_max == 8192


def test_overflow_extents_move_by_reference_and_go_once() -> None:
    """Keys and values of 300 extents: what nothing newer hides stays where it stands, and is not read."""
    rig = MergeRig(node_entries_max=4)
    bottom = rig.write({b"%03d" % i + b"k" * 600 * (i % 2): bytes(5000) for i in range(200)})
    before = rig.reserved()
    changed = [b"%03d" % i + b"k" * 600 * (i % 2) for i in range(50, 60)]
    source = rig.write({key: bytes(3000) for key in changed[:5]} | dict.fromkeys(changed[5:]))
    result = rig.merge([source], into=bottom)
    made = rig.open(result.record)
    assert made is not None
    rig.prove(made)
    assert result.overflow == ()
    assert result.bytes_read < 200 * 700
    gone = sum(extent.count for extents, _ in result.unlinked for extent in extents)
    assert gone >= 10 * 2 + 5, "ten values of two pages, and five long keys, or more"
    assert rig.reserved() == made.record.pages < before
    check_segment(
        rig.reader(made),
        {b"%03d" % i + b"k" * 600 * (i % 2): bytes(5000) for i in range(200)}
        | {key: bytes(3000) for key in changed[:5]}
        | dict.fromkeys(changed[5:]),
    )
