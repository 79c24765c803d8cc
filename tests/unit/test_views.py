"""Views and value streams: read-only, unchanging, never dangling, past writes, merges and close (promise 6)."""

from __future__ import annotations

import gc
import io
import os
import random
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.errors import CorruptionError, StorageError
from mmlsm.settings import Settings

SIZES = [0, 1, 100, 2048, 2049, 4096, 65_535, 65_536, 65_537, 200_001, (1 << 20) - 1, 1 << 20, (5 << 20) + 3]


def filled(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class Trickle(io.RawIOBase):
    """A stream that gives a few bytes at a time and does not tell its length."""

    def __init__(self, data: bytes, step: int = 7000) -> None:
        self.data, self.at, self.step = data, 0, step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = self.data[self.at : self.at + min(size if size >= 0 else 1 << 40, self.step)]
        self.at += len(piece)
        return piece


@pytest.mark.parametrize("size", SIZES)
def test_values_of_every_size_by_every_way_in_and_out(open_db: Any, size: int) -> None:
    db = open_db()
    value = filled(size)
    db[b"bytes"] = value
    db.put(b"view", memoryview(value))
    db.put(b"stream", io.BytesIO(value))
    db.put(b"trickle", Trickle(value, max(1, size // 50)))
    for _ in range(3):  # from the memtable, a segment, and a merged one
        for key in (b"bytes", b"view", b"stream", b"trickle"):
            assert db[key] == value
            assert db.value_length(key) == size
            view = db.get_view(key)
            assert view.readonly
            assert view == value
            assert view.nbytes == size
            stream = db.open_value(key)
            assert stream.readable()
            assert stream.seekable()
            assert stream.read() == value
            assert stream.read() == b""
        db.compact()
    assert db.get_view(b"no") is None
    assert db.open_value(b"no") is None
    assert db.value_length(b"no") is None


def test_a_stream_is_read_in_any_order_and_outlives_its_key(open_db: Any) -> None:
    db = open_db()
    value = filled(400_000)
    db.put(b"k", io.BytesIO(value))
    db.compact()
    stream = db.open_value(b"k")
    rng = random.Random(5)
    for round_ in range(60):
        at, size = rng.randrange(len(value) + 10), rng.randrange(150_000)
        assert stream.seek(at) == at
        assert stream.read(size) == value[at : at + size]
        assert stream.tell() == max(at, min(at + size, len(value)))
        if round_ == 20:
            db.delete(b"k")
            db.compact()
        if round_ == 40:
            db.put(b"k", filled(500_000))
            db.compact()
    assert stream.seek(-10, os.SEEK_END) == len(value) - 10
    assert stream.read() == value[-10:]
    with pytest.raises(ValueError, match="before"):
        stream.seek(-1)
    buffer = bytearray(1000)
    stream.seek(65_000)
    assert stream.readinto(buffer) == 1000
    assert buffer == value[65_000:66_000]
    assert db[b"k"] == filled(500_000)


def test_a_stream_that_fails_leaves_nothing(open_db: Any) -> None:
    db = open_db()

    class Broken(Trickle):
        def read(self, size: int = -1) -> bytes:
            if self.at > 300_000:
                raise ZeroDivisionError
            return super().read(size)

    class Text(io.StringIO):
        pass

    with pytest.raises(ZeroDivisionError):
        db.put(b"k", Broken(bytes(1 << 20)))
    with pytest.raises(TypeError, match="binary"):
        db.put(b"k", Text("text" * 100_000))
    assert b"k" not in db
    db[b"a"] = b"1"
    db._engine.flush()
    assert proof.prove(db).overflow_extents == 0


def test_streams_that_grow_beside_each_other(open_db: Any) -> None:
    """Each outgrows its reservation while the other stands behind it, so what was written moves."""
    db = open_db()
    ours, theirs = filled(3 << 20), filled((2 << 20) + 11)

    class Between(Trickle):
        def read(self, size: int = -1) -> bytes:
            if self.at == 700_000:
                inner.append(db._engine.values.take(Trickle(theirs)))
            return super().read(size)

    inner: list[Any] = []
    db.put(b"ours", Between(ours))
    assert db[b"ours"] == ours
    for reference in inner:
        db._engine.values.give_back(reference)
    db.put(b"theirs", Trickle(theirs))
    assert db[b"theirs"] == theirs


def test_views_stay_right_through_writes_merges_and_close(path: Path) -> None:
    settings = Settings(debug=True, durability="off", memtable_bytes=1 << 14, leaf_bytes=4096)
    db = mmlsm.Database(path, settings)
    want: dict[bytes, bytes] = {}
    for i in range(200):
        want[b"%03d" % i] = filled(i * 40)
    db.update(want)
    db._engine.flush()
    held: list[tuple[memoryview, bytes]] = []
    for round_ in range(6):
        for key, view in db.items(views=True):
            if hash(key) % 3 == round_ % 3:
                held.append((view, want[key]))
                held.append((view[1:-1], want[key][1:-1]))
        cursor = db.cursor()
        cursor.seek(b"100")
        held.append((cursor.view, want[b"100"]))
        cursor.close()
        for i in range(round_, 200, 3):
            want[b"%03d" % i] = filled(i * 40 + round_ + 1)
        db.update({key: want[key] for key in want})
        if round_ % 2:
            db.compact()
        else:
            db._engine.flush()
        assert all(view == value for view, value in held)
    del view, cursor
    assert len(db.stats().pins) > 1, "what views hold is to be seen"
    db.close()
    gc.collect()
    assert all(view == value for view, value in held)
    # The next writer reuses nothing that was allocated when it opened, as long as they are out (R13).
    with mmlsm.Database(path, settings) as again:
        assert again._engine.file.pins_elsewhere()
        for i in range(3):
            again.update(dict.fromkeys(want, b"new %d" % i * 100))
            again.compact()
        assert all(view == value for view, value in held)
        proof.prove(again)
        size = again.stats().file_bytes
        held.clear()
        gc.collect()
        assert not again._engine.file.pins_elsewhere()
        again.put(b"x", b"y")
        again.compact()
        proof.prove(again)
        assert again.stats().file_bytes < size
    proof.prove_file(path)


def test_a_view_of_what_is_only_in_memory(open_db: Any) -> None:
    db = open_db()
    value = bytearray(b"value")
    db[b"k"] = value
    view = db.get_view(b"k")
    value[:] = b"VALUE"
    db[b"k"] = b"other"
    db.close()
    assert view == b"value"
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_pin_shows_in_the_stats_until_the_last_slice_is_gone(open_db: Any) -> None:
    db = open_db(auto_merge=False)
    db[b"k"] = bytes(9000)
    db._engine.flush()
    view = db.get_view(b"k")
    part = view[5:10]
    del view
    pinned = db.stats().install
    db[b"k"] = b"new"
    db.compact()
    assert pinned in [pin.install for pin in db.stats().pins]
    assert db.stats().space.retired > 0
    del part
    gc.collect()
    db.compact()
    assert pinned not in [pin.install for pin in db.stats().pins]
    assert db.stats().space.retired <= 2, "only what the last install itself replaced"


def chunk_on_disk(path: Path, value: bytes, at: int) -> None:
    """Turn a byte of the value where it lies in the file."""
    data = path.read_bytes()
    start = data.rindex(value[at : at + 4096])
    path.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])


@pytest.mark.unproved
@pytest.mark.parametrize("at", [0, 70_000, 250_000])
def test_a_broken_chunk_is_corruption_and_nothing_else(path: Path, at: int) -> None:
    value = filled(300_000)
    with mmlsm.open(path) as db:
        db[b"good"] = b"1"
        db.put(b"k", io.BytesIO(value))
    chunk_on_disk(path, value, at)
    with mmlsm.open(path) as db:
        assert db[b"good"] == b"1"
        assert db.value_length(b"k") == len(value)
        for use in (
            lambda: db[b"k"],
            lambda: db.get_view(b"k"),
            lambda: db.open_value(b"k").read(),
            lambda: list(db.items()),
            lambda: list(db.values(views=True)),
        ):
            with pytest.raises(CorruptionError) as caught:
                use()
            assert caught.value.page is not None
        stream = db.open_value(b"k")
        sound = 0 if at >= 65_536 else 65_536
        stream.seek(sound)
        assert stream.read(1000) == value[sound : sound + 1000], "chunks are proved one by one"
        assert not db.verify().ok
        assert list(db.keys()) == [b"good", b"k"]
        db.delete(b"k")
        assert list(db.items()) == [(b"good", b"1")]


@pytest.mark.unproved
def test_sums_broken_on_disk_are_corruption(path: Path) -> None:
    value = filled(300_000)
    with mmlsm.open(path) as db:
        db.put(b"k", io.BytesIO(value))
    data = bytearray(path.read_bytes())
    data[data.rindex(value[-64:]) + 64 + 8] ^= 1
    path.write_bytes(data)
    with mmlsm.open(path) as db, pytest.raises(CorruptionError):
        db.open_value(b"k").read(10)


def test_no_space_for_a_stream_leaves_the_database_as_it_was(open_db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_db()
    db[b"a"] = b"1"
    resize = type(db._engine.file).resize

    def refuse(self: Any, pages: int) -> None:
        if pages > 600:
            raise StorageError(28, "no space left on device")
        resize(self, pages)

    monkeypatch.setattr(db._engine.allocator, "_resize", lambda pages: refuse(db._engine.file, pages))
    with pytest.raises(StorageError) as caught:
        db.put(b"big", Trickle(bytes(8 << 20)))
    assert caught.value.errno == 28
    monkeypatch.undo()
    assert b"big" not in db
    db.put(b"big", Trickle(bytes(8 << 20)))
    assert db.value_length(b"big") == 8 << 20


@pytest.mark.unproved
def test_an_extent_in_the_place_of_another_of_its_length_is_corruption(path: Path) -> None:
    """Its own sums stand behind it and are right: only the reference knows that they are another's (R3)."""
    values = [filled(300_000 + i)[:300_000] for i in range(2)]
    with mmlsm.open(path) as db:
        for key, value in zip((b"a", b"b"), values, strict=True):
            db.put(key, io.BytesIO(value))
    data = bytearray(path.read_bytes())
    a, b = (data.index(value) for value in values)
    size = 300_000 + 5 * 8
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    path.write_bytes(data)
    with mmlsm.open(path) as db:
        for key in (b"a", b"b"):
            with pytest.raises(CorruptionError):
                db.get(key)


@pytest.mark.parametrize("durability", ["off", "group", "full"])
def test_views_of_a_life_that_was_cut_off_stay_right_though_its_log_does_not_name_them(
    path: Path, durability: Any
) -> None:
    """Through the lives of several writers: one that writes nothing, one that begins to, and those that do."""
    db = mmlsm.open(path, durability=durability)
    if durability != "off":  # else nothing is replayed, and so nothing installed when it is opened again
        db.put(b"a", b"x" * 3000)
        db.sync()
    big = filled(3 << 20)
    db.put(b"big", big)
    view = db.get_view(b"big")
    engine = db._engine
    engine.abandon()
    engine.writer.wait_until_over()
    engine.merger.wait_until_over()
    del db, engine
    gc.collect()
    mmlsm.open(path).close()
    with mmlsm.open(path) as db:
        db.begin(write=True).abort()
    for _ in range(2):
        with mmlsm.open(path) as db:
            assert db._engine.file.pins_elsewhere()
            assert (b"big" in db) == (durability != "off")
            for i in range(4):
                db.put(b"new %d" % i, bytes(1 << 20))
            assert view == big
            proof.prove(db)
    pages = path.stat().st_size // 4096
    del view
    gc.collect()
    with mmlsm.open(path) as db:
        db.compact()
        proof.prove(db)
        assert db.stats().space.retired == 0
    assert path.stat().st_size // 4096 < pages
