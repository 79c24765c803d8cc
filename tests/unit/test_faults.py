"""What injected faults have found, each on its own. The campaign over all calls: tests/stress/test_faults.py."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from commit_rig import eventually
from mmlsm import closing
from mmlsm.file import System, open_file
from mmlsm.format import superblock
from mmlsm.settings import Settings
from mmlsm.write import merge_jobs, merger, writer
from proof import prove
from rig.faults.system import CACHED, LOST, Fault, FaultySystem


class Failing(System):
    """Raises `error` from the named calls while it is set, after as many good ones as `after` says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.names: tuple[str, ...] = ()
        self.after = 0

    def fail(self, error: Exception | None, *names: str, after: int = 0) -> None:
        self.error, self.names, self.after = error, names, after

    def count(self, name: str) -> None:
        if self.error is not None and name in self.names:
            self.after -= 1
            if self.after < 0:
                raise self.error

    def stat(self, fd: int) -> os.stat_result:
        self.count("stat")
        return super().stat(fd)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        self.count("pwrite_durably")
        return super().pwrite_durably(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.count("sync")
        super().sync(fd)

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        self.count("try_lock")
        return super().try_lock(fd, byte, exclusive=exclusive)

    def close(self, fd: int) -> None:
        super().close(fd)
        self.count("close")

    def unlock(self, fd: int, byte: int) -> None:
        self.count("unlock")
        super().unlock(fd, byte)


@pytest.fixture
def system() -> Failing:
    return Failing()


@pytest.fixture
def db(path: Path, system: Failing, proved: Any) -> Any:
    database = mmlsm.Database(path, Settings(debug=True, memtable_bytes=4096), system)
    yield database
    system.fail(None)
    if not database.closed and database._engine.file.failure is None:
        prove(database)
        database.close()


def test_a_size_that_cannot_be_asked_for_is_a_storage_error(db: Any, system: Failing) -> None:
    system.fail(OSError(errno.EIO, "no answer"), "stat")
    with pytest.raises(mmlsm.StorageError, match="the file's size") as caught:
        db.stats()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("name", ["pwrite_durably", "sync"])
def test_a_sync_that_ends_for_want_of_memory_has_failed(path: Path, system: Failing, name: str) -> None:
    with mmlsm.Database(path, Settings(), system) as other:
        other[b"a"] = b"1"
    file = open_file(path, system=system)
    channel = file.channel()
    system.fail(MemoryError(), name)
    with pytest.raises(mmlsm.StorageError, match="unknown until the database is reopened") as caught:
        getattr(channel, name)(*((3 * 4096, b"b") if name == "pwrite_durably" else ()))
    assert caught.value.errno == errno.ENOMEM
    system.fail(None)
    with pytest.raises(mmlsm.ReadOnlyError):
        channel.sync()
    file.close()


@pytest.mark.parametrize("kind", [LOST, CACHED])
@pytest.mark.parametrize("name", ["pwrite_durably", "sync"])
def test_a_channel_learns_what_anothers_sync_lost_before_that_ones_thread_runs_again(
    path: Path, name: str, kind: str
) -> None:
    system = FaultySystem()
    with mmlsm.Database(path, Settings(), system) as other:
        other[b"a"] = b"1"
    file = open_file(path, system=system)
    mine, anothers = file.channel(), file.channel()
    mine.pwrite(3 * 4096, b"mine")
    system.fault = Fault("sync", system.calls["sync"] + 1, kind)
    with pytest.raises(OSError, match="Input/output"):
        system.sync(anothers._descriptor.fd)
    assert file.failure is None, "its thread has not come to tell the others"
    with pytest.raises(mmlsm.StorageError, match="unknown until the database is reopened"):
        getattr(mine, name)(*((4 * 4096, b"b") if name == "pwrite_durably" else ()))
    with pytest.raises(mmlsm.ReadOnlyError):
        anothers.sync()
    file.close()


def test_a_superblock_of_which_one_slot_was_written_makes_the_handle_read_only_whatever_was_raised(
    db: Any, system: Failing
) -> None:
    db[b"a"] = b"1"
    store = db._engine.store
    system.fail(KeyboardInterrupt(), "pwrite_durably", after=1)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), store.install_lock:
        store.write_superblock(db._engine.channel)
    system.fail(None)
    with pytest.raises(mmlsm.ReadOnlyError):
        db[b"a"] = b"2"
    with pytest.raises(mmlsm.Error):
        db.close()


def test_a_sync_that_fails_behind_group_commits_is_told_by_stats_and_by_the_next_commit(path: Path) -> None:
    system = FaultySystem()
    db = mmlsm.Database(path, Settings(durability="group", group_interval=0.001), system)
    db[b"a"] = b"1"
    system.fault = Fault("sync", system.calls["sync"] + 1, "EIO")
    while db._engine.file.failure is None:
        with contextlib.suppress(mmlsm.Error):
            db[b"a"] = b"2"
    for _ in range(3):
        assert "a sync failed" in str(db.stats().flush_error)
        assert db.stats().failure
        with pytest.raises(mmlsm.ReadOnlyError):
            db[b"a"] = b"3"
    with pytest.raises(mmlsm.Error):
        db.close()


def test_what_a_failed_sync_left_in_the_cache_alone_is_not_recovered_from_it(path: Path) -> None:
    system = FaultySystem()
    db = mmlsm.Database(path, Settings(durability="group", group_interval=60), system)
    db[b"small"] = b"1"
    db.sync()
    db[b"large"] = bytes(2 << 20)
    system.fault = Fault("sync", system.calls["sync"] + 1, CACHED)
    with pytest.raises(mmlsm.StorageError, match="unknown until the database is reopened"):
        db.sync()
    with pytest.raises(mmlsm.Error):
        db.close()
    with mmlsm.Database(path, Settings(), system) as db:
        assert list(db) == [b"small"]
        db[b"after"] = b"1"
    path.write_bytes(system.power_cut(path))
    with mmlsm.open(path) as db:
        assert list(db) == [b"after", b"small"]


def test_a_superblock_slot_that_a_failed_sync_left_in_the_cache_alone_is_written_again(path: Path) -> None:
    system = FaultySystem()
    db = mmlsm.Database(path, Settings(), system)
    system.fault = Fault("pwrite_durably", 2, CACHED)
    with pytest.raises(mmlsm.StorageError):
        db[b"a"] = b"1"
    db.close()
    assert len({path.read_bytes()[4096 * slot : 4096 * (slot + 1)] for slot in (0, 1)}) == 1
    with mmlsm.Database(path, Settings(), system):
        left = system.power_cut(path)
        assert left[:4096] == left[4096:8192]


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_slot_that_only_the_cache_has_and_somebody_maps_is_written_first(
    path: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """Mapped pages cannot be dropped from the cache, so the slots seem to agree when the file is opened again."""
    system = FaultySystem()
    db = mmlsm.Database(path, Settings(auto_merge=False), system)
    for i in range(commits):
        db[b"%d" % i] = b""
        db._engine.flush()
    system.fault = Fault("pwrite_durably", system.calls["pwrite_durably"] + 2 + (commits > 0), CACHED)
    with contextlib.suppress(mmlsm.StorageError, mmlsm.ReadOnlyError):
        db[b"a"] = b"1"
        db._engine.flush()
    assert db._engine.file.failure is not None
    with contextlib.suppress(mmlsm.Error):
        db.close()
    system.heal()
    monkeypatch.setattr(system, "drop_cached", lambda *arguments: None)
    medium, cached = (superblocks(image) for image in (system.power_cut(path), path.read_bytes()))
    assert cached[0] == cached[1] == max(medium)
    assert min(medium) == max(medium) - 1

    def check_other(fd: int, data: memoryview, offset: int, write: Any = system.pwrite_durably) -> int:
        if offset < 2 * 4096:  # it goes into a slot
            other = superblocks(system.power_cut(path))[1 - offset // 4096]
            assert other == max(superblocks(path.read_bytes())), "the only copy of the newest is written over"
        return int(write(fd, data, offset))

    with mmlsm.Database(path, Settings(), system) as db:
        monkeypatch.setattr(system, "pwrite_durably", check_other)
        db[b"b"] = b"2"


def superblocks(image: bytes) -> list[int]:
    """The generations in the two slots."""
    return [superblock.decode(image[at : at + 4096], at // 4096).generation for at in (0, 4096)]


@pytest.mark.parametrize("error", [mmlsm.StorageError(errno.ENOMEM, "no map"), MemoryError()])
def test_a_segment_that_cannot_be_opened_is_not_installed(
    db: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    db[b"a"] = b"1"
    engine, generation = db._engine, db.stats().generation

    def fail(record: Any) -> Any:
        raise error

    monkeypatch.setattr(engine.store, "segment_of", fail)
    with pytest.raises(type(error)):
        engine.flush()
    assert db.stats().generation == generation
    assert db[b"a"] == b"1"
    monkeypatch.undo()
    assert eventually(lambda: len(engine.store.state.tables) == 1)
    prove(db)


@pytest.mark.parametrize(("place", "name"), [(writer, "flush"), (merge_jobs, "merge_segments")])
def test_a_thread_that_had_no_memory_says_so_and_tries_again(
    db: Any, place: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    monkeypatch.setattr(merger, "RETRY_S", 0.01)
    db[b"before"] = b"1"
    db._engine.flush()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        db[b"a"] = b"1"
        with pytest.raises(MemoryError):
            db.compact()
        if name == "flush":
            assert db.stats().flush_error == "MemoryError()"
    db[b"a"] = b"2"
    assert eventually(lambda: db._engine.writer.error is None and db._engine.merger.error is None)
    db.compact()
    assert db.stats().flush_error is db.stats().merge_error is None


def test_a_close_without_memory_ends_and_frees_the_writer_lock(
    path: Path, system: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = mmlsm.Database(path, Settings(), system)
    db[b"a"] = b"1"

    def fail(engine: Any) -> None:
        closing.leave_clean(engine)
        raise MemoryError

    steps = [fail if step is closing.leave_clean else step for step in closing.STEPS]
    monkeypatch.setattr(closing, "STEPS", steps)
    with pytest.raises(MemoryError):
        db.close()
    monkeypatch.undo()
    assert db.closed
    with mmlsm.open(path) as again:
        assert again[b"a"] == b"1"


@pytest.mark.parametrize("after", [0, 1])
def test_a_lock_that_could_not_be_asked_for_is_nobodys(path: Path, system: Failing, after: int) -> None:
    system.fail(MemoryError(), "try_lock", after=after)
    with pytest.raises(MemoryError) as caught:
        mmlsm.Database(path, Settings(), system)
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
    del caught


def test_what_cannot_be_unlocked_or_closed_for_want_of_memory_is_let_go(path: Path, system: Failing) -> None:
    db = mmlsm.Database(path, Settings(), system)
    system.fail(MemoryError(), "unlock", "close")
    db.close()
    with mmlsm.open(path) as again:
        assert list(again) == []


