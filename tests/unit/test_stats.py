"""What stats() answers: who pins what and since when, how the free space lies, what merges and stalls came to."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmlsm
from mmlsm.format.manifest import Retirement
from mmlsm.read.snapshot import Held, Hold, Holders
from mmlsm.space.reclaim import held_pages
from mmlsm.stats import Holder, pin_stats

intervals = st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(1, 9))


@given(st.lists(intervals), st.sets(st.integers(0, 25)))
def test_held_pages_are_what_a_look_at_each_pin_says(intervals: list[tuple[int, int, int]], pins: set[int]) -> None:
    retirements = [Retirement(born, born + more, ((i * 10, pages),)) for i, (born, more, pages) in enumerate(intervals)]
    pinned = sorted(pins)
    assert held_pages(retirements, pinned) == [
        sum(r.pages for r in retirements if r.born <= pin < r.died) for pin in pinned
    ]


def test_who_pins_and_since_when() -> None:
    held = [Held("snapshot", 3, 40.0, "a"), Held("transaction", 5, 90.0, "b"), Held("snapshot", 3, 70.0, "c")]
    retired = [Retirement(1, 4, ((10, 5),)), Retirement(4, 5, ((20, 7),)), Retirement(2, 6, ((30, 1),))]
    first, second, third = pin_stats([3, 4, 6], retired, {3: 30.0, 4: 50.0, 6: 60.0}, 6, held, 100.0)
    assert (first.install, first.age_s, first.current, first.pages) == (3, 70.0, False, 6)
    assert first.holders == (Holder("snapshot", 60.0, "a"), Holder("snapshot", 30.0, "c"))
    assert (second.pages, second.holders) == (8, (Holder("cursor, iterator or view", 50.0, ""),))
    assert (third.current, third.pages, third.holders) == (True, 0, ())


def churned(db: Any) -> None:
    """Replace what is there, so that the version before holds all of it."""
    db.put_many({b"%04d" % i: b"%d" % db.seq * 50 for i in range(500)})
    db.compact()


def pins_but_the_current(db: Any) -> list[Any]:
    """Once the merge thread has let go of what nobody holds."""
    db.compact()
    return [pin for pin in db.stats().pins if not pin.current]


def test_snapshots_and_transactions_are_named_and_views_are_what_is_left(open_db: Any) -> None:
    db = open_db()
    churned(db)
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(db.snapshot()), name="the reader")
    thread.start()
    thread.join()
    churned(db)
    reading = db.begin()
    churned(db)
    view = db.get_view(b"0007")
    churned(db)
    writing = db.begin(write=True)
    assert [holder.kind for holder in db.stats().pins[-1].holders] == ["transaction"], "the current version's"
    writing.abort()
    assert db.stats().pins[-1].holders == ()
    first, second, third = pins_but_the_current(db)
    assert [(holder.kind, holder.thread) for holder in first.holders] == [("snapshot", "the reader")]
    assert [(holder.kind, holder.thread) for holder in second.holders] == [("transaction", "MainThread")]
    assert [(holder.kind, holder.thread) for holder in third.holders] == [("cursor, iterator or view", "")]
    assert 0 <= first.holders[0].age_s <= first.age_s
    assert min(pin.pages for pin in (first, second, third)) > 0
    assert sum(pin.pages for pin in (first, second, third)) <= db.stats().space.retired
    assert bytes(view).startswith(b"2"), "it is still read"
    made.pop().close()
    reading.close()
    assert [holder.kind for pin in pins_but_the_current(db) for holder in pin.holders] == ["cursor, iterator or view"]
    del view
    assert pins_but_the_current(db) == []


def assert_adds_up(db: Any) -> None:
    """The pages of a read-only handle by use, as the proof of the whole file has them."""
    space, report = db.stats().space, db.verify()
    assert report.ok, report.problems
    assert 3 + space.live + space.retired + space.reserved + space.free == space.total == report.pages
    assert space.live == report.live + report.manifest + report.bitmap
    assert (space.retired, space.reserved) == (report.retired, report.log + report.reserved)
    assert (space.free, round(space.free_mean * space.free_extents)) == (report.free, report.free)
    assert bool(space.free) == bool(space.free_extents) == bool(space.free_largest)
    assert space.free_largest <= space.free


def test_the_pages_of_a_read_only_handle_add_up(open_db: Any, path: Path, tmp_path: Path) -> None:
    db = open_db(auto_merge=False)
    with mmlsm.open(path, readonly=True) as reader:
        assert_adds_up(reader)
    churned(db)
    snapshot = db.snapshot()
    churned(db)
    db.put(b"only in the log", bytes(100_000))
    unused = db._engine.allocator.reserve(7)
    db.put(b"in the log too", bytes(100_000))
    db._engine.allocator.give_back(unused)
    db.sync()
    shutil.copy(path, tmp_path / "copy.db")
    with mmlsm.open(tmp_path / "copy.db", readonly=True) as reader:
        assert_adds_up(reader)
        space, before = reader.stats().space, db.stats().space
        assert min(space.live, space.retired, space.reserved, space.free) > 0
        assert (space.total, space.live, space.retired) == (before.total, before.live, before.retired)
        assert space.free_extents > 1
    with mmlsm.open(path, readonly=True) as reader:
        churned(db)
        snapshot.close()
        db.close()
        space = reader.stats().space
        assert 3 + space.live + space.retired + space.reserved + space.free == space.total
    with mmlsm.open(path, readonly=True) as reader:
        assert_adds_up(reader)
        space = reader.stats().space
    if not space.retired:
        assert open_db().stats().space == space


def test_a_closed_read_transaction_that_is_kept_holds_nothing(open_db: Any) -> None:
    db = open_db()
    churned(db)
    transaction = db.begin()
    transaction.close()
    churned(db)
    assert pins_but_the_current(db) == []
    assert transaction is not None


def test_an_iterator_over_what_was_just_written_is_no_snapshot_of_anybody(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    iterator, cursor = iter(db.items()), db.cursor()
    assert db.stats().pins[-1].holders == ()
    assert next(iterator) == (b"a", b"1")
    assert cursor.first()


def test_letting_go_while_somebody_looks_is_no_error() -> None:
    holders = Holders()
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            holds = [Hold(holders, "snapshot", i) for i in range(20)]
            del holds

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3000):
            assert all(held.kind == "snapshot" for held in holders.present())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert holders.present() == ()


def test_how_the_free_space_lies_is_told(open_db: Any) -> None:
    db = open_db()
    before = db.stats().space
    churned(db)
    churned(db)
    space = db.stats().space
    assert space.reservations > before.reservations
    assert space.growths > before.growths
    assert space.given_back > 0
    assert space.truncations > 0
    assert space.truncated >= space.truncations
    assert space.free_mean * space.free_extents == pytest.approx(space.free)
    assert 0 <= space.free_largest <= space.free
    assert 3 + space.live + space.retired + space.reserved + space.free == space.total


def test_merges_add_up_and_say_where_they_went(open_db: Any) -> None:
    db = open_db()
    assert db.stats().merged == ()
    churned(db)
    churned(db)
    stats = db.stats()
    assert "bottom" in {merge.into for merge in stats.merged}
    assert stats.merges == sum(merge.merges for merge in stats.merged) > 0
    assert stats.merge_bytes_written == sum(merge.bytes_written for merge in stats.merged)
    assert sum(merge.bytes_read for merge in stats.merged) > 0
    assert stats.runs == sum(len(level) for level in stats.levels) <= stats.runs_bound


def test_a_read_only_handle_has_figures_too(open_db: Any, path: Any) -> None:
    db = open_db()
    churned(db)
    with mmlsm.open(path, readonly=True) as reader, reader.snapshot() as snapshot:
        stats = reader.stats()
        assert stats.merged == stats.stalled == ()
        assert stats.stalls == stats.merges == 0
        assert (stats.runs, stats.pins[0].current, stats.pins[0].pages) == (1, True, 0)
        assert [holder.kind for holder in stats.pins[0].holders] == ["snapshot"]
        assert snapshot.seq == stats.seq
