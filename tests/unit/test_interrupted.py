"""Ctrl-C, or any other exception of a signal's handler, at every step of every public call (rig/lifetime).

Afterwards a commit is there or not, whole; no lock is left locked; nothing is pinned that nobody holds; the database
goes on, or is closed.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from commit_rig import LogRig
from mmlsm.file import File, open_file
from mmlsm.limits import PAGE_BYTES
from mmlsm.write.node_writer import NodeWriter
from mmlsm.write.store import Store
from rig.lifetime.interrupts import Interrupted, Strike, points
from rig.lifetime.lives_struck import closes, first_commits, opens
from rig.lifetime.world import EXTENT_LEAST, World, killed, reads, tiny, writes

WRITES = (
    "put", "put_full", "put_large", "put_stream", "delete", "pop", "popitem", "compare_and_set", "update", "batch",
    "transaction", "rollback", "run",
)  # fmt: skip
READS = (
    "get", "get_many", "get_view", "value_stream", "items", "reversed", "cursor", "snapshot", "read_transaction",
    "floor", "count", "stats", "verify", "sync", "flush", "compact",
)  # fmt: skip
POINTS_MOST = 40


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An exception in a finaliser comes out nowhere: CPython only tells of it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    gc.collect()
    gc.disable()  # or strikes would go to finalisers of what other tests left
    yield
    gc.enable()


def test_the_cases_are_all_there(path: Path) -> None:
    world = World(path)
    assert set(writes(world)) == set(WRITES)
    assert set(reads(world)) == set(READS)
    world.db.close()


def survives(world: World, strikes: Iterable[Strike], settle: Callable[[], object]) -> None:
    """Look after each strike, once it is settled what the state is, and then at the file."""
    for number, strike in enumerate(strikes):
        try:
            settle()
            world.is_well()
            if number % 10 == 0:
                world.is_sound()
        except BaseException as error:
            error.add_note(f"struck at step {strike.at}: {strike.where}")
            raise
    world.is_sound()
    world.reopen()
    world.db.close()


@pytest.mark.parametrize("name", WRITES)
def test_a_write_struck_at_any_step_is_there_or_not(path: Path, name: str) -> None:
    world = World(path)
    prepare = writes(world)[name]
    after: dict[bytes, bytes] = {}

    def operation() -> None:
        nonlocal after
        after = dict(world.state)
        prepare(after)()

    survives(world, points(operation, most=POINTS_MOST, seed=name), lambda: world.settle(after))


@pytest.mark.parametrize("how", ["batch", "transaction"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_a_commit_of_large_values_struck_at_any_step_gives_nothing_away(path: Path, how: str, error: Any) -> None:
    """A TimeoutError is what a handler raises, and an OSError, too: as if a commit had failed that is there."""
    world = World(path)
    strike, at = Strike(0), 0
    while strike.struck or not at:
        at += 1
        after = world.state | {b"large": world.next_value().ljust(EXTENT_LEAST, b"!")}
        writes = world.db.begin(write=True) if how == "transaction" else world.db.batch()
        writes.put(b"large", after[b"large"])
        strike = Strike(at, error)
        strike(writes.commit)
        if how == "transaction":
            writes.abort()  # where it was struck before it began
        try:
            world.settle(after)
            world.is_well()
            world.settle(world.state)
        except BaseException as told:
            told.add_note(f"struck at step {at}: {strike.where}")
            raise
    assert at > 40
    world.is_sound()
    world.db.close()


@pytest.mark.parametrize("name", READS)
def test_a_read_struck_at_any_step_leaves_nothing_behind(path: Path, name: str) -> None:
    world = World(path)
    world.db[b"large"] = world.state[b"large"] = bytes(3 << 20)
    survives(world, points(reads(world)[name], most=POINTS_MOST, seed=name), lambda: None)


def test_a_first_commit_struck_at_any_step_is_there_or_not(path: Path) -> None:
    first_commits(path, partial(points, most=POINTS_MOST * 2, seed="first"))


def test_an_open_struck_at_any_step_leaves_nothing_open(path: Path) -> None:
    opens(path, partial(points, most=POINTS_MOST * 2, seed="open"))


def test_ctrl_c_behind_the_install_of_an_open_comes_out_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not as the error of giving back pages that are live by then."""
    db = tiny(path)
    db.update({b"%03d" % i: bytes(50) for i in range(60)})
    db.sync()
    killed(db)
    plain = Store.install

    def install(*arguments: Any) -> None:
        plain(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "install", install)
    with pytest.raises(KeyboardInterrupt):
        tiny(path)
    monkeypatch.undo()
    with tiny(path) as db:
        assert len(db) == 60


def test_an_open_of_the_file_alone_struck_at_each_step_leaves_it_free(path: Path) -> None:
    """Also between the note that this process has it open and the next step."""
    tiny(path).close()
    opened: list[File] = []
    for count, strike in enumerate(points(lambda: opened.append(open_file(path, create=False)))):  # noqa: B007
        while opened:
            opened.pop().close()
        gc.collect()
        try:
            open_file(path, create=False).close()
        except BaseException as error:
            error.add_note(f"struck at step {strike.at}: {strike.where}")
            raise
    assert count > 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted, TimeoutError])
def test_a_close_struck_at_any_step_closes_all_the_same(path: Path, error: type[BaseException]) -> None:
    closes(path, partial(points, most=POINTS_MOST, seed=error.__name__, error=error))


def test_pages_of_a_segment_go_back_once_wherever_its_end_is_struck() -> None:
    rig = LogRig(debug=False)
    writers: list[tuple[NodeWriter, int]] = []

    def begin() -> None:
        writer = NodeWriter(rig.channel, rig.allocator)
        writers.append((writer, writer.place(bytes(PAGE_BYTES))))

    begin()
    for strike in points(lambda: writers[-1][0].finish()):
        writer, page = writers[-1]
        writer.abandon()
        there = [extent for extent in rig.allocator.reserved_extents() if extent.first <= page < sum(extent)]
        assert not there, f"struck at step {strike.at}: {strike.where}"
        begin()
    assert len(writers) > 5
