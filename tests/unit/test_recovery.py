"""Durability and recovery: what a copy of the file at any moment opens to; calls that fail; syncs that are demanded."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.file import System
from mmlsm.format.manifest import Retirement
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent
from mmlsm.write.recovery import still_retired


def copy_of(db: mmlsm.Database, to: Path) -> Path:
    """The file as a kill would leave it now."""
    with db._engine.store.install_lock:
        shutil.copyfile(db.path, to)
    return to


@pytest.mark.parametrize("durability", ["full", "group"])
def test_a_commit_that_returned_survives_a_kill(path: Path, durability: str) -> None:
    copy = path.with_name("copy.db")
    with mmlsm.Database(path, Settings(durability=durability, memtable_bytes=8192)) as db:  # type: ignore[arg-type]
        for i in range(60):
            db.put(b"%02d" % i, bytes(i * 20))
            if i % 7 == 0:
                db.put(b"large", io.BytesIO(bytes([i]) * 200_000))
            if i % 20 == 0:
                db._engine.flush()
            proof.prove_file(copy_of(db, copy))
            with mmlsm.open(copy) as again:
                assert dict(again.items()) == dict(db.items())
                assert again.seq >= db.seq


def test_commits_that_were_not_synced_are_lost_from_the_end_only(path: Path) -> None:
    copy = path.with_name("copy.db")
    with mmlsm.Database(path, Settings(durability="off")) as db:
        synced = 0
        for i in range(300):
            with db.batch() as batch:
                batch.put(b"n", b"%d" % (i + 1))
                batch.put(b"%03d" % i, bytes(50))
            if i % 50 == 30:
                db.sync()
                synced = i + 1
            if i % 10 == 0:
                with mmlsm.open(copy_of(db, copy)) as again:
                    n = int(again.get(b"n", b"0"))
                    assert synced <= n <= i + 1
                    assert len(again) == n + (n > 0)


@pytest.mark.parametrize("there", [0, 1, 3])
def test_a_link_may_outlive_the_growth_for_its_extent(path: Path, there: int) -> None:
    """Link and size were not synced: the size may be lost alone, and the log ends where the file does."""
    copy = path.with_name("copy.db")
    with mmlsm.Database(path, Settings(durability="off", log_extent_bytes=4 * PAGE_BYTES)) as db:
        for i in range(100):
            db.put(b"%03d" % i, bytes(500))
        db.sync()
        committer = db._engine.committer
        assert committer is not None
        linked = committer.log.extents[1]
        with open(copy_of(db, copy), "r+b") as file:
            file.truncate((linked.first + there) * PAGE_BYTES)
    proof.prove_file(copy)
    with mmlsm.open(copy) as again:
        assert list(again) == [b"%03d" % i for i in range(len(again))]
        assert len(again) >= 25 + 5 * there
        again[b"more"] = b"1"
        proof.prove(again)


def test_no_seq_is_given_twice_across_a_kill(path: Path) -> None:
    copy = path.with_name("copy.db")
    seqs: list[int] = []
    shutil.rmtree(path, ignore_errors=True)
    for life in range(5):
        with mmlsm.Database(path, Settings(durability="off")) as db:
            for i in range(3):
                db.put(b"%d" % i, b"%d" % life)
                seqs.append(db.seq)
            if life % 2:
                db.sync()
            copy_of(db, copy)
        shutil.move(copy, path)
    assert seqs == sorted(set(seqs))


def test_the_tail_of_the_log_cut_anywhere_gives_a_prefix(path: Path) -> None:
    """Recovery believes a record only as far as its sums: any cut, any changed byte, ends the log there.

    In `full` a changed byte before the last record is damage, for the next record says so: test_log_damage.py.
    """
    copy = path.with_name("copy.db")
    with mmlsm.Database(path, Settings(durability="group", group_interval=60)) as db:
        for i in range(12):
            db.put(b"%02d" % i, b"v%d" % i * 30)
        log = db._engine.committer.log
        start, end = log.extents[0].first * PAGE_BYTES, log.position.offset
        copy_of(db, copy)
    whole = copy.read_bytes()
    rng = random.Random(1)
    lengths = set()
    for _ in range(60):
        at = rng.randrange(start, end)
        damaged = bytearray(whole)
        if rng.random() < 0.5:
            damaged[at] ^= 0x40
        else:
            damaged[at:end] = bytes(end - at)
        copy.write_bytes(damaged)
        with mmlsm.open(copy) as db:
            keys = list(db)
            assert keys == [b"%02d" % i for i in range(len(keys))]
            assert all(db[key] == b"v%d" % int(key) * 30 for key in keys)
            db[b"new"] = b"after"
        with mmlsm.open(copy) as db:
            assert list(db) == [*keys, b"new"], "no record of the earlier life comes back"
            assert proof.prove(db).log == 0
        lengths.add(len(keys))
    assert len(lengths) > 4


def test_the_log_ends_before_a_commit_whose_large_value_was_lost(path: Path) -> None:
    """R2: in `group` a record may have come through a power cut without the extent that it names."""
    copy, large = path.with_name("copy.db"), random.Random(1).randbytes(200_000)
    with mmlsm.Database(path, Settings(durability="group", group_interval=60)) as db:
        db[b"before"] = b"1"
        db.put(b"large", io.BytesIO(large))
        db[b"after"] = b"3"
        copy_of(db, copy)
    data = copy.read_bytes()
    at = data.index(large[65_536:131_072])
    copy.write_bytes(data[:at] + bytes(PAGE_BYTES) + data[at + PAGE_BYTES :])
    with mmlsm.open(copy) as db:
        assert dict(db.items()) == {b"before": b"1"}
        proof.prove(db)


def test_recovery_is_repeated_until_it_is_durable(path: Path) -> None:
    """A copy of the log, opened and killed at once, again and again, loses nothing."""
    copy = path.with_name("copy.db")
    want = {b"%03d" % i: bytes(i) for i in range(100)}
    with mmlsm.Database(path, Settings(durability="full")) as db:
        db.update(want)
        copy_of(db, copy)
    for _ in range(4):
        with mmlsm.open(copy, readonly=True) as reader:
            assert dict(reader.items()) == want
        db = mmlsm.open(copy)
        assert dict(db.items()) == want
        other = copy_of(db, path.with_name("other.db"))
        db.close()
        shutil.move(other, copy)
    proof.prove_file(copy)


def test_one_superblock_is_enough_and_the_other_is_mended(path: Path) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
    for slot in (0, 1, 0):
        data = bytearray(path.read_bytes())
        data[slot * PAGE_BYTES + 64] ^= 0xFF
        path.write_bytes(data)
        with mmlsm.open(path, readonly=True) as db:
            assert db[b"a"] == b"1"
        assert path.read_bytes() == bytes(data)
        with mmlsm.open(path) as db:
            assert db[b"a"] == b"1"
        data = bytearray(path.read_bytes())
        assert data[:512] == data[PAGE_BYTES : PAGE_BYTES + 512]


class Noting(System):
    """Notes what is done to the file, and refuses what it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.refuse: dict[str, OSError] = {}

    def note(self, name: str, offset: int = -1) -> None:
        self.calls.append((name, offset))
        if name in self.refuse:
            raise self.refuse[name]

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self.note("write", offset)
        return super().pwrite(fd, data, offset)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        self.note("durable", offset)
        return super().pwrite_durably(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.note("sync")
        super().sync(fd)


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Noting:
    from mmlsm import engine

    system = Noting()
    plain = engine.open_file
    monkeypatch.setattr(engine, "open_file", lambda *a, **k: plain(*a, **{**k, "system": system}))
    return system


def test_what_each_durability_waits_for(path: Path, noting: Noting) -> None:
    with mmlsm.Database(path, Settings(durability="off", group_interval=60)) as db:
        db[b"first"] = b"begins the log"
        for durability in ("off", "group", "full", "full"):
            noting.calls.clear()
            with db.batch(durability=durability) as batch:  # type: ignore[arg-type]
                batch.put(b"a", b"1")
            names = [name for name, _ in noting.calls]
            if durability == "off":
                assert names == []
            elif durability == "group":
                assert names == ["write"]
            else:  # the first finds what the others left unsynced, the second writes and syncs in one
                assert names[-1] in ("sync", "durable")
                assert "write" not in names or names.index("sync") > names.index("write")
        db[b"b"] = b"2"
        noting.calls.clear()
        db.sync()
        assert "sync" in {name for name, _ in noting.calls}


def test_an_install_syncs_before_each_superblock_and_writes_both(path: Path, noting: Noting) -> None:
    """R1, R8: data, sync, then slot and slot, each durable."""
    db = mmlsm.Database(path, Settings(durability="off", auto_merge=False))
    db[b"a"] = bytes(5000)
    db.sync()
    noting.calls.clear()
    db._engine.flush()
    calls = noting.calls
    slots = [i for i, (name, at) in enumerate(calls) if at in (0, PAGE_BYTES) and name in ("durable", "write")]
    assert {calls[i][1] for i in slots} == {0, PAGE_BYTES}
    for i in slots:
        assert "durable" in calls[i] or ("sync", -1) in calls[i + 1 : i + 2], "each is durable before the next step"
    last_data = max(i for i, (name, at) in enumerate(calls) if name == "write" and at > PAGE_BYTES)
    assert any(name == "sync" for name, _ in calls[last_data : slots[0]]), "the data is synced before it is named"
    db.close()


@pytest.mark.unproved
@pytest.mark.parametrize("what", ["durable", "sync"])
def test_a_failed_sync_is_final(path: Path, noting: Noting, what: str) -> None:
    db = mmlsm.Database(path, Settings(durability="full"))
    db[b"a"] = b"1"
    noting.refuse[what] = OSError(errno.EIO, "bad medium")
    with pytest.raises(mmlsm.StorageError, match="unknown"):  # noqa: PT012
        if what == "sync":
            db.put(b"stream", io.BytesIO(bytes(200_000)))
            db.sync()
        else:
            db[b"b"] = b"2"
    noting.refuse.clear()
    for use in (lambda: db.put(b"c", b"3"), lambda: db.delete(b"a"), db.sync, lambda: db.begin(write=True), db.compact):
        with pytest.raises((mmlsm.ReadOnlyError, mmlsm.StorageError)):
            use()
    assert db[b"a"] == b"1"
    with pytest.raises(mmlsm.Error):
        db.close()
    assert db.closed
    with mmlsm.open(path) as db:
        assert db[b"a"] == b"1"
        db[b"c"] = b"3"
        proof.prove(db)


@pytest.mark.unproved
@pytest.mark.parametrize("thread", ["writer", "merger"])
def test_a_failed_sync_of_another_thread_is_final_for_all(path: Path, noting: Noting, thread: str) -> None:
    """R10: the handle is read-only for everybody, though no commit of ours has failed."""
    db = mmlsm.Database(path, Settings(durability="off", auto_merge=False))
    for _ in range(2):
        db[b"a"] = bytes(5000)
        db._engine.flush()
    if thread == "writer":
        db[b"a"] = b"2"
        db.sync()
    noting.refuse["sync"] = OSError(errno.EIO, "bad medium")
    with pytest.raises(mmlsm.Error):
        db._engine.flush() if thread == "writer" else db.compact()
    noting.refuse.clear()
    for use in (lambda: db.put(b"c", b"3"), lambda: db.begin(write=True), db.compact):
        with pytest.raises(mmlsm.ReadOnlyError, match="reopened"):
            use()
    assert b"a" in db
    with pytest.raises(mmlsm.Error):
        db.close()
    with mmlsm.open(path) as db:
        assert b"a" in db


def test_no_space_for_the_log_is_a_commit_that_did_not_happen(path: Path, noting: Noting) -> None:
    db = mmlsm.Database(path, Settings(durability="off", log_extent_bytes=1 << 16))
    db[b"a"] = b"1"
    full = OSError(errno.ENOSPC, "no space")
    noting.allocate = lambda fd, offset, length: (_ for _ in ()).throw(full)  # type: ignore[method-assign]
    with pytest.raises(mmlsm.StorageError) as caught:  # noqa: PT012
        for i in range(100):
            db.put(b"%d" % i, bytes(100_000))
    assert caught.value.errno == errno.ENOSPC
    there = dict(db.items())
    del noting.allocate
    db[b"b"] = b"2"
    assert dict(db.items()) == there | {b"b": b"2"}
    db.close()
    with mmlsm.open(path) as db:
        assert dict(db.items()) == there | {b"b": b"2"}


def test_a_flush_or_merge_without_space_is_told_and_tried_again(path: Path, noting: Noting) -> None:
    db = mmlsm.Database(path, Settings(durability="off", memtable_bytes=1 << 16, auto_merge=False))
    want = {b"%03d" % i: bytes(100) for i in range(200)}
    db.update(want)
    db.sync()
    noting.refuse["write"] = OSError(errno.ENOSPC, "no space")
    with pytest.raises(mmlsm.StorageError) as caught:
        db._engine.flush()
    assert caught.value.errno == errno.ENOSPC
    assert dict(db.items()) == want
    assert "no space" in (db.stats().flush_error or "")
    noting.refuse.clear()
    db[b"more"] = b"1"
    db.sync()
    db.compact()
    assert db.stats().flush_error is None
    assert dict(db.items()) == want | {b"more": b"1"}
    db.update(want)
    db._engine.flush()
    noting.refuse["write"] = OSError(errno.ENOSPC, "no space")
    reserved = db.stats().space.reserved
    with pytest.raises(mmlsm.StorageError):
        db.compact()
    assert db.stats().space.reserved == reserved, "it gave back what it claimed"
    noting.refuse.clear()
    db.compact()
    assert len(db.stats().segments) == 1
    proof.prove(db)
    db.close()


def test_exit_without_close_is_as_good_as_a_kill(path: Path) -> None:
    child = os.fork()
    if not child:
        try:
            db = mmlsm.open(path)
            db[b"a"] = b"1"
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    proof.prove_file(path)
    with mmlsm.open(path) as db:
        assert db[b"a"] == b"1"


def test_a_reader_holds_the_file_of_a_writer_that_had_reclaimed_and_cut(path: Path, open_db: Any) -> None:
    """The durable manifest still calls retired what is gone, or the log's by now; that is no fault (R13)."""
    copy = path.with_name("copy.db")
    db = open_db(auto_merge=False, durability="full")
    want = {}
    for i in range(6):
        want |= {b"%03d" % k: b"%d" % i * 200 for k in range(400)}
        db.update(want)
        db.compact() if i % 2 else db._engine.flush()
        for extra in range(3):
            db.put(b"log", b"in pages that came back" * 4000 * extra)
        want[b"log"] = db[b"log"]
        copy_of(db, copy)
        with mmlsm.open(copy, readonly=True) as reader:
            assert dict(reader.items()) == want
            assert proof.prove(reader)
            view = reader.get_view(b"000")
            for _ in range(2):
                with mmlsm.open(copy) as writer:
                    assert writer._engine.file.pins_elsewhere()
                    writer.update(dict.fromkeys(want, b"other"))
                    proof.prove(writer)
                    writer.compact()
                    proof.prove(writer)
            assert dict(reader.items()) == want
        assert bytes(view) == want[b"000"]
        del view


def test_what_was_reclaimed_after_the_last_install_is_retired_no_more() -> None:
    """Of a durable retirement: what the file has no longer, and what the log has taken since, is left out."""
    retirements = (Retirement(1, 2, ((10, 5), (50, 4), (90, 10))), Retirement(2, 2, ((97, 3),)))
    root: Any = SimpleNamespace(bits=Bitmap(100), manifest=SimpleNamespace(retired=retirements))
    replay: Any = SimpleNamespace(log_extents=[Extent(12, 2)], value_extents=[Extent(50, 4)])
    assert still_retired(root, replay, 95) == (Retirement(1, 2, ((10, 2), (14, 1), (90, 5))),)
    nothing: Any = SimpleNamespace(log_extents=[], value_extents=[])
    assert still_retired(root, nothing, 100) == retirements
