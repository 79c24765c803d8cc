"""Who is alive of those who hold something, told by C alone when they go.

Any thread lets go of anything, anywhere, in the collector too (R12): a weak reference is put into a queue, by its
callback, which is a C function; no Python code runs, so no lock is taken and no Ctrl-C can come in between.

I1. What is entered is present until it is gone; whatever cuts a call off here, nothing stays present for ever.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

What = TypeVar("What")


class Entry(weakref.ref[Any], Generic[What]):
    """A weak reference that gives itself to a C function when the holder goes; `what` is what was held."""

    __slots__ = ("what",)
    what: What


def entry_of(holder: object, tell: Callable[[Any], object], what: What) -> Entry[What]:
    """The entry that `tell`, a C function, is given when `holder` goes. It has to be kept until then.

    No constructor of Python: for a weak reference it would be two, and CPython crashes where memory fails in one.
    """
    entry: Entry[What] = Entry(holder, tell)
    entry.what = what
    return entry


class Register(Generic[What]):
    """Holders, in the order in which they came, and what each holds. REQUIRES a lock of its owner for each call."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry[What]] = {}
        self._gone: deque[Entry[What]] = deque()
        self._present: tuple[What, ...] | None = ()

    def enter(self, holder: object, what: What) -> None:
        """`holder` has `what` for as long as it lives."""
        entry = entry_of(holder, self._gone.append, what)
        if self._gone:
            self._drain()
        self._present = None
        self._entries[id(entry)] = entry

    def present(self) -> tuple[What, ...]:
        """What is held now; the same object while nothing changes."""
        if self._gone:
            self._drain()
        present = self._present
        if present is None:
            for gone in [number for number, entry in self._entries.items() if entry() is None]:
                del self._entries[gone]  # it could not be told for want of memory
            present = self._present = tuple(entry.what for entry in self._entries.values())
        return present

    def _drain(self) -> None:
        gone, entries = self._gone, self._entries
        while gone:
            self._present = None
            entries.pop(id(gone[0]), None)  # it stays in the queue until it is out: cut off, this is done again
            gone.popleft()
