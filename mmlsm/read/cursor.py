# cython: boundscheck=False, wraparound=False, binding=False, nonecheck=True
"""Cursors and ranges: the public walks over one still state.

A cursor or iterator belongs to one thread at a time; a second thread in the middle of a move gets an Error, for a
move may give the GIL up while it proves a page.

I1. What a cursor sees is the state of its reader at its opening; writes, flushes and merges change nothing of it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.mmlsm.memory import compare, cut
    from cython.cimports.mmlsm.read.merged import Merged
else:
    from mmlsm.memory import compare, cut
    from mmlsm.read.merged import Merged

from mmlsm.errors import ClosedError, Error
from mmlsm.read.given import as_key, bound_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = (1 << 62) - 1


def prefix_end(prefix: bytes) -> bytes | None:
    """The least key above all keys that begin with `prefix`; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    last = len(stripped) - 1
    return stripped[:last] + bytes([stripped[last] + 1]) if stripped else None


def bounds_of(start: object, stop: object, prefix: object) -> tuple[bytes | None, bytes | None]:
    """A range's bounds as bytes, from its own or from a prefix; ValueError for both."""
    if prefix is None:
        return bound_of(start), bound_of(stop)
    if start is not None or stop is not None:
        raise ValueError("give prefix, or start and stop, not both")
    least = bound_of(prefix)
    return least, prefix_end(least)


def not_copied(handle: object) -> TypeError:
    """What to tell who would pickle a handle or copy it."""
    name = type(handle).__name__
    return TypeError(f"a {name} cannot be pickled or copied: pass the database's path, and open it anew")


class Range:
    """A lazy, re-iterable, reversible range: each iteration reads the reader's state at its own start."""

    __slots__ = ("_include_start", "_include_stop", "_limit", "_reader", "_reverse", "_start", "_stop", "_what")

    def __init__(self, reader, what, start, stop, prefix, reverse, include_start, include_stop, limit) -> None:
        start, stop = bounds_of(start, stop, prefix)
        if prefix is not None:
            include_start, include_stop = True, False
        limit = MANY if limit is None else min(operator.index(limit), MANY)
        if limit < 0:
            raise ValueError(f"limit={limit}: must not be negative")
        reader.life.check_open()
        self._reader = reader
        self._what = what
        self._start = start
        self._stop = stop
        self._reverse = bool(reverse)
        self._include_start = bool(include_start)
        self._include_stop = bool(include_stop)
        self._limit = limit

    def _iterate(self, reverse: bool) -> Iterator:
        return RangeIterator(
            self._reader.still(), self._what, self._start, self._stop, reverse,
            self._include_start, self._include_stop, self._limit,
        )  # fmt: skip

    def __reduce__(self) -> str:
        raise not_copied(self)

    def __iter__(self) -> Iterator:
        return self._iterate(self._reverse)

    def __reversed__(self) -> Iterator:
        return self._iterate(not self._reverse)


@cython.final
@cython.cclass
class RangeIterator:
    """One pass over a range. `what`: 0 pairs, 1 keys, 2 values, 3 and 4 pairs and values as views."""

    def __init__(self, reader, what, start, stop, reverse, include_start, include_stop, limit) -> None:
        self.reader = reader
        self.life = reader.life
        self.merged = reader.merged()
        self.what = what
        self.start = start
        self.stop = stop
        self.reverse = reverse
        self.include_start = include_start
        self.include_stop = include_stop
        self.remaining = limit
        self.started = False
        self.busy = False

    def __reduce__(self) -> str:
        raise not_copied(self)

    def __iter__(self):
        return self

    def advance(self):
        """Move to the next key of the pass."""
        merged: Merged = self.merged
        if self.started:
            return merged.prev() if self.reverse else merged.next()
        self.started = True
        if self.reverse:
            if self.stop is None:
                return merged.last()
            merged.seek_le(self.stop, len(self.stop))
            if not self.include_stop and merged.current is not None and compare(
                merged.current.key, 0, merged.current.key_bytes, self.stop, 0, len(self.stop)
            ) == 0:
                merged.prev()
            return 0
        if self.start is None:
            return merged.first()
        merged.seek_ge(self.start, len(self.start))
        if not self.include_start and merged.current is not None and compare(
            merged.current.key, 0, merged.current.key_bytes, self.start, 0, len(self.start)
        ) == 0:
            merged.next()
        return 0

    def inside(self):
        """Whether the current key lies within the far bound."""
        merged: Merged = self.merged
        c: cython.int
        if merged.current is None:
            return False
        if self.reverse:
            if self.start is None:
                return True
            c = compare(merged.current.key, 0, merged.current.key_bytes, self.start, 0, len(self.start))
            return c > 0 or (c == 0 and self.include_start)
        if self.stop is None:
            return True
        c = compare(merged.current.key, 0, merged.current.key_bytes, self.stop, 0, len(self.stop))
        return c < 0 or (c == 0 and self.include_stop)

    def result(self):
        """What the pass gives for the current key."""
        merged: Merged = self.merged
        if self.what == 2:
            return merged.current.value()
        if self.what == 4:
            return merged.current.view()
        key = cut(merged.current.key, 0, merged.current.key_bytes)
        if self.what == 1:
            return key
        if self.what == 3:
            return key, merged.current.view()
        return key, merged.current.value()

    def __next__(self):
        if self.busy:
            raise Error("this iterator is in use by another thread: give each thread its own")
        self.busy = True  # nothing comes between that and the look
        try:
            if self.merged is not None:
                self.life.check()
                if self.remaining > 0:
                    self.advance()
                    if self.inside():
                        self.remaining -= 1
                        return self.result()
            self.merged = None
            self.reader = None
        except BaseException:
            self.merged = None  # its sources stand at different keys, or at none
            self.reader = None
            raise
        finally:
            self.busy = False
        raise StopIteration


def in_use() -> Error:
    """What the second of two threads is told."""
    return Error("this cursor is in use by another thread: give each thread its own")


@cython.cclass
class Cursor:
    """A position over one still state. Moves answer whether there is an entry; past an end the cursor is not valid.

    Over a write transaction a cursor sees the transaction's own writes as they are made.
    """

    def __init__(self, reader) -> None:
        self.reader = reader
        self.life = reader.life
        self.merged = reader.merged()
        self.busy = False
        self.moved = False

    def __reduce__(self) -> str:
        raise not_copied(self)

    def enter(self):
        """The walk, taken for one call."""
        if self.busy:
            raise in_use()
        self.life.check()
        if self.merged is None:
            raise ClosedError("this cursor is closed")
        return self.merged

    def placed(self, merged):
        """The walk; ClosedError-like misuse aside, REQUIRES that the cursor stands on an entry."""
        if merged.current is None:
            raise Error("the cursor stands on no entry: look at `valid`, or at what the move answered")
        return 0

    def fresh(self, merged, what):
        """The value (0), a view of it (1) or its length (2) as a transaction has it that has written since the move."""
        key = cut(merged.current.key, 0, merged.current.key_bytes)
        reader = self.reader
        answer = reader.get(key) if what == 0 else reader.get_view(key) if what == 1 else reader.value_length(key)
        if answer is None:
            raise Error("the entry on which the cursor stands was deleted: move the cursor on")
        return answer

    def move(self, which):
        """To the first (0), last (1), next (2) or previous (3) entry; whether there is one. None after a failure."""
        merged: Merged = self.enter()
        if self.busy:
            raise in_use()
        self.busy = True  # nothing comes between that and the look
        self.moved = True
        try:
            if which >= 2 and merged.current is None:
                return False
            if which == 0:
                merged.first()
            elif which == 1:
                merged.last()
            elif which == 2:
                merged.next()
            else:
                merged.prev()
        except BaseException:
            merged.current = None  # the sources stand at different keys, or at none
            raise
        finally:
            self.busy = False
        return merged.current is not None

    def first(self) -> bool:
        """To the least key."""
        return self.move(0)

    def last(self) -> bool:
        """To the greatest key."""
        return self.move(1)

    def next(self) -> bool:
        """To the next key; False, and no longer valid, past the last. On no entry: stays there."""
        return self.move(2)

    def prev(self) -> bool:
        """To the key before; False, and no longer valid, before the first. On no entry: stays there."""
        return self.move(3)

    def seek(self, key, how: str = ">=") -> bool:
        """To the nearest key that stands so to `key`: ">=", "<=", ">", "<" or "==". One descent a segment."""
        target: bytes = as_key(key)
        merged: Merged = self.enter()
        n: cython.Py_ssize_t
        if how not in (">=", "<=", ">", "<", "=="):
            raise ValueError(f"how={how!r}: choose one of '>=', '<=', '>', '<', '=='")
        n = len(target)
        if self.busy:
            raise in_use()
        self.busy = True
        self.moved = True
        try:
            if how[0] == "<":
                merged.seek_le(target, n)
                if how == "<" and merged.current is not None and self.compare_to(merged, target) == 0:
                    merged.prev()
            else:
                merged.seek_ge(target, n)
                if how == ">" and merged.current is not None and self.compare_to(merged, target) == 0:
                    merged.next()
                elif how == "==" and merged.current is not None and self.compare_to(merged, target) != 0:
                    merged.current = None
        except BaseException:
            merged.current = None  # the sources stand at different keys, or at none
            raise
        finally:
            self.busy = False
        return merged.current is not None

    def compare_to(self, merged, key):
        """The sign of (current key - key)."""
        return compare(merged.current.key, 0, merged.current.key_bytes, key, 0, len(key))

    @property
    def valid(self) -> bool:
        """Whether the cursor stands on an entry."""
        merged: Merged = self.enter()
        if merged.current is None:
            return False
        return not merged.stale() or cut(merged.current.key, 0, merged.current.key_bytes) in self.reader

    @property
    def key(self) -> bytes:
        """The current key."""
        merged: Merged = self.enter()
        self.placed(merged)
        return cut(merged.current.key, 0, merged.current.key_bytes)

    @property
    def value(self) -> bytes:
        """The current value."""
        merged: Merged = self.enter()
        self.placed(merged)
        if merged.stale():
            return self.fresh(merged, 0)
        return merged.current.value()

    @property
    def view(self) -> memoryview:
        """The current value as a zero-copy view; see Reader.get_view."""
        merged: Merged = self.enter()
        self.placed(merged)
        if merged.stale():
            return self.fresh(merged, 1)
        return merged.current.view()

    @property
    def value_length(self) -> int:
        """Bytes of the current value, without reading it."""
        merged: Merged = self.enter()
        self.placed(merged)
        if merged.stale():
            return self.fresh(merged, 2)
        return merged.current.value_length()

    def item(self) -> tuple[bytes, bytes]:
        """The current (key, value)."""
        return self.key, self.value

    def compare(self, key) -> int:
        """Less than, equal to or more than 0, as the current key stands to `key`; builds no key."""
        target: bytes = as_key(key)
        merged: Merged = self.enter()
        self.placed(merged)
        return self.compare_to(merged, target)

    def __iter__(self):
        """Pairs from the current place on, moving the cursor; from the first key where it was never placed."""
        if self.enter().current is None and (self.moved or not self.first()):
            return
        while True:
            yield self.item()
            if not self.next():
                return

    def close(self) -> None:
        """Let the state go. Other calls raise ClosedError from then on."""
        self.merged = None
        self.reader = None

    def __enter__(self):
        self.enter()
        return self

    def __exit__(self, *exception) -> None:
        self.close()
