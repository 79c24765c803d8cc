"""Snapshot: one still committed state, for as long as it is held.

Any thread may read it. What keeps the state - the version for segments, the registered seq for memtables - is held by
references, so dropping the snapshot is as good as closing it. So does `Hold`, which only tells `stats()` who it is.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from mmlsm.read.life import Life
from mmlsm.read.reader import Reader, ReadState


class Pins(Protocol):
    """Where seqs are registered (write/commit.py)."""

    def register(self) -> int: ...

    def release(self, seq: int) -> None: ...


class SeqPin:
    """Registers the newest published seq for as long as it is referred to; letting go takes no lock (R12)."""

    __slots__ = ("_pins", "seq")

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.seq = pins.register()

    def __del__(self) -> None:
        if hasattr(self, "seq"):
            self._pins.release(self.seq)


class Held(NamedTuple):
    """Somebody who holds version `install`: a "snapshot" or "transaction"; since when, and which thread made it."""

    kind: str
    install: int
    since: float
    thread: str


class Hold:
    """Stands in `register` for as long as it is referred to; letting go takes no lock (R12)."""

    __slots__ = ("_register",)

    def __init__(self, register: dict[int, Held], kind: str, install: int) -> None:
        self._register = register
        register[id(self)] = Held(kind, install, time.time(), threading.current_thread().name)

    def __del__(self) -> None:
        if hasattr(self, "_register"):
            self._register.pop(id(self), None)


class Snapshot(Reader):
    """A reader of one still state; a context manager. `seq` is the last commit that it sees."""

    def __init__(self, state: ReadState, seq: int, life: Life, pin: Any) -> None:
        Reader.__init__(self, state, seq, life)
        self._pin = pin

    def still(self) -> Snapshot:
        """What a cursor or range reads, which outlives this handle: it shares the pin."""
        return Snapshot(self.opened(), self.seq, self.life, self._pin)

    def close(self) -> None:
        """Let the state go; other calls raise ClosedError from then on. Twice is no error."""
        self.state = None
        self._pin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()
