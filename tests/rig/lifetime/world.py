"""What the tests of misuse and lifetime share: one small database, its calls, and what the process holds."""

from __future__ import annotations

import gc
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmlsm
import proof
from commit_rig import eventually, in_threads
from mmlsm.file import SYSTEM, System
from mmlsm.settings import Settings

TINY = {"memtable_bytes": 1 << 16, "leaf_bytes": 4096, "node_entries_max": 8, "log_extent_bytes": 4096}

LARGE = 3 << 20
"""Bytes of a value that goes to an extent of its own."""
EXTENT_LEAST = 1 << 20
"""The fewest that do."""

State = dict[bytes, bytes]
Write = Callable[[State], Callable[[], object]]


def tiny(path: Path, system: System = SYSTEM, **settings: Any) -> mmlsm.Database:
    """A database with small parts, whose commits wait for no disk unless it is asked for."""
    return mmlsm.Database(path, Settings(**{"durability": "off", **TINY, **settings}), system)


def filled(path: Path, system: System = SYSTEM, **settings: Any) -> mmlsm.Database:
    """That, with pairs in a segment, in the memtable, and a large value."""
    db = tiny(path, system, **settings)
    db.update({b"%03d" % i: b"v" * 50 for i in range(60)} | {b"a": b"1"})
    db.put(b"large", bytes(2 << 20))
    db._engine.flush()
    db[b"b"] = b"2"
    return db


def killed(db: mmlsm.Database) -> None:
    """End its threads and give up its file without a word to it, as a kill does."""
    engine = db._engine
    engine.abandon()
    engine.writer.wait_until_over()
    engine.merger.wait_until_over()


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def maps_of(path: Path) -> int:
    """How many maps of this file the process has."""
    name = os.path.realpath(path)
    with open("/proc/self/maps") as maps:
        return sum(1 for line in maps if line.rstrip().removesuffix(" (deleted)").endswith(name))


def of_mmlsm() -> list[str]:
    """The names of its threads that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mmlsm")]


def open_anew(path: Path, answers: Any) -> None:
    """In a child of multiprocessing: open for reading beside the parent's writer; a second writer is refused."""
    try:
        mmlsm.open(path)
    except mmlsm.LockedError as error:
        answers.put(error.pid)
    with mmlsm.open(path, readonly=True) as db:
        answers.put(db[b"a"])


class World:
    """One open database and what it must hold, beside operations that may be cut off at any step."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.settings = settings
        self.db = tiny(path, **settings)
        self.number = 0
        self.state: State = {b"%03d" % i: b"v" * 50 for i in range(60)}
        self.db.update(self.state)
        self.db._engine.flush()
        self.db[b"recent"] = self.state[b"recent"] = b"1"
        self.db.sync()

    def next_value(self) -> bytes:
        """A value that no other has."""
        self.number += 1
        return b"value %d" % self.number

    def settle(self, after: State) -> None:
        """The state is as before or as `after`, once what was ordered is written; it is so from now on."""
        in_threads(self.db.sync, timeout=30)
        there = dict(self.db.items())
        assert there in (self.state, after), "half of a commit is there"
        self.state = there

    def look(self, after: State) -> bool:
        """What was done is there or not, and all goes on, or it was opened anew as it asks for: whether it was."""
        db, engine = self.db, self.db._engine
        if not engine.closed and (engine.closing_step or (engine.committer and engine.committer.closing)):
            db.close()  # it was cut off more than once, and goes on
        failed = engine.file.failure or (engine.committer and engine.committer.failure)
        if not (db.closed or failed):
            self.settle(after)
            self.is_well()
            return False
        if not db.closed:
            killed(db)
        self.db = tiny(self.path, **self.settings)
        there = dict(self.db.items())
        wrong = sorted(key for key, _ in there.items() ^ self.state.items())
        assert there in (self.state, after), f"half of a commit is there after the reopening: {wrong[:5]} differ"
        self.state = there
        return True

    def is_well(self) -> None:
        """Other threads and this one can do everything; nothing is pinned that nobody holds."""
        db, key, value = self.db, b"after", self.next_value()

        def others() -> None:
            with db.begin(write=True, timeout=20) as transaction:
                transaction.put(key, value)
            db.put(key, value)
            assert db.get(key) == value
            db.sync()
            with db.snapshot() as snapshot:
                assert snapshot[key] == value

        in_threads(others, timeout=30)
        db.put(key, value)
        self.state[key] = value
        # Of an extent that was given back and is still referred to, the next one would take the pages.
        db.put(b"after large", large := value.ljust(EXTENT_LEAST, b"."))
        self.state[b"after large"] = large
        db.sync()  # else what comes next may end the handle, and these with it: they are `off`

    def is_sound(self, *, pins: bool = True) -> None:
        """That, a flush, a merge, a proof; and with `pins` none but the newest."""
        self.is_well()
        db = self.db
        in_threads(db._engine.flush, timeout=30)
        in_threads(db.compact, timeout=60)
        proof.prove(db)
        assert dict(db.items()) == self.state
        gc.collect()
        if not pins:
            return

        def unpinned() -> bool:
            stats = db.stats()
            return stats.snapshots == 0 and [pin.install for pin in stats.pins] == [stats.install]

        assert eventually(unpinned, 20), (db.stats().pins, db.stats().snapshots, db.stats().install)

    def drop(self) -> None:
        """Let go of the database without a word to the file, as a kill does, and open it again."""
        killed(self.db)
        self.db = tiny(self.path, **self.settings)
        assert dict(self.db.items()) == self.state

    def reopen(self) -> None:
        """Close, look at the file, open again."""
        if not self.db.closed:
            self.db.close()
        proof.prove_file(self.path)
        self.db = tiny(self.path, **self.settings)
        assert dict(self.db.items()) == self.state


def writes(world: World) -> dict[str, Write]:
    """For each writing call: given the state, which it changes to what is to be afterwards, the call to make."""
    return simple_writes(world) | compound_writes(world)


def simple_writes(world: World) -> dict[str, Write]:
    """Calls that write one key."""

    def put(state: State) -> Callable[[], object]:
        state[b"a"] = value = world.next_value()
        return lambda: world.db.put(b"a", value)

    def put_full(state: State) -> Callable[[], object]:
        state[b"a"] = value = world.next_value()

        def call() -> None:
            with world.db.batch(durability="full") as batch:
                batch.put(b"a", value)

        return call

    def put_large(state: State) -> Callable[[], object]:
        state[b"large"] = value = world.next_value() * (LARGE // 9)
        return lambda: world.db.put(b"large", value)

    def put_stream(state: State) -> Callable[[], object]:
        state[b"stream"] = value = world.next_value() * (LARGE // 9)
        return lambda: world.db.put(b"stream", io.BytesIO(value))

    def delete(state: State) -> Callable[[], object]:
        key = min(state)
        del state[key]
        return lambda: world.db.delete(key)

    def pop(state: State) -> Callable[[], object]:
        key = max((key for key in state if key < b"a"), default=min(state))
        del state[key]
        return lambda: world.db.pop(key)

    def popitem(state: State) -> Callable[[], object]:
        del state[min(state)]
        return lambda: world.db.popitem()

    made = (put, put_full, put_large, put_stream, delete, pop, popitem)
    return {call.__name__: call for call in made}


def compound_writes(world: World) -> dict[str, Write]:
    """Calls that read, or write several."""

    def compare_and_set(state: State) -> Callable[[], object]:
        old = state.get(b"cas")
        state[b"cas"] = value = world.next_value()
        return lambda: world.db.compare_and_set(b"cas", old, value)

    def update(state: State) -> Callable[[], object]:
        value = world.next_value()
        items = {b"%03d" % (i * 7 % 100): value for i in range(15)} | {b"many": value * 1000}
        state.update(items)
        return lambda: world.db.update(items)

    def batch(state: State) -> Callable[[], object]:
        value = world.next_value()
        state[b"b1"] = value
        state[b"b2"] = value * (LARGE // 9)
        state.pop(b"large", None)

        def call() -> None:
            with world.db.batch() as batch:
                batch.put(b"b1", value)
                batch.put(b"b2", value * (LARGE // 9))
                batch.delete(b"large")

        return call

    def transaction(state: State) -> Callable[[], object]:
        value = world.next_value()
        state[b"t1"] = state[b"t2"] = value
        state.pop(b"b1", None)

        def call() -> None:
            with world.db.begin(write=True) as transaction:
                transaction.put(b"t1", value)
                with transaction.savepoint():
                    transaction.put(b"t2", value)
                    transaction.delete(b"b1")
                assert transaction.first() is not None
                assert transaction.cursor().seek(b"t2")

        return call

    def rollback(_state: State) -> Callable[[], object]:
        def call() -> None:
            transaction = world.db.begin(write=True)
            try:
                transaction.put(b"never", b"1")
                transaction.put(b"never large", bytes(LARGE))
            finally:
                transaction.abort()

        return call

    def run(state: State) -> Callable[[], object]:
        state[b"run"] = value = world.next_value()
        return lambda: world.db.run(lambda transaction: transaction.replace(b"run", value))

    made = (compare_and_set, update, batch, transaction, rollback, run)
    return {call.__name__: call for call in made}


def reads(world: World) -> dict[str, Callable[[], object]]:
    """Calls that change nothing."""

    def cursor() -> None:
        with world.db.cursor() as cursor:
            assert cursor.first()
            while cursor.next():
                cursor.item()
            assert cursor.last()
            assert cursor.prev()
            if cursor.seek(b"030", "<"):  # a long storm deletes more than it puts there
                cursor.view.tobytes()

    def snapshot() -> None:
        with world.db.snapshot() as snapshot:
            snapshot.get(b"recent")
            snapshot.last()

    def read_transaction() -> None:
        with world.db.begin() as transaction:
            transaction.get_many([b"000", b"recent"])

    def value_stream() -> None:
        for key in (b"large", b"recent"):
            if (stream := world.db.open_value(key)) is not None:
                stream.read(100_000)
                stream.seek(-10, io.SEEK_END)
                stream.read()

    return {
        "get": lambda: world.db.get(b"030"),
        "get_many": lambda: world.db.get_many([b"%03d" % i for i in range(20)]),
        "get_view": lambda: (world.db.get_view(b"030"), world.db.get_view(b"recent"), world.db.get_view(b"large")),
        "value_stream": value_stream,
        "items": lambda: list(world.db.items(limit=20)),
        "reversed": lambda: list(world.db.items(reverse=True, views=True, limit=20)),
        "cursor": cursor,
        "snapshot": snapshot,
        "read_transaction": read_transaction,
        "floor": lambda: (world.db.floor(b"030"), world.db.higher(b"030"), world.db.first(), world.db.last()),
        "count": lambda: (len(world.db), world.db.count(exact=False), world.db.approximate_size(b"0")),
        "stats": lambda: world.db.stats(),
        "verify": lambda: world.db.verify(),
        "sync": lambda: world.db.sync(),
        "flush": lambda: world.db._engine.flush(),
        "compact": lambda: world.db.compact(),
    }
