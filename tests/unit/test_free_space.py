"""Free space: threads that reserve, give back, commit, free and cut at once; where to cut; what is counted."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlsm.handle import File
from mmlsm.settings import Allocation
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent
from space_rig import HEADER, Disk, holes, make


def test_no_page_is_given_twice_to_many_threads() -> None:
    disk = Disk()
    allocator = make(disk)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng, mine = random.Random(seed), []
        try:
            for _ in range(400):
                extent = allocator.reserve_up_to(rng.randint(3, 9), rng.randint(1, 3))
                if rng.random() < 0.3:
                    allocator.give_back(extent)
                    continue
                allocator.commit(extent)
                mine.append(extent)
                if rng.random() < 0.5:
                    allocator.free(mine.pop(rng.randrange(len(mine))))
            for extent in mine:
                allocator.free(extent)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    allocator._check()
    assert allocator.truncate() == allocator.counts().truncated
    assert allocator.total == disk.pages == HEADER


@pytest.mark.parametrize("policy", ["earliest", "best"])
def test_reservations_of_many_threads_never_overlap(policy: Allocation, seed: int) -> None:
    """Each page has the name of its one owner; the file is cut and grows meanwhile."""
    disk = Disk()
    allocator = make(disk, policy=policy)
    owners: dict[int, int] = {}
    failures: list[BaseException] = []

    def own(extent: Extent, me: int) -> None:
        for page in range(extent.first, extent.end):
            assert owners.setdefault(page, me) == me, f"page {page} was given to {owners[page]} and {me}"
            assert HEADER <= page < allocator.total

    def disown(extent: Extent) -> None:
        for page in range(extent.first, extent.end):
            del owners[page]

    def work(me: int) -> None:
        rng = random.Random(10 * seed + me)
        reserved: list[Extent] = []
        live: list[Extent] = []
        try:
            for _ in range(300):
                chance = rng.random()
                if chance < 0.45:
                    least = rng.randint(1, 9)
                    extent = allocator.reserve_up_to(least + rng.choice((0, 3, 40)), least)
                    own(extent, me)
                    reserved.append(extent)
                elif chance < 0.55 and reserved:
                    at = rng.randrange(len(reserved))
                    grown = allocator.extend(reserved[at], rng.randint(1, 6))
                    if grown is not None:
                        own(Extent(reserved[at].end, grown.count - reserved[at].count), me)
                        reserved[at] = grown
                elif chance < 0.75 and reserved:
                    extent = reserved.pop(rng.randrange(len(reserved)))
                    used = rng.randint(0, extent.count)
                    rest = Extent(extent.first + used, extent.count - used)
                    if used:
                        live.append(Extent(extent.first, used))
                        allocator.commit(live[-1])
                    if rest.count:
                        disown(rest)
                        allocator.give_back(rest)
                elif chance < 0.92 and live:
                    extent = live.pop(rng.randrange(len(live)))
                    assert allocator.is_live(extent)
                    disown(extent)
                    allocator.free(extent)
                elif chance > 0.97:
                    allocator.truncate()
                elif chance > 0.94:
                    allocator.relocation_cut(50)
            for extent in live:
                disown(extent)
                allocator.free(extent)
            for extent in reserved:
                disown(extent)
                allocator.give_back(extent)
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert not owners
    allocator._check()
    allocator.truncate()
    assert allocator.total == disk.pages == HEADER


@given(st.text(alphabet="lllfffr", max_size=120), st.integers(0, 60))
def test_the_cut_is_the_first_page_that_will_do(letters: str, most: int) -> None:
    letters = "hhh" + letters
    allocator = make(Disk(len(letters)), [(page, 1) for page, owner in enumerate(letters) if owner == "l"])
    for page, owner in enumerate(letters):
        if owner == "r":
            allocator._reserve(Extent(page, 1))
    cut = next(
        page
        for page in range(HEADER, len(letters) + 1)
        if letters[page:].count("l") <= min(most, letters[:page].count("f"))
    )
    # Moved by hand: the live pages from the cut on go to the free ones before it.
    moving = letters[cut:].count("l")
    after = letters[:cut].replace("f", "l", moving) + letters[cut:].replace("l", "f")
    end, left = len(letters.rstrip("f")), min(len(letters.rstrip("f")), max(cut, len(after.rstrip("f"))))
    worth = max(1, min(end / 16, most / 2))
    assert allocator.relocation_cut(most) == (cut if end - left >= worth else None)


def test_a_cut_that_gains_little_is_none() -> None:
    allocator, _ = holes((10, 10))
    assert allocator.relocation_cut(100) == 90
    assert allocator.relocation_cut(7) == 93
    assert allocator.relocation_cut(6) == 94, "as much as may be moved"
    scattered, _ = holes((10, 2), (30, 2))
    assert scattered.relocation_cut(50) is None, "four of a hundred are less than a sixteenth"
    assert holes((90, 10))[0].relocation_cut(100) is None, "truncate alone does it"
    assert allocator.reserve(11) == (100, 11)
    assert allocator.relocation_cut(100) is None, "what is reserved stays"


def test_what_it_did_is_counted() -> None:
    allocator, _ = holes((10, 20), (40, 5))
    allocator.reserve(2)
    allocator.give_back(Extent(11, 1))
    allocator.give_back(allocator.reserve(30))
    allocator.truncate()
    counts = allocator.counts()
    assert (counts.reservations, counts.given_back, counts.growths) == (2, 31, 1)
    assert (counts.truncations, counts.truncated) == (1, 30)
    allocator.truncate()
    assert allocator.counts().truncations == 1


def test_the_free_map_outlives_the_process_and_opening_walks_no_segment(
    open_db: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening reads the superblock, the manifest and the bitmap: as much of a large file as of a small one."""
    reads: list[tuple[int, int]] = []
    pread = File.pread

    def counted(file: File, offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return pread(file, offset, length)

    took = []
    for count in (300, 9000):
        db = open_db(auto_merge=False, durability="off", memtable_bytes=1 << 16)
        for i in range(count):
            db[b"%05d" % i] = b"x" * 300
        with db.snapshot():
            for i in range(0, count, 3):
                db[b"%05d" % i] = b"y" * 300
            db.compact()
        allocator = db._engine.allocator
        db.close()
        with monkeypatch.context() as patch:
            patch.setattr(File, "pread", counted)
            reads.clear()
            db = open_db(auto_merge=False)
            free = db._engine.allocator.free_extents()
            took.append((len(reads), sum(length for _, length in reads)))
        used = db._engine.allocator.live_bits()
        assert used == allocator.live_bits(), "as the life before left it"
        assert free == [Extent(first, count) for first, count in gaps(used)]
        assert free
        db.close()
        path.unlink()
    (few, small), (many, large) = took
    assert many <= few + 1
    assert large < small + 4 * 4096


def gaps(used: Bitmap) -> list[tuple[int, int]]:
    """What a bitmap leaves free, page by page."""
    found: list[tuple[int, int]] = []
    for page in range(used.pages):
        if not used.any_set(page, 1):
            if found and sum(found[-1]) == page:
                found[-1] = (found[-1][0], found[-1][1] + 1)
            else:
                found.append((page, 1))
    return found


def test_a_hint_of_the_size_is_one_reservation_and_what_is_too_much_of_it_comes_back() -> None:
    allocator, disk = holes((10, 4), (20, 9), (40, 30))
    assert allocator.reserve_up_to(25, 8) == (20, 9), "the first that has the least, as far as the hint goes"
    allocator.give_back(Extent(22, 7))
    allocator.commit(Extent(20, 2))
    assert allocator.reserve_up_to(25, 8) == (40, 25)
    allocator.give_back(Extent(40, 25))
    assert allocator.free_extents() == [(10, 4), (22, 7), (40, 30)]
    assert allocator.reserved_extents() == []
    assert disk.pages == 100
