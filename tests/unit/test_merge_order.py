"""The order of age: whatever comes in the middle of a merge, a reader finds the newest of each key first."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mmlsm.errors import Error, StorageError
from mmlsm.format.manifest import Level, SegmentRecord
from mmlsm.write.merge_policy import age_fault
from mmlsm.write.writer import Writer


def record(number: int, low: int, high: int) -> SegmentRecord:
    return SegmentRecord(
        id=number, installed=1, root_page=9, root_pages=1, root_sum=0, height=0, entries=1, tombstones=0, data_bytes=1,
        pages=1, leaf_pages=1, first_key=b"a", last_key=b"b", seq_low=low, seq_high=high,
    )  # fmt: skip


def levels(*runs: list[tuple[int, int]]) -> tuple[Level, ...]:
    numbers = iter(range(1, 100))
    return tuple(tuple((record(next(numbers), low, high),) for low, high in level) for level in runs)


def test_newer_commits_stand_before_older_ones_but_for_the_bottom() -> None:
    assert age_fault(()) is None
    assert age_fault(levels([(7, 9), (5, 6)], [(1, 4)])) is None
    assert age_fault(levels([(9, 9)], [(3, 8), (3, 5)], [(1, 8)])) is None, "the bottom has slices of what drains"
    assert age_fault(levels([(5, 6), (7, 9)], [(1, 4)])) is not None
    assert age_fault(levels([(1, 4)], [(5, 6)])) is not None
    assert age_fault(levels([(7, 9)], [(1, 2)], [(3, 4)], [])) is not None


def test_what_was_committed_last_is_read_while_merges_come_in_between(open_db: Callable[..., Any], seed: int) -> None:
    rng = random.Random(seed)
    db = open_db(memtable_bytes=1 << 12, fan_out=2, slice_bytes=1 << 14, durability="off", leaf_bytes=4096)
    last: dict[bytes, bytes] = {}
    for n in range(1500):
        items = {b"c%02d" % (n % 37): b"%d" % n, b"k%08d" % rng.randrange(10**8): rng.randbytes(200)}
        db.update(items)
        last |= items
        key = b"c%02d" % rng.randrange(min(n + 1, 37))
        assert db[key] == last[key], (n, key)
    assert db.stats().merges > 20
    assert {key: db.get(key) for key in last} == last


def test_a_compaction_ends_when_the_log_cannot_be_restarted(
    open_db: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge thread waits for the writer thread, which meets an error before it comes to that."""
    db = open_db(durability="off")
    db.update({b"%04d" % i: bytes(300) for i in range(500)})
    asked = threading.Event()
    plain = Writer.restart_log

    def restart_log(writer: Writer, behind: int) -> None:
        asked.set()
        plain(writer, behind)

    def flush_sealed(writer: Writer) -> None:
        if asked.is_set():
            raise StorageError(28, "no space left on device")

    monkeypatch.setattr(db._engine.merger, "restart_log", lambda behind: restart_log(db._engine.writer, behind))
    db._engine.flush()
    monkeypatch.setattr(Writer, "flush_sealed", flush_sealed)
    done: list[BaseException | None] = []

    def compact() -> None:
        try:
            db.compact()
            done.append(None)
        except Error as error:
            done.append(error)

    thread = threading.Thread(target=compact)
    thread.start()
    thread.join(30)
    monkeypatch.undo()
    assert asked.is_set()
    assert not thread.is_alive(), "it waits for ever"
    assert done


def test_a_merge_is_no_commit_and_waits_for_no_write_transaction(open_db: Callable[..., Any]) -> None:
    db = open_db(durability="off", auto_merge=False)
    for layer in range(3):
        db.update({b"%03d" % i: b"%d" % layer for i in range(200)})
        db._engine.flush()
    with db.begin(write=True) as transaction:
        transaction.put(b"000", b"mine")
        seq = db.seq
        thread = threading.Thread(target=db.compact)
        thread.start()
        thread.join(30)
        assert not thread.is_alive(), "the merge waits for the transaction"
        assert db.seq == seq
        assert len(db.stats().segments) == 1
        assert (transaction[b"000"], transaction[b"001"], db[b"000"]) == (b"mine", b"2", b"2")
    assert db[b"000"] == b"mine"


def test_a_flush_waits_for_what_was_there_and_not_for_what_comes(
    open_db: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_db(durability="off", auto_merge=False)
    engine, plain, ended = db._engine, Writer.flush_oldest, threading.Event()

    def flush_oldest(writer: Writer, table: Any, successor: Any) -> None:
        if not ended.is_set():  # another memtable is sealed before each flush has ended
            db.put(b"more", b"and more")
            with engine.committer.order_lock:
                engine._seal()
        plain(writer, table, successor)

    monkeypatch.setattr(Writer, "flush_oldest", flush_oldest)
    db[b"key"] = b"value"
    thread = threading.Thread(target=engine.flush)
    thread.start()
    thread.join(20)
    waits = thread.is_alive()
    ended.set()
    thread.join()
    assert not waits, "there is always one more to wait for"
    assert db[b"key"] == b"value"
