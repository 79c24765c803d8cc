"""What callers do to the database that nobody should: streams that lie, ends in the middle, handles dropped."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.limits import PAGE_BYTES


class Stream:
    """Gives `parts` one by one, whatever it is asked for; calls `between` before each."""

    def __init__(self, parts: list[Any], between: Any = lambda: None) -> None:
        self.parts = parts
        self.between = between

    def read(self, _size: int) -> Any:
        self.between()
        return self.parts.pop(0) if self.parts else b""


@pytest.mark.parametrize("parts", [[bytes(9 << 20)], [bytes(65536), bytes(65537)], ["text"], [None]])
def test_a_stream_that_gives_too_much_or_no_bytes_is_refused_and_nothing_is_kept(path: Path, parts: list[Any]) -> None:
    with mmlsm.open(path) as db:
        db[b"before"] = b"1"
        reserved = db.stats().space.reserved
        with pytest.raises((TypeError, ValueError)):
            db.put(b"key", Stream(parts))  # type: ignore[arg-type]
        assert db.stats().space.reserved == reserved
        assert list(db) == [b"before"]


def test_a_stream_of_wider_words_is_taken_by_its_bytes(path: Path) -> None:
    with mmlsm.open(path) as db:
        db.put(b"key", Stream([memoryview(bytes(range(256)) * 256).cast("I"), b"x" * 10]))
        assert db[b"key"] == bytes(range(256)) * 256 + b"x" * 10


def test_a_transaction_ended_by_its_own_stream_takes_no_value(path: Path) -> None:
    with mmlsm.open(path) as db:
        transaction = db.begin(write=True)
        with pytest.raises(mmlsm.ClosedError):
            transaction.put(b"key", Stream([bytes(65536)] * 3, transaction.abort))
        db[b"next"] = b"1"
        assert list(db) == [b"next"]


def test_an_unknown_durability_is_told_and_the_write_lock_is_free_again(path: Path) -> None:
    with mmlsm.open(path) as db:
        transaction = db.begin(write=True)
        transaction.put(b"key", b"value")
        with pytest.raises(ValueError, match="bogus"):
            transaction.commit(durability="bogus")  # type: ignore[arg-type]
        db[b"next"] = b"1"
        assert list(db) == [b"next"]


def test_a_dropped_write_transaction_frees_the_lock_for_the_same_thread(path: Path) -> None:
    with mmlsm.open(path) as db:
        transaction = db.begin(write=True)
        transaction.put(b"key", bytes(2 << 20))
        del transaction
        gc.collect()
        with db.begin(write=True, timeout=0) as again:
            again.put(b"next", b"1")
        assert list(db) == [b"next"]


def test_a_view_of_a_transactions_own_value_stays_right_when_it_is_replaced(path: Path) -> None:
    with mmlsm.open(path) as db:
        with db.begin(write=True) as transaction:
            transaction.put(b"key", b"a" * (2 << 20))
            view, cursor = transaction.get_view(b"key"), transaction.cursor()
            assert cursor.first()
            other = cursor.view
            transaction.put(b"key", b"small")
            transaction.put(b"other", b"b" * (2 << 20))
            assert view == b"a" * (2 << 20) == other
        assert view == b"a" * (2 << 20)


def test_what_a_savepoint_replaced_comes_back_when_the_transaction_ends_inside_it(path: Path) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
        reserved = db.stats().space.reserved
        transaction = db.begin(write=True)
        transaction.put(b"key", bytes(2 << 20))
        with transaction.savepoint():
            transaction.put(b"key", b"small")
            transaction.commit()
        assert db.stats().space.reserved == reserved
        assert db[b"key"] == b"small"


def test_a_move_that_met_damage_leaves_the_cursor_on_no_entry(path: Path) -> None:
    with mmlsm.open(path, leaf_bytes=4096) as db:
        db.put_many([(b"%06d" % i, b"v" * 100) for i in range(2000)])
        db.compact()
    with mmlsm.open(path) as db:
        segment = db._engine.store.state.version.segments[0]
        assert db[b"000000"], "a read proves the root, whose children are asked for"
        pages = [page for page, _, _ in segment.children_of(segment.record.root_page)]
    data = bytearray(path.read_bytes())
    for page in pages[5:8]:
        data[page * PAGE_BYTES + 100] ^= 1
    path.write_bytes(data)
    with mmlsm.open(path) as db:
        cursor = db.cursor()
        assert cursor.first()
        with pytest.raises(mmlsm.CorruptionError):
            list(iter(cursor.next, False))
        assert not cursor.valid
        for move in (cursor.next, cursor.prev):
            assert not move()
        with pytest.raises(mmlsm.Error):
            _ = cursor.value
        assert cursor.last()
        assert cursor.key == b"001999"
        seen = []
        walk = iter(db.keys())
        with pytest.raises(mmlsm.CorruptionError):
            seen.extend(walk)
        assert list(walk) == [], "an iterator that met damage does not go on behind it"
    for page in pages[5:8]:
        data[page * PAGE_BYTES + 100] ^= 1
    path.write_bytes(data)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_what_a_closed_database_held_goes_without_the_garbage_collector(path: Path) -> None:
    def cycle() -> None:
        db = mmlsm.open(path, durability="off")
        db[b"key"] = b"value"
        assert list(db)
        db.close()

    cycle()
    gc.collect()
    gc.disable()
    try:
        before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(20):
            cycle()
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        assert threading.active_count() == threads
    finally:
        gc.enable()


def test_a_close_from_within_a_stream_is_a_closed_error_and_leaves_a_sound_file(path: Path) -> None:
    db = mmlsm.open(path)
    db[b"before"] = b"1"
    with pytest.raises(mmlsm.ClosedError):
        db.put(b"key", Stream([bytes(65536)] * 40, db.close))
    assert db.closed
    with mmlsm.open(path, readonly=True) as again:
        assert list(again) == [b"before"]


def test_values_written_while_another_thread_closes_leave_a_sound_file(path: Path) -> None:
    db = mmlsm.open(path, durability="off")
    db[b"before"] = b"1"
    begun, others = threading.Event(), []

    def put(number: int) -> None:
        try:
            while True:
                begun.set()
                db.put(b"key %d" % number, bytes(3 << 20))
        except mmlsm.ClosedError:
            others.append(None)
        except BaseException as error:
            others.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    db.close()
    for thread in threads:
        thread.join(20)
    assert others == [None] * 3
    with mmlsm.open(path, readonly=True) as again:
        assert again[b"before"] == b"1"
        assert again.verify().ok


def refused_when_closed(db: mmlsm.Database, begun: threading.Event, go_on: Callable[[], object]) -> None:
    """A commit of another thread that has `begun` as `db` is closed, and goes on then: refused, and not there."""
    errors: list[BaseException] = []

    def put() -> None:
        try:
            db[b"late"] = b"2"
        except BaseException as error:
            errors.append(error)

    late = threading.Thread(target=put)
    late.start()
    assert begun.wait(20)
    db.close()
    go_on()
    late.join(20)
    with mmlsm.open(db.path, readonly=True) as again:
        assert dict(again.items()) == {b"before": b"1"}
    assert [type(error) for error in errors] == [mmlsm.ClosedError]


def test_a_commit_that_waits_while_another_thread_closes_is_refused(path: Path) -> None:
    """What is committed once close() has flushed would be lost without a word."""
    db = mmlsm.open(path, durability="off")
    db[b"before"] = b"1"
    waiting = threading.Event()
    slow_down = db._engine.pressure.slow_down
    db._engine.pressure.slow_down = lambda: (slow_down(), waiting.set())[0]  # type: ignore[method-assign]
    lock = db._engine.write_lock
    lock.acquire()
    refused_when_closed(db, waiting, lock.release)


def test_a_commit_about_to_be_ordered_while_another_thread_closes_is_refused(path: Path) -> None:
    """It has the write lock, so nobody can keep it from going on but the order itself."""
    db = mmlsm.open(path, durability="off")
    db[b"before"] = b"1"
    committer = db._engine.committer
    assert committer is not None
    order, about_to, closed = committer._order, threading.Event(), threading.Event()

    def order_when_closed(*arguments: Any) -> Any:
        about_to.set()
        assert closed.wait(20)
        return order(*arguments)

    committer._order = order_when_closed  # type: ignore[method-assign]
    refused_when_closed(db, about_to, closed.set)


def test_what_group_commits_wrote_is_synced_though_flushes_fail(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space() -> None:
        raise mmlsm.StorageError(28, "no space")

    with mmlsm.open(path, durability="group", group_interval=0.01) as db:
        db[b"a"] = b"1"
        with monkeypatch.context() as patch:
            patch.setattr(db._engine.writer, "flush_sealed", no_space)
            for number in range(3):
                db[b"b"] = b"%d" % number
                committer = db._engine.committer
                assert committer is not None
                patience = time.monotonic() + 20
                while committer.synced_seq < db.seq:
                    assert time.monotonic() < patience, "the interval sync waits for the flush"
                    time.sleep(0.01)
