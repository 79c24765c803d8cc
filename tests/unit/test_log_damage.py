"""Damage in the log is told from what a crash leaves: by the records behind it, which say what was durable."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import mmlsm
from mmlsm.file import File
from mmlsm.format.superblock import LogPosition
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.space.bitmap import Bitmap
from mmlsm.write.log_end import cut_off, whole_log
from mmlsm.write.log_record import HEADER_BYTES, LINK_BYTES
from mmlsm.write.log_scan import scan_log
from rig.damage.salvaged import BringOut, everything_is_uncertain

pytestmark = pytest.mark.unproved


def pair(number: int, size: int = 40) -> tuple[bytes, bytes]:
    return b"%03d" % number, b"%d" % number * size


class Logged:
    """A database as a kill leaves it: `count` commits in its log. `starts`: where the records begin, and the end."""

    def __init__(self, path: Path, count: int, size: int = 40, **settings: Any) -> None:
        self.path = path
        self.pairs = [pair(i, size) for i in range(count)]
        self.starts: list[int] = []
        database = mmlsm.Database(path, Settings(auto_merge=False, **settings))
        database._engine._begin_committing()
        log = database._engine.committer.log
        for i in range(count):
            self.starts.append(log.position.offset)
            database.update([self.pairs[i]])
            if log.position.page * PAGE_BYTES > self.starts[-1] or log.position.offset < self.starts[-1]:
                self.starts[-1] = log.position.page * PAGE_BYTES
        self.starts.append(log.position.offset)
        database._engine.committer.write_out()
        self.extents = log.extents
        self.image = path.read_bytes()
        database.close()

    def flip(self, at: int) -> None:
        image = bytearray(self.image)
        image[at] ^= 0x20
        self.path.write_bytes(image)

    def keys(self, *, readonly: bool = True) -> list[bytes]:
        with mmlsm.Database(self.path, Settings(readonly=readonly)) as database:
            return list(database)


def parts_of(logged: Logged, i: int) -> Iterator[int]:
    """Bytes of the record of the commit `i`: its epoch, number, predecessor, length, sums, and of its payload."""
    start, end = logged.starts[i], min(one for one in logged.starts if one > logged.starts[i])
    yield from (start, start + 8, start + 17, start + 25, start + 41, start + 50, start + 63)
    yield from (start + HEADER_BYTES, end - 1)


def test_a_damaged_record_that_was_durable_is_corruption_and_nothing_is_dropped(path: Path) -> None:
    """In `full` each record says that the one before it was synced."""
    logged = Logged(path, 12, durability="full")
    for i in range(11):
        for at in parts_of(logged, i):
            for readonly in (True, False):
                logged.flip(at)
                damaged = path.read_bytes()
                with pytest.raises(mmlsm.CorruptionError, match=r"the log is damaged.*salvage") as caught:
                    logged.keys(readonly=readonly)
                assert caught.value.page == logged.starts[i] // PAGE_BYTES
                assert path.read_bytes() == damaged, "a later open may know better"


def test_of_the_last_record_nobody_knows_whether_it_was_durable(path: Path) -> None:
    logged = Logged(path, 12, durability="full")
    for at in parts_of(logged, 11):
        logged.flip(at)
        assert logged.keys() == [key for key, _ in logged.pairs[:11]]


def test_a_page_of_the_log_that_is_gone_is_corruption(path: Path) -> None:
    logged = Logged(path, 40, 200, durability="full")
    (extent,) = logged.extents
    assert logged.starts[-1] > (extent.first + 2) * PAGE_BYTES
    for new in (bytes(PAGE_BYTES), b"\xa5" * PAGE_BYTES, logged.image[:PAGE_BYTES]):
        for page in (extent.first, extent.first + 1):
            image = logged.image
            path.write_bytes(image[: page * PAGE_BYTES] + new + image[(page + 1) * PAGE_BYTES :])
            with pytest.raises(mmlsm.CorruptionError, match="the log is damaged"):
                logged.keys()


def test_a_damaged_link_is_corruption_when_the_log_went_on_behind_it(path: Path) -> None:
    logged = Logged(path, 40, 200, durability="full", log_extent_bytes=PAGE_BYTES)
    assert len(logged.extents) > 3
    ends = [max(one for one in logged.starts if one < extent.end * PAGE_BYTES) for extent in logged.extents[:-2]]
    for i, last in enumerate(ends):
        link = logged.starts[logged.starts.index(last) + 1]
        assert link == logged.extents[i + 1].first * PAGE_BYTES
        at = last + HEADER_BYTES + len(payload_of(logged, logged.starts.index(last)))
        for part in (0, 20, 41, LINK_BYTES - 1):
            logged.flip(at + part)
            with pytest.raises(mmlsm.CorruptionError, match="the log is damaged"):
                logged.keys()


def payload_of(logged: Logged, i: int) -> bytes:
    start = logged.starts[i]
    return logged.image[start + HEADER_BYTES :][: int.from_bytes(logged.image[start + 24 : start + 32], "little")]


def test_a_damaged_value_that_a_durable_commit_names_is_corruption(path: Path) -> None:
    value = bytes(range(256)) * 300
    with mmlsm.Database(path, Settings(durability="full", auto_merge=False)) as database:
        database.put(b"large", io.BytesIO(value))
        database[b"after"] = b"1"
        image = path.read_bytes()
    at = image.index(value[:PAGE_BYTES])
    path.write_bytes(image[:at] + b"\xff" + image[at + 1 :])
    with pytest.raises(mmlsm.CorruptionError, match="names a value that did not reach the disk"):
        mmlsm.open(path, readonly=True)


@pytest.mark.parametrize("durability", ["group", "off"])
def test_what_was_not_synced_ends_the_log_as_ever(path: Path, durability: str) -> None:
    logged = Logged(path, 12, durability=durability, group_interval=60)
    for i in range(12):
        for at in parts_of(logged, i):
            logged.flip(at)
            assert logged.keys() == [key for key, _ in logged.pairs[:i]]


@pytest.mark.parametrize("durability", ["group", "off"])
def test_what_a_sync_covered_is_known_to_be_durable_by_the_next_record(path: Path, durability: Any) -> None:
    with mmlsm.Database(path, Settings(durability=durability, group_interval=60, auto_merge=False)) as database:
        database[b"a"] = b"1"
        start = database._engine.committer.memtable.log_start.offset
        database[b"b"] = b"2"
        assert database.sync() == 2
        before = path.read_bytes()
        database[b"c"] = b"3"
        database._engine.committer.write_out()
        after = path.read_bytes()
    for image, told in ((before, False), (after, True)):
        path.write_bytes(image[:start] + bytes([image[start] ^ 0xFF]) + image[start + 1 :])
        if told:
            with pytest.raises(mmlsm.CorruptionError, match="commits up to 2 were durable"):
                mmlsm.open(path, readonly=True)
        else:
            with mmlsm.open(path, readonly=True) as reader:
                assert list(reader) == []


def test_the_numbers_of_an_earlier_life_say_nothing_of_this_ones_log(path: Path) -> None:
    """After a kill commits have numbers far above the superblock's: nothing of this log was durable yet."""
    Logged(path, 3, durability="full")
    logged = Logged(path, 4, durability="group", group_interval=60)
    logged.flip(logged.starts[0] + 8)
    assert logged.keys() == [b"000", b"001", b"002"]


def test_a_reader_beside_a_writer_looks_twice(path: Path) -> None:
    """It may have read the end of the log before a commit, and the rest of the extent after the next."""
    with mmlsm.Database(path, Settings(durability="full", auto_merge=False)) as database:
        database[b"0"] = b""
        start = database._engine.committer.memtable.log_start
        images = [path.read_bytes()]
        for i in range(1, 6):
            database[b"%d" % i] = b""
            images.append(path.read_bytes())

    class Lagging:
        """A file whose first reads show what was there some commits before."""

        def __init__(self) -> None:
            self.left = list(images)
            self.bytes = len(images[-1])
            self.pages = self.bytes // PAGE_BYTES

        def pread(self, offset: int, length: int) -> bytes:
            image = self.left.pop(0) if len(self.left) > 1 else self.left[0]
            return image[offset : offset + length]

    file = cast(File, Lagging())
    scan = scan_log(file, start)
    seqs = [commit.seq for commit in whole_log(file, scan, Bitmap(3))]
    assert len(seqs) > 1
    assert seqs == list(range(1, len(seqs) + 1))


def test_numbers_past_the_files_end_cost_nothing() -> None:
    """A superblock whose sum is right may say that the log's extent, and the bitmap, go on for 16 TiB."""

    class Counting:
        bytes, pages, reads = 5 * PAGE_BYTES, 5, 0

        def pread(self, offset: int, length: int) -> bytes:
            self.reads += 1
            assert self.reads < 20
            return b"\x07" * max(0, min(length, self.bytes - offset))

    file = cast(File, Counting())
    epoch = int.from_bytes(b"\x07" * 8, "little")  # a part of a record stands at the end
    scan = scan_log(file, LogPosition(4, (1 << 32) - 5, 4 * PAGE_BYTES, epoch, 0))
    assert list(whole_log(file, scan, Bitmap(1 << 26))) == []
    assert cut_off(file, scan) is not None


def test_all_that_is_whole_comes_out_of_a_damaged_log(path: Path, bring_out: BringOut) -> None:
    """Records and links, in one extent and in many."""
    for bounds in ({}, {"log_extent_bytes": PAGE_BYTES}):
        path.unlink(missing_ok=True)
        logged = Logged(path, 40, 200, durability="full", **bounds)
        for i in range(39):
            logged.flip(logged.starts[i] + 30)
            found, report = bring_out(path)
            assert found == dict(one for one in logged.pairs if one != logged.pairs[i])
            assert everything_is_uncertain(report)
