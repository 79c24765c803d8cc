"""What runs while things fail: between them these workloads make every call of the I/O interface, in every phase.

Each is a function of a `Work`. What a fault makes of a step is no matter here: a step that raises what a fault may
raise (`REFUSALS`) is left out, and the next one is tried; a database that cannot be opened ends the workload. All else
is a finding.
"""

from __future__ import annotations

import io
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmlsm
from mmlsm.file import SYSTEM, System
from mmlsm.settings import Settings
from rig.faults.ledger import REFUSALS, Ledger, large_batch_of, small_batch_of
from rig.numbered import COUNTER

TINY: dict[str, Any] = {
    "memtable_bytes": 4096, "leaf_bytes": 4096, "node_entries_max": 8, "log_extent_bytes": 1 << 14, "fan_out": 2,
    "slice_bytes": 1 << 16, "group_interval": 0.002,
}  # fmt: skip
MODES = ("full", "group", "off")


class Unopened(Exception):
    """The database cannot be opened, so there is no more to do."""


class Work:
    """One database file on one system, and what was committed to it."""

    def __init__(self, path: Path, system: System, ledger: Ledger, seed: int = 0) -> None:
        self.path = path
        self.system = system
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.db: Any = None
        self.refused: list[str] = []
        self.refusals: tuple[type[BaseException], ...] = REFUSALS
        self.before_close: Callable[[Any], object] = lambda db: None
        self.debug = seed % 8 == 1
        """Now and then: lock order and poison are checked too, which costs."""

    def step(self, call: Callable[[], Any]) -> Any:
        """What the call answers; None when a fault kept it from that."""
        try:
            return call()
        except self.refusals as error:
            self.refused.append(repr(error))  # not its frames, which pin what they read
            return None

    def open(self, **settings: Any) -> Any:
        chosen = Settings(**TINY | settings, debug=self.debug)
        self.db = self.step(lambda: mmlsm.Database(self.path, chosen, self.system))
        if self.db is None:
            raise Unopened
        return self.db

    def commit(self, mode: str) -> None:
        self.step(lambda: self.ledger.commit(self.db, mode))

    def commits(self, count: int, modes: tuple[str, ...] = MODES) -> None:
        for _ in range(count):
            self.commit(self.rng.choice(modes))

    def sync(self) -> None:
        self.step(lambda: self.ledger.sync(self.db))

    def flush(self) -> None:
        self.step(self.db._engine.flush)

    def close(self) -> None:
        """Close; that it returned means that all is durable."""
        if self.db is not None:
            self.before_close(self.db)
            try:
                self.db.close()
                self.ledger.closed()
            except self.refusals as error:
                self.refused.append(repr(error))

    def settle(self, seconds: float = 0.03) -> None:
        """Until the merge thread has made one run of all, or cannot, or not in time."""
        engine, until = self.db._engine, time.monotonic() + seconds
        while time.monotonic() < until and engine.merger.error is None and engine.file.failure is None:
            if len(engine.store.state.version.segments) <= 1:
                break
            time.sleep(0.001)


def create(work: Work) -> None:
    work.open()
    for mode in MODES:
        work.commit(mode)
    work.close()


def replay(work: Work) -> None:
    db = work.open()
    work.step(lambda: list(db.items()))
    work.commits(3)
    work.close()


def threads(work: Work) -> None:
    work.open()
    found: list[BaseException] = []

    def run(mode: str) -> None:
        try:
            for _ in range(6):
                work.commit(mode)
        except BaseException as error:
            found.append(error)

    modes = enumerate((*MODES, "full"))  # each a name of its own: who writes late is told by it
    running = [threading.Thread(target=run, args=(mode,), name=f"{i} commits {mode}") for i, mode in modes]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if found:
        raise found[0]
    work.sync()
    work.close()


def merges(work: Work) -> None:
    db = work.open()
    snapshot = work.step(db.snapshot)
    work.commits(8, ("off", "off", "group"))
    work.flush()
    work.settle()
    if snapshot is not None:
        work.step(lambda: list(snapshot.items()))
        snapshot.close()
    work.commits(8, ("off", "off", "full"))
    work.settle()
    work.close()


def compact(work: Work) -> None:
    db = work.open()
    work.step(db.compact)
    work.commits(6, ("off",))
    work.step(db.compact)
    work.commit("full")
    work.close()


def values(work: Work) -> None:
    db = work.open()
    work.commits(5)
    transaction = work.step(lambda: db.begin(write=True))
    if transaction is not None:
        work.step(lambda: transaction.put(b"aborted", io.BytesIO(bytes(200_000))))
        work.step(transaction.abort)
    work.sync()
    work.step(lambda: [bytes(view) for _, view in db.items(views=True)])
    work.commits(5)
    work.flush()
    work.step(db.compact)
    work.close()


def rotate(work: Work) -> None:
    work.open(memtable_bytes=1 << 17)
    work.commits(30, ("off", "off", "group", "full"))
    work.sync()
    work.commits(10, ("group",))
    work.close()


def read(work: Work) -> None:
    db = work.open(verify="always", auto_merge=False)
    keys = [b"key %03d" % number for number in range(0, 400, 7)]
    work.step(lambda: db.get_many(keys))
    for key in keys[::5]:
        work.step(lambda key=key: db.get(key))
    work.step(lambda: list(db.items(reverse=True)))
    view = work.step(lambda: db.get_view(COUNTER))
    work.step(lambda: list(db.items(views=True, limit=20)))
    work.step(db.verify)
    work.commit("full")
    work.close()
    if view is not None:
        bytes(view)


def look(work: Work) -> None:
    """A reader alone."""
    chosen = Settings(**TINY, readonly=True, debug=work.debug)
    db = work.step(lambda: mmlsm.Database(work.path, chosen, work.system))
    if db is None:
        raise Unopened
    returned = work.ledger.returned
    for _ in range(2):
        work.step(lambda: work.ledger.check(db, returned, returned))
        work.step(lambda: db.get_many([b"key %03d" % number for number in range(0, 400, 7)]))
        work.step(lambda: [bytes(view) for _, view in db.items(views=True)])
        work.step(db.verify)
    work.step(db.close)


# name: (what it does, the file that it begins with, what its commits write)
WORKLOADS: dict[str, tuple[Callable[[Work], None], str, Callable[[int], dict[bytes, bytes | None]]]] = {
    "create": (create, "", small_batch_of),
    "fill": (create, "blank", small_batch_of),
    "replay": (replay, "crashed", small_batch_of),
    "replay large": (replay, "crashed large", large_batch_of),
    "mend": (replay, "torn", small_batch_of),
    "threads": (threads, "", small_batch_of),
    "merges": (merges, "runs", small_batch_of),
    "compact": (compact, "runs", small_batch_of),
    "values": (values, "", large_batch_of),
    "rotate": (rotate, "", small_batch_of),
    "read": (read, "runs", small_batch_of),
    "look": (look, "runs", small_batch_of),
    "look at a log": (look, "crashed large", large_batch_of),
}


def templates(folder: Path) -> dict[str, tuple[Path, int]]:
    """The files that workloads begin with, and how many commits each has."""
    made = {name: (folder / f"{name}.template", 0) for name in ("blank", "crashed", "crashed large", "torn", "runs")}
    made["blank"][0].write_bytes(b"")
    for name, batch in (("crashed", small_batch_of), ("crashed large", large_batch_of)):
        path, work = made[name][0], Work(folder / "making", SYSTEM, Ledger(batch))
        work.open(memtable_bytes=1 << 14 if batch is small_batch_of else 1 << 23)
        work.commits(20, ("full",))
        shutil.copyfile(work.path, path)
        made[name] = path, work.ledger.returned
        work.close()
        work.path.unlink()
    torn = bytearray(made["crashed"][0].read_bytes())
    torn[100:4096] = bytes(3996)
    made["torn"][0].write_bytes(torn)
    made["torn"] = made["torn"][0], made["crashed"][1]
    work = Work(made["runs"][0], SYSTEM, Ledger())
    work.open()
    work.commits(24, ("off",))
    work.db.compact()
    work.close()
    work.open(auto_merge=False)
    work.commits(8, ("off",))
    work.close()
    made["runs"] = work.path, work.ledger.returned
    return made
