"""Lives of a small database in which one call is struck: the first commit, the open, the close.

`strikes` runs a call again and again, struck at another point each time (rig/lifetime/interrupts.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import mmlsm
from commit_rig import eventually, in_threads
from rig.lifetime.interrupts import Strike
from rig.lifetime.world import World, killed, of_mmlsm, tiny

Strikes = Callable[[Callable[[], object]], Iterator[Strike]]


def first_commits(path: Path, strikes: Strikes) -> None:
    """The first commit of a life, which makes it a log."""
    world = World(path)

    def operation() -> None:
        world.number += 1
        world.db[b"first"] = b"%d" % world.number

    world.reopen()
    for strike in strikes(operation):
        try:
            assert world.db.stats().failure is None, "one strike is no end, between the superblock's slots neither"
            world.settle(world.state | {b"first": b"%d" % world.number})
            world.is_well()
            world.reopen()
        except BaseException as error:
            error.add_note(f"struck at step {strike.at}: {strike.where}")
            raise
    world.is_sound()
    world.db.close()


def opens(path: Path, strikes: Strikes) -> None:
    """The open of what a kill left."""
    db = tiny(path)
    db.update({b"%03d" % i: bytes(50) for i in range(60)})
    db.sync()
    killed(db)
    image = path.read_bytes()
    opened: list[mmlsm.Database] = []

    def operation() -> None:
        opened.append(tiny(path))

    for strike in strikes(operation):
        if opened:
            opened.pop().close()
        try:
            assert eventually(lambda: not of_mmlsm(), 20), "a thread of an open that failed lives on"
            gc.collect()
            path.write_bytes(image)
            with tiny(path) as db:
                assert len(db) == 60
                db[b"more"] = b"1"
            path.write_bytes(image)
        except BaseException as error:
            error.add_note(f"struck at step {strike.at}: {strike.where}")
            raise


def closes(path: Path, strikes: Strikes) -> None:
    """A close that has much to do."""
    state = {b"%03d" % i: bytes(50) for i in range(60)}
    opened: list[mmlsm.Database] = []

    def prepare() -> None:
        path.unlink(missing_ok=True)
        opened.append(db := tiny(path))
        db.update(state)
        db._engine.flush()
        db.update(state)
        db.put(b"large", bytes(2 << 20))
        db[b"synced"] = b"1"
        db.sync()

    def operation() -> None:
        opened[0].close()

    prepare()
    for strike in strikes(operation):
        try:
            db = opened.pop()
            if not db.closed:
                in_threads(lambda db=db: db.put(b"others", b"1"), timeout=20)
                db.delete(b"others")
                db.close()
            assert eventually(lambda: not of_mmlsm(), 20)
            with tiny(path) as again:
                assert {key: value for key, value in again.items() if key != b"large"} == state | {b"synced": b"1"}
            prepare()
        except BaseException as failed:
            failed.add_note(f"struck at step {strike.at}: {strike.where}")
            raise
    opened.pop().close()
