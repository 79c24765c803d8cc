"""`salvage`: all that is undamaged comes out, and whatever is missing, old or back is in a listed range.

The oracle of most tests: a key that is in no listed range has in the new database what it had in the damaged one.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
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
from mmlsm.rescue.report import past
from mmlsm.rescue.roots import find_basis
from mmlsm.settings import Settings
from rig.damage.salvaged import BringOut, judge, listed
from rig.damage.worn import Original

pytestmark = pytest.mark.unproved


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


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, RuntimeError, KeyboardInterrupt])
def test_what_progress_raises_comes_out_as_it_is(original: Original, tmp_path: Path, kind: type[BaseException]) -> None:
    own = kind("enough")

    def tell(done: int, total: int) -> None:
        if done == total // 2:
            raise own

    with pytest.raises(kind) as caught:
        mmlsm.salvage(original.damaged(), tmp_path / "out.db", progress=tell)
    assert caught.value is own
    assert not (tmp_path / "out.db").exists()


def test_what_is_there_already_is_never_written_to(original: Original, tmp_path: Path) -> None:
    path = original.damaged()
    (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere")
    for out in (path, tmp_path / "dangling.db"):
        with pytest.raises(mmlsm.StorageError, match="already"):
            mmlsm.salvage(path, out)
    assert path.read_bytes() == original.image
    assert not (tmp_path / "nowhere").exists()


def test_what_another_puts_at_the_new_name_meanwhile_stays_whole(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.db"

    def slow(*arguments: Any) -> Any:
        monkeypatch.undo()
        with pytest.raises(mmlsm.StorageError, match="already"):
            mmlsm.salvage(original.damaged(), out)
        return find_basis(*arguments)

    monkeypatch.setattr("mmlsm.rescue.salvage.find_basis", slow)
    report = mmlsm.salvage(original.damaged(), out)
    with mmlsm.open(out, readonly=True) as reader:
        assert len(reader) == report.entries


def test_what_cannot_be_made_leaves_nothing_behind(original: Original, tmp_path: Path) -> None:
    """Nor does a new database that can be made but not opened: descriptors are short."""

    class Short(System):
        left = 0

        def open(self, path: str, flags: int, mode: int = 0o666) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().open(path, flags, mode)

    system, out = Short(), tmp_path / "out.db"
    path = original.damaged()
    report = None
    for most in range(100):
        system.left = most
        with contextlib.suppress(mmlsm.StorageError):
            report = mmlsm.salvage(path, out, system=system)
        assert out.exists() == (report is not None)
        if report is not None:
            break
    assert most > 4
    assert report is not None


def test_a_name_that_cannot_be_is_an_error_of_ours(original: Original, tmp_path: Path) -> None:
    path = original.damaged()
    for out in (tmp_path / ("x" * 300), tmp_path / "no folder" / "out.db", path / "out.db"):
        with pytest.raises(mmlsm.StorageError):
            mmlsm.salvage(path, out)


def test_what_is_saved_is_a_file_whatever_its_name(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = mmlsm.salvage(original.damaged(), ":memory:")
    with mmlsm.open(tmp_path / ":memory:", readonly=True) as reader:
        assert len(reader) == report.entries > 0


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


def test_a_parent_in_the_place_of_another_vouches_for_no_child_of_its_own(
    original: Original, tidy: Original, bring_out: BringOut
) -> None:
    """As after a write that went astray: one parent stands where another should, and is not where it should be."""
    chance = random.Random(5)
    for one in (original, tidy):
        parents = one.pages("parent")
        pairs = [(a, b) for a in parents for b in parents if a != b]
        for there, astray in chance.sample(pairs, min(25, len(pairs))):
            content = one.image[astray * PAGE_BYTES : (astray + 1) * PAGE_BYTES]
            path = one.damaged((there * PAGE_BYTES, content), (astray * PAGE_BYTES, bytes(PAGE_BYTES)))
            found, report = bring_out(path)
            judge(one.want, found, report)
            if one is tidy and {one.image[page * PAGE_BYTES + 3] for page in (there, astray)} == {1}:
                assert found == one.want


@pytest.mark.parametrize("unproved", [True, False])
def test_children_that_another_parent_may_have_left_behind_are_uncertain(
    path: Path, bring_out: BringOut, unproved: bool
) -> None:
    """Two runs of the same keys: the older one's root went astray into the place of the newer one's."""
    roots = []
    with mmlsm.Database(path, Settings(leaf_bytes=4096, node_entries_max=6, auto_merge=False)) as database:
        for value in (b"old", b"new"):
            database.update({b"%02d" % i: value for i in range(36)})
            database._engine.flush()
            record = next(database._engine.store.manifest.segments())
            assert record.height == 1
            roots.append(record.root_page * PAGE_BYTES)
        want = dict(database.items())
    image = bytearray(path.read_bytes())
    old, new = (slice(root, root + PAGE_BYTES) for root in roots)
    image[new], image[old] = image[old], bytes(PAGE_BYTES)
    path.write_bytes(image)
    found, report = bring_out(path, unproved=unproved)
    assert set(found.values()) == {b"old"}
    judge(want, found, report)


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
