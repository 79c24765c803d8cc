"""A thread that does not start, for want of memory or because the system has no room for one: an error, and no hang."""

from __future__ import annotations

import errno
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.write.worker import Worker
from rig.lifetime.cycles import held
from rig.lifetime.world import of_mmlsm, tiny

# What Thread.start asks for a thread.
STARTER = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"


class Stillborn(Worker):
    """Its thread ends before its first step, as where memory is short."""

    def _bootstrap(self) -> None:
        pass


def test_a_thread_that_never_begins_is_an_error_and_no_hang(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmlsm.write.worker.START_S", 0.2)
    with pytest.raises(mmlsm.StorageError, match="first step"):
        Stillborn("mmlsm-stillborn").start()
    for name in ("writer.Writer", "merger.Merger"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mmlsm.write.{name}._bootstrap", Stillborn._bootstrap)
            with pytest.raises(mmlsm.StorageError):
                tiny(path)
    assert of_mmlsm() == []
    tiny(path).close()


@pytest.mark.parametrize("begun", [0, 1])
def test_where_no_thread_can_be_started_opening_says_what_to_do_and_keeps_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
    before, content = held(path), path.read_bytes()
    start, started = getattr(threading, STARTER), []

    def start_some(*args: Any, **kwargs: Any) -> Any:
        if len(started) >= begun:
            raise RuntimeError("can't start new thread")
        started.append(start(*args, **kwargs))
        return started[-1]

    with monkeypatch.context() as patch:
        patch.setattr(threading, STARTER, start_some)
        with pytest.raises(mmlsm.StorageError, match=r"can't start new thread.*ulimit -u.*readonly=True") as caught:
            mmlsm.open(path)
        assert caught.value.errno == errno.EAGAIN
        with mmlsm.open(path, readonly=True) as db:
            assert db[b"a"] == b"1"
    caught = None  # its traceback
    assert len(started) == begun
    assert of_mmlsm() == []
    assert held(path)[:3] == before[:3], "descriptors, threads, maps"
    assert path.read_bytes()[: 2 * 4096] == content[: 2 * 4096]
    with mmlsm.open(path) as db:
        assert db[b"a"] == b"1"
