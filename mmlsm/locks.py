"""The locks of the engine, and the order in which a thread may take them.

Any thread may call anything here; finalisers may call nothing here (R12: they post to a queue instead).

A thread that waits for a lock holds only locks of a smaller rank. With `debug` that is checked at each taking:

    rank  lock        guards
    10    write       the right to order commits; the only one that is held while user code runs
    20    install     the current version, and installing the next one
    30    flush       a sync of the log by `sync()`
    40    order       seq, log buffer, newest memtable, the queue of what is not yet published
    50    allocator   free space
    60    pins        registered snapshots and versions
    70    (leaves)    locks inside one object, below which nothing is taken: RWLock, the maps of a File

I1. `FairLock` is given in the order of asking. It is handed over, never put up for grabs while somebody waits.
I2. A waiter that gives up (time out, Ctrl-C) has either left the queue or passed the lock on.
I3. Each tenure of a `FairLock` ends once, and `release_of` ends none but that which it names.
I4. Once a `FairLock` has ended nobody waits for it, and who asks for it is told. Its holder keeps it.
I5. `RWLock`: the exclusive side is only ever tried; nobody waits for it, and it is never given beside a shared holder.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from mmlsm.errors import ClosedError
from mmlsm.headroom import TRIES_MOST, Headroom
from mmlsm.latch import latched

WRITE: Final = 10
INSTALL: Final = 20
FLUSH: Final = 30
ORDER: Final = 40
ALLOCATOR: Final = 50
PINS: Final = 60

Result = TypeVar("Result")

_new_gate = threading.Lock
_ident = threading.get_ident


class Mutex(Protocol):
    """What `ordered_lock` returns: as much of `threading.Lock` as is used, enough for a `threading.Condition`."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Held(threading.local):
    """The ordered locks that this thread holds, in the order of taking."""

    def __init__(self) -> None:
        self.stack: list[OrderedLock] = []


_held = _Held()


def check_order(name: str, rank: int) -> None:
    """AssertionError if this thread holds an ordered lock of this rank or above."""
    for held in _held.stack:
        assert held.rank < rank, (
            f"lock order: {name} (rank {rank}) waited for while holding {held.name} (rank {held.rank})"
        )


class OrderedLock:
    """A mutex that checks the lock order. Made by `ordered_lock`."""

    __slots__ = ("_lock", "name", "rank")

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As `threading.Lock.acquire`. A try that does not wait cannot deadlock, so it is not checked."""
        if blocking:
            check_order(self.name, self.rank)
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            _held.stack.append(self)
        return taken

    def release(self) -> None:
        assert self in _held.stack, f"lock {self.name} is released by a thread that does not hold it"
        _held.stack.remove(self)
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def ordered_lock(name: str, rank: int, debug: bool) -> Mutex:
    """A mutex with a place in the lock order: checked with `debug`, else as `new_lock` makes it."""
    return OrderedLock(name, rank) if debug else new_lock()


def new_lock() -> threading.Lock:
    """A mutex that checks no order: a leaf. Compiled, `with` lets go of it where memory fails, too."""
    lock: threading.Lock = latched(threading.Lock())
    return lock


def within(lock: threading.Lock, call: Callable[..., Result], *arguments: Any) -> Result:
    """`call(*arguments)` with the lock held, for compiled modules: Cython's own `with` crashes where memory fails, and
    of try and finally the interpreter lets Ctrl-C in between the taking and the try."""
    with lock:
        return call(*arguments)


class FairLock:
    """A mutex that is given first come, first served: the write lock.

    It belongs to a thread (`owner`), but any thread may release it, as a transaction may be ended elsewhere.
    """

    __slots__ = ("_debug", "_guard", "_waiting", "ended", "owner", "tenure")

    def __init__(self, debug: bool = False) -> None:
        self.owner: int | None = None
        """`threading.get_ident()` of the thread that took it, None when free."""
        self.tenure = 0
        """How often it was released: the number of the present tenure, or of the next where it is free."""
        self.ended = False
        self._guard = new_lock()
        self._waiting: deque[tuple[threading.Lock, int]] = deque()
        self._debug = debug

    def acquire(self, timeout: float | None = None) -> bool:
        """Take the lock; False if it was not given within `timeout` seconds (None: wait for ever, 0: only try).

        RuntimeError when this thread has it already, as waiting for oneself would never end; ClosedError once it ended.
        """
        if self._debug:
            check_order("write", WRITE)
        me = _ident()
        if self.owner == me:
            raise RuntimeError("this thread holds the write lock already")
        try:
            with self._guard:
                self._check()
                if self.owner is None:
                    self.owner = me
                    return True
                if timeout is not None and timeout <= 0:
                    return False
                gate = _new_gate()
                gate.acquire()
                self._waiting.append((gate, me))
            given = gate.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
            if given and self.owner != me:
                self._check()
            return given or not self._left(gate, me)
        except BaseException:
            # Ctrl-C can come at any step above: before the queue, in it, or just after the lock was given (I2).
            struck, tries = None, 0
            while tries < TRIES_MOST:
                try:
                    with Headroom(struck):
                        self._leave(me)
                    break
                except BaseException as again:
                    struck = again
                    tries += isinstance(again, Exception) and not isinstance(again, MemoryError)
            raise

    def _left(self, gate: threading.Lock, me: int) -> bool:
        """After a time out: True when taken out of the queue, False when the lock was given in the meantime."""
        with self._guard:
            if self.owner == me:
                return False
            if (gate, me) not in self._waiting:
                self._check()
            self._waiting.remove((gate, me))
            return True

    def _check(self) -> None:
        if self.ended:
            raise ClosedError("the database was closed before the write lock was free: open it again")

    def _leave(self, me: int) -> None:
        """Be neither owner nor in the queue, whichever of them this thread was."""
        with self._guard:
            mine = [entry for entry in self._waiting if entry[1] == me]
            for entry in mine:
                self._waiting.remove(entry)
        if self.owner == me:
            self.release()

    def release(self) -> None:
        """Pass the lock on to the one who has waited longest, or leave it free."""
        with self._guard:
            assert self.owner is not None, "the write lock is released twice"
            self._pass_on()

    def release_of(self, tenure: int) -> None:
        """As `release`, if that tenure is not over yet."""
        with self._guard:
            if self.tenure == tenure and self.owner is not None:
                self._pass_on()

    def end(self) -> None:
        """Let nobody have it any more but who has it now: all others are told (I4). May be done twice."""
        with self._guard:
            self.ended = True
            while self._waiting:
                gate = self._waiting[0][0]
                del self._waiting[0]  # no call before the gate is opened, as below
                gate.release()

    def _pass_on(self) -> None:
        # No call between taking out of the queue and opening the gate: CPython lets Ctrl-C in after calls,
        # and the lock would belong to one who is never told (I2).
        if self._waiting:
            gate, self.owner = self._waiting[0]
            self.tenure += 1
            del self._waiting[0]
            gate.release()
        else:
            self.owner = None
            self.tenure += 1

    def renew(self) -> None:
        """In a forked child: what a thread of the parent was about to do here is never done."""
        self._guard = new_lock()

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiting)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RWLock:
    """Readers of one segment against its teardown.

    Each version that names the segment holds the shared side. The merge thread tries the exclusive side before it
    tears the segment down, and comes back later when it is refused. From then on no reader can come any more.
    """

    __slots__ = ("_exclusive", "_guard", "shared_count", "torn_down")

    def __init__(self) -> None:
        self.shared_count = 0
        self.torn_down = False
        """True once the exclusive side was ever taken."""
        self._exclusive = False
        self._guard = new_lock()

    def acquire_shared(self) -> None:
        """Keep the segment. AssertionError when it is being, or has been, torn down (our bug)."""
        with self._guard:
            assert not self.torn_down, "a reader came to a segment that is torn down"
            self.shared_count += 1

    def release_shared(self) -> None:
        with self._guard:
            assert self.shared_count > 0, "a segment was released more often than acquired"
            self.shared_count -= 1

    def try_acquire_exclusive(self) -> bool:
        """True when nobody has either side; never waits (I5). May be tried again after `release_exclusive`."""
        with self._guard:
            if self.shared_count or self._exclusive:
                return False
            self._exclusive = self.torn_down = True
            return True

    def release_exclusive(self) -> None:
        with self._guard:
            assert self._exclusive, "the exclusive side is released but was not taken"
            self._exclusive = False
