"""`salvage`: all that is undamaged comes out, and whatever is missing, old or back is in a listed range.

The oracle of most tests: a key that is in no listed range has in the new database what it had in the damaged one.
"""

from __future__ import annotations

import errno
import os
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from campaign import Campaign
from mmlsm.cli.pages_by_owner import layout_of, walk
from mmlsm.file import System
from mmlsm.format import leaf, parent
from mmlsm.format.manifest import Reference
from mmlsm.limits import PAGE_BYTES
from mmlsm.read.pages import read_payload
from mmlsm.rescue.report import Damage, past
from mmlsm.rescue.roots import manifests_in
from mmlsm.settings import Settings
from proof import prove_file
from rig.worn import Original, State, worn

pytestmark = pytest.mark.unproved

BringOut = Callable[..., tuple[State, mmlsm.SalvageReport]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return worn(tmp_path_factory.mktemp("salvage") / "original.db")


@pytest.fixture(scope="module")
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """One run, no log: nothing older lies below anything."""
    return worn(tmp_path_factory.mktemp("salvage") / "tidy.db", tidy=True)


@pytest.fixture
def bring_out(tmp_path: Path) -> BringOut:
    """Salvages a file: what came out, and the report. The damaged file keeps each byte, the new one is proved."""

    def call(path: Path, **more: Any) -> tuple[State, mmlsm.SalvageReport]:
        before, out = path.read_bytes(), tmp_path / "out.db"
        out.unlink(missing_ok=True)
        report = mmlsm.salvage(path, out, **more)
        assert path.read_bytes() == before
        prove_file(out)
        with mmlsm.open(out, readonly=True) as database:
            found = dict(database.items())
        assert report.entries == len(found)
        assert report.bytes == sum(len(key) + len(value) for key, value in found.items())
        return found, report

    return call


def listed(damages: list[Damage], key: bytes) -> bool:
    return any(damage.touches(key) for damage in damages)


def judge(want: State, found: State, report: mmlsm.SalvageReport) -> None:
    """Nothing is missing and nothing is wrong that is not listed."""
    for key in want.keys() - found.keys():
        assert listed(report.lost, key) or listed(report.uncertain, key), (key[:20], report)
    for key, value in found.items():
        if value != want.get(key):
            assert listed(report.uncertain, key), (key[:20], report)


def everything_is_uncertain(report: mmlsm.SalvageReport) -> bool:
    return any(damage.low == b"" and damage.high is None for damage in report.uncertain)


def keys_of(one: Original, page: int) -> set[bytes]:
    """The keys of a leaf of the sound file."""
    with mmlsm.open(one.damaged(), readonly=True) as reader:
        file = reader._engine.file
        entries = leaf.entries_of(file.whole_window(), page)
        return {read_payload(file, Reference.unpack(more)) if more else key for key, _, more, _ in entries}


# -- nothing is wrong


def test_a_sound_file_comes_out_whole(original: Original, tidy: Original, bring_out: BringOut) -> None:
    for one in (original, tidy):
        found, report = bring_out(one.damaged())
        assert found == one.want
        assert report.complete
        assert report.notes == []


def test_an_empty_database_comes_out_empty(tmp_path: Path, bring_out: BringOut) -> None:
    mmlsm.open(tmp_path / "empty.db").close()
    found, report = bring_out(tmp_path / "empty.db")
    assert (found, report.complete, report.notes) == ({}, True, [])


def test_a_database_is_salvaged_beside_its_writer(path: Path, bring_out: BringOut) -> None:
    with mmlsm.open(path) as database:
        database.update({b"%03d" % i: b"value" for i in range(500)})
        found, report = bring_out(path)
        assert found == dict(database.items())
        assert report.complete


def test_progress_ends_the_work_and_leaves_nothing_behind(original: Original, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def tell(done: int, total: int) -> None:
        assert 1 <= done <= total
        if done == 100:
            raise Enough

    with pytest.raises(Enough):
        mmlsm.salvage(original.damaged(), tmp_path / "out.db", progress=tell)
    assert not (tmp_path / "out.db").exists()


def test_what_is_there_already_is_never_written_to(original: Original, tmp_path: Path) -> None:
    path = original.damaged()
    (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere")
    for out in (path, tmp_path / "dangling.db"):
        with pytest.raises(mmlsm.StorageError, match="already"):
            mmlsm.salvage(path, out)
    assert path.read_bytes() == original.image
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"short", b"something else\n" * 1000, bytes(40960)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(mmlsm.FormatError):
            mmlsm.salvage(tmp_path / "other", tmp_path / "out.db")
    with pytest.raises(mmlsm.StorageError):
        mmlsm.salvage(tmp_path / "nothing", tmp_path / "out.db")
    assert not (tmp_path / "out.db").exists()


def test_a_version_that_is_not_known_is_refused_by_name(original: Original, tmp_path: Path) -> None:
    path = original.damaged((8, b"\x02"), (PAGE_BYTES + 8, b"\x02"))
    with pytest.raises(mmlsm.FormatError, match="version 2"):
        mmlsm.salvage(path, tmp_path / "out.db")


# -- leaves and values


def test_a_lost_leaf_is_lost_to_the_key(tidy: Original, bring_out: BringOut) -> None:
    for page in tidy.pages("leaf"):
        gone = keys_of(tidy, page)
        found, report = bring_out(tidy.without(page))
        assert found == {key: value for key, value in tidy.want.items() if key not in gone}
        (loss,) = report.lost
        assert (loss.page, loss.segment, loss.entries) == (page, tidy.manifest.levels[-1][0][0].id, len(gone))
        assert {key for key in tidy.want if loss.touches(key)} == gone
        assert report.uncertain == report.notes == []


def test_where_a_newer_leaf_is_lost_what_comes_back_is_listed(original: Original, bring_out: BringOut) -> None:
    seen: Counter[str] = Counter()
    for page in original.pages("leaf"):
        found, report = bring_out(original.without(page))
        judge(original.want, found, report)
        assert [loss.page for loss in report.lost] == [page]
        assert all(loss in report.lost for loss in report.uncertain)
        outside = {key for key in original.want if not listed(report.lost, key)}
        assert all(found[key] == original.want[key] for key in outside)
        seen["older"] += any(found.get(key, value) != value for key, value in original.want.items())
        seen["back"] += bool(found.keys() - original.want.keys())
        seen["missing"] += bool(original.want.keys() - found.keys())
        seen["certain"] += not report.uncertain
    assert all(seen[kind] for kind in ("older", "back", "missing", "certain")), seen


def test_a_damaged_value_is_lost_by_its_key_and_nothing_older_comes_in_its_place(
    path: Path, bring_out: BringOut
) -> None:
    sizes = {b"inline": 900, b"one chunk": 60_000, b"two chunks": 100_000, b"large": 2 << 20}
    with mmlsm.Database(path, Settings(auto_merge=False)) as database:
        for turn in range(2):
            for key, size in sizes.items():
                database[key] = bytes([turn + 1]) * size
            database[b"other"] = b"sound"
            database._engine.flush()
        want = dict(database.items())
    sound = path.read_bytes()
    for key in (b"one chunk", b"two chunks", b"large"):
        for at in (0, sizes[key] - 1):
            image = bytearray(sound)
            start = sound.index(b"\2" * sizes[key]) if key == b"large" else index_of(sound, b"\2", sizes[key])
            image[start + at] ^= 1
            path.write_bytes(image)
            found, report = bring_out(path)
            assert found == {other: value for other, value in want.items() if other != key}
            (loss,) = report.lost
            assert (loss.low, loss.high, loss.page) == (key, key + b"\0", start // PAGE_BYTES)
            assert report.uncertain == []


def index_of(data: bytes, byte: bytes, count: int) -> int:
    """Where just so many of a byte stand in a row, at the beginning of a page."""
    for at in range(0, len(data), PAGE_BYTES):
        if data[at : at + count] == byte * count and data[at + count : at + count + 1] != byte:
            return at
    raise AssertionError(count)


def test_a_long_key_that_is_damaged_is_listed(path: Path, bring_out: BringOut) -> None:
    want = {b"k" * 5000 + b"%03d" % i: b"value" for i in range(40)} | {b"a": b"1", b"z": b"2"}
    with mmlsm.Database(path, Settings(leaf_bytes=4096)) as database:
        database.update(want)
        database.compact()
    image = bytearray(path.read_bytes())
    at = image.index(b"k" * 5000 + b"020")
    image[at + 1000] ^= 1
    path.write_bytes(image)
    found, report = bring_out(path)
    gone = b"k" * 5000 + b"020"
    assert found == {key: value for key, value in want.items() if key != gone}
    (loss,) = report.lost
    assert loss.touches(gone)
    assert loss.page == at // PAGE_BYTES
    assert not listed(report.lost, b"a") and not listed(report.lost, b"z")  # noqa: PT018


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", None), (b"", None), (b"a\x00", b"a\x01")]
)
def test_the_end_of_all_that_begins_so(prefix: bytes, end: bytes | None) -> None:
    assert past(prefix) == end


# -- parents


def test_a_parent_whose_sums_still_stand_costs_nothing(original: Original, tidy: Original, bring_out: BringOut) -> None:
    for one in (original, tidy):
        for page in one.pages("parent"):
            for at in (0, 40):
                found, report = bring_out(one.flipped(page * PAGE_BYTES + at))
                assert found == one.want
                assert report.complete
                assert len(report.notes) == 1
                assert f"page {page}" in report.notes[0]


def test_children_that_no_sum_proves_come_out_and_are_listed(
    original: Original, tidy: Original, bring_out: BringOut
) -> None:
    for one in (original, tidy):
        for page in one.pages("parent"):
            found, report = bring_out(one.without(page))
            judge(one.want, found, report)
            assert report.uncertain
            assert all(damage.page == page for damage in (*report.lost, *report.uncertain))
            if not report.lost:
                assert found == one.want
            proved, strict = bring_out(one.path, unproved=False)
            judge(one.want, proved, strict)
            assert strict.lost
            if one is tidy:
                assert found == one.want
                assert report.lost == strict.uncertain == []
                assert proved.items() < one.want.items()


def test_of_a_parent_one_of_whose_sums_is_damaged_all_other_children_are_proved(
    tidy: Original, bring_out: BringOut
) -> None:
    with mmlsm.open(tidy.damaged(), readonly=True) as reader:
        children = walk_of_parents(reader)
    assert len(children) > 3
    for page, sums in children.items():
        for i, total in enumerate(sums):
            at = tidy.image.index(total.to_bytes(8, "little"), page * PAGE_BYTES)
            assert at < (page + 1) * PAGE_BYTES
            found, report = bring_out(tidy.flipped(at), unproved=False)
            judge(tidy.want, found, report)
            gone = tidy.want.keys() - found.keys()
            assert gone
            assert sum(1 for key in tidy.want if listed(report.lost, key)) == len(gone), (page, i)
            found, report = bring_out(tidy.path)
            assert (found, report.lost) == (tidy.want, [])
            assert {key for key in tidy.want if listed(report.uncertain, key)} == gone


def walk_of_parents(reader: Any) -> dict[int, list[int]]:
    """The sums of the children of each parent."""
    window = reader._engine.file.whole_window()
    pages = [s.first + i for s in walk(layout_of(reader._engine)).stretches if s.owner.kind == "parent"
             for i in range(s.pages)]  # fmt: skip
    return {page: [child[5] for child in parent.children_of(window, page)] for page in pages}


# -- the root


def test_one_damaged_superblock_costs_nothing(original: Original, tidy: Original, bring_out: BringOut) -> None:
    for one in (original, tidy):
        for slot in (0, 1):
            found, report = bring_out(one.without(slot))
            assert found == one.want
            assert report.complete
            assert f"{slot}" in report.notes[0]


def test_without_superblocks_manifest_and_log_are_found(
    original: Original, tidy: Original, bring_out: BringOut
) -> None:
    for one in (original, tidy):
        found, report = bring_out(one.without(0, 1, 2))
        assert found == one.want
        assert everything_is_uncertain(report)


def test_without_any_manifest_every_tree_that_is_found_comes_out(
    original: Original, tidy: Original, bring_out: BringOut
) -> None:
    for one in (original, tidy):
        with mmlsm.open(one.damaged(), readonly=True) as reader:
            manifests = [number for number, _ in manifests_in(reader._engine.file)]
        assert one.superblock.manifest.page in manifests
        for slots in ((), (0, 1)):
            found, report = bring_out(one.without(*manifests, *slots))
            assert everything_is_uncertain(report)
            assert one.want.keys() <= found.keys()
            if one is tidy:
                assert one.want.items() <= found.items()


def test_a_damaged_manifest_whose_references_are_sound_still_leads_to_everything(
    original: Original, bring_out: BringOut
) -> None:
    start = original.superblock.manifest.page * PAGE_BYTES
    live_bytes = 80
    found, report = bring_out(original.flipped(start + live_bytes))
    assert found == original.want
    assert everything_is_uncertain(report)


def test_the_older_superblock_leads_to_everything_where_its_twin_was_not_written_yet(
    path: Path, bring_out: BringOut
) -> None:
    """As after a crash between the slots, and then the newer manifest rots (docs/format.md, invariant 1)."""
    with mmlsm.Database(path, Settings(auto_merge=False, durability="full")) as database:
        for turn in range(4):
            database.update({b"%d/%d" % (turn, i): b"value" for i in range(50)})
            if turn < 3:
                database._engine.flush()
        want = dict(database.items())
        before = path.read_bytes()
        database._engine.flush()
        after = bytearray(path.read_bytes())
        manifest = database._engine.store.superblock.manifest.page
        path.with_name("crashed.db").write_bytes(before[:PAGE_BYTES] + after[PAGE_BYTES:])
        after[:PAGE_BYTES] = before[:PAGE_BYTES]
        after[manifest * PAGE_BYTES + 100] ^= 1
    crashed = path.with_name("crashed.db")
    crashed.write_bytes(after)
    found, report = bring_out(crashed)
    assert found == want
    assert report.complete
    assert "manifest" in report.notes[0]


def test_a_database_kept_as_a_value_is_not_taken_for_the_file(path: Path, bring_out: BringOut) -> None:
    inner = path.with_name("inner.db")
    with mmlsm.Database(inner, Settings(node_entries_max=4)) as database:
        database.update({b"%03d" % i: b"inner" for i in range(300)})
    want = {b"%03d" % i: b"outer" for i in range(0, 300, 3)} | {b"copy": inner.read_bytes()}
    with mmlsm.Database(path, Settings(node_entries_max=4)) as database:
        database.update(want)
    path.write_bytes(bytes(3 * PAGE_BYTES) + path.read_bytes()[3 * PAGE_BYTES :])
    found, report = bring_out(path)
    assert found == want
    assert everything_is_uncertain(report)


# -- the log


def logged(path: Path, count: int, *, flushed: int = 0) -> tuple[list[State], list[int]]:
    """The state after each commit, and where the records end; left as by a kill."""
    states: list[State] = [{}]
    ends = [0]
    database = mmlsm.Database(path, Settings(durability="full", auto_merge=False))
    for i in range(count):
        database[b"%02d" % (i % 7)] = b"%d" % i * 10
        states.append(dict(database.items()))
        ends.append(database._engine.committer.log.position.offset)
        if i + 1 == flushed:
            database._engine.flush()
    image = path.read_bytes()
    database.close()
    path.write_bytes(image)
    return states, ends


@pytest.mark.parametrize("flushed", [0, 4])
def test_of_a_damaged_log_the_commits_before_the_damage_come_out(path: Path, bring_out: BringOut, flushed: int) -> None:
    states, ends = logged(path, 12, flushed=flushed)
    sound = path.read_bytes()
    for i in range(flushed + 1, 12):
        for at in (ends[i], ends[i] + 8, ends[i] + 30, ends[i + 1] - 1):
            image = bytearray(sound)
            image[at] ^= 0x10
            path.write_bytes(image)
            found, report = bring_out(path)
            assert found == states[i]
            assert everything_is_uncertain(report)
            assert f"after commit {i}" in report.uncertain[0].reason
    path.write_bytes(sound)
    found, report = bring_out(path)
    assert found == states[-1]
    assert report.complete


def test_a_log_without_superblock_and_manifest_comes_out(path: Path, bring_out: BringOut) -> None:
    states, _ = logged(path, 12)
    path.write_bytes(bytes(3 * PAGE_BYTES) + path.read_bytes()[3 * PAGE_BYTES :])
    found, report = bring_out(path)
    assert found == states[-1]
    assert everything_is_uncertain(report)


# -- the file as a whole


def test_a_file_that_was_cut(original: Original, tidy: Original, bring_out: BringOut) -> None:
    for one in (original, tidy):
        used = max(one.pages("leaf") + one.pages("overflow") + one.pages("manifest")) + 2
        for pages in sorted({3, 4, *range(5, used, 11)}):
            for length in (pages * PAGE_BYTES, pages * PAGE_BYTES - 1):
                one.path.write_bytes(one.image[:length])
                found, report = bring_out(one.path)
                judge(one.want, found, report)


def test_garbage_behind_the_file_changes_nothing(original: Original, bring_out: BringOut) -> None:
    for garbage in (b"x", random.Random(1).randbytes(3 * PAGE_BYTES + 5), original.image):
        original.path.write_bytes(original.image + garbage)
        found, report = bring_out(original.path)
        assert found == original.want
        assert report.complete


class Broken(System):
    """A medium on which some pages cannot be read."""

    def __init__(self, pages: Iterable[int]) -> None:
        self.pages = set(pages)
        self.inode = 0

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        touched = range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        if os.fstat(fd).st_ino == self.inode and not self.pages.isdisjoint(touched):
            raise OSError(errno.EIO, "the medium is bad here")
        return super().pread(fd, length, offset)


@pytest.mark.parametrize("kind", ["header", "manifest", "bitmap", "log", "leaf", "parent", "overflow", "filter"])
def test_a_medium_that_refuses_pages_is_as_good_as_damage(original: Original, bring_out: BringOut, kind: str) -> None:
    for page in original.pages(kind)[:6]:
        medium = Broken([page])
        medium.inode = original.damaged().stat().st_ino
        judge(original.want, *bring_out(original.path, system=medium))


def test_a_large_value_is_never_whole_in_memory(path: Path, tmp_path: Path) -> None:
    with mmlsm.open(path) as database:
        database[b"film"] = bytes(48 << 20)
    tracemalloc.start()
    try:
        report = mmlsm.salvage(path, tmp_path / "out.db")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.complete
    assert report.bytes == 4 + (48 << 20)
    assert peak < 8 << 20


# -- damage anywhere


KINDS = ("header", "manifest", "bitmap", "log", "log value", "leaf", "parent", "overflow", "filter")


def test_damage_anywhere_is_passed_by_and_listed(
    original: Original, tidy: Original, bring_out: BringOut, campaign: Campaign
) -> None:
    """One to four pages zeroed, filled with garbage, with a bit turned, or with another page of the file."""
    chance = random.Random(campaign.seed)
    reached: Counter[str] = Counter()
    for number in campaign.trials(90, 1 << 40):
        one = chance.choice((original, tidy))
        changes = []
        for _ in range(chance.choice((1, 1, 2, 4))):
            kind = KINDS[number % len(KINDS)] if not changes else chance.choice(KINDS)
            pages = one.pages(kind)
            if not pages:
                continue
            page = chance.choice(pages)
            at = page * PAGE_BYTES
            other = chance.randrange(len(one.image) // PAGE_BYTES) * PAGE_BYTES
            flip = at + chance.randrange(PAGE_BYTES)
            changes.append(chance.choice((
                (at, bytes(PAGE_BYTES)),
                (at, chance.randbytes(PAGE_BYTES)),
                (at, one.image[other : other + PAGE_BYTES]),
                (flip, bytes([one.image[flip] ^ 1 << chance.randrange(8)])),
            )))  # fmt: skip
            reached[kind] += 1
        found, report = bring_out(one.damaged(*changes), unproved=chance.random() < 0.7)
        try:
            judge(one.want, found, report)
        except AssertionError:
            print(f"seed {campaign.seed}, trial {number}, pages {[at // PAGE_BYTES for at, _ in changes]}")
            raise
        reached["trials"] += 1
        reached["complete"] += report.complete
        reached["with loss"] += bool(report.lost)
    campaign.report(**reached)
