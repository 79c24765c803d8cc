"""The free-space bitmap against a set of page numbers, and its bytes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlsm.errors import CorruptionError
from mmlsm.space.bitmap import BITMAP_PAGE_BITS, Bitmap
from mmlsm.space.extents import Extent

PAGES = 3 * BITMAP_PAGE_BITS - 77
"""Two whole bitmap pages and most of a third."""


def runs(pages: set[int]) -> list[Extent]:
    """The extents of a set of page numbers, by hand."""
    result: list[Extent] = []
    for page in sorted(pages):
        if result and result[-1].end == page:
            result[-1] = Extent(result[-1].first, result[-1].count + 1)
        else:
            result.append(Extent(page, 1))
    return result


def test_its_bytes_are_those_of_the_specification() -> None:
    bitmap = Bitmap(BITMAP_PAGE_BITS + 20)
    bitmap.set(0, 3)
    bitmap.set(9, 1)
    bitmap.set(14, 12)
    bitmap.set(BITMAP_PAGE_BITS - 1, 3)
    assert bitmap.page_count == 2
    first, second = bitmap.page_bytes(0), bitmap.page_bytes(1)
    assert first == bytes.fromhex("07c2ff03") + bytes(4091) + b"\x80"
    assert second == b"\x03" + bytes(4095)
    assert Bitmap.from_pages(BITMAP_PAGE_BITS + 20, [first, second]) == bitmap


@given(st.sets(st.integers(0, 59)), st.integers(0, 80))
def test_gaps_are_what_is_not_used(used: set[int], end: int) -> None:
    bitmap = Bitmap.from_extents(60, [(page, 1) for page in used])
    assert list(bitmap.gaps(end)) == runs(set(range(end)) - used)


steps = st.lists(
    st.tuples(
        st.sampled_from(["set", "clear", "clean"]),
        st.one_of(
            st.integers(0, 40),
            st.integers(BITMAP_PAGE_BITS - 20, BITMAP_PAGE_BITS + 20),
            st.integers(PAGES - 40, PAGES - 1),
        ),
        st.one_of(st.integers(1, 30), st.integers(BITMAP_PAGE_BITS - 9, BITMAP_PAGE_BITS + 9)),
    ),
    max_size=12,
)


@given(steps)
def test_ranges_change_what_bits_one_by_one_would(steps: list[tuple[str, int, int]]) -> None:
    bitmap, model, dirty, before = Bitmap(PAGES), set[int](), set[int](), Bitmap(PAGES)
    for what, first, count in steps:
        count = min(count, PAGES - first)
        pages = range(first, first + count)
        if what == "clean":
            bitmap.clean()
            dirty.clear()
            before = bitmap.copy()
            continue
        assert bitmap.all_set(first, count) == model.issuperset(pages)
        assert bitmap.any_set(first, count) == (not model.isdisjoint(pages))
        if what == "set":
            bitmap.set(first, count)
            model.update(pages)
        else:
            bitmap.clear(first, count)
            model.difference_update(pages)
        dirty.update(page // BITMAP_PAGE_BITS for page in pages)
        assert bitmap.all_set(first, count) == (what == "set")
    assert list(bitmap.extents()) == runs(model)
    assert bitmap.used_pages() == len(model)
    assert bitmap.dirty == dirty
    assert dirty.issuperset(bitmap.changed_since(before))
    assert Bitmap.from_extents(PAGES, bitmap.extents()) == bitmap
    assert Bitmap.from_pages(PAGES, [bitmap.page_bytes(i) for i in range(bitmap.page_count)]) == bitmap


@given(st.binary(max_size=64), st.integers(0, 7))
def test_extents_of_any_bits(data: bytes, cut: int) -> None:
    pages = max(0, len(data) * 8 - cut)
    model = {page for page in range(pages) if data[page >> 3] >> (page & 7) & 1}
    bitmap = Bitmap(pages)
    for page in model:
        bitmap.set(page, 1)
    assert list(bitmap.extents()) == runs(model)


def test_every_short_range_at_every_place() -> None:
    for first in range(20):
        for count in range(1, 30):
            bitmap = Bitmap(64)
            bitmap.set(first, count)
            assert list(bitmap.extents()) == [(first, count)]
            full = Bitmap.from_extents(64, [(0, 64)])
            full.clear(first, count)
            assert full.used_pages() == 64 - count
            assert not full.any_set(first, count)


def test_growing_and_shrinking_keep_the_rest() -> None:
    bitmap = Bitmap(10)
    bitmap.set(3, 5)
    bitmap.clean()
    bitmap.resize(2 * BITMAP_PAGE_BITS)
    assert bitmap.dirty == {1}
    assert list(bitmap.extents()) == [(3, 5)]
    bitmap.set(2 * BITMAP_PAGE_BITS - 1, 1)
    with pytest.raises(AssertionError, match="cut off"):
        bitmap.resize(2 * BITMAP_PAGE_BITS - 1)
    bitmap.clear(2 * BITMAP_PAGE_BITS - 1, 1)
    bitmap.resize(8)
    assert (bitmap.page_count, bitmap.dirty) == (1, set())
    assert bitmap.changed_since(Bitmap()) == [0]
    bitmap.clear(3, 5)
    assert bitmap.changed_since(Bitmap(8)) == []
    bitmap.resize(0)
    assert bitmap == Bitmap()


def test_a_copy_is_independent() -> None:
    bitmap = Bitmap(100)
    bitmap.set(1, 2)
    other = bitmap.copy()
    assert other == bitmap
    assert other.dirty == {0}
    other.set(50, 1)
    assert other != bitmap
    assert other.changed_since(bitmap) == [0]


@pytest.mark.parametrize(("first", "count"), [(0, 0), (-1, 2), (60, 5), (64, 1)])
def test_ranges_outside_are_our_bug(first: int, count: int) -> None:
    bitmap = Bitmap(64)
    for change in (bitmap.set, bitmap.clear, bitmap.all_set, bitmap.any_set):
        with pytest.raises(AssertionError):
            change(first, count)
    assert bitmap == Bitmap(64)


@pytest.mark.parametrize("page", [20, 23, 24, 32767])
def test_bits_past_the_end_are_corruption(page: int) -> None:
    bitmap = Bitmap(BITMAP_PAGE_BITS)
    bitmap.set(page, 1)
    with pytest.raises(CorruptionError):
        Bitmap.from_pages(20, [bitmap.page_bytes(0)])
    assert Bitmap.from_pages(page + 1, [bitmap.page_bytes(0)]).used_pages() == 1


def test_a_wrong_number_of_bitmap_pages_is_corruption_and_costs_nothing() -> None:
    for data in ([], [bytes(4096), bytes(4096)], [bytes(100)]):
        with pytest.raises(CorruptionError):
            Bitmap.from_pages(100, data)
    with pytest.raises(CorruptionError):
        Bitmap.from_pages(1 << 60, [bytes(4096)])


def test_sixteen_million_pages_are_walked_quickly() -> None:
    bitmap = Bitmap(16 << 20)
    bitmap.set(3, 10 << 20)
    bitmap.set(12 << 20, 1)
    start = time.perf_counter()
    assert list(bitmap.extents()) == [(3, 10 << 20), (12 << 20, 1)]
    assert time.perf_counter() - start < 1
