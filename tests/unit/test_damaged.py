"""Damage behind right sums, and damage that others must not suffer from: what mutants found, each by name.

tests/stress/test_corrupt.py tries many; here are the ones that once crashed, hung or raised something else.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from file_rig import in_forked_child
from format_reader import PAGE, checksum
from mmlsm.settings import Settings
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent
from mmlsm.write.merge_walk import Unlinked
from rig.damage.anatomy import Anatomy
from rig.damage.patient import Patient, opened
from rig.damage.seeds import TINY, Workshop

pytestmark = pytest.mark.unproved


@pytest.fixture
def patient(path: Path) -> Patient:
    return Patient(path)


# -- verify


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("at", [8, 70, 300, 505, 4000])
def test_verify_notes_a_damaged_superblock_slot(
    patient: Patient, slot: int, at: int, run: Callable[..., Any]
) -> None:
    patient.flip(slot * PAGE + at)
    with opened(patient) as db:
        assert dict(db.items()) == patient.pairs
        report = db.verify()
    assert report.ok, "a crash may leave that"
    assert f"page {slot}: " in report.notes[0]
    code, out, _ = run("verify", patient.path)
    assert (code, f"page {slot}: " in out) == (1, True)
    with mmlsm.open(patient.path) as db:
        assert not db.verify().notes, "an open for writing mends it"


@pytest.mark.parametrize("kind", ["manifest", "bitmap"])
def test_verify_finds_a_manifest_or_bitmap_that_was_damaged_after_the_open(patient: Patient, kind: str) -> None:
    (region,) = [region for region in patient.anatomy.regions if region.kind == kind]
    for readonly in (True, False):
        patient.path.write_bytes(patient.data)
        with mmlsm.open(patient.path, readonly=readonly) as db:
            assert db.verify().ok
            with patient.path.open("r+b") as file:
                file.seek(region.start + 40)
                file.write(b"damage")
            assert any("is damaged" in problem for problem in db.verify().problems)


# -- numbers


@pytest.mark.parametrize(
    "name",
    ["superblock.generation", "superblock.install", "superblock.seq_ceiling", "general.next_segment",
     "general.live_bytes", "segment.entries", "segment.data_bytes", "segment.pages", "segment.id", "segment.installed",
     "segment.seq_high", "manifest.install"],
)  # fmt: skip
@pytest.mark.parametrize("value", [(1 << 64) - 1, (1 << 63) + 5, (1 << 62) + 1])
def test_a_number_that_leaves_no_room_for_the_next_is_damage(patient: Patient, name: str, value: int) -> None:
    patient.set(patient.fields(name)[0], value)
    for readonly in (True, False):
        with pytest.raises(mmlsm.CorruptionError):
            mmlsm.open(patient.path, readonly=readonly)


@pytest.mark.parametrize(
    "name", ["superblock.generation", "superblock.seq_ceiling", "general.next_segment", "general.live_bytes"]
)
@pytest.mark.parametrize("value", [1 << 62, (1 << 62) - 1, (1 << 61) + 1])
def test_a_number_that_leaves_little_room_refuses_a_writer_alone(patient: Patient, name: str, value: int) -> None:
    patient.set(patient.fields(name)[0], value)
    with mmlsm.open(patient.path, readonly=True):
        pass
    before = patient.path.read_bytes()
    with pytest.raises(mmlsm.CorruptionError, match=r"counter|restore a backup"):
        mmlsm.open(patient.path)
    assert patient.path.read_bytes()[:8192] == before[:8192]


def test_a_parent_with_more_entries_below_it_than_a_file_can_have_is_damage(patient: Patient) -> None:
    patient.set(patient.fields("parent.entries")[0], 1 << 50)
    with opened(patient) as db, pytest.raises(mmlsm.CorruptionError, match="child out of range"):
        list(db.items())


# -- trees that are none


def test_a_parent_in_place_of_a_leaf_is_not_read_as_one_by_a_merge(patient: Patient) -> None:
    """It had been proved as what it is; the merge took its bytes for entries, outside of all bounds."""
    leaf, parent = patient.children(0)[0], patient.children(1)[-1]
    patient.point(leaf, parent)
    with mmlsm.Database(patient.path, Settings(auto_merge=False, **TINY)) as db:
        with pytest.raises(mmlsm.CorruptionError):
            list(db.items())
        with pytest.raises(mmlsm.CorruptionError):
            db.compact()
        assert db.get(b"key 059") == bytes([59]) * 20


def test_a_node_that_was_proved_at_one_height_is_not_taken_for_one_of_another(patient: Patient) -> None:
    with opened(patient) as db:
        assert dict(db.items()) == patient.pairs
        segment = db._engine.readonly_state.segments[-1]
        record = segment.record
        root = (record.root_page, record.root_pages, record.root_sum)
        assert segment.is_proved(record.root_page)
        segment.touch_nodes([root], record.height)
        for height in range(record.height):
            with pytest.raises(mmlsm.CorruptionError, match="height"):
                segment.touch_nodes([root], height)


def test_a_root_that_was_proved_at_another_height_is_not_read_by_any_way(patient: Patient) -> None:
    """Each way of reading begins at the root, and took what another segment had proved for proved."""
    upper, bottom = [one for one in patient.anatomy.pointers if one.pages and one.pages[1] == 2]
    for like in [*patient.children(0), bottom]:
        patient.point(upper, like)
        with opened(patient) as db:
            for ask in (
                lambda: db.get(b"key 004"),
                lambda: db.get_many([b"key 004"]),
                lambda: list(db.items()),
                lambda: list(db.items(reverse=True)),
                lambda: db.floor(b"key 004"),
                lambda: db.count(b"key 002", b"key 010", exact=False),
            ):
                for other in (b"key 021", b"key 033", b"key 045", b"key 059"):
                    assert db.get(other) == patient.pairs[other]
                with pytest.raises(mmlsm.CorruptionError, match=r"height|kind"):
                    ask()


def test_a_node_of_no_pages_is_damage(patient: Patient) -> None:
    with opened(patient) as db:
        segment = db._engine.readonly_state.segments[0]
        for height in (0, 1):
            with pytest.raises(mmlsm.CorruptionError):
                segment.touch_anew((segment.record.root_page, 0, checksum(b"")), height)


def test_a_segment_with_commits_to_come_refuses_a_writer(patient: Patient) -> None:
    seq = int.from_bytes(patient.data[88:96], "little")
    field = patient.fields("segment.seq_high")[0]
    patient.set(field, seq + 1)
    with pytest.raises(mmlsm.CorruptionError, match="still to come") as caught:
        mmlsm.open(patient.path)
    ((at, manifest),) = field.places
    segment = int.from_bytes(patient.data[at - 64 : at - 56], "little")
    assert (caught.value.page, caught.value.segment) == (manifest.start // PAGE, segment)


def test_a_bitmap_that_marks_what_is_past_the_end_is_told_with_its_page(patient: Patient) -> None:
    (bitmap,) = [region for region in patient.anatomy.regions if region.kind == "bitmap"]
    data = bytearray(patient.data)
    data[bitmap.start + PAGE - 1] = 0x80
    patient.anatomy.seal(data, [bitmap])
    patient.path.write_bytes(data)
    with pytest.raises(mmlsm.CorruptionError, match="the free-space bitmap") as caught:
        opened(patient)
    assert caught.value.page == bitmap.start // PAGE


def test_a_file_whose_end_was_cut_off_refuses_a_writer_with_the_last_page_that_it_lacks(patient: Patient) -> None:
    bits = patient.data[next(one.start for one in patient.anatomy.regions if one.kind == "bitmap") :][:PAGE]
    last = int.from_bytes(bits, "little").bit_length() - 1
    patient.path.write_bytes(patient.data[: last * PAGE])
    with pytest.raises(mmlsm.CorruptionError, match="its end was cut off") as caught:
        mmlsm.open(patient.path)
    assert caught.value.page == last


def test_no_page_is_unlinked_twice_nor_one_that_is_not_live() -> None:
    unlinked = Unlinked()
    unlinked.own = Bitmap.from_extents(40, [(10, 5)])
    unlinked.add(10, 2, 1)
    for first, pages in ((11, 1), (14, 2), (9, 1), (39, 3), (1 << 31, 1)):
        with pytest.raises(mmlsm.CorruptionError, match=f"page {first}"):
            unlinked.add(first, pages, 1)
    unlinked.add(12, 3, 1)
    assert unlinked.grouped() == [([Extent(10, 5)], 1)]


@pytest.mark.parametrize("which", [1, -1])
def test_a_leaf_that_two_parents_share_ends_a_merge_by_name(patient: Patient, which: int) -> None:
    leaves = patient.children(0)
    patient.point(leaves[0], leaves[which])
    with mmlsm.Database(patient.path, Settings(auto_merge=False, **TINY)) as db:
        with pytest.raises(mmlsm.CorruptionError):
            db.compact()
        db[b"still"] = b"written"
    with opened(patient) as db:
        assert db[b"still"] == b"written"


def test_keys_out_of_order_end_a_merge_by_name(patient: Patient) -> None:
    leaf = next(region for region in patient.anatomy.regions if region.kind == "leaf")
    data = bytearray(patient.data)
    n, prefix = data[leaf.start + 4], data[leaf.start + 6]
    heads = leaf.start + 32 + (prefix + 3) // 4 * 4
    assert n > 1
    data[heads : heads + 8] = data[heads + 4 : heads + 8] + data[heads : heads + 4]
    patient.anatomy.seal(data, [leaf])
    patient.path.write_bytes(data)
    with (
        mmlsm.Database(patient.path, Settings(auto_merge=False, **{**TINY, "reuse": False})) as db,
        pytest.raises(mmlsm.CorruptionError, match="out of order"),
    ):
        db.compact()


def test_a_node_from_the_future_ends_a_merge_by_name(patient: Patient) -> None:
    for field in patient.fields("leaf.birth"):
        patient.set(field, 1 << 40)
        with (
            mmlsm.Database(patient.path, Settings(auto_merge=False, reuse=False, **TINY)) as db,
            pytest.raises(mmlsm.CorruptionError, match="still to come"),
        ):
            db.compact()


def test_a_root_that_the_bitmap_has_free_refuses_a_writer_and_no_reader(patient: Patient) -> None:
    (bitmap,) = [region for region in patient.anatomy.regions if region.kind == "bitmap"]
    data = bytearray(patient.data)
    root = patient.page_of(next(one for one in patient.anatomy.pointers if one.pages and one.pages[1] == 2))
    data[bitmap.start + root // 8] &= ~(1 << root % 8)
    patient.anatomy.seal(data, [bitmap])
    patient.path.write_bytes(data)
    with pytest.raises(mmlsm.CorruptionError, match=f"page {root}"):
        mmlsm.open(patient.path)
    with opened(patient) as db:
        assert dict(db.items()) == patient.pairs
        assert not db.verify().ok


# -- references


def test_two_references_of_unlike_length_to_one_extent_read_nothing_past_the_file(path: Path) -> None:
    """The first to be proved had vouched for the other."""
    made = Workshop(path, 1, **TINY)
    long = b"k" * 5000
    made.run({long + b"%03d" % i: b"v" for i in range(6)})
    made.db.close()
    data = path.read_bytes()
    anatomy = Anatomy(data)
    keys = [one for one in anatomy.pointers if one.length is not None]
    last = max(keys, key=lambda one: int.from_bytes(data[one.page : one.page + 4], "little"))
    for key in keys:
        if key is last:
            continue
        mutant = bytearray(data)
        mutant[key.page : key.page + 4] = data[last.page : last.page + 4]
        mutant[key.length : key.length + 8] = (65535).to_bytes(8, "little")
        mutant[key.pages[0] : key.pages[0] + 4] = (16).to_bytes(4, "little")
        anatomy.seal(mutant, [key.region])
        path.write_bytes(mutant)
        with mmlsm.open(path, readonly=True) as db:
            for _ in range(2):
                with pytest.raises(mmlsm.CorruptionError):
                    list(db.items())


@pytest.mark.parametrize(("offset", "page"), [(5, 0), (70_000, 16), (209_990, 48), (210_005, 51)])
def test_a_damaged_large_value_is_told_with_page_and_segment_whichever_way_it_is_read(
    path: Path, offset: int, page: int
) -> None:
    """`page`: where the piece of it begins that has a sum of its own, or where the sums stand."""
    value = random.Random(1).randbytes(210_000)
    with mmlsm.open(path) as db:
        db.put(b"large", io.BytesIO(value))  # not in the log
        db._engine.flush()
        (segment,) = db._engine.store.segments
    image = path.read_bytes()
    at = image.index(value)
    path.write_bytes(image[: at + offset] + b"damage" + image[at + offset + 6 :])
    with mmlsm.open(path, readonly=True) as db:
        for ask in (
            lambda: db[b"large"],
            lambda: db.get_many([b"large"]),
            lambda: db.get_view(b"large"),
            lambda: list(db.items()),
            lambda: db.open_value(b"large").read(),  # type: ignore[union-attr]
        ):
            with pytest.raises(mmlsm.CorruptionError) as caught:
                ask()
            assert (caught.value.page, caught.value.segment) == (at // PAGE + page, segment)


# -- files that others cut


def read_everything(db: mmlsm.Database, pairs: dict[bytes, bytes]) -> str:
    """Ask in every way; what is not right and no CorruptionError is raised."""
    lost = 0
    for ask in (
        lambda: [db.get(key) for key in pairs] == [*pairs.values()],
        lambda: db.get_many(list(pairs)) == [*pairs.values()],
        lambda: dict(db.items()) == pairs,
        lambda: dict(db.items(reverse=True)) == pairs,
        lambda: all(db.get_view(key) == value for key, value in pairs.items()),
        lambda: all(db.open_value(key).read() == value for key, value in pairs.items()),  # type: ignore[union-attr]
        lambda: db.count(b"a", b"z", exact=False) >= 0,
        lambda: db.get(b"key 0055 that is absent") is None,
        lambda: db.verify() is not None,
    ):
        try:
            assert ask()
        except mmlsm.CorruptionError:
            lost += 1
    return f"lost {lost}"


@pytest.mark.parametrize("readonly", [True, False])
def test_a_file_that_is_cut_under_an_open_database_is_an_error_and_no_signal(path: Path, readonly: bool) -> None:
    """Wherever a page is touched for the first time. Each cut in a process of its own, which must live."""
    made = Workshop(path, 1, **TINY)
    made.run({b"key %03d" % i: bytes([i]) * 20 for i in range(30)})
    made.run({b"key %03d" % i: bytes([i]) * (9000 if i % 10 else 70_000) for i in range(20, 50, 5)})
    made.run({b"long" * 1200 + b"%d" % i: b"v" for i in range(5)})
    pairs = dict(sorted(made.keep.items()))
    made.db.close()
    data = path.read_bytes()

    def cut(page: int) -> str:
        with mmlsm.Database(path, Settings(readonly=readonly, auto_merge=False, **TINY)) as db:
            os.truncate(path, page * PAGE)
            return read_everything(db, pairs)

    said = set()
    for page in [*range(0, len(data) // PAGE, 4), len(data) // PAGE - 1]:
        path.write_bytes(data)
        said.add(in_forked_child(lambda page=page: cut(page)))
    assert all(answer.startswith("'lost") for answer in said), said
    assert len(said) > 1


def test_a_root_that_was_cut_off_does_not_keep_others_from_being_read(patient: Patient) -> None:
    bottom = min(patient.children(2), key=patient.page_of)
    upper = [one for one in patient.anatomy.pointers if one.pages and one.pages[1] == 2]
    page = max(patient.page_of(one) for one in upper)
    assert bottom is not None
    patient.path.write_bytes(patient.data[: page * PAGE])
    read = lost = 0
    try:
        db = opened(patient)
    except mmlsm.CorruptionError:
        pytest.skip("the manifest was behind it")
    with db:
        for key, value in patient.pairs.items():
            try:
                assert db.get(key) == value
                read += 1
            except mmlsm.CorruptionError:
                lost += 1
    assert read
    assert lost
    assert os.path.getsize(patient.path) == page * PAGE
