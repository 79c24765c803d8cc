"""Snapshot: one still committed state, for as long as it is held.

Any thread may read it. What keeps the state - the version for segments, the registered seq for memtables - is held by
references, so dropping the snapshot is as good as closing it. So does `Hold`, which only tells `stats()` who it is.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from mmlsm.locks import new_lock
from mmlsm.read.life import Life
from mmlsm.read.reader import Reader, ReadState
from mmlsm.register import Register


class Pins(Protocol):
    """Where seqs are registered (write/pins.py)."""

    def register(self, holder: object, ordered: int = 0) -> int: ...


class SeqPin:
    """Registers the newest published seq, or an ordered one, for as long as it is referred to."""

    __slots__ = ("__weakref__", "seq")

    def __init__(self, pins: Pins, ordered: int = 0) -> None:
        self.seq = pins.register(self, ordered)


class Held(NamedTuple):
    """Somebody who holds version `install`: a "snapshot" or "transaction"; since when (`time.monotonic`), and which
    thread made it."""

    kind: str
    install: int
    since: float
    thread: str


class Holders:
    """Who holds what, for `stats()`. Any thread."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._register: Register[Held] = Register()

    def enter(self, holder: object, held: Held) -> None:
        """For as long as `holder` lives."""
        with self._lock:
            self._register.enter(holder, held)

    def present(self) -> tuple[Held, ...]:
        """Who holds something now."""
        with self._lock:
            return self._register.present()


class Hold:
    """Stands among `holders` for as long as it is referred to."""

    __slots__ = ("__weakref__",)

    def __init__(self, holders: Holders, kind: str, install: int) -> None:
        holders.enter(self, Held(kind, install, time.monotonic(), threading.current_thread().name))


class Snapshot(Reader):
    """A reader of one still state; a context manager. `seq` is the last commit that it sees."""

    def __init__(self, state: ReadState, seq: int, life: Life, pin: Any, live: bool = False) -> None:
        Reader.__init__(self, state, seq, life, live)
        self._pin = pin

    def still(self) -> Snapshot:
        """What a cursor or range reads, which outlives this handle: it shares the pin."""
        pin = self._pin  # before the state: `close` lets that go first, so where it is there the pin was
        return Snapshot(self.opened(), self.seq, self.life, pin)

    def close(self) -> None:
        """Let the state go; other calls raise ClosedError from then on. Twice is no error."""
        self.state = None
        self._pin = None

    def __enter__(self) -> Self:
        self.opened()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()
