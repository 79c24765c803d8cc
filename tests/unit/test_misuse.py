"""Bad input and misuse: a typed error whose text says what to do, and the file untouched."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.format.superblock import decode
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings


def all_reads(reader: Any) -> list[Callable[[], object]]:
    return [
        lambda: reader.get(b"a"),
        lambda: reader[b"a"],
        lambda: b"a" in reader,
        lambda: reader.get_many([b"a"]),
        lambda: reader.get_view(b"a"),
        lambda: reader.open_value(b"a"),
        lambda: reader.value_length(b"a"),
        lambda: list(reader),
        lambda: list(reversed(reader)),
        lambda: len(reader),
        lambda: reader.first(),
        lambda: reader.last(),
        lambda: reader.floor(b"a"),
        lambda: reader.ceiling(b"a"),
        lambda: reader.lower(b"a"),
        lambda: reader.higher(b"a"),
        lambda: list(reader.items()),
        lambda: list(reader.keys()),
        lambda: list(reader.values()),
        lambda: reader.cursor(),
        lambda: reader.count(),
        lambda: reader.count(exact=False),
        lambda: reader.approximate_size(),
    ]


def all_writes(db: Any) -> list[Callable[[], object]]:
    return [
        lambda: db.put(b"a", b"1"),
        lambda: db.__setitem__(b"a", b"1"),
        lambda: db.delete(b"a"),
        lambda: db.__delitem__(b"a"),
        lambda: db.pop(b"a", None),
        lambda: db.popitem(),
        lambda: db.setdefault(b"a", b"1"),
        lambda: db.clear(),
        lambda: db.put_many([(b"a", b"1")]),
        lambda: db.update({b"a": b"1"}),
        lambda: db.compare_and_set(b"a", None, b"1"),
        lambda: db.begin(write=True),
        lambda: db.run(lambda transaction: None),
        lambda: db.compact(),
    ]


def test_everything_on_a_closed_database_says_so(path: Path) -> None:
    db = mmlsm.open(path)
    db[b"a"] = b"1"
    snapshot, cursor, items = db.snapshot(), db.cursor(), db.items()
    iterator, batch = iter(db.items()), db.batch()
    transaction = db.begin()
    batch.put(b"b", b"2")
    db.close()
    others = [
        lambda: db.snapshot(),
        lambda: db.begin(),
        lambda: db.sync(),
        lambda: db.stats(),
        lambda: db.verify(),
        lambda: db.batch(),
        lambda: db.__enter__(),
        lambda: cursor.first(),
        lambda: cursor.seek(b"a"),
        lambda: cursor.valid,
        lambda: list(items),
        lambda: next(iterator),
        lambda: batch.commit(),
    ]
    uses = [*all_reads(db), *all_writes(db), *all_reads(snapshot), *all_reads(transaction), *others]
    for number, use in enumerate(uses):
        with pytest.raises(mmlsm.ClosedError) as caught:
            use()
        assert isinstance(caught.value, ValueError), number
    snapshot.close()
    cursor.close()
    transaction.abort()
    assert bool(db)
    assert db.closed


def test_everything_on_a_closed_snapshot_or_ended_transaction_says_so(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    snapshot = db.snapshot()
    snapshot.close()
    reading, writing = db.begin(), db.begin(write=True)
    reading.abort()
    writing.commit()
    for use in [*all_reads(snapshot), *all_reads(reading), *all_reads(writing)]:
        with pytest.raises(mmlsm.ClosedError):
            use()
    for use in (
        lambda: writing.put(b"a", b"2"),
        lambda: writing.delete(b"a"),
        lambda: writing.commit(),
        lambda: writing.__enter__(),
        lambda: writing.savepoint().__enter__(),
    ):
        with pytest.raises(mmlsm.ClosedError):
            use()
    writing.abort()


def test_keys_and_values_of_the_wrong_kind(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    with db.begin(write=True) as transaction, db.snapshot() as snapshot:
        for reader in (db, snapshot, transaction):
            for key in ("a", 1, None, [1]):
                for use in (
                    lambda r=reader, k=key: r.get(k),
                    lambda r=reader, k=key: r[k],
                    lambda r=reader, k=key: k in r,
                    lambda r=reader, k=key: r.get_many([k]),
                    lambda r=reader, k=key: r.floor(k) if k is not None else r.get(k),
                    lambda r=reader, k=key: list(r.items(k)) if k is not None else r.get(k),
                    lambda r=reader, k=key: list(r.items(prefix=k)) if k is not None else r.get(k),
                ):
                    with pytest.raises(TypeError, match=r"encode\(\)" if key == "a" else "bytes"):
                        use()
        with pytest.raises(TypeError, match=r"encode\(\)"):
            transaction.put("a", b"1")
        with pytest.raises(TypeError, match=r"encode\(\)"):
            transaction.put(b"a", "1")
        transaction.abort()
    for key, value in (("a", b"1"), (1, b"1"), (b"a", "1"), (b"a", 1), (b"a", None), (b"a", [1])):
        with pytest.raises(TypeError, match="bytes"):
            db.put(key, value)
    with db.batch() as batch:
        with pytest.raises(TypeError, match=r"encode\(\)"):
            batch.put("a", b"1")
        with pytest.raises(TypeError, match=r"encode\(\)"):
            batch.delete("a")
    assert list(db.items()) == [(b"a", b"1")]


def test_keys_that_are_too_long(open_db: Any) -> None:
    db = open_db()
    db[bytes(65_535)] = b"the longest"
    long = bytes(65_536)
    for use in (
        lambda: db.put(long, b""),
        lambda: db.delete(long),
        lambda: db.get(long),
        lambda: long in db,
        lambda: db.batch().put(long, b""),
        lambda: db.cursor().seek(long),
    ):
        with pytest.raises(mmlsm.KeySizeError, match="65,535"):
            use()
    assert list(db) == [bytes(65_535)]


@pytest.mark.parametrize(
    "settings",
    [
        {"durability": "sometimes"},
        {"verify": "maybe"},
        {"allocation": "worst"},
        {"leaf_bytes": 5000},
        {"leaf_bytes": 0},
        {"leaf_bytes": 1 << 20},
        {"memtable_bytes": 100},
        {"group_interval": 0},
        {"group_interval": -1.0},
        {"group_interval": float("inf")},
        {"group_interval": float("nan")},
        {"group_interval": 1e10},
    ],
)
def test_settings_that_make_no_sense(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        mmlsm.open(path, **settings)
    assert not path.exists()


def test_writes_to_a_readonly_database(path: Path) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
    before = path.read_bytes()
    with mmlsm.open(path, readonly=True) as db:
        for use in all_writes(db):
            with pytest.raises(mmlsm.ReadOnlyError):
                use()
        assert db.sync() == db.seq
        with db.begin() as transaction, pytest.raises(mmlsm.ReadOnlyError, match="write=True"):
            transaction.put(b"a", b"2")
        for use in all_reads(db):
            use()
    assert path.read_bytes() == before


def test_a_file_that_is_not_ours_is_refused_untouched(path: Path) -> None:
    for content in (b"x", b"SQLite format 3\0" + bytes(8192), os.urandom(5000), b"\1" * 100_000, b"mmlsm"):
        path.write_bytes(content)
        for readonly in (False, True):
            with pytest.raises(mmlsm.FormatError, match="mmlsm database"):
                mmlsm.open(path, readonly=readonly)
            assert path.read_bytes() == content


def with_fields(path: Path, **fields: Any) -> bytes:
    """The database's file with other fields in both superblocks, soundly summed."""
    from dataclasses import replace

    data = bytearray(path.read_bytes())
    for slot in (0, 1):
        block = decode(bytes(data[slot * PAGE_BYTES : (slot + 1) * PAGE_BYTES]), slot)
        data[slot * PAGE_BYTES : (slot + 1) * PAGE_BYTES] = replace(block, **fields).encode()
    return bytes(data)


def test_a_newer_format_is_refused_untouched(path: Path) -> None:
    mmlsm.open(path).close()
    for fields, word in (({"format_version": 2}, "version"), ({"features_incompatible": 1 << 5}, "feature")):
        content = with_fields(path, **fields)
        other = path.with_name("newer.db")
        other.write_bytes(content)
        for readonly in (False, True):
            with pytest.raises(mmlsm.FormatError, match=word):
                mmlsm.open(other, readonly=readonly)
            assert other.read_bytes() == content


def test_a_feature_that_only_readers_understand(path: Path) -> None:
    mmlsm.open(path).close()
    content = with_fields(path, features_readonly_compatible=1 << 3)
    path.write_bytes(content)
    with pytest.raises(mmlsm.FormatError, match="readonly"):
        mmlsm.open(path)
    assert path.read_bytes() == content
    mmlsm.open(path, readonly=True).close()
    path.write_bytes(with_fields(path, features_readonly_compatible=0, features_compatible=1 << 9))
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"


def test_both_superblocks_broken_is_corruption(path: Path) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with mmlsm.open(path) as db:
        assert db[b"a"] == b"1", "one slot is enough"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    data[4096 + 100] ^= 1
    path.write_bytes(data)
    for readonly in (False, True):
        with pytest.raises(mmlsm.CorruptionError):
            mmlsm.open(path, readonly=readonly)
        assert path.read_bytes() == bytes(data)
    data[100] ^= 1
    path.write_bytes(data)


def test_no_file_a_directory_a_pipe_no_folder(tmp_path: Path) -> None:
    with pytest.raises(mmlsm.StorageError, match="create=True"):
        mmlsm.open(tmp_path / "none.db", create=False)
    with pytest.raises(mmlsm.StorageError) as caught:
        mmlsm.open(tmp_path / "none.db", readonly=True)
    assert caught.value.errno == 2
    with pytest.raises(mmlsm.StorageError, match="directory"):
        mmlsm.open(tmp_path)
    with pytest.raises(mmlsm.StorageError):
        mmlsm.open(tmp_path / "no folder" / "a.db")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(mmlsm.StorageError):
        mmlsm.open(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(name.name for name in tmp_path.iterdir()) == ["pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_no_permission(path: Path) -> None:
    mmlsm.open(path).close()
    path.chmod(0o400)
    with pytest.raises(mmlsm.StorageError, match="readonly=True"):
        mmlsm.open(path)
    mmlsm.open(path, readonly=True).close()
    path.chmod(0)
    with pytest.raises(mmlsm.StorageError):
        mmlsm.open(path, readonly=True)
    path.chmod(0o600)


def test_a_second_writer_is_refused(path: Path) -> None:
    link, hard = path.with_name("link.db"), path.with_name("hard.db")
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
        link.symlink_to(path)
        hard.hardlink_to(path)
        for other in (path, link, hard):
            with pytest.raises(mmlsm.LockedError) as caught:
                mmlsm.open(other)
            assert caught.value.pid == os.getpid()
        program = "import sys, mmlsm\ntry: mmlsm.open(sys.argv[1])\nexcept mmlsm.LockedError as e: print(e.pid, e)"
        said = subprocess.run(
            [sys.executable, "-c", program, path],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        ).stdout
        assert said.startswith(f"{os.getpid()} ")
        assert db[b"a"] == b"1"
    mmlsm.open(link).close()
    mmlsm.open(hard).close()


def test_writing_around_an_open_transaction_is_an_error_and_no_hang(open_db: Any) -> None:
    db = open_db()
    with db.begin(write=True) as transaction:
        transaction.put(b"a", b"1")
        for use in (
            lambda: db.put(b"b", b"2"),
            lambda: db.begin(write=True),
            lambda: db.update({b"b": b"2"}),
            lambda: db.pop(b"a", None),
        ):
            with pytest.raises(mmlsm.Error, match="transaction"):
                use()
    assert list(db.items()) == [(b"a", b"1")]


def test_a_write_transaction_belongs_to_its_thread(open_db: Any) -> None:
    db = open_db()
    caught: list[BaseException] = []
    transaction = db.begin(write=True)

    def use() -> None:
        try:
            transaction.put(b"a", b"1")
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    transaction.abort()
    assert isinstance(caught[0], mmlsm.Error)
    assert "thread" in str(caught[0])


def test_waiting_for_the_write_lock_ends(open_db: Any) -> None:
    db = open_db()
    transaction = db.begin(write=True)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            db.begin(write=True, timeout=0.05)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(20)
    assert isinstance(caught[0], mmlsm.LockTimeout)
    assert isinstance(caught[0], TimeoutError)
    transaction.commit()
    db[b"a"] = b"1"


def test_in_a_forked_child_everything_says_so(path: Path) -> None:
    db = mmlsm.Database(path, Settings(durability="off"))
    db[b"a"] = bytes(9000)
    db._engine.flush()
    snapshot, cursor, view = db.snapshot(), db.cursor(), db.get_view(b"a")
    uses = [*all_reads(db), *all_writes(db), *all_reads(snapshot), cursor.first, db.close, db.sync]
    child = os.fork()
    if not child:
        try:
            ok = view == bytes(9000)
            for use in uses:
                try:
                    use()
                    ok = False
                except mmlsm.ForkError:
                    pass
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    db[b"b"] = b"2"
    assert db[b"b"] == b"2"
    db.close()
    assert view == bytes(9000)
