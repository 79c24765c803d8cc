"""R11, the interval rule: alone, against a naive reader, and as the crime that broke the system in the notes."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlsm.errors import StorageError
from mmlsm.format.manifest import Retirement
from mmlsm.space.allocator import Allocator
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent
from mmlsm.space.reclaim import Reclaimer, reclaimable

PAGES = 100


def make() -> tuple[Allocator, Reclaimer]:
    """All but the header live."""
    allocator = Allocator(
        PAGES, [(0, PAGES)], resize=lambda pages: None, forget=lambda first, count: None, debug=True
    )
    return allocator, Reclaimer(allocator, debug=True)


@pytest.mark.parametrize(
    ("born", "died", "pinned", "durable", "freed"),
    [
        (3, 7, [], 7, True),
        (3, 7, [], 6, False),
        (3, 7, [2], 9, True),
        (3, 7, [3], 9, False),
        (3, 7, [6], 9, False),
        (3, 7, [7], 9, True),
        (3, 7, [2, 7, 8], 9, True),
        (3, 7, [2, 5, 8], 9, False),
        (7, 7, [7], 7, True),
        (0, 1, [0], 1, False),
    ],
)
def test_an_extent_is_freed_when_no_pinned_version_sees_it(
    born: int, died: int, pinned: list[int], durable: int, freed: bool
) -> None:
    retirement = Retirement(born, died, ((10, 1),))
    expected = ([retirement], []) if freed else ([], [retirement])
    assert reclaimable([retirement], pinned, durable) == expected


intervals = st.tuples(st.integers(0, 20), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(intervals), st.sets(st.integers(0, 25)), st.integers(0, 25))
def test_the_rule_is_what_a_look_at_every_version_says(
    intervals: list[tuple[int, int]], pinned: set[int], durable: int
) -> None:
    retirements = [Retirement(born, died, ((i, 1),)) for i, (born, died) in enumerate(intervals)]
    free, keep = reclaimable(retirements, sorted(pinned), durable)
    for retirement in retirements:
        seen = any(version in pinned for version in range(retirement.born, retirement.died))
        assert (retirement in keep) == (seen or durable < retirement.died)
    assert sorted(free + keep, key=lambda retirement: retirement.extents) == retirements


def test_the_theory_of_the_crime() -> None:
    """Page P of segment A is taken over by B; A retires but is read; B retires without P; P must stay for A's reader.

    With one lock a segment, P was B's alone when B went, and was freed under A's reader.
    """
    allocator, reclaimer = make()
    page, rest_of_a, rest_of_b, page_of_c = (10, 1), (20, 4), (30, 4), (40, 5)
    # install 1: A = {P, rest of A}; a reader opens version 1
    reclaimer.pin(1)
    # install 2: B = {P, rest of B} replaces A; only what B does not keep dies with A
    reclaimer.retire([rest_of_a], born=1, died=2)
    # install 3: C replaces B without P: P was born with A, in 1, whoever names it now
    reclaimer.retire([page], born=1, died=3)
    reclaimer.retire([rest_of_b], born=2, died=3)

    assert reclaimer.reclaim(3) == 4, "B's own pages: version 1 never saw them"
    assert allocator.free_extents() == [rest_of_b]
    assert allocator.is_live(page)
    assert allocator.is_live(rest_of_a)

    reclaimer.unpin(1)
    assert reclaimer.reclaim(3) == 5
    assert allocator.free_extents() == [page, rest_of_a, rest_of_b]
    assert allocator.is_live(page_of_c)


def test_the_crime_with_a_reader_of_the_segment_in_between() -> None:
    allocator, reclaimer = make()
    reclaimer.pin(2)
    reclaimer.retire([(20, 4)], born=1, died=2)
    reclaimer.retire([(10, 1)], born=1, died=3)
    reclaimer.retire([(30, 4)], born=2, died=3)
    assert reclaimer.reclaim(3) == 4
    assert allocator.free_extents() == [(20, 4)], "version 2 sees P and B, and nothing else of A"


def test_a_planted_bug_that_counts_from_the_last_owner_is_the_crime() -> None:
    """The proof can fail: with P's birth taken from B, the last segment that had it, it is freed under A's reader."""
    allocator, reclaimer = make()
    reclaimer.pin(1)
    reclaimer.retire([(10, 1)], born=2, died=3)
    reclaimer.reclaim(3)
    assert not allocator.is_live((10, 1))


def test_nothing_is_freed_before_the_freeing_install_is_durable() -> None:
    allocator, reclaimer = make()
    reclaimer.retire([(10, 2)], born=1, died=5)
    assert reclaimer.reclaim(4) == 0
    assert reclaimer.pending() == [Retirement(1, 5, ((10, 2),))]
    assert reclaimer.pending_pages() == 2
    assert reclaimer.reclaim(5) == 2
    assert reclaimer.pending() == []
    assert allocator.free_extents() == [(10, 2)]
    assert reclaimer.reclaim(6) == 0


def test_a_small_old_pin_holds_only_what_it_sees() -> None:
    _, reclaimer = make()
    reclaimer.pin(3)
    for install in range(4, 50):
        reclaimer.retire([(install, 1)], born=install, died=install + 1)
    assert reclaimer.reclaim(50) == 46


def test_pins_are_counted() -> None:
    _, reclaimer = make()
    reclaimer.pin(4)
    reclaimer.pin(4)
    reclaimer.pin(2)
    reclaimer.retire([(10, 1)], born=3, died=5)
    reclaimer.unpin(4)
    assert reclaimer.pinned() == [2, 4]
    assert reclaimer.reclaim(5) == 0
    reclaimer.unpin(4)
    assert reclaimer.pinned() == [2]
    assert reclaimer.reclaim(5) == 1
    with pytest.raises(AssertionError, match="not pinned"):
        reclaimer.unpin(4)


def test_retired_extents_are_joined_and_must_be_live() -> None:
    _, reclaimer = make()
    reclaimer.retire([(12, 3), (10, 2), (20, 1)], born=1, died=2)
    reclaimer.retire([], born=1, died=2)
    assert reclaimer.pending() == [Retirement(1, 2, ((10, 5), (20, 1)))]
    with pytest.raises(AssertionError):
        reclaimer.retire([(30, 2), (31, 2)], born=1, died=2)
    with pytest.raises(AssertionError, match="not live"):
        reclaimer.retire([(99, 2)], born=1, died=2)
    with pytest.raises(AssertionError, match="died"):
        reclaimer.retire([(30, 2)], born=3, died=2)


def test_what_a_manifest_had_pending_waits_again() -> None:
    allocator, _ = make()
    reclaimer = Reclaimer(allocator, [Retirement(1, 2, ((10, 5),))])
    assert reclaimer.reclaim(1) == 0
    assert reclaimer.reclaim(2) == 5


def test_while_older_views_are_out_nothing_allocated_at_open_is_freed() -> None:
    allocator, reclaimer = make()
    at_open = Bitmap.from_extents(60, [(0, 15)])
    reclaimer.hold(at_open)
    reclaimer.retire([(14, 2)], born=1, died=2)
    reclaimer.retire([(50, 1), (80, 1)], born=1, died=2)
    assert reclaimer.reclaim(2) == 2
    assert allocator.free_extents() == [(50, 1), (80, 1)]
    reclaimer.hold(None)
    assert reclaimer.reclaim(2) == 2


def test_a_failure_in_the_middle_leaves_the_rest_pending() -> None:
    refuse = [Extent(20, 1)]

    def poison(extent: Extent) -> None:
        if extent in refuse:
            raise StorageError(errno.EIO, "bad medium")

    allocator = Allocator(
        PAGES, [(0, PAGES)], resize=lambda pages: None, forget=lambda first, count: None, poison=poison
    )
    reclaimer = Reclaimer(allocator)
    reclaimer.retire([(10, 1), (20, 1), (30, 1)], born=1, died=2)
    with pytest.raises(StorageError):
        reclaimer.reclaim(2)
    assert allocator.free_extents() == [(10, 1)]
    assert reclaimer.pending_pages() == 2
    refuse.clear()
    assert reclaimer.reclaim(2) == 2
    assert allocator.free_extents() == [(10, 1), (20, 1), (30, 1)]
