"""Transactions: all or nothing, their own reads, savepoints, and the lock that is free however they end."""

from __future__ import annotations

import gc
import io
import threading
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.file import System
from mmlsm.settings import Settings


def other_thread(work: Any) -> Any:
    """What `work` returns or raises in another thread."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert found, "it waits for ever"
    if found[0][1] is not None:
        raise found[0][1]
    return found[0][0]


def test_nothing_is_seen_before_the_commit_and_all_of_it_after(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"old"
    with db.begin(write=True) as transaction:
        transaction.put(b"a", b"new")
        transaction[b"b"] = b"1"
        transaction.delete(b"c")
        assert transaction[b"a"] == b"new"
        assert list(transaction) == [b"a", b"b"]
        assert db[b"a"] == b"old"
        assert other_thread(lambda: list(db.items())) == [(b"a", b"old")]
        before = db.seq
    assert db.seq == before + 1
    assert list(db.items()) == [(b"a", b"new"), (b"b", b"1")]


def test_an_exception_or_abort_drops_all_of_it(open_db: Any) -> None:
    db = open_db()
    with pytest.raises(ZeroDivisionError), db.begin(write=True) as transaction:  # noqa: PT012
        transaction.put(b"a", b"1")
        transaction.put(b"big", io.BytesIO(bytes(3 << 20)))
        raise ZeroDivisionError
    with db.begin(write=True) as transaction:
        transaction.put(b"a", b"1")
        transaction.abort()
        transaction.abort()
    assert len(db) == 0
    assert db.seq == 0
    db._engine.flush()
    assert proof.prove(db).overflow_extents == 0


def test_a_dropped_transaction_lets_go_of_the_lock(open_db: Any) -> None:
    db = open_db()
    transaction = db.begin(write=True)
    transaction.put(b"a", bytes(2 << 20))
    del transaction
    gc.collect()

    def write() -> None:
        with db.begin(write=True, timeout=20) as transaction:
            transaction.put(b"b", b"2")

    other_thread(write)
    db[b"c"] = b"3"
    assert list(db) == [b"b", b"c"]


def test_reading_what_was_there_and_replacing_it(open_db: Any) -> None:
    db = open_db()
    db.update({b"a": b"1", b"b": b"2"})
    with db.begin(write=True) as transaction:
        assert transaction.replace(b"a", b"9") == b"1"
        assert transaction.replace(b"z", b"9") is None
        assert transaction.pop(b"b") == b"2"
        assert transaction.pop(b"b", None) is None
        with pytest.raises(KeyError):
            transaction.pop(b"b")
        with pytest.raises(KeyError):
            del transaction[b"b"]
        del transaction[b"a"]
        assert transaction.get(b"a", b"?") == b"?"
        assert len(transaction) == 1
    assert list(db.items()) == [(b"z", b"9")]


def test_a_read_transaction_is_still(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    with db.begin() as transaction:
        db[b"a"] = b"2"
        assert transaction[b"a"] == b"1"
        assert transaction.commit() > 0
    with db.begin() as transaction:
        assert transaction[b"a"] == b"2"


def test_savepoints_go_back_to_their_beginning(open_db: Any) -> None:
    db = open_db()
    db[b"base"] = b"base"
    with db.begin(write=True) as transaction:
        transaction.put(b"a", b"1")
        with transaction.savepoint():
            transaction.put(b"b", b"2")
            with pytest.raises(ZeroDivisionError), transaction.savepoint():  # noqa: PT012
                transaction.put(b"a", b"changed")
                transaction.put(b"b", bytes(2 << 20))
                transaction.delete(b"base")
                transaction.put(b"c", b"3")
                with transaction.savepoint():
                    transaction.put(b"d", b"4")
                raise ZeroDivisionError
            assert list(transaction.items()) == [(b"a", b"1"), (b"b", b"2"), (b"base", b"base")]
            transaction.put(b"c", b"again")
        with pytest.raises(KeyError), transaction.savepoint():
            del transaction[b"no"]
    assert dict(db.items()) == {b"a": b"1", b"b": b"2", b"base": b"base", b"c": b"again"}
    db._engine.flush()
    assert proof.prove(db).overflow_extents == 0


def test_a_commit_inside_a_savepoint_ends_it_all(open_db: Any) -> None:
    db = open_db()
    with db.begin(write=True) as transaction, transaction.savepoint():
        transaction.put(b"a", b"1")
        transaction.commit()
    assert db[b"a"] == b"1"


def test_an_empty_transaction_commits_nothing(open_db: Any) -> None:
    db = open_db()
    before = db.seq
    with db.begin(write=True):
        pass
    with db.batch():
        pass
    db.put_many([])
    assert db.seq == before
    db[b"a"] = b"1"


def test_run_gives_what_the_function_gives(open_db: Any) -> None:
    db = open_db()
    assert db.run(lambda transaction: transaction.replace(b"a", b"1")) is None
    assert db.run(lambda transaction: transaction.replace(b"a", b"2")) == b"1"
    tries = []

    def conflicting(transaction: Any) -> str:
        tries.append(1)
        transaction.put(b"a", b"3")
        if len(tries) < 3:
            raise mmlsm.ConflictError("again", b"a")
        return "done"

    assert db.run(conflicting) == "done"
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(mmlsm.ConflictError):
        db.run(conflicting, retries=1)
    with pytest.raises(ValueError, match="retries"):
        db.run(conflicting, retries=-1)


def test_writers_come_first_come_first_served(open_db: Any) -> None:
    db = open_db()
    order: list[int] = []
    transaction = db.begin(write=True)
    threads = []

    def write(i: int) -> None:
        with db.begin(write=True) as transaction:
            order.append(i)
            transaction.put(b"%d" % i, b"")

    for i in range(5):
        thread = threading.Thread(target=write, args=(i,))
        thread.start()
        threads.append(thread)
        thread.join(0.05)
    transaction.commit()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_cursor_shows_what_its_transaction_has_made_of_the_entry_it_stands_on(open_db: Any) -> None:
    db = open_db()
    db.update({b"%d" % i: b"old" for i in range(4)})
    for flushed in (False, True):
        if flushed:
            db._engine.flush()
        with db.begin(write=True) as transaction:
            cursor = transaction.cursor()
            assert cursor.seek(b"1")
            transaction.put(b"1", b"newer")
            assert (cursor.key, cursor.value, cursor.view, cursor.value_length) == (b"1", b"newer", b"newer", 5)
            transaction.put(b"0", b"elsewhere")
            assert cursor.item() == (b"1", b"newer")
            transaction.delete(b"1")
            assert not cursor.valid
            for look in ("value", "view", "value_length"):
                with pytest.raises(mmlsm.Error, match="deleted"):
                    getattr(cursor, look)
            assert cursor.next()
            assert cursor.item() == (b"2", b"old")
            assert cursor.prev()
            assert cursor.item() == (b"0", b"elsewhere")
            transaction.abort()


def test_savepoints_that_end_out_of_turn_are_an_error_and_keep_all(open_db: Any) -> None:
    db = open_db()
    with db.begin(write=True) as transaction:
        outer, inner = transaction.savepoint(), transaction.savepoint()
        outer.__enter__()
        transaction.put(b"outer", b"1")
        inner.__enter__()
        transaction.put(b"inner", b"1")
        with pytest.raises(mmlsm.Error, match="in turn"):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
    assert list(db) == [b"inner", b"outer"]


def test_a_savepoint_that_fails_takes_those_inside_it_back_too(open_db: Any) -> None:
    db = open_db()
    with db.begin(write=True) as transaction:
        transaction.put(b"a", b"1")
        outer, inner = transaction.savepoint(), transaction.savepoint()
        outer.__enter__()
        transaction.put(b"a", b"2")
        inner.__enter__()
        transaction.put(b"a", b"3")
        transaction.put(b"b", b"3")
        assert not outer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert list(transaction.items()) == [(b"a", b"1")]
    assert list(db.items()) == [(b"a", b"1")]


LARGE = 3 << 20


@pytest.mark.parametrize("how", ["replace", "abort", "savepoint", "drop", "commit"])
def test_what_reads_a_transactions_own_large_value_stays_right_whatever_becomes_of_it(open_db: Any, how: str) -> None:
    db = open_db(memtable_bytes=1 << 20)
    db.put(b"before", b"1")
    value = bytes(range(256)) * (LARGE // 256)
    transaction = db.begin(write=True)
    savepoint = transaction.savepoint()
    if how == "savepoint":
        savepoint.__enter__()
    transaction.put(b"big", value)
    stream, view = transaction.open_value(b"big"), transaction.get_view(b"big")
    cursor: Any = transaction.cursor()
    pairs: Any = iter(transaction.items(prefix=b"big", views=True))
    assert cursor.seek(b"big")
    if how == "replace":
        transaction.put(b"big", b"small")
    elif how == "abort":
        transaction.abort()
    elif how == "savepoint":
        assert not savepoint.__exit__(ValueError, ValueError(), None)
    elif how == "drop":
        cursor = pairs = savepoint = None  # which hold it
        del transaction
    else:
        transaction.commit()
    more = [b"%d" % i * LARGE for i in range(3)]
    if how in ("replace", "savepoint"):
        for i, other in enumerate(more):
            transaction.put(b"more %d" % i, other)
    else:
        db.update({b"more %d" % i: other for i, other in enumerate(more)})
    db._engine.flush() if how in ("abort", "drop", "commit") else None
    assert stream.read() == value
    assert view == value
    for ask in (lambda: cursor.value, lambda: bytes(cursor.view), lambda: bytes(next(pairs)[1])):
        if how == "drop":
            break
        try:
            assert ask() in (value, b"small")
        except mmlsm.CorruptionError:
            raise
        except (mmlsm.Error, StopIteration):  # it has ended, or the entry is not there any more
            pass
    stream = view = cursor = pairs = ask = None
    if how in ("replace", "savepoint"):
        transaction.abort()
        del transaction
    gc.collect()
    db.put(b"next", bytes(LARGE))
    db.compact()
    live = sum(len(key) + len(there) for key, there in db.items())
    assert db.stats().space.reserved * 4096 < LARGE
    assert db.stats().file_bytes < live + 2 * LARGE


def test_a_large_value_that_nobody_reads_comes_back_when_it_is_replaced(open_db: Any) -> None:
    db = open_db()
    with db.begin(write=True) as transaction:
        for i in range(20):
            transaction.put(b"big", bytes([i]) * LARGE)
            assert transaction.value_length(b"big") == LARGE
        assert db.stats().space.reserved * 4096 < 4 * LARGE


@pytest.mark.parametrize("kind", ["read", "write", "snapshot"])
def test_iterators_and_cursors_outlive_their_transaction(open_db: Any, kind: str) -> None:
    """What others commit after it changes nothing for them; versions that they see are not dropped."""
    db = open_db(auto_merge=False)
    old = {b"%02d" % i: b"old" for i in range(10)}
    db.update(old)
    reader = db.snapshot() if kind == "snapshot" else db.begin(write=kind == "write")
    if kind == "write":
        reader.put(b"04", b"own")
        old[b"04"] = b"own"
    items, cursor = iter(reader.items()), reader.cursor()
    assert next(items) == (b"00", b"old")
    assert cursor.first()
    if kind == "write":
        reader.abort()
    else:
        reader.close()
    for number in range(4):
        db.update(dict.fromkeys(old, b"%d" % number))
    assert dict(items) == {key: value for key, value in old.items() if key != b"00"}
    seen = [cursor.item()]
    while cursor.next():
        seen.append(cursor.item())
    assert dict(seen) == old
    assert db.stats().snapshots == 1
    del items, cursor
    gc.collect()
    assert db.stats().snapshots == 0


class Waiting(System):
    """Durable writes wait until they are let go."""

    def __init__(self) -> None:
        self.go, self.inside = threading.Event(), threading.Event()
        self.go.set()

    def pwrite_durably(self, *arguments: Any) -> int:
        if not self.go.is_set():
            self.inside.set()
            assert self.go.wait(20)
        return super().pwrite_durably(*arguments)


def test_a_cursor_of_a_transaction_keeps_what_was_ordered_and_not_yet_published(path: Any) -> None:
    """The transaction sees a commit that still waits for its sync, and pins that and not the one before."""
    system = Waiting()
    db = mmlsm.Database(path, Settings(durability="full"), system)
    db.update({b"a": b"0", b"k": b"0"})
    system.go.clear()
    first = threading.Thread(target=db.put, args=(b"k", b"ordered"))
    first.start()
    assert system.inside.wait(20)
    try:
        transaction = db.begin(write=True)
        assert transaction[b"k"] == b"ordered"
        cursor, items = transaction.cursor(), iter(transaction.items())
        assert next(items) == (b"a", b"0")
        transaction.abort()
    finally:
        system.go.set()
    first.join(20)
    for number in range(5):
        db.put(b"k", b"%d" % number)
    assert cursor.seek(b"k")
    assert cursor.value == b"ordered"
    assert list(items) == [(b"k", b"ordered")]
    with db.snapshot() as snapshot:  # it is older than the pin of a transaction may be
        db.put(b"k", b"last")
        assert snapshot[b"k"] == b"4"
    db.close()
