"""Merges of slices: what is left of the sources, any order of slices, and merges that fail or are stopped half way."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

import proof
from merge_rig import MergeRig, Refusing, live, newest
from mmlsm.errors import StorageError
from mmlsm.read.segment import Segment
from mmlsm.write import merger
from mmlsm.write.merge_run import MergeResult
from segment_rig import Pairs, check_segment


class Enough(Exception):
    """What a test stops a merge with."""


class Trial:
    """A bottom, layers that are merged into it in slices of any order, and a dict of what all must hold together."""

    def __init__(self, seed: Any) -> None:
        rng = self.rng = random.Random(seed)
        self.rig = MergeRig(
            node_entries_max=rng.choice([2, 3, 5, 20, 8192]),
            reuse_leaves_min=rng.choice([1, 1, 2, 5]),
            leaf_fullness_min=rng.choice([0, 0.3, 0.5, 0.9]),
        )
        long, self.large = rng.random() < 0.3, rng.random() < 0.3
        self.keys = [self.key(i, long) for i in range(rng.choice([10, 60, 400, 1500]))]
        self.segments: list[Segment] = []
        self.begin(rng.choice([0.3, 0.9, 1]))

    def key(self, i: int, long: bool) -> bytes:
        prefix = b"p" * self.rng.choice([0, 0, 200]) if long and i % 7 == 0 else b""
        return prefix + b"%05d" % i + (b"x" * 700 if long and i % 11 == 0 else b"")

    def value(self) -> bytes:
        large = self.large and self.rng.random() < 0.1
        return self.rng.randbytes(self.rng.choice([1500, 5000, 70_000] if large else [0, 3, 60, 300]))

    def layer(self, share: float, tombstones: float, clustered: bool) -> Pairs:
        rng = self.rng
        keys = [key for key in self.keys if rng.random() < share]
        if clustered and keys:
            start = rng.randrange(len(keys))
            keys = keys[start : start + rng.randrange(1, len(keys) // 4 + 2)]
        return {key: None if rng.random() < tombstones else self.value() for key in keys} or {self.keys[0]: b"z"}

    def begin(self, share: float) -> None:
        self.model = live(self.layer(share, 0, False))
        self.bottom: Segment | None = self.rig.write(dict(self.model))

    def add_layers(self) -> None:
        """A few runs above the bottom; at times they are merged to one first, as a tier."""
        rng, rig = self.rng, self.rig
        layers = [
            self.layer(rng.choice([0.01, 0.05, 0.3]), rng.choice([0, 0.3, 1]), rng.random() < 0.6)
            for _ in range(rng.randrange(1, 4))
        ]
        self.segments = [rig.write(dict(layer), with_filter=rng.random() < 0.5) for layer in layers]
        if rng.random() < 0.2:
            older = () if self.bottom is None else (self.bottom,)
            result = rig.merge(self.segments, bottom=False, older=older)
            self.segments = [segment for segment in [rig.open(result.record)] if segment is not None]
            kept = {key for key, value in newest(layers).items() if value is not None or key in self.model}
            assert (result.record.entries if result.record else 0) == len(kept)
        self.model = live(newest([*layers, self.model]))
        self.check()

    def merge(self) -> None:
        """All slices, in any order; the last time all that is left."""
        rng = self.rng
        cuts = sorted(rng.sample(self.keys, min(len(self.keys), rng.choice([0, 0, 1, 2, 4]))))
        pieces: list[tuple[bytes | None, bytes | None]] = list(zip([None, *cuts], [*cuts, None], strict=True))
        rng.shuffle(pieces)
        for bounds in [*pieces[:-1], (None, None)]:
            if not self.segments and self.bottom is None:
                return
            result = self.rig.merge(self.segments, into=self.bottom, bounds=bounds)
            self.bottom = self.rig.open(result.record)
            left = [self.rig.open(result.remainders.get(segment.record.id)) for segment in self.segments]
            self.segments = [segment for segment in left if segment is not None]
            self.check()
        assert self.segments == []

    def rework(self) -> None:
        assert self.bottom is not None
        rng, total = self.rng, self.rig.allocator.total
        result = self.rig.rework(
            self.bottom,
            cut=rng.choice([0, total // 2, total // 3]),
            fullness_min=rng.choice([0, 0.9]),
            most=rng.choice([5, 1 << 30]),
        )
        if result is not None:
            self.bottom = self.rig.open(result.record)
        self.check()

    def check(self) -> None:
        present = [*self.segments, *([] if self.bottom is None else [self.bottom])]
        self.rig.prove(*present)
        reader = self.rig.reader(*present)
        assert dict(reader.items()) == self.model
        for key in self.rng.sample(self.keys, 5):
            assert reader.get(key) == self.model.get(key)


@pytest.mark.parametrize("part", range(3))
def test_random_merges(part: int, seed: int) -> None:
    for number in range(6):
        trial = Trial(f"{seed} {part} {number}")
        for _ in range(trial.rng.randrange(1, 7)):
            trial.add_layers()
            trial.merge()
            if trial.bottom is None:
                trial.begin(0.5)
            if trial.rng.random() < 0.4:
                trial.rework()
        if number == 0:
            check_segment(trial.rig.reader(*([] if trial.bottom is None else [trial.bottom])), trial.model)


# -- bounds


def pairs_of(numbers: range, value: bytes = b"v") -> Pairs:
    return {b"%04d" % i: value for i in numbers}


@pytest.mark.parametrize("with_filter", [False, True])
@pytest.mark.parametrize("bounds", [(30, 60), (0, 60), (30, 100), (30, 31), (0, 100), (1, 99), (50, 50)])
def test_a_slice_within_one_leaf(bounds: tuple[int, int], with_filter: bool) -> None:
    rig = MergeRig()
    source = rig.write(pairs_of(range(100)), with_filter=with_filter)
    bottom = rig.write(pairs_of(range(0, 200, 3), b"o"))
    assert source.record.height == 0
    start, stop = (b"%04d" % bound for bound in bounds)
    result = rig.merge([source], into=bottom, bounds=(start, stop))
    inside = range(*bounds)
    made, left = rig.open(result.record), rig.open(result.remainders[source.record.id])
    rig.prove(left, made)
    assert made is not None
    check_segment(rig.reader(made), pairs_of(range(0, 200, 3), b"o") | pairs_of(inside))
    outside = {key: value for key, value in pairs_of(range(100)).items() if not start <= key < stop}
    assert (left is None) == (not outside)
    if left is not None:
        assert left.record.entries == 100 - len(inside)
        check_segment(rig.reader(left), outside)
        check_segment(rig.reader(left, made), pairs_of(range(0, 200, 3), b"o") | pairs_of(range(100)))


def test_the_rest_of_a_source_is_left_as_it_is() -> None:
    """Of 500 leaves a slice in the middle goes; the nodes beside it stand where they stood, the values too."""
    rig = MergeRig(node_entries_max=8)
    source = rig.write({key: bytes(3000) if int(key) % 50 == 0 else bytes(450) for key in pairs_of(range(4000))})
    height = source.record.height
    bottom = rig.write(pairs_of(range(1000, 1001), b"o"))
    result = rig.merge([source], into=bottom, bounds=(b"1999", b"2101"))
    left = rig.open(result.remainders[source.record.id])
    made = rig.open(result.record)
    rig.prove(left, made)
    assert left is not None
    assert left.record.entries == 4000 - 102
    wrote = sum(extent.count for extent in result.written)
    assert wrote <= 102 // 4 + 2 * (2 + 1) * (height + 1), "the slice, and two paths of nodes on its edges"
    assert result.overflow == ()
    assert result.bytes_read < 110 * 480 + 3 * 3000


def test_slices_of_tombstones_leave_their_count_behind() -> None:
    rig = MergeRig(node_entries_max=4)
    source = rig.write({key: None if int(key) % 2 else b"v" for key in pairs_of(range(200))})
    bottom = rig.write(pairs_of(range(200), b"o"))
    result = rig.merge([source], into=bottom, bounds=(b"0050", b"0101"))
    left, made = rig.open(result.remainders[source.record.id]), rig.open(result.record)
    rig.prove(left, made)
    assert left is not None
    assert made is not None
    assert (left.record.entries, left.record.tombstones) == (149, 75)
    assert (made.record.entries, made.record.tombstones) == (200 - 25, 0)


# -- merges that fail


def sources(rig: MergeRig, count: int, size: int) -> tuple[list[Segment], Segment, dict[bytes, bytes]]:
    """Two runs and a bottom of `count` entries behind free pages, some long, and what they hold together."""
    gap = rig.write({b"%04d" % i: bytes(900) for i in range(3000)})
    layers: list[Pairs] = []
    for layer in range(3):
        value = bytes([layer]) * size
        layers.append({b"%04d" % i: value * (10 if i % 40 == 0 else 1) for i in range(layer, count, 3 - layer)})
        layers[-1] |= {b"%04d" % i + b"k" * 700: b"long" for i in range(layer, count, count // 10)}
    layers[0] |= dict.fromkeys([b"%04d" % i for i in range(0, count, 7)])
    upper = [rig.write(dict(layer), with_filter=True) for layer in layers[:2]]
    bottom = rig.write(dict(layers[2]))
    rig.allocator.give_back((gap.record.root_page + 1 - gap.record.pages, gap.record.pages))
    return upper, bottom, live(newest(layers))


ACTIONS = ("tier", "bottom", "slice", "rework")


def action_of(rig: MergeRig, name: str, upper: list[Segment], bottom: Segment) -> Callable[..., MergeResult]:
    """One of the merges that a database does with these."""
    cut = bottom.record.root_page - bottom.record.pages
    return {
        "tier": partial(rig.merge, upper, bottom=False, older=[bottom]),
        "bottom": partial(rig.merge, upper, into=bottom),
        "slice": partial(rig.merge, upper, into=bottom, bounds=(b"03", b"55")),
        "rework": partial(rig.rework, bottom, cut=cut),
    }[name]


def present_after(
    rig: MergeRig, name: str, result: MergeResult, upper: list[Segment], bottom: Segment
) -> list[Segment]:
    """The segments that are there after that merge, newest first."""
    made = rig.open(result.record)
    left = [rig.open(result.remainders.get(segment.record.id)) for segment in upper]
    found = {"tier": [made, bottom], "bottom": [made], "slice": [*left, made], "rework": [*upper, made]}[name]
    return [segment for segment in found if segment is not None]


@pytest.mark.parametrize("name", ACTIONS)
def test_whichever_write_fails_the_merge_gives_everything_back(name: str) -> None:
    """The n-th write is refused, for each n; nothing is claimed, and the same merge succeeds once there is room."""
    rig = MergeRig(node_entries_max=20)
    upper, bottom, model = sources(rig, 900, 300)
    plain, before = rig.channel, rig.allocator.reserved_extents()
    merge = action_of(rig, name, upper, bottom)
    refused = 0
    while True:
        rig.channel = refusing = cast("Any", Refusing(plain, refused))
        try:
            result = merge()
        except StorageError:
            assert refusing.writes == refused + 1, "it went on after a refused write"
            assert rig.allocator.reserved_extents() == before
            assert dict(rig.reader(*upper, bottom).items()) == model
            refused += 1
            continue
        break
    assert refused >= {"slice": 3, "rework": 3}.get(name, 1)
    present = present_after(rig, name, result, upper, bottom)
    rig.prove(*present)
    assert dict(rig.reader(*present).items()) == model


@pytest.mark.parametrize("name", ACTIONS)
def test_a_stop_at_any_pause_gives_everything_back(name: str) -> None:
    rig = MergeRig(node_entries_max=20)
    upper, bottom, model = sources(rig, *((100, 9000) if name == "rework" else (6000, 900)))
    before = rig.allocator.reserved_extents()
    allowed = 0

    def pause(done: int, total: int) -> None:
        nonlocal left
        assert 0 <= done <= total
        left -= 1
        if left < 0:
            raise Enough

    merge = action_of(rig, name, upper, bottom)
    while True:
        left = allowed
        try:
            result = merge(pause=pause)
        except Enough:
            assert rig.allocator.reserved_extents() == before
            allowed += 1 + allowed // 2
            continue
        break
    assert allowed >= 2, "it hardly paused"
    present = present_after(rig, name, result, upper, bottom)
    rig.prove(*present)
    assert dict(rig.reader(*present).items()) == model


def test_a_database_whose_merge_failed_merges_again(open_db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 36 of the notes: whichever write of a merge or of its install is refused, nothing stays claimed."""
    monkeypatch.setattr(merger, "RETRY_S", 0.001)
    db = open_db(auto_merge=False, node_entries_max=20, leaf_bytes=4096)
    want = {}
    for layer in range(3):
        pairs = {b"%04d" % i: bytes([layer]) * 200 for i in range(layer, 900, 3 - layer)}
        want |= pairs
        db.update(pairs)
        db._engine.flush()
    db.compact()
    jobs = db._engine.merger.jobs
    plain = jobs.channel
    refused = 0
    while True:
        db.update({b"%04d" % i: b"%d" % refused for i in range(0, 900, 9)})
        db._engine.flush()
        want |= {b"%04d" % i: b"%d" % refused for i in range(0, 900, 9)}
        before = db.stats().space
        jobs.channel = db._engine.merger.channel = Refusing(plain, refused)
        try:
            db.compact()
            break
        except StorageError as error:
            failure = str(error)
        assert "full" in failure
        proof.prove(db)
        assert db.stats().space.reserved == before.reserved
        jobs.channel = db._engine.merger.channel = plain
        db.compact()
        assert len(db.stats().segments) == 1
        assert dict(db.items()) == want
        refused += 1
    assert refused >= 2, "one for the leaves, one for the manifest"
    assert dict(db.items()) == want
