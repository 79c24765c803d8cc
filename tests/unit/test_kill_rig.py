"""The rig of kills and power cuts judges rightly: it finds a child's failure, a lost promise, a seq given twice."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from rig.kills.forks import PATIENCE_S, ForkServer, fork_server, say
from rig.kills.life import job_of
from rig.kills.points import Point
from rig.numbered import History, write


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as started:
        yield started


def fail(job: dict[str, Any]) -> None:
    raise ValueError(job["reason"])


def crash(job: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def count(job: dict[str, Any]) -> None:
    number = 0
    while True:
        number += 1
        say(str(number))


def test_a_child_that_raises_is_a_finding_with_its_traceback(server: ForkServer) -> None:
    child = server.start("unit.test_kill_rig:fail", {"reason": "the moon"})
    child.listen(PATIENCE_S)
    with pytest.raises(AssertionError, match="ValueError: the moon"):
        child.end()


def test_a_child_that_crashes_is_a_finding(server: ForkServer) -> None:
    child = server.start("unit.test_kill_rig:crash", {})
    child.listen(PATIENCE_S)
    with pytest.raises(AssertionError, match=f"ended with -{signal.SIGSEGV:d}"):
        child.end()


def test_a_stopped_child_does_nothing_more(server: ForkServer) -> None:
    child = server.start("unit.test_kill_rig:count", {})
    assert child.listen(PATIENCE_S, until="1")
    child.stop()
    said = len(child.lines)
    child.listen(0.1)
    assert len(child.lines) == said
    assert child.end()


@pytest.mark.parametrize("place", ["opening", "committing", "flushing", "closing"])  # merges come when they like
def test_a_child_is_struck_where_it_should_be(place: str, server: ForkServer, path: Path) -> None:
    point = Point(place, "superblock" if place != "opening" else "sync", 1, "inside")
    settings = {"memtable_bytes": 4096}
    job = job_of(path, random.Random(0), settings=settings, loss="kill", expected=0, commits=40, point=point)
    child = server.start("rig.kills.life:live", job)
    child.listen(PATIENCE_S)
    assert child.end()
    # Others may go on saying things between the word and the kill.
    assert any(line.startswith(f"at {place} ") for line in child.lines), child.lines


def committed(path: Path, numbers: range) -> None:
    with mmlsm.open(path) as db:
        for number in numbers:
            with db.begin(write=True) as transaction:
                write(transaction, number)
                transaction.commit()


def test_a_promise_that_is_not_kept_is_found(path: Path) -> None:
    committed(path, range(1, 4))
    history = History()
    history.hear(["ready", "gave 1 1", "gave 2 2", "gave 3 3", "done 3"])
    history.check(path)
    history.hear(["ready", "gave 4 9", "done 4"])
    with pytest.raises(AssertionError, match="4 commits were promised, 3 are there"):
        history.check(path)


def test_a_state_that_is_no_prefix_is_found(path: Path) -> None:
    committed(path, range(1, 4))
    with mmlsm.open(path) as db:
        db[next(key for key in db if key.startswith(b"key"))] = b"something else"
    history = History()
    history.hear(["ready"])
    with pytest.raises(AssertionError, match="not the state after 3 commits: 1 keys differ"):
        history.check(path)


def test_a_database_that_is_gone_is_found(path: Path) -> None:
    history = History()
    history.hear(["opening"])
    history.check(path)
    history.hear(["opening", "ready"])
    with pytest.raises(AssertionError, match="its name is gone"):
        history.check(path)


@pytest.mark.parametrize("lines", [["gave 2 7"], ["gave 2 8", "gave 3 8"], ["gave 2 9", "gave 3 8"]])
def test_a_seq_given_twice_is_found(lines: list[str]) -> None:
    history = History()
    history.hear(["gave 1 7"])
    with pytest.raises(AssertionError, match="seq"):
        history.hear(lines)
