"""Cursors over one to six sources: seeks, turns at every place, equal keys, tombstones, sources with nothing in them.

Sources come from hand-made memtables and from segments of a file, in any mix, each as a layer of a reader's state; what
a cursor must show is told by merging the layers as dicts.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import mmlsm
from mmlsm.read.cursor import Cursor
from mmlsm.read.entries import EntryTable
from mmlsm.read.life import Life
from mmlsm.read.reader import Reader, ReadState

HOWS = (">=", "<=", ">", "<", "==")
SEQ = 9

Layer = dict[bytes, bytes | None]


def table_of(layer: Layer) -> EntryTable:
    table = EntryTable()
    for key, value in layer.items():
        table.put(key, value, SEQ)
    return table


class Layers:
    """A file with the lower layers as runs of their own, and memtables made by hand above them."""

    def __init__(self, open_db: Any, **settings: Any) -> None:
        self.db = open_db(":memory:", auto_merge=False, **settings)

    def reader(self, tables: list[Layer], runs: list[Layer]) -> Reader:
        """Newest first."""
        engine = self.db._engine
        before = len(engine.store.state.version.segments)
        for layer in reversed(runs):
            if layer:
                with self.db.batch() as batch:
                    for key, value in layer.items():
                        if value is None:
                            batch.delete(key)
                        else:
                            batch.put(key, value)
                engine.flush()
        state = engine.store.state
        after = len(state.version.segments)
        version = Version(state.version, after - before)
        made = ReadState(tuple(table_of(layer) for layer in tables), version, engine.file, "first-read")
        return Reader(made, SEQ, Life())


class Version:
    """The newest runs of a version alone."""

    def __init__(self, version: Any, count: int) -> None:
        self.version = version
        self.install = version.install
        self.seq = version.seq
        self.segments = version.segments[:count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.version, name)


def visible(layers: list[Layer]) -> dict[bytes, bytes]:
    merged: Layer = {}
    for layer in reversed(layers):
        merged |= layer
    return {key: value for key, value in sorted(merged.items()) if value is not None}


def check_every_turn(reader: Reader, want: dict[bytes, bytes], probes: list[bytes]) -> None:
    """From every place that a seek can reach: a step each way, and back."""
    order = list(want)
    cursor = reader.cursor()
    for key, how in itertools.product(probes, HOWS):
        at = {
            ">=": sum(known < key for known in order),
            ">": sum(known <= key for known in order),
            "<=": sum(known <= key for known in order) - 1,
            "<": sum(known < key for known in order) - 1,
            "==": order.index(key) if key in order else -1,
        }[how]
        for turns in itertools.product((1, -1), repeat=3):
            place = at
            moved = cursor.seek(key, how)
            for step in (0, *turns):
                if step:
                    moved = cursor.next() if step > 0 else cursor.prev()
                    place = place + step if 0 <= place < len(order) else -9
                assert moved == cursor.valid == (0 <= place < len(order)), (key, how, turns)
                if moved:
                    assert cursor.item() == (order[place], want[order[place]]), (key, how, turns)
    for forward in (True, False):
        found = []
        moved = cursor.first() if forward else cursor.last()
        while moved:
            found.append(cursor.key)
            moved = cursor.next() if forward else cursor.prev()
        assert found == (order if forward else order[::-1])


A = {b"a": b"A", b"b": b"A", b"c": b"A"}
GONE: Layer = {b"a": None, b"b": None, b"c": None, b"d": None}


@pytest.mark.parametrize(
    ("tables", "runs"),
    [
        ([], []),
        ([{}], []),
        ([A], []),
        ([], [A]),
        ([A, A], []),
        ([], [A, A]),
        ([{}, A, {}], []),
        ([{}], [A]),
        ([GONE], [A]),
        ([GONE], []),
        ([], [GONE]),
        ([GONE, GONE], [GONE, GONE]),
        ([A], [GONE]),
        ([A, GONE], [A, GONE]),
        ([{b"b": None}], [A]),
        ([], [{b"b": None}, A]),
        ([{b"b": b"2"}], [{b"b": None}, A]),
        ([{b"": b""}], [{b"": None, b"a": b"1"}, {b"": b"x", b"\0": b"y"}]),
        ([{b"a": b"1"}, {b"b": b"2"}, {b"c": b"3"}], [{b"d": b"4"}, {b"e": b"5"}, {b"f": b"6"}]),
        ([{b"f": b"1"}, {b"e": b"2"}, {b"d": b"3"}], [{b"c": b"4"}, {b"b": b"5"}, {b"a": b"6"}]),
        ([A, {}, GONE], [A, GONE, A]),
    ],
)
def test_layers_by_hand(open_db: Any, tables: list[Layer], runs: list[Layer]) -> None:
    layers = Layers(open_db)
    reader = layers.reader(tables, runs)
    check_every_turn(reader, visible([*tables, *runs]), [b"", b"\0", b"a", b"aa", b"b", b"c", b"d", b"z"])


def test_the_same_source_twice_changes_nothing(open_db: Any) -> None:
    layers = Layers(open_db)
    engine = layers.db._engine
    layers.reader([], [A])
    state = engine.store.state
    version = Version(state.version, 1)
    version.segments = state.version.segments[:1] * 3
    table = table_of({b"b": b"T", b"x": None})
    reader = Reader(ReadState((table, table), version, engine.file, "first-read"), SEQ, Life())
    check_every_turn(reader, {b"a": b"A", b"b": b"T", b"c": b"A"}, [b"", b"a", b"b", b"bb", b"x", b"z"])


@pytest.mark.parametrize("sources", range(1, 7))
def test_random_layers(open_db: Any, sources: int, seed: int) -> None:
    rng = random.Random(sources * 100 + seed)
    layers = Layers(open_db, node_entries_max=2, leaf_bytes=4096)
    keys = [b"", b"\0", b"\0\0", b"a", b"a\0", b"ab", b"aaaa", b"aaaab", b"aaaa\0", b"q" * 600, b"q" * 600 + b"\0"]
    made: list[Layer] = []
    for _ in range(sources):
        density = rng.choice([0.2, 0.6, 1.0])
        made.append(
            {
                key: None if rng.random() < 0.35 else b"%d" % rng.randrange(9) * rng.choice([1, 2000])
                for key in keys
                if rng.random() < density
            }
        )
    split = rng.randrange(sources + 1)
    reader = layers.reader(made[:split], made[split:])
    check_every_turn(reader, visible(made), [*keys, b"q" * 599, b"q" * 601, b"zz"])


@hypothesis.given(
    st.lists(st.tuples(st.binary(max_size=2), st.one_of(st.none(), st.binary(max_size=2)), st.integers(0, 3))),
    st.lists(st.sampled_from(["next", "prev", "first", "last", "a>=", "a<", "b<=", "b>"]), max_size=40),
)
def test_a_walk_over_tables_is_a_walk_over_the_dict(
    writes: list[tuple[bytes, bytes | None, int]], moves: list[str]
) -> None:
    made: list[Layer] = [{}, {}, {}, {}]
    for key, value, layer in writes:
        made[layer][key] = value
    want = visible(made)
    order = list(want)
    state = ReadState(tuple(map(table_of, made)), NoSegments(), None, "never")
    cursor = Cursor(Reader(state, SEQ, Life()))
    place: int | None = None
    for move in moves:
        if move in ("first", "last"):
            place = 0 if move == "first" else len(order) - 1
            getattr(cursor, move)()
        elif move in ("next", "prev"):
            getattr(cursor, move)()
            place = place if place is None else place + 1 if move == "next" else place - 1
        else:
            key, how = move[:1].encode(), move[1:]
            cursor.seek(key, how)
            reached = {">": sum(k <= key for k in order), "<": sum(k < key for k in order) - 1}
            reached |= {">=": sum(k < key for k in order), "<=": sum(k <= key for k in order) - 1}
            place = reached[how]
        if place is not None and not 0 <= place < len(order):
            place = None
        assert cursor.valid == (place is not None)
        if place is not None:
            assert cursor.item() == (order[place], want[order[place]])


class NoSegments:
    install = 0
    seq = 0
    segments = ()


def test_a_cursor_tells_lengths_and_compares_without_reading(open_db: Any) -> None:
    db = open_db()
    db.update({b"a": b"", b"b": bytes(70_000), b"c": bytes(2 << 20)})
    for _ in range(2):
        with db.cursor() as cursor:
            found = []
            moved = cursor.first()
            while moved:
                found.append((cursor.key, cursor.value_length, len(cursor.view), len(cursor.value)))
                assert cursor.compare(b"b") == (cursor.key > b"b") - (cursor.key < b"b")
                moved = cursor.next()
            assert found == [(b"a", 0, 0, 0), (b"b", 70_000, 70_000, 70_000), (b"c", 2 << 20, 2 << 20, 2 << 20)]
        db.compact()


def test_iteration_goes_on_from_the_current_place(open_db: Any) -> None:
    db = open_db()
    db.update({b"%d" % i: b"" for i in range(6)})
    cursor = db.cursor()
    assert [key for key, _ in cursor] == [b"%d" % i for i in range(6)]
    cursor.seek(b"4")
    assert [key for key, _ in cursor] == [b"4", b"5"]
    assert not cursor.valid
    assert not cursor.next()
    assert not cursor.prev()
    empty = open_db(":memory:").cursor()
    assert list(empty) == []
    assert not empty.first()
    assert not empty.last()
    assert not empty.seek(b"")


def test_misuse_of_a_cursor_is_an_error_that_says_what_to_do(open_db: Any) -> None:
    db = open_db()
    db[b"a"] = b"1"
    cursor = db.cursor()
    for name in ("key", "value", "view", "value_length"):
        with pytest.raises(mmlsm.Error, match="valid"):
            getattr(cursor, name)
    with pytest.raises(mmlsm.Error, match="valid"):
        cursor.compare(b"a")
    with pytest.raises(TypeError, match=r"encode\(\)"):
        cursor.seek("a")
    with pytest.raises(TypeError):
        cursor.seek(None)
    with pytest.raises(ValueError, match="choose one of"):
        cursor.seek(b"a", "=>")
    with pytest.raises(mmlsm.KeySizeError):
        cursor.seek(bytes(65536))
    cursor.close()
    cursor.close()
    for use in (cursor.first, cursor.next, lambda: cursor.seek(b"a"), lambda: cursor.valid, lambda: cursor.key):
        with pytest.raises(mmlsm.ClosedError):
            use()


def test_a_cursor_sees_the_state_of_its_opening_through_flush_and_merge(open_db: Any) -> None:
    db = open_db(memtable_bytes=4096, node_entries_max=4)
    want = {b"%03d" % i: b"old %d" % i for i in range(100)}
    db.update(want)
    cursor = db.cursor()
    found = {}
    moved = cursor.first()
    while moved:
        found[cursor.key] = cursor.value
        number = int(cursor.key)
        if number % 10 == 3:
            db.update({b"%03d" % i: b"new" * 9 for i in range(number, 100, 7)})
            db.delete(b"%03d" % (number + 2))
        if number % 30 == 5:
            db.compact()
        moved = cursor.next()
    assert found == want
    moved = cursor.last()
    back = {}
    while moved:
        back[cursor.key] = cursor.value
        moved = cursor.prev()
    assert back == want


def test_a_cursor_over_a_transaction_sees_its_writes_as_they_are_made(open_db: Any) -> None:
    db = open_db()
    db.update({b"%d" % i: b"base" for i in range(0, 8, 2)})
    db._engine.flush()
    with db.begin(write=True) as transaction:
        cursor = transaction.cursor()
        assert cursor.first()
        transaction.put(b"1", b"own")
        assert cursor.next()
        assert cursor.item() == (b"1", b"own")
        transaction.delete(b"2")
        transaction.put(b"4", b"changed")
        assert cursor.next()
        assert cursor.item() == (b"4", b"changed")
        transaction.put(b"3", b"behind")
        assert cursor.prev()
        assert cursor.item() == (b"3", b"behind")
        with pytest.raises(ZeroDivisionError), transaction.savepoint():  # noqa: PT012
            transaction.put(b"35", b"taken back")
            transaction.delete(b"4")
            assert cursor.next()
            assert cursor.key == b"35"
            raise ZeroDivisionError
        assert cursor.next()
        assert cursor.item() == (b"4", b"changed")
        assert cursor.last()
        assert cursor.key == b"6"


def test_iterating_goes_on_from_where_the_cursor_stands_and_not_from_the_start_again(open_db: Any) -> None:
    db = open_db()
    pairs = [(b"%02d" % i, b"%d" % i) for i in range(10)]
    db.update(pairs)
    with db.cursor() as cursor:
        assert list(cursor) == pairs, "it was never placed"
        assert list(cursor) == [], "it stands behind the last"
        assert cursor.seek(b"07")
        assert list(cursor) == pairs[7:]
        assert not cursor.seek(b"zzz")
        assert list(cursor) == []


def test_of_two_threads_on_one_iterator_or_cursor_one_is_told(open_db: Any, effort: int) -> None:
    db = open_db(debug=False)
    count = 300
    db.update({b"%04d" % i: b"" for i in range(count)})
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20 * effort):
            given: list[bytes] = []
            errors: list[BaseException] = []
            iterator = iter(db.keys())

            def take(iterator: Any = iterator, given: list[bytes] = given, errors: list[Any] = errors) -> None:
                while True:
                    try:
                        given.append(next(iterator))
                    except StopIteration:
                        return
                    except mmlsm.Error:
                        continue
                    except BaseException as error:
                        errors.append(error)
                        return

            threads = [threading.Thread(target=take) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert errors == []
            assert sorted(given) == [b"%04d" % i for i in range(count)]
    finally:
        sys.setswitchinterval(interval)
