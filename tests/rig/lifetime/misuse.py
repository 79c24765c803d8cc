"""Every public call, for the tests of handles that have ended: enumerated by introspection, each with a way to call it.

A new public method without a case here makes `missing` tell of it, and the tests fail.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import mmlsm
from mmlsm.read.cursor import Range, RangeIterator

INNER = frozenset(
    {"life", "merged", "nearest", "opened", "state", "still", "key_of", "fetch", "live", "floating", "reader", "busy"}
    | {"enter", "placed", "move", "fresh", "compare_to", "advance", "inside", "result", "seq"}
)
"""What the parts of mmlsm give each other, and `seq`, which is no call."""

Case = Callable[[Any], object]

QUIET: Case = lambda handle: None  # noqa: E731
"""What may be asked of an ended handle, and answers."""

READS: dict[str, Case] = {
    "__contains__": lambda r: b"a" in r,
    "__getitem__": lambda r: r[b"a"],
    "__iter__": list,
    "__len__": len,
    "__reversed__": lambda r: list(reversed(r)),
    "__bool__": QUIET,
    "approximate_size": lambda r: r.approximate_size(),
    "ceiling": lambda r: r.ceiling(b"a"),
    "count": lambda r: (r.count(exact=False), r.count()),
    "cursor": lambda r: r.cursor(),
    "first": lambda r: r.first(),
    "floor": lambda r: r.floor(b"a"),
    "get": lambda r: r.get(b"a"),
    "get_many": lambda r: r.get_many([b"a"]),
    "get_view": lambda r: r.get_view(b"a"),
    "higher": lambda r: r.higher(b"a"),
    "items": lambda r: list(r.items()),
    "keys": lambda r: list(r.keys()),
    "last": lambda r: r.last(),
    "lower": lambda r: r.lower(b"a"),
    "open_value": lambda r: r.open_value(b"a"),
    "value_length": lambda r: r.value_length(b"a"),
    "values": lambda r: list(r.values()),
}

WRITES: dict[str, Case] = {
    "__delitem__": lambda r: r.__delitem__(b"a"),
    "__setitem__": lambda r: r.__setitem__(b"a", b"1"),
    "delete": lambda r: r.delete(b"a"),
    "pop": lambda r: r.pop(b"a", None),
    "put": lambda r: r.put(b"a", b"1"),
}

CASES: dict[type, dict[str, Case]] = {
    mmlsm.Database: READS
    | WRITES
    | {
        "__enter__": lambda db: db.__enter__(),
        "__exit__": QUIET,
        "batch": lambda db: db.batch(),
        "begin": lambda db: db.begin(),
        "clear": lambda db: db.clear(),
        "close": QUIET,
        "closed": QUIET,
        "compact": lambda db: db.compact(),
        "compare_and_set": lambda db: db.compare_and_set(b"a", None, b"1"),
        "path": QUIET,
        "popitem": lambda db: db.popitem(),
        "put_many": lambda db: db.put_many([(b"a", b"1")]),
        "readonly": QUIET,
        "run": lambda db: db.run(lambda transaction: None),
        "setdefault": lambda db: db.setdefault(b"a", b"1"),
        "snapshot": lambda db: db.snapshot(),
        "stats": lambda db: db.stats(),
        "sync": lambda db: db.sync(),
        "update": lambda db: db.update({b"a": b"1"}),
        "verify": lambda db: db.verify(),
    },
    mmlsm.Snapshot: READS | {"__enter__": lambda s: s.__enter__(), "__exit__": QUIET, "close": QUIET},
    mmlsm.Transaction: READS
    | WRITES
    | {
        "__enter__": lambda t: t.__enter__(),
        "__exit__": QUIET,
        "abort": QUIET,
        "close": QUIET,
        "commit": lambda t: t.commit(),
        "replace": lambda t: t.replace(b"a", b"1"),
        "savepoint": lambda t: t.savepoint().__enter__(),
    },
    mmlsm.Batch: {
        "__enter__": lambda b: b.__enter__(),
        "__exit__": QUIET,
        "__len__": len,
        "__setitem__": lambda b: b.__setitem__(b"a", b"1"),
        "commit": lambda b: b.commit(),
        "delete": lambda b: b.delete(b"a"),
        "drop": QUIET,
        "put": lambda b: b.put(b"a", b"1"),
    },
    mmlsm.Cursor: {
        "__enter__": lambda c: c.__enter__(),
        "__exit__": QUIET,
        "__iter__": list,
        "close": QUIET,
        "compare": lambda c: c.compare(b"a"),
        "first": lambda c: c.first(),
        "item": lambda c: c.item(),
        "key": lambda c: c.key,
        "last": lambda c: c.last(),
        "next": lambda c: c.next(),
        "prev": lambda c: c.prev(),
        "seek": lambda c: c.seek(b"a"),
        "valid": lambda c: c.valid,
        "value": lambda c: c.value,
        "value_length": lambda c: c.value_length,
        "view": lambda c: c.view,
    },
    Range: {"__iter__": list, "__reversed__": lambda r: list(reversed(r))},
    RangeIterator: {"__iter__": QUIET, "__next__": next},
}

FUNCTIONS = frozenset(["open", "salvage"])
"""The module's own; they take paths and no handle that could have ended."""

DUNDERS = frozenset(
    {"__bool__", "__contains__", "__delitem__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__"}
    | {"__next__", "__reversed__", "__setitem__"}
)


def public(kind: type) -> set[str]:
    """The names of a class that a caller may use."""
    return {name for name in dir(kind) if name in DUNDERS or (name[0] != "_" and name not in INNER)}


def missing() -> list[str]:
    """Public names without a case, and cases without a name; public classes and functions that nobody thought of."""
    told = [f"{kind.__name__}.{name}" for kind, cases in CASES.items() for name in public(kind) ^ set(cases)]
    plain = {mmlsm.Reader, mmlsm.Report, mmlsm.SalvageReport, mmlsm.Stats}
    for name in mmlsm.__all__:
        thing = getattr(mmlsm, name)
        known = isinstance(thing, bool) or thing in plain or thing in CASES or name in FUNCTIONS
        if not (known or (isinstance(thing, type) and issubclass(thing, Exception))):
            told.append(name)
    return told


def handles_of(db: mmlsm.Database) -> list[Any]:
    """One handle of each kind, in the middle of its life; the database has to have some pairs."""
    iterator = iter(db.items())
    next(iterator)
    cursor = db.cursor()
    assert cursor.first()
    batch = db.batch()
    batch.put(b"batch", b"1")
    return [db, db.snapshot(), db.begin(), batch, cursor, db.items(), iterator]


def calls_on(handles: list[Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each call on each of them that an ended handle refuses, and its name."""
    for handle in handles:
        for name, call in CASES[type(handle)].items():
            if call is not QUIET:
                yield f"{type(handle).__name__}.{name}", lambda call=call, handle=handle: call(handle)


def calls_on_stream(stream: BinaryIO) -> Iterator[tuple[str, Callable[[], object]]]:
    """The same of a stream of a large value, of which nothing has been read; the last call has another position."""
    yield "stream.read", lambda: stream.read(100_000)
    yield "stream.readinto", lambda: stream.readinto(bytearray(100_000))  # type: ignore[attr-defined]
    yield "stream.readline", lambda: stream.readline()
    yield "stream.seek", lambda: (stream.seek(-9, io.SEEK_END), stream.tell(), stream.read())


def refused(name: str, call: Callable[[], object], error: type[mmlsm.Error] | tuple[type[mmlsm.Error], ...]) -> None:
    """The call raises that, and nothing else."""
    try:
        call()
    except error:
        return
    except BaseException as other:
        raise AssertionError(f"{name} raised {other!r}") from other
    raise AssertionError(f"{name} raised nothing")
