"""A thread of the engine, which fails to start instead of hanging, and whose end can be waited for by whom Ctrl-C hits.

I1. `over` is true only when nothing of `work` runs any more. CPython's `join` and `is_alive` may say so too early after
    an exception of a signal's handler (bpo-45274), so nobody here asks them.
I2. Whatever ends `work` is noted as `fault`, also what others raise in the thread; who waits for it looks at that, and
    at `over`, and is told.
"""

from __future__ import annotations

import errno
import threading
from _thread import allocate_lock
from typing import Any, Final

from mmlsm.errors import Error, StorageError

START_S: Final = 20.0
"""A thread that has not begun by then is given up: the system had no room for it."""

ADVICE: Final = (
    "writing takes two threads: raise the limit of threads (ulimit -u, a container's pids), free memory, or open with "
    "readonly=True, which takes none"
)

LOOK_S: Final = 0.02
"""Who waits for a thread's end looks so often whether it has come."""

FAULTS_MOST: Final = 10
"""So often what a thread with a fault has still to do is tried."""


class _Begun:
    """What Thread.start waits for, in place of an Event: not for ever where the new thread ends before its first step
    for want of memory, and with nothing that Ctrl-C in the waiting could leave locked."""

    def __init__(self) -> None:
        self._is_set = False
        self._gate = allocate_lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._gate.acquire(timeout=START_S if timeout is None else timeout)
        return self._is_set

    def _at_fork_reinit(self) -> None:
        """Threading asks for it in a forked child, which has none of our threads."""


class Worker(threading.Thread):
    """A daemon thread that does `work`. Any thread may call `start`, once, and `wait_until_over`."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._started: Any = _Begun()
        self._done = False
        self._end = allocate_lock()
        self._end.acquire()
        self._given_up = False
        self.fault: BaseException | None = None
        """What ended its work for good, and was no error that it goes on after."""

    def work(self) -> None:
        """What it does. Called again once there is a fault: then it tells who waits, and ends."""
        raise NotImplementedError

    def run(self) -> None:
        faults = 0
        try:
            while not self._given_up and faults < FAULTS_MOST:
                try:
                    self.work()
                    break
                except (MemoryError, SystemError):  # CPython's word for it where it has none left for a frame
                    # In the telling of a fault, or in waiting; its state is in attributes, so it goes on.
                    pass
                except BaseException as error:
                    faults += 1
                    if self.fault is None:
                        self.fault = error
        finally:  # the number of a thread that is gone is soon another's
            self._done = True
            self._end.release()

    def start(self) -> None:
        """StorageError where the system has no room for one more thread, Error where the interpreter begins none."""
        try:
            super().start()
            if not self._started.is_set():
                raise RuntimeError("the thread ended before its first step")
        except BaseException as error:
            self._given_up = True
            getattr(threading, "_limbo", {}).pop(self, None)
            if isinstance(error, RuntimeError) and "shutdown" in str(error):  # Python 3.12, from atexit handlers on
                raise Error(f"the interpreter is ending, and no thread can begin any more ({error})") from error
            if isinstance(error, RuntimeError):  # "can't start new thread"
                raise StorageError(errno.EAGAIN, f"{self.name}: {error}; {ADVICE}") from error
            raise

    @property
    def over(self) -> bool:
        """Whether it has ended, or never began. Makes nothing, so no collection may begin in it.

        (`sys._current_frames` can: a finaliser that lets go of the GIL then holds a lock of CPython's, and whoever
        asks for it next keeps the GIL and waits for ever.)
        """
        if self._done or self.ident is None:
            return True
        handle = getattr(self, "_handle", None)
        if handle is not None:  # from 3.13 on
            return bool(handle.is_done())
        lock = getattr(self, "_tstate_lock", None)  # released by C where the thread ends
        return lock is None or not lock.locked()

    def wait_until_over(self) -> None:
        """Back when it has ended."""
        while not self.over:
            if self._end.acquire(timeout=LOOK_S):  # a hint: it may be lost, so they look again
                self._end.release()  # and wakes one of those who wait, who wakes the next
