"""Snapshots and reads: one still state, however much is written, flushed and merged under it."""

from __future__ import annotations

import gc
import random
import sys
import threading
from typing import Any

import pytest

import mmlsm
from mmlsm import database
from mmlsm.read.entries import EntryTable
from mmlsm.read.reader import Reader, ReadState


def test_a_snapshot_stays_as_it_was(open_db: Any, seed: int) -> None:
    rng = random.Random(seed)
    db = open_db(memtable_bytes=4096, node_entries_max=4)
    model: dict[bytes, bytes] = {}
    held: list[tuple[Any, dict[bytes, bytes]]] = []
    for step in range(1500):
        key = b"%02d" % rng.randrange(60)
        if rng.random() < 0.3:
            db.delete(key)
            model.pop(key, None)
        else:
            model[key] = b"%d" % step * rng.randrange(20)
            db.put(key, model[key])
        if step % 25 == 0:
            held.append((db.snapshot(), dict(model)))
        if step % 100 == 0:
            reader, want = rng.choice(held)
            assert dict(reader.items()) == want
            assert [reader.get(b"%02d" % i) for i in range(60)] == [want.get(b"%02d" % i) for i in range(60)]
        if len(held) > 20:
            held.pop(rng.randrange(len(held)))[0].close()
        if step % 400 == 399:
            db.compact()
    for reader, want in held:
        assert dict(reader.items()) == want


def test_a_snapshot_is_as_new_as_any_commit_that_returned(open_db: Any) -> None:
    db = open_db()
    for i in range(50):
        db[b"n"] = b"%d" % i
        with db.snapshot() as snapshot:
            assert snapshot[b"n"] == b"%d" % i
            assert snapshot.seq == db.seq


def test_dropping_a_snapshot_is_as_good_as_closing_it(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    snapshot = db.snapshot()
    assert db.stats().snapshots == 1
    del snapshot
    gc.collect()
    assert db.stats().snapshots == 0


def test_ranges_and_cursors_of_a_snapshot_outlive_it(open_db: Any) -> None:
    db = open_db()
    db.update({b"a": b"1", b"b": b"2"})
    snapshot = db.snapshot()
    cursor, iterator = snapshot.cursor(), iter(snapshot.items())
    del snapshot
    for value in (b"8", b"9"):  # the second lets go of a version that nobody pins
        db.update({b"a": value, b"aa": value})
    assert list(cursor) == [(b"a", b"1"), (b"b", b"2")]
    db.compact()
    assert list(iterator) == [(b"a", b"1"), (b"b", b"2")]
    assert cursor.first()
    assert list(cursor) == [(b"a", b"1"), (b"b", b"2")]


@pytest.mark.parametrize("verify", ["first-read", "always", "never"])
def test_point_reads_from_every_layer(open_db: Any, verify: str) -> None:
    db = open_db(auto_merge=False, node_entries_max=4, leaf_bytes=4096, verify=verify)
    model: dict[bytes, bytes] = {}
    rng = random.Random(4)
    for layer in range(6):
        for i in range(layer, 120, layer + 1):
            key = b"%03d" % i * (1 if i % 10 else 250)
            if rng.random() < 0.2:
                db.delete(key)
                model.pop(key, None)
            else:
                model[key] = b"%d" % layer * rng.choice([0, 5, 3000])
                db.put(key, model[key])
        if layer < 5:
            db._engine.flush()
    assert len(db.stats().segments) == 5
    with db.snapshot() as snapshot, db.begin(write=True) as transaction:
        for reader in (db, snapshot, transaction):
            for i in range(125):
                key = b"%03d" % i * (1 if i % 10 else 250)
                want = model.get(key)
                assert reader.get(key) == want
                assert reader.get(key, 5) == (5 if want is None else want)
                assert (key in reader) == (want is not None)
                assert reader.value_length(key) == (None if want is None else len(want))
                assert reader.get(key + b"\0") is None
        transaction.abort()


def test_readers_do_not_wait_for_a_flush_or_an_install(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    store = db._engine.store
    with store.install_lock, store.order_lock:
        assert db[b"a"] == b"1"
        assert db.get_many([b"a"]) == [b"1"]
        with db.snapshot() as snapshot:
            assert list(snapshot.items()) == [(b"a", b"1")]


def test_a_reader_of_a_file_that_is_open_for_writing(open_db: Any, path: Any) -> None:
    db = open_db()
    db.update({b"%d" % i: b"x" * 100 for i in range(100)})
    db.sync()
    with mmlsm.open(path, readonly=True) as reader:
        assert len(reader) == 100
        db.update({b"%d" % i: b"y" * 100 for i in range(100)})
        for _ in range(3):
            db.compact()
        assert set(reader.values()) == {b"x" * 100}, "the writer reuses nothing while another process pins the file"
        assert reader.verify().ok


def test_what_was_made_of_a_snapshot_outlives_its_close(open_db: Any) -> None:
    db = open_db(durability="off")
    want = {b"%03d" % i: b"old" for i in range(100)}
    db.update(want)
    snapshot = db.snapshot()
    cursor, items = snapshot.cursor(), iter(snapshot.items())
    assert cursor.first()
    first = next(items)
    snapshot.close()
    for round_ in range(3):
        db.update(dict.fromkeys(want, b"new %d" % round_))
    seen = {}
    while cursor.valid:
        seen[cursor.key] = cursor.value
        cursor.next()
    assert seen == want
    assert dict([first, *items]) == want


def test_what_a_snapshot_sees_the_database_sees_after_it(open_db: Any) -> None:
    # While a commit is being published: snapshots go by another number than gets do.
    db = open_db()
    db.put(b"k", b"1")
    tell, seen, readers = db._engine.committer.on_publish, [], []

    def read() -> None:
        with db.snapshot() as snapshot:
            seen.append((snapshot.seq, db.seq, snapshot.get(b"k"), db.get(b"k")))

    def slow(seq: int) -> None:
        for publish in (lambda: None, lambda: tell(seq)):
            publish()
            readers.append(threading.Thread(target=read))
            readers[-1].start()
            readers[-1].join(0.05)

    db._engine.committer.on_publish = slow
    db.put(b"k", b"2")
    db._engine.committer.on_publish = tell
    for reader in readers:
        reader.join()
    assert seen == [(2, 2, b"2", b"2")] * 2


def test_a_get_whose_version_is_trimmed_under_it_reads_again(open_db: Any) -> None:
    # Between the load of the seq and the look into the memtable two commits came, and what the first saw is unlinked.
    db = open_db()
    seqs: list[int] = []

    class Overtaking(EntryTable):
        def lookup(self, key: bytes, seq: int) -> Any:
            seqs.append(seq)
            if len(seqs) == 1:
                reader.seq = self.trimmed = 5
            return super().lookup(key, seq)

    table = Overtaking()
    table.put(b"k", b"newest", 5)
    state = ReadState((table,), db.state.version, db.state.file, "first-read")
    reader = Reader(state, 3, db.life, False, True)
    assert reader.get(b"k") == b"newest"
    assert seqs == [3, 5]


def test_what_is_sealed_while_a_snapshot_is_taken_is_in_it(open_db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seq before the state: so no commit up to its seq is missing (I1 of read/reader.py)."""
    db = open_db(memtable_bytes=4096, auto_merge=False)
    db[b"a"] = b"1"
    plain = database.SeqPin

    def overtaken(pins: Any) -> Any:
        db[b"a"] = bytes(5000)  # fills the memtable
        db[b"b"] = b"2"
        return plain(pins)

    monkeypatch.setattr(database, "SeqPin", overtaken)
    snapshot = db.snapshot()
    assert snapshot.seq == db.seq
    assert dict(snapshot.items()) == dict(db.items()) == {b"a": bytes(5000), b"b": b"2"}


@pytest.mark.parametrize("kind", ["snapshot", "transaction"])
def test_what_another_thread_closes_meanwhile_is_pinned_or_told_so(open_db: Any, kind: str) -> None:
    """A cursor that was made as the handle closed shares its pin."""
    db = open_db(auto_merge=False)
    db.update({b"a": b"1", b"b": b"1"})
    plain = database.Snapshot if kind == "snapshot" else database.Transaction

    class Closed(plain):  # type: ignore[misc, valid-type]
        def opened(self) -> ReadState:
            state = super().opened()
            self.close()
            return state

    handle = db.snapshot() if kind == "snapshot" else db.begin()
    handle.__class__ = Closed
    cursor = handle.cursor()
    for number in range(4):
        db.update({b"a": b"%d" % number, b"b": b"%d" % number})
    assert cursor.first()
    assert cursor.item() == (b"a", b"1")


def test_gets_of_a_snapshot_that_another_thread_closes_are_right_or_told_so(open_db: Any, effort: int) -> None:
    db = open_db(auto_merge=False, debug=False)
    db[b"a"] = b"0"
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    box, stop = [db.snapshot()], threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                value = box[0].get(b"a")
                cursor = box[0].cursor()
                there = cursor.first()
            except mmlsm.ClosedError:
                continue
            if value is None or not there:
                wrong.append((value, there))

    threads = [threading.Thread(target=read) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for number in range(1500 * effort):
            box[0].close()
            db[b"a"] = b"%d" % number
            box[0] = db.snapshot()
            db[b"a"] = b"%d again" % number
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        sys.setswitchinterval(interval)
    assert wrong == []
