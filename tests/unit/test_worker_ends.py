"""What the worker threads do when something of ours fails, and what nobody may lose meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mmlsm
from commit_rig import eventually, in_threads
from mmlsm.write.merge_jobs import unretired
from mmlsm.write.worker import Worker
from rig.lifetime.interrupts import points
from rig.lifetime.world import killed, tiny


def test_a_database_whose_merge_thread_has_failed_ends_when_it_is_dropped(path: Path) -> None:
    db = tiny(path)
    db[b"a"] = b"1"
    db.sync()
    threads = db._engine.writer, db._engine.merger

    def fail() -> bool:
        raise AssertionError("planted")

    threads[1].step = fail  # type: ignore[method-assign]

    def failed() -> bool:
        threads[1].wake()  # again, for the step before may have taken the last one
        return threads[1].fault is not None

    assert eventually(failed, 20)
    del fail, failed, db
    gc.collect()
    assert eventually(lambda: threads[0].over and threads[1].over, 20)
    with tiny(path) as again:
        assert again[b"a"] == b"1"


def test_that_the_log_could_not_be_written_when_it_was_moved_goes_on_being_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tiny(path, auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    writer, committer = db._engine.writer, db._engine.committer
    assert committer is not None
    broken = mmlsm.StorageError(errno.EIO, "planted")

    def fail(*_: object) -> None:
        raise broken

    monkeypatch.setattr(committer._channel, "pwrite", fail)
    assert db.stats().failure is None
    writer.restart_log(0)
    assert eventually(lambda: committer.failure is broken and db.stats().flush_error is not None, 20)
    assert "planted" in (db.stats().failure or "")
    passes = []
    monkeypatch.setattr(writer, "flush_sealed", lambda: passes.append(1))
    assert eventually(lambda: (writer.wake(), len(passes) > 3)[1], 20)
    assert db.stats().flush_error is not None
    with pytest.raises(mmlsm.ReadOnlyError, match="planted"):
        db[b"b"] = b"2"
    killed(db)


def test_a_thread_whose_work_raises_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Worker):
        def work(self) -> None:
            raise AssertionError("planted")

    monkeypatch.setattr("threading.excepthook", lambda told: None)
    worker = Failing("fails")
    worker.start()
    assert eventually(lambda: worker._done, 20)
    assert worker.over


ENDS = [SystemExit, KeyboardInterrupt, RecursionError, OverflowError]


def ended(path: Path, db: mmlsm.Database, pairs: dict[bytes, bytes], match: str = "has failed") -> None:
    """Each call that waits for a thread of this database, whose fault is known, is told; and nothing is lost."""

    def refused(call: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            with pytest.raises(mmlsm.Error, match=match):
                call()

        return work

    engine = db._engine
    in_threads(refused(engine.flush), refused(db.compact), timeout=30)
    in_threads(db.sync, timeout=30)  # it waits for no thread, and is as good as ever
    in_threads(refused(db.close), timeout=30)
    assert engine.writer.over
    assert engine.merger.over
    with tiny(path) as again:
        assert dict(again.items()) == pairs


@pytest.mark.parametrize("step", ["wakeups", "sync_if_due", "flush_sealed", "move_log"])
@pytest.mark.parametrize("error", ENDS)
def test_whatever_ends_the_writer_thread_is_told_to_who_waits_for_it(
    path: Path, step: str, error: type[BaseException]
) -> None:
    db = tiny(path)
    db[b"a"] = b"1"
    writer = db._engine.writer

    def fail(**_: object) -> None:
        raise error("planted")

    setattr(writer, step, SimpleNamespace(put=writer.wakeups.put, get=fail) if step == "wakeups" else fail)
    assert eventually(lambda: (writer.wake(), writer.over)[1], 20)
    assert type(writer.fault) is error
    assert "planted" in (db.stats().flush_error or "")
    with pytest.raises(mmlsm.Error, match="planted"):
        db[b"b"] = b"2"
    ended(path, db, {b"a": b"1"})


@pytest.mark.parametrize("error", ENDS)
def test_whatever_ends_the_merge_thread_is_told_to_who_waits_for_it(path: Path, error: type[BaseException]) -> None:
    db = tiny(path)
    db[b"a"] = b"1"
    merger = db._engine.merger

    def fail() -> bool:
        raise error("planted")

    waiting = merger.request_compaction(None)
    merger.step = fail  # type: ignore[method-assign]
    merger.wake()

    def wait() -> None:
        with contextlib.suppress(mmlsm.Error):  # it may have been done before that
            waiting.wait()

    in_threads(wait, timeout=30)
    assert eventually(lambda: (merger.wake(), merger.fault is not None)[1], 20)
    assert "planted" in (db.stats().merge_error or "")
    assert not merger.over, "nobody else would end the writer thread of a database that is dropped"
    with pytest.raises(mmlsm.Error, match="planted"):
        db.compact()
    with pytest.raises(error if issubclass(error, Exception) else mmlsm.Error, match="planted"):
        db.close()
    with tiny(path) as again:
        assert dict(again.items()) == {b"a": b"1"}


@pytest.mark.parametrize("which", ["writer", "merger"])
def test_an_exception_that_others_raise_in_a_thread_is_told_wherever_it_comes(path: Path, which: str) -> None:
    """However often: the thread ends, or waits for the end as though it had not met it."""
    db = tiny(path)
    pairs = {b"%03d" % i: bytes(50) for i in range(60)}
    db.update(pairs)
    worker: Any = getattr(db._engine, which)

    def strike() -> bool:
        assert worker.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
        worker.wake()
        return bool(worker.fault is not None or worker.over)

    assert eventually(strike, 20)
    for _ in range(30):
        strike()

    def closed() -> None:
        with pytest.raises(mmlsm.Error, match=r"has (failed|ended)"):
            db.close()

    in_threads(closed, timeout=30)
    with tiny(path) as again:
        assert dict(again.items()) == pairs


def test_the_lock_of_a_dropped_transaction_is_freed_though_the_freeing_is_struck(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    with tiny(path) as db:
        engine = db._engine
        db[b"a"] = b"1"
        db.begin(write=True)
        for strike in points(lambda: engine.release_dropped()):
            in_threads(lambda: db.put(b"b", b"1"), timeout=20)
            assert engine.write_lock.owner is None, f"struck at step {strike.at}: {strike.where}"
            db.begin(write=True)


def test_what_may_be_unlinked_is_of_one_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny(path) as db:
        store: Any = db._engine.store
        held: list[bool] = []

        def watch(owner: Any, name: str) -> None:
            call = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda: (held.append(store.install_lock.locked()), call())[1])

        watch(store.allocator, "live_bits")
        watch(store.reclaimer, "pending")
        unretired(store)
        assert held == [True, True], "an install in between retires pages that the bits do not have"
        monkeypatch.undo()




def test_an_interval_sync_that_had_no_memory_is_done_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny(path, durability="group", group_interval=0.01) as db:
        db[b"a"] = b"1"
        committer: Any = db._engine.committer
        sync, failures = committer.sync, iter([MemoryError()])

        def poor() -> int:
            for error in failures:
                raise error
            return int(sync())

        monkeypatch.setattr(committer, "sync", poor)
        seq = db.put(b"b", b"2") or db.seq
        assert eventually(lambda: committer.synced_seq >= seq, 20)
        assert next(failures, None) is None, "the failure was not met"
        monkeypatch.undo()


LOOKING = """
import faulthandler, gc, os, threading
from mmlsm.write.worker import Worker
faulthandler.dump_traceback_later(20, exit=True)

class Cyclic:
    def __init__(self):
        self.me, self.fd = self, os.open("/dev/null", os.O_RDONLY)
    def __del__(self):
        os.close(self.fd)  # lets go of the GIL

class Waiting(Worker):
    def work(self):
        end.wait()

end, worker = threading.Event(), Waiting("waits")
worker.start()
gc.set_threshold(2, 1, 1)

def look():
    for _ in range(3000):
        Cyclic()
        assert not worker.over

threads = [threading.Thread(target=look) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
end.set()
worker.wait_until_over()
"""


def test_who_asks_whether_a_thread_has_ended_waits_for_no_finaliser() -> None:
    ended = subprocess.run([sys.executable, "-c", LOOKING], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
