"""A user's request to merge everything and give space back, as the asking thread and the merge thread share it."""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from collections.abc import Callable

from mmlsm.errors import ClosedError, Error


class Stopped(Exception):
    """Whoever merges was asked to stop; everything has been given back."""


class Compaction:
    """The merge thread reports and finishes; the asking thread waits, and reports to `progress`.

    `seq` is the last commit that it is about, set by the merge thread: what comes later is not waited for.
    """

    def __init__(
        self, progress: Callable[[int, int], object] | None, is_over: Callable[[], bool] = lambda: False
    ) -> None:
        self.progress = progress
        self.is_over = is_over
        """Whether the merge thread has ended."""
        self.seq: int | None = None
        self.done = 0
        self.total = 0
        self.cancelled = False
        self.finished = False
        self.error: Error | MemoryError | None = None
        # A plain lock, released to tell something: who waits may be interrupted anywhere without keeping another.
        self.gate = allocate_lock()
        self.gate.acquire()

    def report(self, done: int, total: int) -> None:
        """The merge thread's word; raises Stopped when the asking thread has given up."""
        if total:
            self.done, self.total = done, total
        self.tell()
        if self.cancelled:
            raise Stopped

    def tell(self) -> None:
        """Let the asking thread look."""
        with contextlib.suppress(RuntimeError):  # it is looking
            self.gate.release()

    def finish(self, error: Error | MemoryError | None) -> None:
        """Let `wait` return, or raise the error, without the frames it came through: they hold what they read."""
        if not self.finished:
            self.error = None if error is None else error.with_traceback(None)
            if error is None:
                self.done = self.total
            self.finished = True
            self.tell()

    def wait(self) -> None:
        """Until it is done; what `progress` raises stops the merge cleanly and is raised here."""
        try:
            while True:
                self.gate.acquire(timeout=0.1)
                finished = self.finished
                if self.progress is not None:
                    self.progress(self.done, self.total)
                if finished:
                    break
                if self.is_over() and not self.finished:
                    raise Error("the merge thread has ended before the compaction was done")
        except BaseException:
            self.cancelled = True
            raise
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # no cycle of it and this frame


def gone() -> ClosedError:
    """For who waits for a compaction when the database is closed."""
    return ClosedError("the database was closed before the compaction was done")
