"""What forked children do with handles that their parents opened, and how they end.

    python -m rig.lifetime.forked PATH HOW KEEPS     a parent at rest, its child, and the file before and after
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import mmlsm
from rig.lifetime.misuse import calls_on, calls_on_stream, handles_of, refused
from rig.lifetime.world import filled

HANG_S = 60
"""A child that takes so long waits for what will never come."""


def in_child(work: Callable[[], object]) -> int:
    """Run it in a forked child; the child's exit code: 0 where it did not raise."""
    child = os.fork()
    if not child:
        try:
            faulthandler.dump_traceback_later(HANG_S, exit=True, file=2)
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def each_says_forked(handles: list[Any], stream: BinaryIO, *, closing: bool = False) -> None:
    """Every call on the handles, of which the first is the database, and on a stream of a large value.

    `closing`: the parent was closing the database, and its handles may have ended already; then they say that.
    """
    for name, call in [*calls_on(handles), *calls_on_stream(stream)]:
        refused(name, call, (mmlsm.ForkError, mmlsm.ClosedError) if closing else mmlsm.ForkError)
    refused("close", handles[0].close, mmlsm.ForkError)


def let_go_of(handles: list[Any]) -> None:
    """End each handle but the database by what ends it, which a child may call; and forget them all."""
    for handle in handles[1:]:
        for ending in ("abort", "drop", "close"):
            if hasattr(handle, ending):
                getattr(handle, ending)()
    handles.clear()


# ---- a parent at rest, and its child


class Holder:
    """Closes and writes as it is finalised, wherever that is."""

    def __init__(self, db: mmlsm.Database) -> None:
        self.db = db

    def __del__(self) -> None:
        for call in (self.db.close, lambda: self.db.put(b"never", b"1"), self.db.sync):
            refused("a call of a finaliser", call, mmlsm.ForkError)


class Child:
    """Has all that a parent had, and tries everything."""

    def __init__(self, db: mmlsm.Database, keeps: bool) -> None:
        self.keeps = keeps
        self.handles = [*handles_of(db), db.begin(write=True)]
        self.handles[-1].put(b"never", bytes(2 << 20))
        self.handles[3].put(b"never too", bytes(2 << 20))
        streams = [db.open_value(b"large"), db.open_value(b"large")]
        self.streams = [stream for stream in streams if stream is not None]
        self.views = [db.get_view(b"a"), db.get_view(b"large"), *(view for _, view in db.items(views=True, limit=9))]
        self.holders: list[Holder] = []

    def work(self) -> None:
        """Everything says ForkError; then all is let go of, or kept for atexit, finalisers and the end."""
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        db = self.handles[0]
        each_says_forked(self.handles, self.streams[0])
        assert self.views[:2] == [b"1", bytes(2 << 20)]
        self.holders.append(Holder(db))
        atexit.register(refused, "close() at exit", db.close, mmlsm.ForkError)
        atexit.register(refused, "a commit at exit", partial(db.put, b"never", b"1"), mmlsm.ForkError)
        if self.keeps:
            return
        del db
        self.holders.clear()
        self.views.clear()
        self.streams.clear()
        let_go_of(self.handles)
        gc.collect()


def kept(path: Path) -> tuple[bytes, int, int]:
    """The file's bytes, and when it was written to last, also where that changed no byte."""
    found = path.stat()
    return path.read_bytes(), found.st_size, found.st_mtime_ns


def ended(work: Callable[[], object], how: str) -> int | None:
    """Have a child work and end like that; in the parent its exit code. The child comes back where it goes on."""
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        return process.exitcode
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    work()
    if how == "os._exit":
        os._exit(0)
    if how == "sys.exit":
        sys.exit(0)
    if how == "exec":
        os.execv(sys.executable, [sys.executable, "-c", ""])
    assert how == "the end", how
    return None


def main(name: str, how: str, keeps: str) -> None:
    """A parent that writes nothing itself meanwhile; says "well" once its file is as it was, and it goes on."""
    path = Path(name)
    db = filled(path, auto_merge=False)
    db.put(b"in the buffer", b"1")
    child = Child(db, keeps == "keeps")
    before = kept(path)
    code = ended(child.work, how)
    if code is None:
        return
    assert code == 0, code
    assert kept(path) == before, "something was written"
    refused("a second writer", lambda: mmlsm.open(path), mmlsm.LockedError)
    child.handles[-1].abort()
    db[b"parent"] = b"goes on"
    db.close()
    print("well", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
