"""Free space against a naive model: one letter for each page."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmlsm import limits
from mmlsm.errors import CorruptionError, StorageError
from mmlsm.settings import Allocation
from mmlsm.space.allocator import Allocator
from mmlsm.space.extents import Extent, ExtentSet, FreeExtents, joined, size_class
from space_rig import Disk, holes, make


class AllocatorModel(RuleBasedStateMachine):
    """Letters: h header, l live, r reserved, f free. Each answer is derived from them by a plain walk."""

    policy: Allocation = "earliest"

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.letters = list("hhh")
        self.allocator = make(self.disk, policy=self.policy)

    def runs(self, letter: str) -> list[Extent]:
        result: list[Extent] = []
        for page, owner in enumerate(self.letters):
            if owner == letter:
                if result and result[-1].end == page:
                    result[-1] = Extent(result[-1].first, result[-1].count + 1)
                else:
                    result.append(Extent(page, 1))
        return result

    def mark(self, extent: Extent, before: str, after: str) -> None:
        self.letters += ["f"] * (extent.end - len(self.letters))
        assert set(self.letters[extent.first : extent.end]) == {before}
        self.letters[extent.first : extent.end] = [after] * extent.count

    def part(self, data: st.DataObject, letter: str) -> Extent:
        run = data.draw(st.sampled_from(self.runs(letter)))
        first = data.draw(st.integers(run.first, run.end - 1))
        return Extent(first, data.draw(st.integers(1, run.end - first)))

    def expected(self, most: int, least: int) -> Extent:
        """The policy, by a walk over the free extents."""
        pages, free = len(self.letters), self.runs("f")
        if self.policy == "best":
            fitting = sorted((run.count, run.first) for run in free if run.count >= most)
            if fitting:
                return Extent(fitting[0][1], most)
        for run in free:
            if run.count >= least:
                return Extent(run.first, most if run.end == pages else min(most, run.count))
        return Extent(free[-1].first if free and free[-1].end == pages else pages, most)

    @rule(least=st.integers(1, 12), more=st.sampled_from([0, 1, 5, 20, 300]))
    def reserve(self, least: int, more: int) -> None:
        expected = self.expected(least + more, least)
        extent = self.allocator.reserve_up_to(least + more, least) if more else self.allocator.reserve(least)
        assert extent == expected
        assert self.disk.forgotten[-1] == extent
        self.mark(extent, "f", "r")

    @precondition(lambda self: "r" in self.letters)
    @rule(data=st.data(), count=st.integers(1, 8))
    def extend(self, data: st.DataObject, count: int) -> None:
        extent = self.part(data, "r")
        after = self.letters[extent.end : extent.end + count]
        grown = self.allocator.extend(extent, count)
        assert (grown is not None) == (set(after) <= {"f"})
        if grown is not None:
            assert grown == (extent.first, extent.count + count)
            self.mark(Extent(extent.end, count), "f", "r")

    @precondition(lambda self: "r" in self.letters)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        extent = self.part(data, "r")
        self.allocator.give_back(extent)
        self.mark(extent, "r", "f")

    @precondition(lambda self: "r" in self.letters)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        extent = self.part(data, "r")
        self.allocator.commit(extent)
        self.mark(extent, "r", "l")

    @precondition(lambda self: "l" in self.letters)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        extent = self.part(data, "l")
        self.allocator.free(extent)
        assert self.disk.poisoned[-1] == extent
        self.mark(extent, "l", "f")

    @rule()
    def truncate(self) -> None:
        kept = len("".join(self.letters).rstrip("f"))
        assert self.allocator.truncate() == len(self.letters) - kept
        del self.letters[kept:]

    @rule(first=st.integers(0, 60), count=st.integers(1, 20))
    def wrong_owner_changes_nothing(self, first: int, count: int) -> None:
        """A double free, an overlap, a page outside: for each change whose pages are not all in the state it needs."""
        owners = set(self.letters[first : first + count])
        if first + count > len(self.letters):
            owners.add("outside")
        changes = [
            ("r", self.allocator.give_back),
            ("r", self.allocator.commit),
            ("l", self.allocator.free),
            ("r", self.extend_by_one),
        ]
        for needs, change in changes:
            if owners != {needs}:
                with pytest.raises(AssertionError):
                    change(Extent(first, count))

    def extend_by_one(self, extent: tuple[int, int]) -> None:
        self.allocator.extend(Extent(*extent), 1)

    @rule(least=st.integers(1, 12))
    def a_full_disk_changes_nothing(self, least: int) -> None:
        expected = self.expected(least, least)
        self.disk.broken = True
        if expected.end > len(self.letters):
            with pytest.raises(StorageError) as caught:
                self.allocator.reserve(least)
            assert caught.value.errno == errno.ENOSPC
        if self.letters[-1] == "f":
            with pytest.raises(StorageError):
                self.allocator.truncate()
        self.disk.broken = False

    @invariant()
    def every_page_has_its_owner(self) -> None:
        allocator = self.allocator
        allocator._check()
        assert allocator.total == self.disk.pages == len(self.letters)
        assert allocator.live_extents() == self.runs("l")
        assert allocator.reserved_extents() == self.runs("r")
        assert allocator.free_extents() == self.runs("f")
        counts = allocator.counts()
        assert (counts.header, counts.live, counts.reserved, counts.free) == tuple(map(self.letters.count, "hlrf"))
        assert counts.free_largest == max((run.count for run in self.runs("f")), default=0)
        used = {page for page, owner in enumerate(self.letters) if owner in "hl"}
        bits = allocator.live_bits()
        assert bits.pages == len(self.letters)
        assert {page for extent in bits.extents() for page in range(extent.first, extent.end)} == used


class BestFitModel(AllocatorModel):
    """The same with the other policy."""

    policy = "best"


TestEarliest = AllocatorModel.TestCase
TestBest = BestFitModel.TestCase
TestEarliest.settings = TestBest.settings = hypothesis_settings(max_examples=40, stateful_step_count=30)


def test_a_new_file_gives_the_pages_after_the_header() -> None:
    disk = Disk()
    allocator = make(disk)
    assert allocator.reserve(5) == (3, 5)
    assert disk.pages == 8


def test_earliest_takes_the_first_hole_and_best_the_tightest() -> None:
    spaces = ((10, 20), (40, 5), (50, 6))
    assert holes(*spaces)[0].reserve(5) == (10, 5)
    assert holes(*spaces, policy="best")[0].reserve(5) == (40, 5)
    assert holes(*spaces, policy="best")[0].reserve(6) == (50, 6)
    assert holes(*spaces, policy="best")[0].reserve_up_to(30, 5) == (10, 20)


def test_a_large_reservation_takes_what_a_hole_has() -> None:
    allocator, disk = holes((10, 20), (40, 5))
    assert allocator.reserve_up_to(256, 8) == (10, 20)
    assert allocator.reserve_up_to(256, 8) == (100, 256)
    assert disk.pages == 356
    assert allocator.reserve_up_to(256, 5) == (40, 5)


def test_the_free_tail_is_used_before_the_file_grows() -> None:
    allocator, disk = holes((95, 5))
    assert allocator.reserve(8) == (95, 8)
    assert disk.pages == 103


def test_the_free_tail_is_as_long_as_a_reservation_wants() -> None:
    allocator, disk = holes((95, 5))
    assert allocator.reserve_up_to(20, 3) == (95, 20)
    assert disk.pages == 115


def test_a_reservation_grows_in_place_into_free_pages_and_past_the_end() -> None:
    allocator, disk = holes((10, 6), (90, 10))
    extent = allocator.reserve(2)
    assert allocator.extend(extent, 3) == (10, 5)
    assert allocator.extend(Extent(10, 5), 2) is None
    last = allocator.reserve(8)
    assert allocator.extend(last, 8) == (90, 16)
    assert disk.pages == 106


def test_extend_forgets_what_it_adds() -> None:
    allocator, disk = holes((10, 6))
    allocator.extend(allocator.reserve(2), 3)
    assert disk.forgotten == [(10, 2), (12, 3)]


def test_pages_come_back_while_the_file_refuses_every_size() -> None:
    allocator, disk = holes((10, 5))
    extent = allocator.reserve(5)
    disk.broken = True
    with pytest.raises(StorageError):
        allocator.reserve(1)
    allocator.give_back(extent)
    allocator._check()
    assert allocator.free_extents() == [(10, 5)]


def test_more_than_the_format_can_address_is_refused() -> None:
    disk = Disk()
    allocator = make(disk)
    allocator.reserve(1000)
    with pytest.raises(StorageError, match="4,294,967,296 pages") as caught:
        allocator.reserve(limits.FILE_PAGES_MAX - 1000)
    assert caught.value.errno == errno.ENOSPC
    assert disk.pages == allocator.total == 1003
    allocator._check()


def test_truncate_cuts_the_free_tail_only() -> None:
    allocator, disk = holes((10, 6), (90, 10))
    assert allocator.truncate() == 10
    assert disk.pages == allocator.total == 90
    assert allocator.truncate() == 0
    allocator._check()


def test_live_extents_past_the_end_are_corruption() -> None:
    with pytest.raises(CorruptionError, match="has 10 pages, but page 10 is in use"):
        make(Disk(10), [(3, 8)])


def test_an_extent_that_is_live_twice_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="twice"):
        make(Disk(20), [(3, 8), (10, 2)])


def test_the_header_may_be_among_what_is_live() -> None:
    allocator = make(Disk(20), [(0, 5)])
    assert allocator.live_extents() == [(3, 2)]
    assert allocator.counts().live == 2
    with pytest.raises(AssertionError, match="header"):
        allocator.free(Extent(2, 1))


def test_a_file_shorter_than_its_header_is_made_whole() -> None:
    disk = Disk(2)
    assert make(disk).total == disk.pages == 3


def test_the_bitmap_of_a_manifest_has_what_the_manifest_adds() -> None:
    allocator, _ = holes((10, 20))
    mine = allocator.reserve(2)
    bits = allocator.live_bits([mine], [Extent(50, 5)])
    assert list(bits.extents()) == [(0, 12), (30, 20), (55, 45)]
    assert list(allocator.live_bits().extents()) == [(0, 10), (30, 70)]
    assert bits.changed_since(allocator.live_bits()) == [0]
    with pytest.raises(AssertionError, match="not reserved"):
        allocator.live_bits([Extent(20, 1)])
    with pytest.raises(AssertionError, match="not live"):
        allocator.live_bits([], [Extent(20, 1)])


def test_any_numbers_can_be_asked_about() -> None:
    allocator, _ = holes((10, 20))
    assert allocator.is_live((30, 70))
    for extent in ((2, 2), (9, 2), (30, 71), (50, 0), (50, -3), (-5, 2), (1 << 70, 1), (99, 1 << 70)):
        assert not allocator.is_live(extent)


def test_a_failed_poison_frees_nothing() -> None:
    def refuse(extent: Extent) -> None:
        raise StorageError(errno.EIO, "bad medium")

    disk = Disk(20)
    allocator = Allocator(20, [(3, 17)], resize=disk.resize, forget=disk.forget, poison=refuse)
    with pytest.raises(StorageError):
        allocator.free((5, 2))
    assert allocator.free_extents() == []
    allocator._check()


def test_size_classes_never_fall() -> None:
    large = {2**bits + more for bits in range(8, 32) for more in (-1, 0, 1, 2 ** (bits - 2))}
    counts = sorted({*range(1, 5000), *large})
    classes = [size_class(count) for count in counts]
    assert classes == sorted(classes)
    assert all(number == count for number, count in zip(classes, counts, strict=True) if count <= 256)
    assert len(set(classes)) < 256 + 8 * 25


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.integers(1, 6000))
def test_free_extents_find_what_a_walk_would(counts: list[int], least: int) -> None:
    extents, first = [], 0
    for count in counts:
        extents.append(Extent(first, count))
        first += count + 1
    free = FreeExtents(extents)
    free._check()
    fitting = [extent for extent in extents if extent.count >= least]
    assert free.earliest(least) == (fitting[0] if fitting else None)
    assert free.smallest(least) == min(fitting, key=lambda extent: (extent.count, extent.first), default=None)
    assert free.largest_pages() == max(counts)


def test_extent_sets_know_what_is_there() -> None:
    pages = ExtentSet([(5, 5), (20, 1), (10, 2)])
    assert list(pages) == [(5, 7), (20, 1)]
    assert (len(pages), pages.pages, pages.last()) == (2, 8, (20, 1))
    assert pages.around(11) == (5, 7)
    assert pages.around(12) is None
    assert pages.holds(6, 6)
    assert not pages.holds(6, 7)
    for first, count in ((4, 2), (11, 3), (0, 30), (20, 1), (30, 0)):
        with pytest.raises(AssertionError):
            pages.add(first, count)
    for first, count in ((4, 2), (11, 3), (12, 1), (5, 0)):
        with pytest.raises(AssertionError):
            pages.remove(first, count)
    pages.remove(6, 2)
    assert list(pages) == [(5, 1), (8, 4), (20, 1)]
    pages._check()
    assert ExtentSet().last() is None


def test_neighbours_are_joined() -> None:
    assert joined([(9, 1), (3, 2), (5, 4), (12, 1)]) == ((3, 7), (12, 1))
    assert joined([]) == ()
    with pytest.raises(AssertionError):
        joined([(3, 2), (4, 1)])
