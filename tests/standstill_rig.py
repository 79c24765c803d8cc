"""A system in which one thread comes to a stop in a call, and who waits for it then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmlsm.file import System

PATIENCE_S = 30
"""So long a test waits for what must come."""
COMMITTER = "committer"
"""The thread that leads another to where it stands still, or stands still itself."""


class Call(NamedTuple):
    """One call of a method that writes or syncs, as it began."""

    thread: str
    method: str
    size: int
    at: float


class Standstill(System):
    """Notes each write and sync in `calls`; once `hold` names a thread and a method, those calls wait for `let_go`.

    Any thread. `reached` is set as soon as one waits.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.held: tuple[str, str] | None = None
        self.reached, self.go = threading.Event(), threading.Event()

    def hold(self, thread: str, method: str) -> None:
        """From now on."""
        self.reached.clear()
        self.go.clear()
        self.held = thread, method

    def let_go(self) -> None:
        """Those that wait go on, and nobody waits any more."""
        self.held = None
        self.go.set()

    def enter(self, method: str, size: int = 0) -> None:
        """A call begins."""
        call = Call(threading.current_thread().name, method, size, time.monotonic())
        self.calls.append(call)
        if self.held == call[:2]:
            self.reached.set()
            self.go.wait(4 * PATIENCE_S)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self.enter("pwrite", len(data))
        return super().pwrite(fd, data, offset)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        self.enter("pwrite_durably", len(data))
        return super().pwrite_durably(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.enter("sync")
        super().sync(fd)

    def truncate(self, fd: int, length: int) -> None:
        self.enter("truncate")
        super().truncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self.enter("allocate", length)
        super().allocate(fd, offset, length)


@contextlib.contextmanager
def standing_still(system: Standstill, thread: str, method: str, what: Callable[[], object]) -> Iterator[None]:
    """Within the block that thread stands still in its next call of that method; `what` leads to it, and ends."""
    system.hold(thread, method)
    other = threading.Thread(target=what, name=COMMITTER, daemon=True)
    other.start()
    try:
        assert system.reached.wait(PATIENCE_S), "nobody makes that call"
        yield
    finally:
        system.let_go()
    other.join(PATIENCE_S)
    assert not other.is_alive()
