"""Flushes and installs beside commits and each other: none is lost to another, none comes too early."""

from __future__ import annotations

import errno
import gc
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from commit_rig import eventually, in_threads
from mmlsm.file import System
from mmlsm.format.superblock import Superblock
from mmlsm.limits import HEADER_PAGES, PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.store import Edit

PATIENCE_S = 20
GROWTH_PAGES = 24 << 18
"""24 GiB: the bitmap pages of so much are more than a page of a manifest names."""


def unchanged(levels: Any, number: int) -> Any:
    return levels


def test_one_install_waits_for_the_other(open_db: Any) -> None:
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store = db._engine.store
    before = store.manifest.install
    inside, go = threading.Event(), threading.Event()

    def slow(levels: Any, number: int) -> Any:
        inside.set()
        go.wait(0.5)  # the other has no other way in than to come in between
        return levels

    numbers: list[int] = []

    def install(change: Any) -> None:
        if change is unchanged:
            assert inside.wait(PATIENCE_S)
        numbers.append(store.install(store.file.channel(), Edit(change)))
        go.set()

    in_threads(lambda: install(slow), lambda: install(unchanged))
    assert sorted(numbers) == [before + 1, before + 2]
    assert db[b"a"] == b"1"


def test_an_install_that_fails_gives_its_own_pages_back(open_db: Any) -> None:
    """I3 of write/store.py, wherever it fails before the superblock."""
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store, full = db._engine.store, mmlsm.StorageError(errno.ENOSPC, "no space")
    before = store.allocator.counts().reserved
    for writes in range(3):
        channel = store.file.channel()
        outcomes = iter([None] * writes)
        plain, sync = channel.pwrite, channel.sync
        channel.pwrite = lambda *a, plain=plain, outcomes=outcomes: plain(*a, *fail_after(outcomes, full))
        channel.sync = lambda sync=sync, outcomes=outcomes: sync(*fail_after(outcomes, full))
        with pytest.raises(mmlsm.StorageError):
            store.install(channel, Edit(unchanged))
        assert store.allocator.counts().reserved == before, f"after {writes} writes"
    assert store.install(store.file.channel(), Edit(unchanged)) == store.manifest.install


@pytest.mark.parametrize("where", ["mmlsm.write.store.replace", "mmlsm.write.store.Superblock.encode"])
def test_an_install_without_memory_for_its_superblock_gives_its_own_pages_back(
    open_db: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store, plain = db._engine.store, replace
    before = store.allocator.counts().reserved

    def no_memory(what: Any, **changes: Any) -> Any:
        if isinstance(what, Superblock):
            raise MemoryError
        return plain(what, **changes)

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(where, no_memory)
            with pytest.raises(MemoryError):
                store.install(store.file.channel(), Edit(unchanged))
        assert store.allocator.counts().reserved == before
    assert store.install(store.file.channel(), Edit(unchanged)) == store.manifest.install
    assert eventually(lambda: store.reclaimer.pinned() == [store.manifest.install])


def test_a_version_that_an_install_made_in_vain_is_unpinned_though_it_was_made_again(open_db: Any) -> None:
    """The install is tried again under the same number while an error's traceback still holds what it made before."""
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store, plain = db._engine.store, db._engine.store._switch

    def in_vain(*_: Any) -> None:
        raise MemoryError

    store._switch = in_vain
    with pytest.raises(MemoryError) as caught:
        store.install(store.file.channel(), Edit(unchanged))
    store._switch = plain
    number = store.install(store.file.channel(), Edit(unchanged))
    del caught
    gc.collect()
    store.install(store.file.channel(), Edit(unchanged))
    assert eventually(lambda: store.reclaimer.pinned() == [number + 1])
    (segment,) = store.segments.values()
    assert segment.lock.shared_count == 1


def test_a_file_that_grows_much_while_a_manifest_is_made_gets_a_larger_one(
    open_db: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes large values reserves without the install lock; here so much, twice, that a page is not enough."""
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store = db._engine.store
    plain, calls, growth = store._manifest_pages, itertools.count(), []

    def manifest_pages(*arguments: Any, **how: Any) -> int:
        pages = plain(*arguments, **how)
        if next(calls) in (0, 2):  # the first place, and that which takes its place
            growth.append(store.allocator.reserve(GROWTH_PAGES))
        return int(pages)

    db[b"b"] = b"2"
    with monkeypatch.context() as patch:
        patch.setattr(store, "_manifest_pages", manifest_pages)
        db._engine.flush()
    assert len(growth) == 2
    assert store.superblock.manifest.pages == 3
    for extent in growth:
        store.allocator.give_back(extent)
    db[b"c"] = b"3"
    db.compact()
    assert dict(db.items()) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert (store.superblock.manifest.pages, path.stat().st_size < 1 << 20) == (1, True)


def fail_after(outcomes: Iterator[None], error: Exception) -> tuple[()]:
    """Nothing, as long as there are outcomes; then the error."""
    for _ in outcomes:
        return ()
    raise error


def test_a_memtable_that_is_sealed_during_an_install_is_not_lost(open_db: Any, monkeypatch: Any) -> None:
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    engine = db._engine
    sealed = threading.Event()

    def seal() -> None:
        with engine.committer.order_lock:
            engine._seal()
        sealed.set()

    class Tables:
        """What an install asks for each memtable: a seal of another thread comes in between, if it can."""

        def __iter__(self) -> Iterator[Any]:
            thread = threading.Thread(target=seal)
            thread.start()
            thread.join(0.2)
            return iter(())

    edit = Edit(unchanged)
    edit.without_tables = Tables()  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(engine.writer, "flush_sealed", lambda: None)  # what is sealed stays in memory
        engine.store.install(engine.store.file.channel(), edit)
        assert sealed.wait(PATIENCE_S)
        tables = engine.store.state.tables
        if tables[0] is not engine.committer.memtable:  # else close() would wait for it for ever
            engine.store.set_state((engine.committer.memtable, *tables), engine.store.state.version)
        assert len(tables) == 2
    db[b"b"] = b"2"
    assert dict(db.items()) == {b"a": b"1", b"b": b"2"}


class Gated(System):
    """Writes to the log wait for `go`; all writes fail with `refusal`, when there is one."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.refusal: OSError | None = None

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if self.refusal is not None:
            raise self.refusal
        return super().pwrite(fd, data, offset)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        if offset >= HEADER_PAGES * PAGE_BYTES:
            self.reached.set()
            assert self.go.wait(PATIENCE_S)
        return super().pwrite_durably(fd, data, offset)


def test_what_is_not_yet_published_is_not_flushed(path: Path) -> None:
    """R7: a commit that waits for its sync is in a memtable that is full; readers see it when it is durable."""
    system = Gated()
    db = mmlsm.Database(path, Settings(durability="off", memtable_bytes=4096, debug=True), system)
    db[b"first"] = b"1"
    db.sync()
    system.reached.clear()
    system.go.clear()
    full = threading.Thread(target=db._engine.commit, args=({b"full": b"2"}, "full"), daemon=True)
    full.start()
    assert system.reached.wait(PATIENCE_S)
    later = threading.Thread(target=db.put, args=(b"off", bytes(5000)), daemon=True)
    later.start()
    try:
        for _ in range(20):
            assert (db.get(b"full"), db.get(b"off")) == (None, None)
            assert list(db) == [b"first"]
            time.sleep(0.005)
    finally:
        system.go.set()
    full.join(PATIENCE_S)
    later.join(PATIENCE_S)
    assert list(db) == [b"first", b"full", b"off"]
    db.close()


def test_who_waits_for_a_flush_is_told_that_it_fails(path: Path) -> None:
    system = Gated()
    db = mmlsm.Database(path, Settings(durability="off", auto_merge=False), system)
    db[b"a"] = bytes(5000)
    db.sync()
    told: list[BaseException] = []

    def flush() -> None:
        try:
            db._engine.flush()
        except BaseException as error:
            told.append(error)

    system.refusal = OSError(errno.ENOSPC, "no space")
    waiting = threading.Thread(target=flush)
    waiting.start()
    waiting.join(10)
    system.refusal = None
    waiting.join(PATIENCE_S)
    assert [type(error) for error in told] == [mmlsm.StorageError]
    db.close()


def test_a_version_that_cannot_be_entered_holds_no_lock_of_its_segments(
    open_db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store = db._engine.store
    (segment,) = store.segments.values()
    assert eventually(lambda: store.reclaimer.pinned() == [store.manifest.install])
    held, pinned = segment.lock.shared_count, store.reclaimer.pinned()

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("mmlsm.write.store.entry_of", no_memory)
        with pytest.raises(MemoryError):
            store.install(store.file.channel(), Edit(unchanged))
    assert (segment.lock.shared_count, store.reclaimer.pinned()) == (held, pinned)
    assert store.install(store.file.channel(), Edit(unchanged)) == store.manifest.install
    assert db[b"a"] == b"1"
