"""The interpreter's end beside open databases: who calls one then, and what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmlsm
import proof
from mmlsm.write.worker import Worker

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

FIRST = """
import atexit, builtins, faulthandler, os, sys, threading, time, mmlsm
faulthandler.dump_traceback_later(60, exit=True)
path, durability = sys.argv[1:]
def opened():
    db = mmlsm.open(path, durability=durability)
    db.put(b"a", b"1")
    return db
def told(call):
    try:
        call()
        print("done", flush=True)
    except mmlsm.Error as error:
        print(type(error).__name__, flush=True)
"""

SUSPENDED = """
def rows():
    with opened() as db:
        for pair in db.items():
            yield pair
it = rows()
next(it)
"""

CASES = {
    "a generator": (SUSPENDED, ""),
    "a generator in a cycle": (f"{SUSPENDED}keep = [it]; keep.append(keep); del it", ""),
    "a generator in a thread": (
        SUSPENDED.replace("it = ", "def work():\n    it = ").replace("next(", "    next(")
        + "    started.set(); time.sleep(1000)\n"
        + "started = threading.Event(); threading.Thread(target=work, daemon=True).start(); started.wait()",
        "",
    ),
    "a transaction in a generator": (
        """
def rows():
    with opened() as db:
        with db.begin(write=True) as transaction:
            transaction.put(b"never", bytes(2 << 20))
            yield
it = rows()
next(it)
""",
        "",
    ),
    "a finaliser that closes": (
        """
class Holder:
    def __init__(self):
        self.db = opened()
    def __del__(self):
        told(self.db.close)
        told(self.db.close)
        told(lambda: self.db.get(b"a"))
holder = Holder()
""",
        "done\ndone\nClosedError\n",
    ),
    "a finaliser that goes on": (
        """
class Holder:
    def __init__(self):
        self.db = opened()
        self.batch = self.db.batch()
    def __del__(self):
        for call in (
            lambda: self.db.put(b"never", b"1"), lambda: self.db.get(b"a"), lambda: list(self.db), self.db.compact,
            self.db.sync, self.db.stats, lambda: self.batch.put(b"never", bytes(2 << 20)), self.db.begin,
        ):
            told(call)
holder = Holder()
""",
        "ClosedError\n" * 8,
    ),
    "a finaliser that opens": (
        """
class Late:
    def __del__(self):
        told(opened)
        told(lambda: mmlsm.open(path, readonly=True))
opened().close()
late = Late()
""",
        "Error\nError\n",
    ),
    "a finaliser after all others": (
        """
class Last:
    def __init__(self):
        self.db = opened()
    def __del__(self, told=told):
        self.db.close()
builtins.last = Last()
""",
        "",
    ),
    "locks that stand still": (
        """
db = opened()
engine = db._engine
def rows():
    with db.begin(write=True) as transaction:
        transaction.put(b"never", bytes(2 << 20))
        # As though threads that stand still then had them: so much nobody waits for any more.
        for lock in (
            engine.close_lock, engine.write_lock._guard, engine.values.gate.lock, engine.committer.order_lock,
            engine.pins._lock, engine.file._guard,
        ):
            lock.acquire()
        try:
            yield
        finally:
            told(lambda: db.get(b"a"))
            told(lambda: db.put(b"never", b"1"))
            told(db.close)
it = rows()
next(it)
""",
        {"full": "ClosedError\nClosedError\ndone\n", "off": "ClosedError\nClosedError\nError\n"},
    ),
    "atexit handlers": (
        """
db = opened()
def use():
    db.put(b"b", b"2")
    db.compact()
    assert db.verify().ok and dict(db.items()) == {b"a": b"1", b"b": b"2"}
    db.close()
    assert mmlsm.open(path, readonly=True).stats().clean
    print("used", flush=True)
atexit.register(use)
""",
        "used\n",
    ),
}

NEVER_WRITTEN = ("a generator in a thread", "a finaliser that goes on", "locks that stand still")
"""Nobody calls close(), or it raises."""


@pytest.mark.parametrize("durability", ["full", "off"])
@pytest.mark.parametrize("case", CASES)
def test_a_process_ends_whoever_calls_the_database_then_and_nothing_is_lost(
    path: Path, case: str, durability: str
) -> None:
    code, expected = CASES[case]
    if isinstance(expected, dict):
        expected = expected[durability]
    ended = subprocess.run(
        [sys.executable, "-c", FIRST + code, path, durability],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=ENV,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, expected, "")
    with mmlsm.open(path) as db:
        lost = durability == "off" and case in NEVER_WRITTEN
        assert db.get(b"a") == (None if lost else b"1")
        assert b"never" not in db
        proof.prove(db)


LAST = """
class Last:
    def __init__(self):
        self.db = opened()
    def __del__(self):
        self.db.close()
        os.write(1, b"late")
        os.read(0, 1)
last = Last()
"""


def test_the_lock_of_a_file_that_is_closed_at_the_interpreters_end_goes_with_the_process(path: Path) -> None:
    """A thread of it may be in a write still."""
    ending = subprocess.Popen(
        [sys.executable, "-c", FIRST + LAST, path, "full"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
    )
    try:
        assert ending.stdout is not None
        assert ending.stdout.read(4) == b"late"
        with pytest.raises(mmlsm.LockedError):
            mmlsm.open(path)
        ending.communicate(b".", timeout=60)
        assert ending.returncode == 0
    finally:
        ending.kill()
    mmlsm.open(path).close()


def test_an_atexit_handler_where_no_thread_begins_any_more_is_told_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Worker) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        with pytest.raises(mmlsm.Error, match="the interpreter is ending"):
            mmlsm.open(path)
    mmlsm.open(path).close()
