"""Views in forked children: what was viewed at a fork stays as it was until the child has ended (promise 11)."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from file_rig import living_child
from mmlsm.file import FORKS
from mmlsm.settings import Settings

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of fork beside threads
]

SMALL, LARGE = b"v" * 50, bytes(range(256)) * 8192
SETTINGS = Settings(durability="off", memtable_bytes=1 << 16, leaf_bytes=4096)


def contents(letter: bytes) -> dict[bytes, bytes]:
    return {b"%03d" % i: letter * 50 for i in range(200)} | {b"large": letter * len(LARGE)}


@pytest.fixture
def db(path: Path) -> Iterator[mmlsm.Database]:
    with mmlsm.Database(path, SETTINGS) as database:
        database.update({b"%03d" % i: SMALL for i in range(200)} | {b"large": LARGE})
        yield database


def churn(db: mmlsm.Database) -> None:
    """Everything overwritten, and every page used again that may be, and what is at the end cut off."""
    gc.collect()
    for letter in (b"x", b"y", b"z"):
        db.update(contents(letter))
        db.compact()
    for key in contents(b""):
        db.delete(key)
    db.compact()


@contextlib.contextmanager
def child_with(views: Callable[[], list[Any]], want: list[bytes]) -> Iterator[Callable[[], str]]:
    """A child that was forked while there were these views; asked, it says whether they show what they did.

    In the parent nothing refers to them any more.
    """
    made = views()

    def work() -> str:
        return repr([bytes(view) == wanted for view, wanted in zip(made, want, strict=True)])

    with living_child(work) as ask:
        made.clear()
        yield ask


def pinned(db: mmlsm.Database) -> list[int]:
    return [pin.install for pin in db.stats().pins if not pin.current]


def pipes() -> list[str]:
    """The pipes that this process has an end of."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name for name in found if name.startswith("pipe:"))


def wait_until(reached: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while not reached() and time.monotonic() < until:
        time.sleep(0.01)
    return reached()


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("way", ["database", "snapshot", "items", "slice"])
def test_views_of_a_child_show_what_they_did_whatever_the_parent_does(
    db: mmlsm.Database, way: str, flushed: bool
) -> None:
    if flushed:
        db._engine.flush()

    def views() -> list[Any]:
        if way == "items":
            pairs = dict(db.items(views=True))
            return [pairs[b"100"], pairs[b"large"]]
        with db.snapshot() as snapshot:
            reader: Any = snapshot if way == "snapshot" else db
            found = [reader.get_view(b"100"), reader.get_view(b"large")]
        return [view[10:30] for view in found] if way == "slice" else found

    want = [SMALL[10:30], LARGE[10:30]] if way == "slice" else [SMALL, LARGE]
    with child_with(views, want) as ask:
        churn(db)
        assert ask() == "[True, True]"
        if flushed:
            assert len(pinned(db)) == 1, "stats() shows what a child holds"
    churn(db)
    assert wait_until(lambda: not pinned(db)), "the child has ended"


def test_children_of_children_count(db: mmlsm.Database) -> None:
    db._engine.flush()

    def views() -> list[Any]:
        return [db.get_view(b"100")]

    made = views()
    read, write = os.pipe()
    asked, ask = os.pipe()
    child = os.fork()
    if not child:
        if not os.fork():
            os.read(asked, 1)
            os.write(write, bytes(made[0]))
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    del made
    churn(db)
    os.write(ask, b"!")
    assert os.read(read, 100) == SMALL
    assert os.read(read, 100) == b"", "the grandchild has ended"
    churn(db)
    assert wait_until(lambda: not pinned(db))
    for fd in (read, asked, ask):
        os.close(fd)


def test_views_of_a_reader_and_past_close(path: Path, db: mmlsm.Database) -> None:
    """A parent that has closed still pins for its children; the next writer lets go once they have ended."""
    db.close()
    reader = mmlsm.open(path, readonly=True)

    def views() -> list[Any]:
        return [reader.get_view(b"100"), reader.get_view(b"large")]

    with child_with(views, [SMALL, LARGE]) as ask:
        reader.close()
        with mmlsm.Database(path, SETTINGS) as after:
            churn(after)
            assert after._engine.file.pins_elsewhere()
            assert ask() == "[True, True]"
    with mmlsm.Database(path, SETTINGS) as after:
        assert not after._engine.file.pins_elsewhere()


def test_a_child_without_views_holds_nothing(db: mmlsm.Database) -> None:
    db._engine.flush()
    assert db[b"100"] == SMALL
    with living_child(str):
        assert not FORKS._held
        churn(db)
        assert not pinned(db)


def test_no_descriptors_are_left_of_children_that_have_ended(db: mmlsm.Database) -> None:
    db._engine.flush()
    view, before = db.get_view(b"100"), pipes()
    for _ in range(30):
        with living_child(str):
            pass
    churn(db)
    assert wait_until(lambda: not FORKS._held)
    assert pipes() == before
    assert view == SMALL


def test_where_there_is_no_descriptor_for_a_pipe_it_is_held_all_the_same(
    db: mmlsm.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db._engine.flush()

    def refuse() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(FORKS, "_pipe", refuse)
    monkeypatch.setattr(FORKS, "_held_for_good", [])
    with child_with(lambda: [db.get_view(b"100")], [SMALL]) as ask:
        churn(db)
        assert ask() == "[True]"
    assert len(pinned(db)) == 1
