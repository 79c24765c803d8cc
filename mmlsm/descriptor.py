"""File descriptors that are closed once, and the two locks of a database file (R13).

Any thread may use them. Finalisers close and take no lock (R12). All system calls go through the `System` of file.py.

I1. A descriptor is closed exactly once, whoever comes first: `close()`, the last reference, a fork's child.
I2. Each lock is one byte, locked for one open (an OFD lock) on a descriptor of its own that is never mapped or handed
    out: closing other descriptors does not drop it, and maps do not keep it.
I3. A lock that is given up is unlocked before its descriptor is closed, so that a child which is being forked just
    then does not keep it. A forked child never unlocks, as the lock is one with its parent's; it closes its copies at
    once, so that a killed parent leaves nothing locked.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmlsm.errors import LockedError, StorageError
from mmlsm.latch import latched
from mmlsm.limits import PAGE_BYTES

if TYPE_CHECKING:
    from mmlsm.file import System

WRITER_BYTE: Final = 1 << 62
"""Offset of the byte whose exclusive lock makes an open the writer; far behind any page."""
PIN_BYTE: Final = WRITER_BYTE + 1
"""Offset of the byte that every open, and every view that outlives one, holds shared."""

HOLDER_OFFSET: Final = 2 * PAGE_BYTES
_HOLDER_BYTES: Final = 64
_HOLDER: Final = re.compile(rb"mmlsm writer pid (\d{1,10})\n")

_locks: weakref.WeakSet[ByteLock] = weakref.WeakSet()

_writing_here: dict[tuple[int, int], str] = {}
"""(device, inode) of each file that this process has open for writing, and where it was opened."""

no_fork: Final = latched(threading.RLock())
"""Held while a lock's descriptor is opened and noted, and by each fork."""


def forked_in_child() -> None:
    """Close this child's copies of every lock's descriptor (I3). Called with `no_fork` held."""
    for lock in list(_locks):
        lock.abandon()
    _writing_here.clear()
    no_fork.release()


class Descriptor:
    """One open file descriptor (I1), or with -1 none."""

    def __init__(self, system: System, fd: int) -> None:
        self.fd = fd
        self._system = system
        self._owned = [fd] if fd >= 0 else []  # pop() is atomic, so two closers cannot close one number twice

    def close(self) -> None:
        """Give up the descriptor, and what hangs on it."""
        self.abandon()

    def abandon(self) -> None:
        """Close the number and do nothing else."""
        interrupted = None
        try:
            self._owned.pop()
        except IndexError:
            return
        except BaseException as error:  # Ctrl-C just after: nobody else will close it
            if self._owned:
                raise
            interrupted = error
        fd, self.fd = self.fd, -1
        try:  # noqa: SIM105  # no call before the system's
            self._system.close(fd)
        except (OSError, MemoryError):
            pass
        if interrupted is not None:
            raise interrupted

    def __del__(self) -> None:
        self.close()


class ByteLock(Descriptor):
    """A lock of one byte of a file (I2), let go by `close()` or with the last reference."""

    byte: int

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(system, fd)
        _locks.add(self)

    def _take(self, *, exclusive: bool) -> bool:
        try:
            return self._system.try_lock(self.fd, self.byte, exclusive=exclusive)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            raise StorageError(error.errno, f"this file cannot be locked: {error.strerror or error}") from error

    def close(self) -> None:
        """Unlock, then close (I3)."""
        if self._owned:
            with contextlib.suppress(OSError, MemoryError):
                self._system.unlock(self.fd, self.byte)
        self.abandon()


class PinLock(ByteLock):
    """The shared side of the pin lock. Whoever needs the bytes past close keeps a reference to it, and no more."""

    byte = PIN_BYTE

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(system, fd)
        if not self._take(exclusive=False):
            self.close()
            raise LockedError("another program holds the pin lock of this file for itself alone")

    def held_elsewhere(self) -> bool:
        """True when the exclusive side could not be had, because another open or its views hold the lock.

        Asks without taking, so that nobody who opens at this moment is refused.
        """
        try:
            return self._system.locked_elsewhere(self.fd, self.byte)
        except OSError as error:
            raise StorageError(error.errno, f"asking for the pin lock: {error.strerror or error}") from error


class WriterLock(ByteLock):
    """The right of one open to write, and this process's note of where that was."""

    byte = WRITER_BYTE
    _key: tuple[int, int] | None = None

    def __init__(self, system: System, fd: int, path: Path, data: Descriptor) -> None:
        super().__init__(system, fd)
        identity = system.stat(fd)
        self._where = where = _caller()
        self._key = identity.st_dev, identity.st_ino  # before the note, which `close` takes back
        first = _writing_here.setdefault(self._key, where)
        if first is not where:
            self.close()
            raise LockedError(
                f"{path} is open for writing in this process already, opened at {first}; "
                "share that database between threads, or close it first",
                system.process_id(),
            )
        if not self._take(exclusive=True):
            self.close()
            holder = _holder(system, data)
            who = "another process" if holder is None else f"process {holder}"
            raise LockedError(f"{path} is open for writing in {who}; one writer at a time", holder)

    def close(self) -> None:
        # The descriptor first: who finds no note of the file here must find it unlocked too.
        super().close()
        key = self._key
        if key is not None and _writing_here.get(key) is self._where:
            _writing_here.pop(key, None)


def holder_line(pid: int) -> bytes:
    """What the writer leaves in the holder page for the LockedError of others."""
    return (b"mmlsm writer pid %d\n" % pid).ljust(_HOLDER_BYTES, b"\0")


def _holder(system: System, data: Descriptor) -> int | None:
    """The pid that the last writer left in the holder page."""
    try:
        found = _HOLDER.match(system.pread(data.fd, _HOLDER_BYTES, HOLDER_OFFSET))
    except OSError:
        return None
    return int(found[1]) if found else None


def _caller() -> str:
    """Where the code stands that called into mmlsm; each time a string object of its own."""
    frame = sys._getframe(1)
    while str(frame.f_globals.get("__name__", "")).partition(".")[0] == "mmlsm" and frame.f_back:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
