"""What callers give as keys and values: whatever it says of itself, its bytes go in, or a TypeError comes out."""

from __future__ import annotations

import array
import ctypes
import io
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm


class Liar(bytes):
    """Answers wrongly whatever it is asked."""

    def __bytes__(self) -> bytes:
        return self

    def __len__(self) -> int:
        return 3

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True


class Tagged(bytes):
    """Tells no lie, and is not plain bytes."""

    def __bytes__(self) -> bytes:
        return self


KINDS = (Liar, Tagged)
LONG = b"a value longer than three"


def write_everywhere(db: mmlsm.Database, kind: Callable[[bytes], Any]) -> dict[bytes, bytes]:
    """A pair by each call that takes one, key and value of this kind; what is to be there."""
    want: dict[bytes, bytes] = {}

    def pair(name: bytes, value: bytes = LONG) -> tuple[Any, Any]:
        want[b"key of " + name] = value
        return kind(b"key of " + name), kind(value)

    db.put(*pair(b"put"))
    key, value = pair(b"setitem")
    db[key] = value
    db.put_many([pair(b"put_many"), pair(b"put_many, second")])
    db.update(dict([pair(b"update")]))
    assert db.setdefault(*pair(b"setdefault")) == LONG
    key, value = pair(b"compare_and_set")
    assert db.compare_and_set(key, None, kind(b"first"))
    assert db.compare_and_set(key, kind(b"first"), value)
    assert not db.compare_and_set(key, kind(b"other"), kind(b"never"))
    with db.batch() as batch:
        batch.put(*pair(b"batch"))
        batch.put(kind(b"not to be"), kind(LONG))
        batch.delete(kind(b"not to be"))
    with db.begin(write=True) as transaction:
        transaction.put(*pair(b"transaction"))
        transaction.replace(*pair(b"replace"))
        transaction.put(kind(b"not to be"), kind(LONG))
        transaction.delete(kind(b"not to be"))
        transaction.put(kind(b"nor this"), kind(LONG))
        assert transaction.pop(kind(b"nor this")) == LONG
        transaction.put(kind(b"nor that"), kind(LONG))
        del transaction[kind(b"nor that")]
    db.put(*pair(b"large", LONG * 70_000))
    return want


@pytest.mark.parametrize("kind", KINDS)
def test_what_claims_to_be_bytes_goes_in_as_its_own_bytes(path: Path, kind: Callable[[bytes], Any]) -> None:
    copy = path.with_name("killed.db")
    with mmlsm.open(path) as db:
        want = write_everywhere(db, kind)
        db.put(b"after", b"all")
        want[b"after"] = b"all"
        copy.write_bytes(path.read_bytes())
        assert dict(db.items()) == want
        assert {type(one) for pair in db.items() for one in pair} == {bytes}
        db.compact()
        assert dict(db.items()) == want
    for one in (path, copy):
        with mmlsm.open(one) as db:
            assert dict(db.items()) == want


@pytest.mark.parametrize("kind", [*KINDS, bytearray, memoryview])
@pytest.mark.parametrize("flushed", [False, True])
def test_what_claims_to_be_bytes_is_looked_up_by_its_own_bytes(open_db: Any, kind: Any, flushed: bool) -> None:
    db = open_db()
    db.put_many([(b"key %d" % i, b"%d" % i) for i in range(9)])
    if flushed:
        db._engine.flush()
    key = kind(b"key 5")
    pair = (b"key 5", b"5")
    with db.snapshot() as snapshot, db.begin(write=True) as transaction:
        for reader in (db, snapshot, transaction):
            assert (reader.get(key), reader[key], key in reader) == (b"5", b"5", True)
            assert reader.get_many([key, kind(b"none")], b"-") == [b"5", b"-"]
            assert (bytes(reader.get_view(key)), reader.open_value(key).read(), reader.value_length(key)) == (
                b"5", b"5", 1)  # fmt: skip
            assert reader.floor(key) == reader.ceiling(key) == pair
            assert reader.lower(key) == (b"key 4", b"4")
            assert reader.higher(key) == (b"key 6", b"6")
            assert list(reader.items(key, kind(b"key 6"))) == list(reader.items(prefix=key)) == [pair]
            assert reader.count(prefix=key) == 1
            assert reader.count(key, kind(b"key 6"), exact=False) <= 1
            assert reader.count(prefix=key, exact=False) <= 1
            assert reader.approximate_size(key, key) == 0
            with reader.cursor() as cursor:
                assert cursor.seek(key, "==")
                assert cursor.compare(key) == 0
    db.delete(key)
    assert db.pop(kind(b"key 6")) == b"6"
    del db[kind(b"key 7")]
    assert list(db.keys(kind(b"key 4"))) == [b"key 4", b"key 8"]


class Stream:
    """Gives what it was made of, as it is."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)

    def read(self, size: int) -> Any:
        return self.parts.pop(0) if self.parts else b""


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_what_claims_to_be_bytes_is_its_own_bytes(open_db: Any, kind: Any) -> None:
    db = open_db()
    db.put(b"short", Stream(kind(LONG), kind(LONG)))
    assert db[b"short"] == LONG * 2
    db.put(b"long", Stream(*[kind(bytes(65_536))] * 3, kind(LONG)))
    assert db[b"long"] == bytes(3 * 65_536) + LONG
    with pytest.raises(ValueError, match=r"read\(65536\) gave 3000000 bytes"):
        db.put(b"too much", Stream(kind(bytes(3_000_000))))
    assert sorted(db) == [b"long", b"short"]


class Telling(bytes):
    """Calls back when it is asked for its bytes."""

    def __new__(cls, content: bytes, tell: Callable[[], object]) -> Telling:
        made = super().__new__(cls, content)
        made.tell = tell
        return made

    tell: Callable[[], object]

    def __bytes__(self) -> bytes:
        self.tell()
        return self

    def __len__(self) -> int:
        self.tell()
        return 3


def test_keys_and_values_are_not_asked_anything(open_db: Any) -> None:
    db = open_db()
    asked: list[int] = []
    with db.batch() as batch, db.begin(write=True) as transaction:
        for writer in (batch, transaction):
            writer.put(Telling(b"key", lambda: asked.append(1)), Telling(LONG, lambda: asked.append(1)))
        transaction.commit()
    assert db[b"key"] == LONG
    assert asked == []


def test_streams_of_plain_parts_still_go_in(open_db: Any) -> None:
    db = open_db()
    db.put(b"a", Stream(bytearray(b"12"), memoryview(b"34"), b"5"))
    db.put(b"b", io.BytesIO(bytes(200_000)))
    assert (db[b"a"], db[b"b"]) == (b"12345", bytes(200_000))


class Pair(ctypes.Structure):
    _fields_ = (("one", ctypes.c_uint8), ("other", ctypes.c_uint8))


WORDS = array.array("H", [1, 2, 3])
ROWS = memoryview(bytes(range(12))).cast("B", (3, 4))


def mapped(content: bytes) -> mmap.mmap:
    """Memory that has a `read` as a file has it."""
    made = mmap.mmap(-1, len(content))
    made[:] = content
    return made


@pytest.mark.parametrize(
    ("thing", "content"),
    [
        (WORDS, b"\1\0\2\0\3\0"),
        (array.array("d", [0.0]), bytes(8)),
        ((ctypes.c_uint8 * 3)(1, 2, 3), b"\1\2\3"),
        (ctypes.create_string_buffer(b"ab"), b"ab\0"),
        (Pair(1, 2), b"\1\2"),
        (mapped(b"a map"), b"a map"),
        (memoryview(WORDS), b"\1\0\2\0\3\0"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (ROWS, bytes(range(12))),
        (io.BytesIO(b"inside").getbuffer(), b"inside"),
    ],
    ids=lambda one: None if isinstance(one, bytes) else type(one).__name__,
)
def test_every_buffer_goes_in_as_its_bytes(open_db: Any, thing: Any, content: bytes) -> None:
    db = open_db()
    for _ in range(2):
        db.put(b"value", thing)
        assert db[b"value"] == content
    db.put(thing, b"as a key")
    with db.batch() as batch:
        batch.put(b"in a batch", thing)
    with db.begin(write=True) as transaction:
        transaction.put(b"in a transaction", thing)
    db.put(b"in a stream", Stream(thing, thing))
    assert (db[thing], db.get_many([thing]), list(db.keys(thing, thing, include_stop=True))) == (
        b"as a key", [b"as a key"], [content])  # fmt: skip
    assert db.compare_and_set(b"value", thing, b"other")
    assert (db[b"in a batch"], db[b"in a transaction"], db[b"in a stream"]) == (content, content, content * 2)


def test_a_large_map_goes_in_whole_however_often(open_db: Any) -> None:
    db = open_db()
    made = mapped(bytes(range(256)) * 8192)
    made.seek(1000)
    for key in (b"a", b"b"):
        db.put(key, made)
        assert db[key] == made[:]
    made.close()


class Number:
    """As NumPy's: an array of no dimension behind a buffer that only C sees."""

    def __float__(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    "thing",
    [
        "text", 1, 1.5, None, [1], object(), Number(), bytes,
        (ctypes.py_object * 1)(1), ctypes.pointer(ctypes.c_int(1)), (ctypes.c_char_p * 1)(b"a"), ctypes.c_void_p(1),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_what_holds_no_bytes_of_its_own_is_refused(open_db: Any, thing: Any) -> None:
    db = open_db()
    word = r"encode\(\)" if isinstance(thing, str) else f"not {type(thing).__name__}: encode it first"
    for use in (
        lambda: db.put(thing, b""),
        lambda: db.put(b"", thing),
        lambda: db.get(thing),
        lambda: db.get_many([thing]),
        lambda: db.floor(thing),
        lambda: db.cursor().seek(thing),
        lambda: db.put_many([(b"a", b"1"), (thing, b"")]),
        lambda: db.put_many([(b"a", b"1"), (b"", thing)]),
        lambda: db.compare_and_set(thing, None, b""),
    ):
        with pytest.raises(TypeError, match=word):
            use()
    if thing is not None:
        for use in (lambda: db.keys(thing), lambda: db.keys(None, thing), lambda: db.keys(prefix=thing)):
            with pytest.raises(TypeError, match=word):
                use()
    assert list(db) == []


def test_what_numpy_has_goes_in_but_for_text_numbers_and_objects(open_db: Any) -> None:
    numpy = pytest.importorskip("numpy")
    db = open_db()
    for thing in (numpy.arange(5), numpy.arange(9)[::2], numpy.zeros((2, 3), order="F"), numpy.bytes_(b"a\0b")):
        db.put(b"a", thing)
        assert db[b"a"] == thing.tobytes()
    for thing in (numpy.int64(1), numpy.float32(1), numpy.bool_(1), numpy.datetime64("2020"), numpy.array([object()])):
        with pytest.raises(TypeError, match="encode it first"):
            db.put(b"a", thing)
    with pytest.raises(TypeError, match=r"encode\(\)"):
        db.put(b"a", numpy.str_("text"))


class Sneaking(type):
    """Its objects do something when their class is looked at."""

    act: Callable[[], object]

    def __getattr__(cls, name: str) -> Any:
        cls.act()
        raise AttributeError(name)


def test_keys_that_end_what_takes_them_are_not_taken(open_db: Any) -> None:
    db = open_db()
    for use in (
        lambda batch, key: batch.put(key, b"1"),
        lambda batch, key: batch.put(b"key", key),
        lambda batch, key: batch.delete(key),
    ):
        for begin in (db.batch, lambda: db.begin(write=True)):
            writer = begin()
            writer.put(b"before", b"1")
            kind = Sneaking("kind", (bytearray,), {"act": staticmethod(writer.commit)})
            with pytest.raises(mmlsm.ClosedError):
                use(writer, kind(b"key"))
    assert list(db) == [b"before"]
