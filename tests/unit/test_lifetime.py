"""Handles past their end, in whatever thread or process; what outlives them, and that nothing else does."""

from __future__ import annotations

import copy
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import mmlsm
import proof
from commit_rig import eventually, in_threads
from rig.lifetime.cycles import descriptors_of, leaks, left_of_lives
from rig.lifetime.forked import each_says_forked, in_child, let_go_of
from rig.lifetime.misuse import calls_on, calls_on_stream, handles_of, missing, refused
from rig.lifetime.world import filled, maps_of, of_mmlsm, open_anew, tiny

LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")


def test_every_public_call_has_a_case() -> None:
    assert missing() == []


def test_every_call_on_handles_of_a_closed_database_says_closed(path: Path) -> None:
    db = filled(path)
    handles, stream = handles_of(db), db.open_value(b"large")
    assert stream is not None
    transaction = db.begin(write=True)
    db.close()
    for name, call in [*calls_on([*handles, transaction]), *calls_on_stream(stream)]:
        refused(name, call, mmlsm.ClosedError)
    for handle in (*handles[1:5], transaction):
        getattr(handle, "abort" if handle is transaction else "drop" if handle is handles[3] else "close")()
    assert db.closed
    with tiny(path) as again:
        assert again[b"b"] == b"2"


@pytest.mark.parametrize("how", ["close", "commit", "abort", "drop"])
def test_every_call_on_a_handle_that_has_ended_says_closed(path: Path, how: str) -> None:
    with filled(path) as db:
        handles = [*handles_of(db)[1:5], db.begin(write=True)]
        ended = [handle for handle in reversed(handles) if hasattr(handle, how)]
        for handle in ended:
            getattr(handle, how)()
        for name, call in calls_on(ended):
            refused(name, call, mmlsm.ClosedError)
        assert db[b"b"] == b"2"


def test_who_waits_for_the_write_lock_is_told_of_the_close_though_its_holder_never_ends(path: Path) -> None:
    db = filled(path)
    lock, transaction = db._engine.write_lock, db.begin(write=True)
    transaction.put(b"never", bytes(2 << 20))
    calls: list[Callable[[], object]] = [
        lambda: db.put(b"never", bytes(2 << 20)), lambda: db.begin(write=True), lambda: db.pop(b"a"), db.clear,
        lambda: db.begin(write=True, timeout=60), lambda: db.compare_and_set(b"a", b"1", b"2"),
        lambda: db.update({b"never": b"1"}),
    ]  # fmt: skip

    def close() -> None:
        assert eventually(lambda: lock.waiting == len(calls), 20)
        db.close()

    in_threads(close, *[lambda call=call: refused("it", call, mmlsm.ClosedError) for call in calls], timeout=60)
    refused("commit", transaction.commit, mmlsm.ClosedError)
    with tiny(path) as again:
        assert again[b"a"] == b"1"
        assert b"never" not in again


def test_a_close_beside_a_commit_that_has_the_write_lock_lets_it_end_and_tells_who_waits_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = filled(path, durability="full")
    committer, lock = db._engine.committer, db._engine.write_lock
    assert committer is not None
    entered, told, room = threading.Event(), threading.Event(), committer.log.room

    def slow(length: int) -> None:
        entered.set()
        assert told.wait(20), "who waits is not told before the commit ends"
        room(length)

    monkeypatch.setattr(committer.log, "room", slow)

    def wait() -> None:
        assert entered.wait(20)
        refused("put", lambda: db.put(b"never", b"1"), mmlsm.ClosedError)
        told.set()

    def close() -> None:
        assert eventually(lambda: lock.waiting == 1, 20)
        db.close()

    in_threads(lambda: db.put(b"there", b"1"), wait, close, timeout=60)
    with tiny(path) as again:
        assert again[b"there"] == b"1"
        assert b"never" not in again


@pytest.mark.parametrize("again", [pickle.dumps, copy.copy, copy.deepcopy])
def test_no_handle_can_be_pickled_or_copied(path: Path, again: Any) -> None:
    with filled(path) as db:
        for handle in [*handles_of(db), db.begin(write=True), db.get_view(b"a")]:
            with pytest.raises(TypeError, match=r"pickle|cop"):
                again(handle)


# -- forks


@pytest.mark.parametrize("durability", ["full", "group", "off"])
def test_in_children_forked_amid_commits_and_merges_each_call_says_so(path: Path, seed: int, durability: Any) -> None:
    """In half of the rounds a write transaction keeps others from committing; in half they are anywhere in it."""
    db = filled(path, durability=durability)
    rng, stop = random.Random(seed), threading.Event()
    view, large = db.get_view(b"a"), db.get_view(b"large")
    busy = [threading.Thread(target=be_busy, args=(db, number, stop), daemon=True) for number in range(3)]
    for thread in busy:
        thread.start()
    try:
        for number in range(6):
            stop.wait(rng.random() * 0.05)
            handles, stream = handles_of(db), db.open_value(b"large")
            writing = db.begin(write=True) if number % 2 else None
            if writing is not None:
                writing.put(b"never", bytes(2 << 20))
                handles.append(writing)
            assert stream is not None

            def work(handles: list[Any] = handles, stream: BinaryIO = stream) -> None:
                each_says_forked(handles, stream)
                let_go_of(handles)
                assert (view, large) == (b"1", bytes(2 << 20))
                gc.collect()
                with pytest.raises(mmlsm.LockedError):
                    mmlsm.open(path)

            code = in_child(work)
            if writing is not None:
                writing.abort()
            assert code == 0
            db[b"parent"] = b"goes on"
    finally:
        stop.set()
        for thread in busy:
            thread.join(60)
    assert not any(thread.is_alive() for thread in busy)
    db.close()
    proof.prove_file(path)
    assert (view, large) == (b"1", bytes(2 << 20))
    with mmlsm.open(path) as again:
        assert again[b"parent"] == b"goes on"
        assert b"never" not in again


def be_busy(db: mmlsm.Database, number: int, stop: threading.Event) -> None:
    """Commits, large ones among them, syncs and compactions, until it is enough."""
    n = 0
    while not stop.is_set():
        n += 1
        db[b"busy %d %d" % (number, n % 50)] = b"%d" % n * 30
        if n % 20 == 0:
            db.put(b"large %d" % number, bytes(2 << 20))
        if n % 30 == number:
            db.compact() if number else db.sync()


def test_a_child_forked_amid_a_close_waits_for_no_lock(path: Path) -> None:
    db = filled(path)
    with db._engine.close_lock, db._engine.values.gate.lock, db._engine.write_lock._guard:

        def work() -> None:
            with pytest.raises(mmlsm.ForkError):
                db.close()

        assert in_child(work) == 0
    db.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_open_anew(path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with filled(path) as db:
        db.sync()
        answers = context.Queue()
        process = context.Process(target=open_anew, args=(path, answers))
        process.start()
        assert (answers.get(timeout=60), answers.get(timeout=60)) == (os.getpid(), b"1")
        process.join(60)
        assert process.exitcode == 0
        db[b"parent"] = b"goes on"


# -- exit

EXITING = """
import sys, threading, time, mmlsm
from mmlsm.settings import Settings
path, kind = sys.argv[1:]
db = mmlsm.Database(path, Settings(durability="group", memtable_bytes=1 << 16, leaf_bytes=4096))
held = [db.snapshot(), db.cursor(), iter(db.items()), db.begin(), db.batch()]
ready = threading.Event()
def work(number, ends):
    for n in range(200 if ends else 1 << 60):
        db[b"%d %d" % (number, n)] = b"%d" % n
        if n == 50:
            ready.set()
        if n % 40 == 39:
            db._engine.flush() if number else db.compact()
        held.append(db.get_view(b"%d %d" % (number, n)))
for number in range(3):
    threading.Thread(target=work, args=(number, kind == "ending"), daemon=kind != "ending").start()
ready.wait()
db.put(b"promised", b"1")
print("promised", flush=True)
if kind == "transaction":
    t = db.begin(write=True)
    t.put(b"never", b"1")
if kind == "raise":
    raise SystemExit(0)
if kind == "cycle":
    cycle = [db]
    cycle.append(cycle)
    del db
"""


@pytest.mark.parametrize("kind", ["daemons", "ending", "transaction", "raise", "cycle"])
def test_a_process_that_exits_with_all_open_ends_at_once_and_well(path: Path, kind: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", EXITING, path, kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "promised\n", "")
    with mmlsm.open(path) as db:
        assert db[b"promised"] == b"1"
        assert b"never" not in db
        assert len([key for key in db if key.startswith(b"1 ")]) == 200 or kind != "ending"
        proof.prove(db)


# -- views


@LINUX
def test_views_outlive_close_database_and_file_and_go_in_any_order(path: Path) -> None:
    for order in itertools.permutations(range(4)):
        db = filled(path)
        things: list[Any] = [db, db.get_view(b"a"), db.get_view(b"large"), db.snapshot()]
        del db
        things[0].close()
        path.unlink()
        for step in order:
            things[step] = None
            gc.collect()
            assert things[1] is None or things[1] == b"1"
            assert things[2] is None or things[2][-3:].tobytes() == bytes(3)
        assert maps_of(path) == 0
        assert descriptors_of(path) == []


def test_a_view_in_a_cycle_with_all_that_it_hangs_on_goes_with_it(path: Path) -> None:
    db = filled(path)
    cycle: list[Any] = [db, db.get_view(b"large"), db.snapshot(), db.cursor(), db.begin(write=True)]
    cycle.append(cycle)
    del db, cycle
    gc.collect()
    assert eventually(lambda: not of_mmlsm(), 20)
    with mmlsm.open(path) as db:
        assert db[b"a"] == b"1"
        assert len(db.stats().pins) == 1


def test_views_are_read_and_dropped_in_other_threads(path: Path) -> None:
    with filled(path) as db:
        views = [view for _ in range(50) for _, view in db.items(limit=20, views=True)]

        def work() -> None:
            while views:
                try:
                    view = views.pop()
                except IndexError:
                    return
                assert view.tobytes() in (b"v" * 50, b"1")

        db.put(b"a", b"other")
        in_threads(*[work] * 4, lambda: db.compact(), timeout=60)
        db.compact()
        gc.collect()
        assert [pin.install for pin in db.stats().pins][-1] == db.stats().install


@LINUX
def test_a_closed_database_holds_no_descriptor_and_no_map(path: Path) -> None:
    db = filled(path)
    list(db.items())
    db.close()
    assert descriptors_of(path) == []
    assert maps_of(path) == 0
    reading = tiny(path, readonly=True)
    list(reading.items())
    reading.close()
    assert descriptors_of(path) == []
    assert maps_of(path) == 0


@LINUX
def test_nothing_is_left_of_lives_in_a_row(path: Path) -> None:
    assert leaks(*left_of_lives(path, 64, warming=64)) == []
