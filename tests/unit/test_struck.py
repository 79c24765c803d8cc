"""What strikes a write in the middle, a signal's handler or the recursion limit, comes out and harms no handle."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from commit_rig import in_threads
from mmlsm.file import System
from mmlsm.settings import Settings
from mmlsm.write.store import Store

KINDS = (KeyboardInterrupt, TimeoutError, ValueError)
METHODS = ("pwrite", "pwrite_durably", "sync", "allocate", "truncate")


class Struck(System):
    """A signal's handler raises in the n-th call of a method, as CPython lets it: before it, or after it has worked."""

    def __init__(self, method: str, number: int, kind: type[BaseException], after: bool) -> None:
        self.left, self.thread = Counter({method: number}), threading.get_ident()
        self.kind, self.after = kind, after
        self.strikes = 0
        for name in METHODS:
            setattr(self, name, self.struck(name, getattr(self, name)))

    def struck(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            strikes = False
            if threading.get_ident() == self.thread and self.left[name] > 0:
                self.left[name] -= 1
                strikes = self.left[name] == 0
            if strikes and not self.after:
                self.strikes += 1
                raise self.kind("struck")
            answer = plain(*arguments)
            if strikes:
                self.strikes += 1
                raise self.kind("struck")
            return answer

        return call


def opened(path: Path, system: System, durability: Any) -> mmlsm.Database:
    return mmlsm.Database(path, Settings(durability=durability, log_extent_bytes=4096, auto_merge=False), system)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("durability", ["full", "group", "off"])
def test_what_a_handler_raises_in_a_system_call_is_no_failure_of_it(path: Path, durability: str, kind: Any) -> None:
    strikes = 0
    for method in METHODS:
        for number in range(1, 6):
            for after in (False, True):
                path.unlink(missing_ok=True)
                opened(path, System(), durability).close()
                system = Struck(method, 0, kind, after)
                db = opened(path, system, durability)
                system.left[method] = number
                tried: dict[bytes, bytes] = {}
                sure: dict[bytes, bytes] = {}
                told: list[str] = []
                for i in range(8):
                    key, value = b"%d" % i, bytes(1500)
                    tried[key] = value
                    try:
                        db.put(key, value)
                        sure[key] = value
                        if i % 2:
                            db.sync()
                    except kind as error:
                        told.append(str(error))
                assert told in ([], ["struck"])
                strikes += system.strikes
                system.left.clear()
                assert db.stats().failure is None
                db.put(b"after", b"1")
                db.sync()
                there = dict(db.items())
                assert {**sure, b"after": b"1"}.items() <= there.items() <= {**tried, b"after": b"1"}.items()
                db.close()
                with mmlsm.open(path, readonly=True) as again:
                    assert dict(again.items()) == there
    assert strikes > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [False, True])
def test_the_first_commit_struck_between_the_superblocks_slots_leaves_both_written(
    path: Path, kind: Any, after: bool
) -> None:
    for number in (1, 2):
        path.unlink(missing_ok=True)
        opened(path, System(), "full").close()
        system = Struck("pwrite_durably", 0, kind, after)
        db = opened(path, system, "full")
        system.left["pwrite_durably"] = number
        with pytest.raises(kind, match="struck"):
            db.put(b"first", b"1")
        assert db.stats().failure is None
        with mmlsm.open(path, readonly=True) as reader:
            assert reader.verify().notes == []
        db.put(b"second", b"2")
        assert db[b"second"] == b"2"
        db.close()


def test_a_transaction_whose_commit_is_struck_at_once_lets_go_of_the_lock(
    open_db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_db()
    transaction = db.begin(write=True)
    transaction.put(b"a", b"1")

    def struck(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(transaction, "_commit", struck)
    with pytest.raises(KeyboardInterrupt):
        transaction.commit()
    in_threads(lambda: db.put(b"b", b"2"), timeout=20)
    assert (db.get(b"a"), db.get(b"b")) == (None, b"2")
    with pytest.raises(mmlsm.ClosedError):
        transaction.put(b"a", b"1")


def depth() -> int:
    frame, count = sys._getframe(), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1  # type: ignore[assignment]
    return count


@pytest.mark.parametrize("durability", ["full", "group", "off"])
@pytest.mark.parametrize("how", ["put", "batch", "transaction", "large"])
def test_at_the_recursion_limit_a_write_is_there_or_not_and_the_handle_goes_on(
    open_db: Any, durability: str, how: str
) -> None:
    db = open_db(durability=durability, memtable_bytes=4096, debug=False)
    db.put(b"before", b"1")
    limit, errors = sys.getrecursionlimit(), 0

    def write(key: bytes, value: bytes) -> None:
        if how == "batch":
            with db.batch() as batch:
                batch.put(key, value)
        elif how == "transaction":
            with db.begin(write=True) as transaction:
                transaction.put(key, value)
        else:
            db.put(key, value)

    size = (1 << 20) if how == "large" else 300
    for room in range(2, 60):
        key, value = b"%d" % room, bytes([room]) * size
        here = depth()
        try:
            try:
                sys.setrecursionlimit(here + room)
                write(key, value)
            finally:
                sys.setrecursionlimit(limit)
        except RecursionError:
            errors += 1
            assert db.get(key) in (None, value)
        else:
            assert db.get(key) == value
        assert db.stats().failure is None, room
        db.put(b"again", key)
        assert db[b"again"] == key
    assert errors > 1
    assert sys.getrecursionlimit() == limit


def test_a_transaction_that_began_above_and_commits_at_the_recursion_limit_is_over(open_db: Any) -> None:
    db = open_db(debug=False)
    limit, errors = sys.getrecursionlimit(), 0
    for room in range(2, 40):
        key = b"%d" % room
        transaction = db.begin(write=True)
        transaction.put(key, b"1")
        here = depth()
        try:
            try:
                sys.setrecursionlimit(here + room)
                transaction.commit()
            finally:
                sys.setrecursionlimit(limit)
        except RecursionError:
            errors += 1
            assert db.get(key) in (None, b"1")
        else:
            assert db.get(key) == b"1"
        transaction.abort()
        in_threads(lambda: db.put(b"others", b"1"), timeout=20)
    assert errors > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", ["first commit", "seal"])
def test_two_strikes_leave_no_memtable_that_readers_do_not_see(
    open_db: Any, path: Path, monkeypatch: pytest.MonkeyPatch, step: str, kind: Any
) -> None:
    db = open_db(memtable_bytes=1 << 20, debug=False)
    if step == "seal":
        db.put(b"before", bytes(500_000))
    plain, left = Store.set_state, [2]
    callers = ("_begin_committing", "_seal_or_go_on")

    def struck(self: Store, *arguments: Any) -> None:
        if left[0] and sys._getframe(1).f_code.co_name in callers:
            left[0] -= 1
            raise kind("struck")
        plain(self, *arguments)

    monkeypatch.setattr(Store, "set_state", struck)
    with pytest.raises(kind, match="struck"):
        db.put(b"struck", bytes(700_000))
    assert left == [0]
    db.put(b"k", b"1")
    assert db[b"k"] == b"1"
    db.close()
    with mmlsm.open(path, readonly=True) as again:
        assert again[b"k"] == b"1"


@pytest.mark.parametrize("kind", KINDS)
def test_two_strikes_of_who_waits_for_the_write_lock_leave_the_queue(
    open_db: Any, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    db = open_db(debug=False)
    lock = db._engine.write_lock
    plain, left = type(lock)._leave, [1]

    def leave(self: Any, me: int) -> None:
        if left[0]:
            left[0] -= 1
            raise kind("once more")
        plain(self, me)

    monkeypatch.setattr(type(lock), "_leave", leave)
    holder = threading.Event(), threading.Event()

    def hold() -> None:
        with db.begin(write=True):
            holder[0].set()
            assert holder[1].wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holder[0].wait(20)

    def strike(_number: int, _frame: object) -> None:
        raise kind("struck")

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(kind, match="struck"):
            db.begin(write=True)
    finally:
        signal.signal(signal.SIGALRM, before)
        holder[1].set()
    thread.join(20)
    assert lock.owner is None
    in_threads(lambda: db.put(b"others", b"1"), timeout=20)
    db.put(b"own", b"1")


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_value_whose_commit_was_struck_before_its_order_gives_its_pages_back(
    open_db: Any, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    db = open_db(debug=False)
    db.put(b"before", b"1")
    committer = db._engine.committer

    def struck(*_: object) -> None:
        raise kind("struck")

    reserved = db._engine.allocator.counts().reserved
    with monkeypatch.context() as patch:
        patch.setattr(committer, "_order", struck)
        with pytest.raises(kind, match="struck"):
            db.put(b"large", bytes(8 << 20))
    assert db._engine.allocator.counts().reserved == reserved
