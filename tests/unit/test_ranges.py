"""Every option of a range in every combination, against a list; over memtables, segments and both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

KEYS = [b"", b"\0", b"a", b"aa", b"aa\0", b"aab", b"b", b"\xff", b"\xff\xff"]
PROBES = [None, *KEYS, b"\0\0", b"a\0", b"ab", b"c", b"\xff\0", b"\xff\xff\xff"]
PLACES = ["memtable", "segment", "segments", "mixed", "transaction"]


def fill(db: Any, place: str) -> None:
    """KEYS with their place in the list as the value, and around each of them a key that is deleted."""
    pairs = {key: b"%d" % i for i, key in enumerate(KEYS)}
    deleted = [key + b"~" for key in KEYS]
    if place in ("memtable", "transaction"):
        db.update(dict.fromkeys(deleted, b"gone"))
        db.update(pairs)
        with db.batch() as batch:
            for key in deleted:
                batch.delete(key)
        return
    db.update(dict.fromkeys([*deleted, *KEYS[::2]], b"old"))
    if place != "segment":
        db._engine.flush()
    with db.batch() as batch:
        for key in deleted:
            batch.delete(key)
    db.update({key: pairs[key] for key in KEYS[1::2]})
    db._engine.flush()
    db.update({key: pairs[key] for key in KEYS[::2]})
    if place != "mixed":
        db._engine.flush()


@pytest.fixture(params=PLACES)
def reader(request: pytest.FixtureRequest, open_db: Any) -> Iterator[Any]:
    db = open_db(auto_merge=False, node_entries_max=2, leaf_bytes=4096)
    fill(db, request.param)
    if request.param != "transaction":
        yield db
        return
    transaction = db.begin(write=True)
    transaction.delete(b"a")
    transaction.put(b"ab", b"new")
    transaction.put(b"a", b"2")
    transaction.delete(b"ab")
    yield transaction
    transaction.abort()


def wanted(start: Any, stop: Any, reverse: bool, include_start: bool, include_stop: bool) -> list[bytes]:
    found = [
        key
        for key in KEYS
        if (start is None or key > start or (include_start and key == start))
        and (stop is None or key < stop or (include_stop and key == stop))
    ]
    return found[::-1] if reverse else found


def test_each_combination_of_options(reader: Any) -> None:
    values = {key: b"%d" % i for i, key in enumerate(KEYS)}
    bools = (False, True)
    for start, stop, reverse, include_start, include_stop in itertools.product(PROBES, PROBES, bools, bools, bools):
        options = {"reverse": reverse, "include_start": include_start, "include_stop": include_stop}
        want = wanted(start, stop, reverse, include_start, include_stop)
        assert list(reader.keys(start, stop, **options)) == want, (start, stop, options)
        if start is None or stop is None or start <= stop:
            assert list(reader.items(start, stop, limit=2, **options)) == [(key, values[key]) for key in want[:2]]
    assert [bytes(view) for view in reader.values(views=True)] == [values[key] for key in KEYS]
    assert [(key, bytes(view)) for key, view in reader.items(views=True)] == list(values.items())


@pytest.mark.parametrize("limit", [0, 1, 3, 9, 10, None])
@pytest.mark.parametrize("reverse", [False, True])
def test_limits_count_what_is_given(reader: Any, limit: int | None, reverse: bool) -> None:
    want = KEYS[::-1] if reverse else KEYS
    assert list(reader.keys(limit=limit, reverse=reverse)) == want[:limit]
    assert list(reversed(reader.keys(limit=limit, reverse=reverse))) == want[::-1][:limit]


def test_prefixes(reader: Any) -> None:
    for prefix in [key for key in PROBES if key is not None]:
        want = [key for key in KEYS if key.startswith(prefix)]
        assert list(reader.keys(prefix=prefix)) == want, prefix
        assert list(reader.keys(prefix=prefix, reverse=True)) == want[::-1], prefix
        assert reader.count(prefix=prefix) == len(want)
    assert list(reader.keys(prefix=bytearray(b"aa"))) == [b"aa", b"aa\0", b"aab"]
    with pytest.raises(ValueError, match="prefix"):
        reader.keys(b"a", prefix=b"a")
    with pytest.raises(ValueError, match="limit"):
        reader.keys(limit=-1)


def test_a_range_may_be_walked_again_and_both_ways(reader: Any) -> None:
    found = reader.keys(b"a", b"b")
    assert list(found) == list(found) == [b"a", b"aa", b"aa\0", b"aab"]
    assert list(reversed(found)) == [b"aab", b"aa\0", b"aa", b"a"]
    iterator = iter(found)
    assert next(iterator) == b"a"
    assert next(iter(found)) == b"a"
    assert next(iterator) == b"aa"
    assert iter(iterator) is iterator
    list(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_neighbours_and_counts(reader: Any) -> None:
    for key in [probe for probe in PROBES if probe is not None]:
        below = [known for known in KEYS if known < key]
        above = [known for known in KEYS if known > key]
        here = [key] if key in KEYS else []
        for name, found in (
            ("floor", (below + here)[-1:]),
            ("ceiling", (here + above)[:1]),
            ("lower", below[-1:]),
            ("higher", above[:1]),
        ):
            answer = getattr(reader, name)(key)
            assert [answer[0]] if answer else found == [], (name, key)
        assert reader.count(None, key) == len(below)
        assert reader.count(key) == len(here + above)
    assert reader.first() == (b"", b"0")
    assert reader.last() == (b"\xff\xff", b"8")
    assert len(reader) == len(KEYS)


def test_each_iteration_of_a_database_reads_its_own_state(open_db: Any) -> None:
    db = open_db()
    db.update({b"a": b"1", b"b": b"2"})
    found = db.items()
    iterator = iter(found)
    db[b"aa"] = b"new"
    assert [key for key, _ in found] == [b"a", b"aa", b"b"]
    assert [key for key, _ in iterator] == [b"a", b"b"]


def test_estimates_come_from_the_parents(open_db: Any) -> None:
    db = open_db(node_entries_max=8)
    assert db.count(exact=False) == 0
    db.update({b"%04d" % i: bytes(50) for i in range(2000)})
    db.compact()
    assert db.count(exact=False) == 2000
    assert abs(db.count(b"0500", b"1500", exact=False) - 1000) <= 16
    assert abs(db.count(prefix=b"00", exact=False) - 100) <= 16
    half = db.approximate_size(b"0000", b"1000")
    assert 0.4 < half / db.approximate_size() < 0.6
    assert db.approximate_size(b"5") == 0
    assert db.count(b"9", b"1", exact=False) == 0


def test_a_count_takes_a_prefix_or_bounds_however_exact(open_db: Any) -> None:
    db = open_db()
    db.update({b"%04d" % i: b"" for i in range(100)})
    db._engine.flush()
    for exact in (True, False):
        for bounds in ((b"00", None), (None, b"00"), (b"00", b"01")):
            with pytest.raises(ValueError, match="give prefix, or start and stop, not both"):
                db.count(*bounds, prefix=b"00", exact=exact)
        assert db.count(bytes(70_000), exact=exact) == 100
        assert db.count(None, b"1" * 70_000, exact=exact) == 100
    assert db.approximate_size(bytes(70_000)) == db.approximate_size()
