"""`salvage` where the way to the segments is damaged: superblocks, manifests, the log, the file's end, the medium."""

from __future__ import annotations

import errno
import os
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

import mmlsm
from mmlsm.file import System
from mmlsm.limits import PAGE_BYTES
from mmlsm.rescue.roots import manifests_in
from mmlsm.settings import Settings
from rig.damage.salvaged import BringOut, everything_is_uncertain, judge
from rig.damage.worn import Original, State

pytestmark = pytest.mark.unproved


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


def test_where_the_older_superblocks_log_does_not_reach_the_newer_one_that_is_told(
    path: Path, bring_out: BringOut
) -> None:
    with mmlsm.Database(path, Settings(auto_merge=False, durability="full")) as database:
        database[b"flushed"] = b"1"
        database._engine.flush()
        before = path.read_bytes()
        start = database._engine.store.superblock.log.offset
        database[b"gone"] = b"2"
        database._engine.flush()
        after = bytearray(path.read_bytes())
        manifest = database._engine.store.superblock.manifest.page
    after[:PAGE_BYTES] = before[:PAGE_BYTES]
    after[manifest * PAGE_BYTES + 100] ^= 1
    after[start : start + PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(after)
    found, report = bring_out(path)
    assert found == {b"flushed": b"1"}
    assert everything_is_uncertain(report)
    assert "not all there" in report.uncertain[0].reason


def test_an_old_superblock_that_came_back_changes_nothing(path: Path, bring_out: BringOut) -> None:
    """As where a write of a slot was lost: what the old one names has been given to others since."""
    with mmlsm.Database(path, Settings(auto_merge=False, durability="full")) as database:
        database[b"a"] = b"0"
        old = path.read_bytes()[:PAGE_BYTES]
        for turn in range(6):
            database.update({b"%d/%d" % (turn, i): bytes(900) for i in range(50)})
            database._engine.flush()
        database.compact()
        database[b"a"] = b"1"
        want = dict(database.items())
        crashed = path.with_name("crashed.db")
        crashed.write_bytes(old + path.read_bytes()[PAGE_BYTES:])
    found, report = bring_out(crashed)
    assert found == want
    assert report.complete


def test_a_database_kept_as_a_value_is_not_taken_for_the_file(path: Path, bring_out: BringOut) -> None:
    inner = path.with_name("inner.db")
    with mmlsm.Database(inner, Settings(node_entries_max=4, auto_merge=False)) as database:
        for _ in range(9):  # so that its install number is the larger one
            database.update({b"%03d" % i: b"inner" for i in range(300)})
            database._engine.flush()
    want = {b"%03d" % i: b"outer" for i in range(0, 300, 3)} | {b"copy": inner.read_bytes()}
    with mmlsm.Database(path, Settings(node_entries_max=4)) as database:
        database.update(want)
    path.write_bytes(bytes(3 * PAGE_BYTES) + path.read_bytes()[3 * PAGE_BYTES :])
    found, report = bring_out(path)
    assert found == want
    assert everything_is_uncertain(report)


# -- the log


def commit_of(number: int) -> tuple[bytes, bytes]:
    return b"%02d" % (number % 7), b"%d" % number * 10


def logged(path: Path, count: int, *, flushed: int = 0) -> tuple[list[State], list[int]]:
    """The state after each commit, and where the records end; left as by a kill."""
    states: list[State] = [{}]
    ends = [0]
    database = mmlsm.Database(path, Settings(durability="full", auto_merge=False))
    for i in range(count):
        database.update([commit_of(i)])
        states.append(dict(database.items()))
        ends.append(database._engine.committer.log.position.offset)
        if i + 1 == flushed:
            database._engine.flush()
    image = path.read_bytes()
    database.close()
    path.write_bytes(image)
    return states, ends


@pytest.mark.parametrize("flushed", [0, 4])
def test_of_a_damaged_log_all_commits_but_the_damaged_one_come_out(
    path: Path, bring_out: BringOut, flushed: int
) -> None:
    states, ends = logged(path, 12, flushed=flushed)
    sound = path.read_bytes()
    for i in range(flushed + 1, 12):
        for at in (ends[i], ends[i] + 8, ends[i] + 30, ends[i + 1] - 1):
            image = bytearray(sound)
            image[at] ^= 0x10
            path.write_bytes(image)
            found, report = bring_out(path)
            others = [commit_of(other) for other in range(12) if other != i]
            assert found == dict(others)
            assert everything_is_uncertain(report)
            assert f"after commit {i}" in report.uncertain[0].reason
    path.write_bytes(sound)
    found, report = bring_out(path)
    assert found == states[-1]
    assert report.complete


def test_of_a_logs_end_that_is_gone_without_a_trace_the_report_says_which_commit_is_the_last(
    path: Path, bring_out: BringOut
) -> None:
    states, ends = logged(path, 12)
    sound = path.read_bytes()
    for i in range(1, 12):
        path.write_bytes(sound[: ends[i]] + bytes(ends[12] - ends[i]) + sound[ends[12] :])
        found, report = bring_out(path)
        assert (found, report.complete) == (states[i], True)
        assert (report.seq, report.closed) == (i, False)
    path.write_bytes(sound)
    with mmlsm.open(path) as database:
        database.put(b"last", b"value")
    found, report = bring_out(path)
    assert (report.closed, report.complete, found[b"last"]) == (True, True, b"value")
    assert report.seq > 12


def test_a_log_that_was_cut_off_with_the_file_is_told(path: Path, bring_out: BringOut) -> None:
    states, ends = logged(path, 12)
    sound = path.read_bytes()
    for length in (3 * PAGE_BYTES, ends[3], ends[5] + 7):
        path.write_bytes(sound[:length])
        found, report = bring_out(path)
        assert found in states
        assert everything_is_uncertain(report)
        with mmlsm.open(path, readonly=True) as database:
            assert len(database.verify().notes) == 1


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


def right(want: State, found: State) -> set[bytes]:
    return {key for key, value in found.items() if want.get(key) == value}


def test_of_a_file_that_was_cut_comes_out_what_would_if_its_end_were_zeros(
    original: Original, tidy: Original, bring_out: BringOut, path: Path
) -> None:
    """No node is damaged by what it refers to: of a sound leaf only that value is lost which stood behind the cut."""
    with mmlsm.Database(path, Settings(auto_merge=False)) as database:
        database.put(b"k50 large", random.Random(1).randbytes(131_073))
        database.update({b"k%02d" % i: b"v" for i in range(100)})
        want = dict(database.items())
    images = [(path.read_bytes(), want), (original.image, original.want), (tidy.image, tidy.want)]
    more = 0
    for image, want in images:
        pages = len(image) // PAGE_BYTES
        for cut in sorted({pages - 1, pages - 2, *range(4, pages, max(1, pages // 12))}):
            path.write_bytes(image[: cut * PAGE_BYTES])
            of_cut, report = bring_out(path)
            judge(want, of_cut, report)
            path.write_bytes(image[: cut * PAGE_BYTES].ljust(len(image), b"\0"))
            of_zeros, _ = bring_out(path)
            assert right(want, of_cut) >= right(want, of_zeros), cut
            more += len(right(want, of_cut))
    assert more > 500


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
