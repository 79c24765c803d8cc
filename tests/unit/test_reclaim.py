"""R11, the interval rule: alone, against a naive reader, and as the crime that broke the system in the notes."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmlsm.errors import StorageError
from mmlsm.format.manifest import Retirement
from mmlsm.space.allocator import Allocator
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


LARGE = 1 << 20


def test_a_birth_is_remembered_while_some_pin_is_older() -> None:
    _, reclaimer = make()
    reclaimer.pin(3)
    reclaimer.note_birth(10, 3)
    reclaimer.note_birth(20, 5)
    reclaimer.note_birth(30, 7)
    assert [reclaimer.birth_of(page) for page in (10, 20, 30, 40)] == [0, 5, 7, 0], "3 can see what began with it"
    assert reclaimer.grouped_by_birth([(30, 2), (10, 1), (40, 3), (20, 1)]) == [
        ([(30, 2)], 7),
        ([(10, 1), (40, 3)], 0),
        ([(20, 1)], 5),
    ]
    reclaimer.pin(6)
    reclaimer.unpin(3)
    assert [reclaimer.birth_of(page) for page in (10, 20, 30, 40)] == [0, 0, 7, 0]
    assert len(reclaimer._births) == 1


def test_a_small_old_pin_holds_no_overflow_extent_that_came_later() -> None:
    allocator, reclaimer = make()
    reclaimer.pin(3)
    for install in range(4, 50):
        reclaimer.note_birth(install, install)
        for extents, born in reclaimer.grouped_by_birth([(install, 1)]):
            reclaimer.retire(extents, born, install + 1)
        assert reclaimer.reclaim(install + 1) == 1
    assert allocator.counts().free == 46


def test_a_birth_does_not_outlive_its_extent() -> None:
    """Of a merge that came to nothing, the birth that was to be is too high for what takes its pages next."""
    allocator, reclaimer = make()
    reclaimer.pin(3)
    extent = allocator.reserve(4)
    reclaimer.note_birth(extent.first, 9)
    allocator.give_back(extent)
    assert reclaimer.birth_of(extent.first) == 9
    assert allocator.reserve(2) == (100, 2)
    assert reclaimer.birth_of(extent.first) == 0
    reclaimer.note_birth(104, 9)
    allocator.extend(Extent(100, 2), 5)
    assert reclaimer.birth_of(104) == 0, "nor in the middle of an extent"
    for page in (107, 109, 111, 20):
        reclaimer.note_birth(page, 9)
    assert allocator.reserve(3) == (107, 3)
    assert [reclaimer.birth_of(page) for page in (107, 109, 111, 20)] == [0, 0, 9, 9]


class BirthsModel(RuleBasedStateMachine):
    """Extents of one page with their true births; what is freed is compared with a look at every pinned version."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(3, [], resize=lambda pages: None, forget=lambda first, count: None, debug=True)
        self.reclaimer = Reclaimer(self.allocator, debug=True)
        self.present = 1
        self.snapshots: list[int] = []
        self.lives: dict[int, tuple[int, bool]] = {}
        self.retired: list[tuple[int, int, int]] = []
        self.reclaimer.pin(1)

    def pinned(self) -> list[int]:
        return [*self.snapshots, self.present]

    @rule(noted=st.booleans())
    def write(self, noted: bool) -> None:
        extent = self.allocator.reserve(1)
        if noted:
            self.reclaimer.note_birth(extent.first, self.present)
        self.allocator.commit(extent)
        self.lives[extent.first] = (self.present, noted)

    @rule(ahead=st.integers(1, 3))
    def fail(self, ahead: int) -> None:
        extent = self.allocator.reserve(1)
        self.reclaimer.note_birth(extent.first, self.present + ahead)
        self.allocator.give_back(extent)

    @rule(held=st.booleans())
    def install(self, held: bool) -> None:
        self.reclaimer.pin(self.present + 1)
        if held:
            self.snapshots.append(self.present)
        else:
            self.reclaimer.unpin(self.present)
        self.present += 1

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.snapshots) - 1))
        self.reclaimer.unpin(self.snapshots.pop(at))

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.lives)))
        self.install(True)
        for extents, born in self.reclaimer.grouped_by_birth([(page, 1)]):
            self.reclaimer.retire(extents, born, self.present)
        birth, noted = self.lives.pop(page)
        self.retired.append((page, birth if noted else 0, self.present))

    @rule()
    def reclaim(self) -> None:
        before = {extent for first, count in self.allocator.free_extents() for extent in range(first, first + count)}
        free = [
            (page, born, died)
            for page, born, died in self.retired
            if not any(born <= version < died for version in self.pinned())
        ]
        assert self.reclaimer.reclaim(self.present) == len(free)
        after = {extent for first, count in self.allocator.free_extents() for extent in range(first, first + count)}
        assert after - before == {page for page, _, _ in free}
        self.retired = [retirement for retirement in self.retired if retirement not in free]

    @invariant()
    def no_birth_is_too_high_and_none_is_kept_for_nothing(self) -> None:
        for page, (birth, _) in self.lives.items():
            assert self.reclaimer.birth_of(page) <= birth
        if min(self.pinned()) == self.present:
            assert all(install > self.present for install in self.reclaimer._births._pages)


TestBirths = BirthsModel.TestCase


def test_the_birth_of_a_value_is_the_version_that_readers_have(open_db: Any) -> None:
    """In the middle of an install the manifest is newer than what a reader of the commit may get."""
    db = open_db(auto_merge=False)
    engine = db._engine
    db[b"a"] = b"1"
    oldest = db.snapshot()
    engine.flush()
    db[b"a"] = b"2"
    seen: list[tuple[int, int]] = []
    set_state = engine.store.set_state

    def window(tables: Any, version: Any) -> None:
        if version.install > db.state.version.install and not seen:
            value = engine.values.take(b"x" * LARGE)
            seen.append((engine.reclaimer.birth_of(value.page), db.state.version.install))
            engine.values.give_back(value)
        set_state(tables, version)

    engine.store.set_state = window
    engine.flush()
    engine.store.set_state = set_state
    assert len(seen) == 1
    assert seen[0][0] == seen[0][1] > oldest.state.version.install


def test_the_birth_of_a_transactions_value_is_its_own_version(open_db: Any) -> None:
    """Its cursors outlive it with that version, and the extent may be overwritten by then."""
    db = open_db(auto_merge=False)
    engine = db._engine
    db[b"a"] = b"1"
    oldest = db.snapshot()
    engine.flush()
    db[b"a"] = b"2"
    transaction = db.begin(write=True)
    begun = transaction.state.version.install
    engine.flush()
    assert db.state.version.install > begun > oldest.state.version.install
    transaction.put(b"b", b"x" * LARGE)
    cursor = transaction.cursor()
    transaction.commit()
    db[b"c"] = b"y" * LARGE
    births = [engine.reclaimer.birth_of(db.state.tables[0].entries[key].value.page) for key in (b"b", b"c")]
    assert births == [begun, db.state.version.install]
    assert cursor.seek(b"b")
    assert cursor.value == b"x" * LARGE


def test_a_cursor_that_outlives_its_transaction_sees_nothing_that_came_later(open_db: Any) -> None:
    """What it met would have a birth after the version that it pins."""
    db = open_db()
    db[b"a"] = b"1"
    transaction = db.begin(write=True)
    transaction.put(b"b", b"2")
    cursor = transaction.cursor()
    transaction.commit()
    db[b"a"] = b"x" * LARGE
    db[b"c"] = b"3"
    assert list(cursor) == [(b"a", b"1"), (b"b", b"2")]
