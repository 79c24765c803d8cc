"""Ctrl-C, or any other exception of a signal's handler, at every step of every public call (rig/interrupts.py).

Afterwards a commit is there or not, whole; no lock is left locked; nothing is pinned that nobody holds; the database
goes on, or is closed.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.interrupts import points
from rig.lifetime import World, reads, writes

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


@pytest.mark.parametrize("name", WRITES)
def test_a_write_struck_at_any_step_is_there_or_not(path: Path, name: str) -> None:
    world = World(path)
    prepare = writes(world)[name]
    after: dict[bytes, bytes] = {}

    def operation() -> None:
        nonlocal after
        after = dict(world.state)
        prepare(after)()

    for number, strike in enumerate(points(operation, most=POINTS_MOST, seed=name)):
        try:
            world.settle(after)
            world.is_well()
            if number % 10 == 0:
                world.is_sound()
        except BaseException as error:
            error.add_note(f"struck at step {strike.at}: {strike.where}")
            raise
    world.is_sound()
    world.reopen()
    world.db.close()


@pytest.mark.parametrize("name", READS)
def test_a_read_struck_at_any_step_leaves_nothing_behind(path: Path, name: str) -> None:
    world = World(path)
    world.db[b"large"] = world.state[b"large"] = bytes(3 << 20)
    for number, strike in enumerate(points(reads(world)[name], most=POINTS_MOST, seed=name)):
        try:
            world.is_well()
            if number % 10 == 0:
                world.is_sound()
        except BaseException as error:
            error.add_note(f"struck at step {strike.at}: {strike.where}")
            raise
    world.is_sound()
    world.reopen()
    world.db.close()
