"""Readers wait for nobody (promise 5): whoever stands still in the operating system, each read is answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from commit_rig import eventually
from mmlsm.settings import Durability, Settings
from standstill_rig import COMMITTER, PATIENCE_S, Standstill, standing_still

WRITER, MERGER = "mmlsm-writer", "mmlsm-merge"

Pairs = dict[bytes, bytes]
NEW = {b"001": b"new", b"new": b"n" * 20_000}


def filled(path: Path, system: Standstill, **settings: Any) -> tuple[mmlsm.Database, Pairs]:
    """With a bottom, a newer run, large values in both, and a memtable; what it holds. Nothing goes on by itself."""
    options = {"durability": "group", "group_interval": 1000, "auto_merge": False, "log_extent_bytes": 4096, **settings}
    db = mmlsm.Database(path, Settings(leaf_bytes=4096, node_entries_max=8, **options), system)
    pairs: Pairs = {}
    for layer in range(1, 4):
        more = {b"%03d" % i: b"%d" % layer * 50 for i in range(0, 120, layer)}
        more |= {b"large": b"%d" % layer * (2 << 20), b"large %d" % layer: b"%d" % layer * (1 << 20)}
        db.update(more)
        pairs |= more
        if layer < 3:
            db._engine.flush()
    return db, dict(sorted(pairs.items()))


def flush(db: mmlsm.Database) -> None:
    db._engine.flush()


def cursor_of(reader: Any) -> Pairs:
    with reader.cursor() as cursor:
        return dict(cursor)


def streamed(reader: Any, key: bytes) -> bytes:
    with reader.open_value(key) as stream:
        return bytes(stream.read())


def read_in_every_way(reader: Any, want: Pairs, told: list[str]) -> None:
    """Each call answers, and rightly; `told` says which is asked."""
    keys, pairs = list(want), list(want.items())
    answers: dict[str, tuple[Callable[[], object], object]] = {
        "get": (lambda: [reader.get(key) for key in keys], list(want.values())),
        "get_many": (lambda: reader.get_many(keys), list(want.values())),
        "get_view": (lambda: {key: bytes(reader.get_view(key)) for key in keys}, want),
        "open_value": (lambda: {key: streamed(reader, key) for key in keys if key > b"l"},
                       {key: value for key, value in pairs if key > b"l"}),
        "value_length": (lambda: reader.value_length(b"large"), 2 << 20),
        "in": (lambda: [key in reader for key in (*keys[:5], b"not there", b"new")],
               [True] * 5 + [False, b"new" in want]),
        "items": (lambda: list(reader.items()), pairs),
        "views": (lambda: {key: bytes(view) for key, view in reader.items(views=True)}, want),
        "reversed": (lambda: list(reader.items(reverse=True)), pairs[::-1]),
        "cursor": (lambda: cursor_of(reader), want),
        "first, last": (lambda: (reader.first(), reader.last()), (pairs[0], pairs[-1])),
        "floor, higher": (lambda: (reader.floor(b"000~"), reader.higher(b"000")), (pairs[0], pairs[1])),
        "count": (lambda: (len(reader), reader.count(b"000", b"100")), (len(want), 100)),
    }  # fmt: skip
    for name, (ask, answer) in answers.items():
        told.append(f"{type(reader).__name__}: {name}")
        assert ask() == answer, told[-1]


def read_all(readers: dict[Any, Pairs]) -> None:
    """Everything of each reader, in a thread of its own; AssertionError when one waits, or answers wrong."""
    told: list[str] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for reader, want in readers.items():
                read_in_every_way(reader, want, told)
                for make in (reader.snapshot, reader.begin) if isinstance(reader, mmlsm.Database) else ():
                    told.append(make.__name__)
                    with make() as made:
                        read_in_every_way(made, want, told)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read, name="reader", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), f"{told[-1]} waits"
    if errors:
        raise errors[0]


def is_whole(db: mmlsm.Database, path: Path, want: Pairs) -> None:
    """It all goes on: the answers are right, also after a close and for who opens it next."""
    read_all({db: want})
    db.close()
    with mmlsm.open(path) as again:
        assert dict(again.items()) == want


@pytest.mark.parametrize(
    ("thread", "method", "what"),
    [
        pytest.param(WRITER, "pwrite", flush, id="a flush's write"),
        pytest.param(WRITER, "sync", flush, id="a flush's sync"),
        pytest.param(WRITER, "pwrite_durably", flush, id="a flush's superblock"),
        pytest.param(MERGER, "pwrite", mmlsm.Database.compact, id="a merge's write"),
        pytest.param(MERGER, "sync", mmlsm.Database.compact, id="a merge's sync"),
        pytest.param(MERGER, "pwrite_durably", mmlsm.Database.compact, id="a merge's superblock"),
        pytest.param(MERGER, "truncate", mmlsm.Database.compact, id="the cut of the file's tail"),
        pytest.param(COMMITTER, "sync", mmlsm.Database.sync, id="sync()"),
    ],
)
def test_readers_wait_for_no_flush_merge_or_sync_that_stands_still(
    path: Path, thread: str, method: str, what: Callable[[mmlsm.Database], object]
) -> None:
    system = Standstill()
    db, want = filled(path, system)
    older = db.snapshot()
    with standing_still(system, thread, method, lambda: what(db)):
        read_all({older: want, db: want})
    is_whole(db, path, want)


@pytest.mark.parametrize(
    ("method", "before", "durability"),
    [
        pytest.param("pwrite_durably", "full", "full", id="full"),
        pytest.param("sync", "group", "full", id="full behind what is not synced"),
        pytest.param("pwrite", "group", "group", id="group"),
        pytest.param("allocate", "group", "group", id="the log's growth"),
    ],
)
def test_readers_wait_for_no_commit_that_stands_still(
    path: Path, method: str, before: str, durability: Durability
) -> None:
    """Who leads a group holds nothing that they need, and they see nothing of it until it is published."""
    system = Standstill()
    db, want = filled(path, system, durability=before)
    older = db.snapshot()
    with standing_still(system, COMMITTER, method, lambda: db._engine.commit(dict(NEW), durability)):
        read_all({older: want, db: want})
    is_whole(db, path, dict(sorted((want | NEW).items())))


def test_readers_wait_for_no_interval_sync_that_stands_still(path: Path) -> None:
    system = Standstill()
    db, want = filled(path, system, group_interval=0.01)
    older, now = db.snapshot(), dict(sorted((want | NEW).items()))
    with standing_still(system, WRITER, "sync", lambda: db.update(NEW)):
        assert eventually(lambda: b"new" in db, PATIENCE_S), "the commit itself waits for the sync"
        read_all({older: want, db: now})
    is_whole(db, path, now)
