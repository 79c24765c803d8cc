"""The database as a whole: create, open, close, the mapping's habits, what lasts."""

from __future__ import annotations

import gc
import io
import pickle
import threading
import weakref
from pathlib import Path

import pytest

import mmlsm
import proof


def test_a_new_database_is_empty_and_closes_clean(path: Path) -> None:
    with mmlsm.open(path) as db:
        assert len(db) == 0
        assert list(db) == []
        assert db.first() is None
        assert db.last() is None
        assert db.get(b"a") is None
        assert b"a" not in db
        assert db.seq == 0
        assert db.path == path
        assert not db.closed
        assert not db.readonly
    assert db.closed
    with mmlsm.open(path, readonly=True) as db:
        assert db.readonly
        assert db.stats().clean
        assert db.verify().pages == 3


@pytest.mark.parametrize("durability", ["full", "group", "off"])
def test_what_was_put_is_there_after_close(path: Path, durability: str) -> None:
    want = {b"%d" % i: bytes(i) for i in range(300)}
    with mmlsm.open(path, durability=durability) as db:
        for key, value in want.items():
            db[key] = value
        seq = db.seq
        assert dict(db.items()) == want
    with mmlsm.open(path) as db:
        assert dict(db.items()) == want
        assert len(db) == 300
        assert db.seq >= seq
        db[b"more"] = b""
        assert db.seq > seq


def test_no_seq_is_given_twice_over_many_lives(path: Path) -> None:
    seqs = []
    for life in range(5):
        with mmlsm.open(path) as db:
            for i in range(3):
                db.put(b"%d" % i, b"%d" % life)
                seqs.append(db.seq)
    assert seqs == sorted(set(seqs))


def test_memory_databases_are_apart_and_leave_nothing(tmp_path: Path) -> None:
    with mmlsm.open(":memory:") as one, mmlsm.open(":memory:") as other:
        one[b"a"] = b"1"
        assert b"a" not in other
        proof.prove(one)
        one.compact()
        assert one[b"a"] == b"1"
    assert not Path(":memory:").exists()


def test_keys_and_values_of_every_bytes_like_kind(open_db) -> None:
    db = open_db()
    db[bytearray(b"a")] = memoryview(b"1")
    db.put(memoryview(b"b"), bytearray(b"2"))
    db[b""] = b""
    assert list(db.items()) == [(b"", b""), (b"a", b"1"), (b"b", b"2")]
    assert db[bytearray(b"a")] == b"1"
    assert memoryview(b"b") in db
    del db[bytearray(b"a")]
    assert db.pop(memoryview(b"b")) == b"2"
    assert list(db) == [b""]


def test_a_caller_that_changes_its_buffer_changes_nothing(open_db) -> None:
    db = open_db()
    key, value = bytearray(b"key"), bytearray(b"value")
    with db.batch() as batch:
        batch.put(key, value)
        key[:], value[:] = b"xxx", b"xxxxx"
    assert list(db.items()) == [(b"key", b"value")]


def test_the_mapping_protocol(open_db) -> None:
    db = open_db()
    db.update({b"a": b"1", b"b": b"2"})
    db.update([(b"c", b"3")])
    assert db.setdefault(b"a", b"9") == b"1"
    assert db.setdefault(b"d", b"4") == b"4"
    assert db.pop(b"zz", None) is None
    with pytest.raises(KeyError):
        db.pop(b"zz")
    with pytest.raises(KeyError):
        del db[b"zz"]
    with pytest.raises(KeyError):
        db[b"zz"]
    assert db.popitem() == (b"a", b"1")
    assert list(reversed(db)) == [b"d", b"c", b"b"]
    assert list(db.values()) == [b"2", b"3", b"4"]
    assert db == db
    assert db != dict(db.items())
    assert bool(db)
    assert hash(db) == hash(db)
    db.clear()
    assert len(db) == 0
    assert bool(db), "truth does not scan"
    with pytest.raises(KeyError):
        db.popitem()
    with pytest.raises(TypeError, match="keys are bytes"):
        db.update(a=b"1")
    with pytest.raises(TypeError, match="path"):
        pickle.dumps(db)


def test_setdefault_answers_what_it_stored(open_db) -> None:
    db = open_db()
    assert db.setdefault(b"stream", io.BytesIO(b"hello")) == b"hello"
    assert db.setdefault(b"stream", io.BytesIO(b"again")) == b"hello"
    assert db.setdefault(b"large", io.BytesIO(bytes(200_000))) == bytes(200_000)
    answered = db.setdefault(b"mutable", bytearray(b"value"))
    assert (answered, type(answered)) == (b"value", bytes)
    assert dict(db.items()) == {b"stream": b"hello", b"large": bytes(200_000), b"mutable": b"value"}
    with pytest.raises(TypeError, match="NoneType"):
        db.setdefault(b"none", None)


def test_iterating_while_writing_sees_the_state_from_its_start(open_db) -> None:
    db = open_db(memtable_bytes=4096)
    db.update({b"%03d" % i: b"old" for i in range(200)})
    seen = []
    for key, value in db.items():
        seen.append((key, value))
        db.put(key + b"x", b"new" * 20)
        db.put(key, b"new")
        db.delete(b"%03d" % (int(key[:3]) + 1))
    assert seen == [(b"%03d" % i, b"old") for i in range(200)]


def test_an_update_is_one_commit(open_db) -> None:
    db = open_db()
    before = db.seq
    db.update({b"a": b"1", b"b": b"2"})
    assert db.seq == before + 1


def test_compare_and_set(open_db) -> None:
    db = open_db()
    assert not db.compare_and_set(b"a", b"1", b"2")
    assert db.compare_and_set(b"a", None, b"1")
    assert not db.compare_and_set(b"a", None, b"2")
    assert db.compare_and_set(b"a", b"1", b"2")
    assert db[b"a"] == b"2"
    assert db.compare_and_set(b"a", b"2", None)
    assert b"a" not in db
    assert db.compare_and_set(b"a", None, None)


def test_compare_and_set_of_what_is_no_value_is_an_error_whatever_is_there(open_db) -> None:
    db = open_db()
    db[b"a"] = b"1"
    for key in (b"a", b"absent"):
        for expected, new in (("1", b"2"), (1, b"2"), ([b"1"], b"2"), (b"other", "2"), (b"other", 2)):
            with pytest.raises(TypeError, match="values are bytes"):
                db.compare_and_set(key, expected, new)
        with pytest.raises(TypeError, match=r"encode\(\)"):
            db.setdefault(key, "1")
    assert db.compare_and_set(b"a", bytearray(b"1"), memoryview(b"2"))
    assert not db.compare_and_set(b"a", b"1", io.BytesIO(b"never"))
    assert db.compare_and_set(b"a", b"2", io.BytesIO(b"3"))
    assert list(db.items()) == [(b"a", b"3")]


def test_get_many_is_aligned_and_of_one_state(open_db) -> None:
    db = open_db(memtable_bytes=4096)
    db.update({b"%d" % i: b"v%d" % i for i in range(100)})
    db._engine.flush()
    db.delete(b"3")
    assert db.get_many([b"3", b"4", b"no", b"4", b"99"], b"?") == [b"?", b"v4", b"?", b"v4", b"v99"]
    assert db.get_many(iter([b"5"])) == [b"v5"]
    assert db.get_many([]) == []


def test_get_many_of_keys_whose_making_ends_the_reader_says_that_it_has_ended(open_db, path: Path) -> None:
    db = open_db(durability="full")
    db.update({b"%d" % i: b"v%d" % i for i in range(100)})

    def keys(end):
        yield b"1"
        end()
        yield b"2"

    for flushed in (False, True):
        if flushed:
            db._engine.flush()
        writing = db.begin(write=True)
        writing.put(b"mine", b"1")
        for reader in (writing, db.begin(), db.snapshot()):
            with pytest.raises(mmlsm.ClosedError):
                reader.get_many(keys(reader.close))
    with pytest.raises(mmlsm.ClosedError):
        db.get_many(keys(db.close))


def test_a_dropped_batch_leaves_nothing(open_db) -> None:
    db = open_db()
    with pytest.raises(ZeroDivisionError), db.batch() as batch:  # noqa: PT012
        batch.put(b"a", b"1")
        batch.put(b"big", bytes(2 << 20))
        batch.put(b"stream", io.BytesIO(bytes(3 << 20)))
        batch.delete(b"b")
        assert len(batch) == 4
        raise ZeroDivisionError
    assert len(db) == 0
    batch = db.batch()
    batch.put(b"a", bytes(2 << 20))
    del batch
    batch = db.batch()
    batch.put(b"a", bytes(2 << 20))
    batch.drop()
    with pytest.raises(mmlsm.ClosedError):
        batch.put(b"a", b"1")
    db.put(b"c", bytes(1 << 20))
    db._engine.values.drain()
    report = proof.prove(db)
    assert report.reserved <= 257 + 16, "the extents of dropped values came back"


def test_of_a_key_given_twice_the_later_counts(open_db) -> None:
    db = open_db()
    db.put_many([(b"a", b"1"), (b"a", bytes(2 << 20)), (b"a", b"3")])
    assert db[b"a"] == b"3"
    with db.batch() as batch:
        batch.put(b"a", b"4")
        batch.delete(b"a")
        batch.delete(b"b")
        batch.put(b"b", b"5")
    assert list(db.items()) == [(b"b", b"5")]


def test_a_database_that_is_dropped_ends_its_threads(path: Path, proved: proof.Opened) -> None:
    db = mmlsm.open(path)
    db[b"a"] = b"1"
    gone = weakref.ref(db)
    del db
    gc.collect()
    assert gone() is None
    for reference in proved.threads:
        if (thread := reference()) is not None:
            thread.join(20)
            assert not thread.is_alive()
    with mmlsm.open(path) as db:
        assert db[b"a"] == b"1"


def test_a_file_of_nothing_but_the_header_takes_three_pages(path: Path) -> None:
    mmlsm.open(path).close()
    assert path.stat().st_size == 3 * 4096
    before = path.read_bytes()
    mmlsm.open(path).close()
    with mmlsm.open(path) as db:
        assert db.get(b"a") is None
    after = path.read_bytes()
    assert after[:8192] == before[:8192], "opening to read writes nothing but the holder"


def test_space_comes_back_when_everything_is_deleted(path: Path) -> None:
    with mmlsm.open(path, durability="off") as db:
        db.update({b"%05d" % i: bytes(200) for i in range(5000)})
        db.compact()
        full = db.stats().file_bytes
        db.clear()
        db.compact()
        proof.prove(db)
    assert path.stat().st_size < full / 20
    with mmlsm.open(path) as db:
        assert len(db) == 0


def test_a_small_store_overwritten_for_ever_stays_small(open_db, path: Path) -> None:
    db = open_db(memtable_bytes=1 << 16, log_extent_bytes=1 << 16)
    largest = 0
    for i in range(6000):
        db.put(b"%d" % (i % 10), b"%d" % i * 20)
        if i % 500 == 0:
            largest = max(largest, db.stats().file_bytes)
    assert largest < 16 << 20
    assert db[b"9"] == b"5999" * 20


def test_close_twice_and_from_two_threads(path: Path) -> None:
    db = mmlsm.open(path)
    db[b"a"] = b"1"
    threads = [threading.Thread(target=db.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.close()
    assert "closed" in repr(db)


def test_sync_answers_the_durable_seq(open_db) -> None:
    db = open_db()
    assert db.sync() == 0
    db[b"a"] = b"1"
    db[b"b"] = b"1"
    assert db.sync() == db.seq
    assert db.sync() == db.seq


@pytest.mark.parametrize("verify", ["first-read", "always", "never"])
@pytest.mark.parametrize("allocation", ["earliest", "best"])
def test_settings_change_no_answer(open_db, path: Path, verify: str, allocation: str) -> None:
    want = {b"%04d" % (i * 7 % 1000): bytes([i % 251]) * (i % 90) for i in range(1000)}
    want |= {b"long" * 400: b"k", b"v": bytes(100_000)}
    for leaf_bytes in (4096, 32768):
        db = open_db(verify=verify, allocation=allocation, leaf_bytes=leaf_bytes, memtable_bytes=1 << 14)
        db.update(want)
        db._engine.flush()
        assert dict(db.items()) == want
        assert all(db[key] == value for key, value in want.items())
        db.compact()
        assert dict(db.items()) == want
        db.close()


def test_stats_add_up(open_db) -> None:
    db = open_db(memtable_bytes=4096, auto_merge=False)
    for i in range(100):
        db.put(b"%03d" % i, bytes(100))
    db._engine.flush()
    stats = db.stats()
    assert stats.seq == db.seq
    assert stats.commits == 100
    assert stats.flushes >= 2
    assert sum(map(sum, stats.levels)) == stats.entries == 100
    assert sum(s.entries for s in stats.segments) == 100
    space = stats.space
    assert space.live + space.retired + space.reserved + space.free <= space.total
    assert stats.merge_error is None
    assert stats.flush_error is None
    with db.snapshot():
        assert db.stats().snapshots == 1
    assert db.stats().snapshots == 0
    assert stats.file_bytes == space.total * 4096


def test_a_closed_handle_that_is_still_referred_to_pins_nothing(path: Path) -> None:
    writer = mmlsm.open(path)
    writer[b"a"] = bytes(10_000)
    writer.close()
    reader = mmlsm.open(path, readonly=True)
    assert reader[b"a"] == bytes(10_000)
    reader.close()
    with mmlsm.open(path) as db:
        assert not db._engine.file.pins_elsewhere()
    del writer, reader
