"""A System that fails on demand: the n-th call of one method, once or from then on, in one of eight ways.

Under it is a real file, so that C may map it. Beside it stands what a power cut would leave: each page as it was when
it last became durable (`Disk`), so that a failed sync can lose what was written, or leave it in the cache alone.

I1. All calls that change the file are serial, so what is durable is known at each moment.
I2. `calls` counts each method's calls; `injected` lists what was injected, `late` the writes and syncs that were tried
    when the handle knew that a sync had failed, each with its thread's name.
I3. What a failed sync lost is told to every open of the file, once, by its next sync, as Linux does: the others write
    and sync on until the thread that met the failure runs again.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlsm.file import System
from mmlsm.limits import PAGE_BYTES

METHODS = (
    "open", "reopen", "close", "stat", "pread", "pwrite", "pwrite_durably", "sync", "sync_directory", "drop_cached",
    "truncate", "allocate", "link", "try_lock", "unlock", "locked_elsewhere", "map", "pinned_map",
)  # fmt: skip
CHANGES = frozenset({"pwrite", "pwrite_durably", "sync", "truncate", "allocate"})
SYNCS = frozenset({"pwrite_durably", "sync"})

ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EINTR": errno.EINTR}
"""The call does nothing and raises that; of `close`, it closes and raises."""
SHORT = "short"
"""A read or write of half the bytes, at least one."""
HALF = "half"
"""A write of half the bytes that then fails for want of space, as on a disk that becomes full."""
LOST = "lost"
"""The sync fails, and what was not durable is what it was before."""
CACHED = "cached"
"""The sync fails, and what was not durable stands in the cache, taken for clean: later syncs do not write it."""
MEMORY = "memory"
"""MemoryError, nothing done."""


def kinds_of(method: str) -> tuple[str, ...]:
    """What can happen to calls of this method."""
    kinds = [*ERRORS, MEMORY]
    if method in ("pread", "pwrite", "pwrite_durably"):
        kinds.append(SHORT)
    if method in ("pwrite", "pwrite_durably"):
        kinds.append(HALF)
    if method in SYNCS:
        kinds += [LOST, CACHED]
    return tuple(kinds)


@dataclass(frozen=True)
class Fault:
    """The `call`-th call (from 1) of `method` meets `kind`; with `ever` each call from then on."""

    method: str
    call: int
    kind: str
    ever: bool = False

    def __str__(self) -> str:
        return f"{self.kind} at {self.method} {self.call}{' and ever after' if self.ever else ''}"


class Disk:
    """One file's pages as a power cut would leave them, where that is not as the file has them."""

    def __init__(self) -> None:
        self.dirty: dict[int, bytes] = {}
        """Of each page written since it was durable, what it was then; b"" for one that was not there."""
        self.clean: dict[int, bytes] = {}
        """The same of pages that a failed sync has left clean in the cache: no later sync makes them durable."""
        self.pages = 0
        """The durable size."""

    def touch(self, fd: int, offset: int, length: int) -> None:
        """These bytes are about to change."""
        for page in range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)):
            if page not in self.dirty:
                before = self.clean.pop(page, None)
                self.dirty[page] = os.pread(fd, PAGE_BYTES, page * PAGE_BYTES) if before is None else before

    def synced(self, fd: int, first: int = 0, count: int | None = None) -> None:
        """What is dirty is durable now, or only those pages, and as much of the size as they need."""
        if count is None:
            self.dirty.clear()
            self.pages = os.fstat(fd).st_size // PAGE_BYTES
            return
        for page in range(first, first + count):
            self.dirty.pop(page, None)
        self.pages = max(self.pages, first + count)

    def lose(self, fd: int) -> None:
        """What is dirty is thrown back to what it was. The size stays: who maps the file is not to die of it."""
        for page, before in self.dirty.items():
            if page * PAGE_BYTES < os.fstat(fd).st_size:
                os.pwrite(fd, before.ljust(PAGE_BYTES, b"\0"), page * PAGE_BYTES)
        self.dirty.clear()

    def forget(self) -> None:
        """What is dirty is taken for clean."""
        self.clean.update(self.dirty)
        self.dirty.clear()

    def drop(self, fd: int, first: int, count: int) -> None:
        """Clean pages are read from the medium from now on."""
        for page in range(first, first + count):
            before = self.clean.pop(page, None)
            if before is not None:
                os.pwrite(fd, before.ljust(PAGE_BYTES, b"\0"), page * PAGE_BYTES)

    def image(self, data: bytes) -> bytes:
        """What a power cut leaves of the file's bytes: nothing that was not durable."""
        out = bytearray(data[: self.pages * PAGE_BYTES].ljust(self.pages * PAGE_BYTES, b"\0"))
        for page, before in [*self.clean.items(), *self.dirty.items()]:
            if page < self.pages:
                out[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = before.ljust(PAGE_BYTES, b"\0")
        return bytes(out)


class FaultySystem(System):
    """Does what a `Fault` says; without one it only counts."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.injected: list[tuple[str, str]] = []
        """(method, thread) of each."""
        self.sync_failed = False
        self.late: list[tuple[str, str]] = []
        self.is_known: Callable[[], bool] = lambda: True
        """Whether the handle knows by now of the sync that failed."""
        self.losses = 0
        self.told: dict[int, int] = {}
        """How many of the losses each descriptor knows of."""
        self.disks: dict[int, Disk] = {}
        self._lock = threading.RLock()

    def heal(self) -> None:
        """No more faults."""
        self.fault = None

    def meets(self, method: str) -> str | None:
        """Count a call; what it is to meet. REQUIRES the lock."""
        self.calls[method] += 1
        if self.sync_failed and method in CHANGES and self.is_known():
            self.late.append((method, threading.current_thread().name))
        fault = self.fault
        if fault is None or fault.method != method:
            return None
        behind = self.calls[method] - fault.call
        if behind < 0 or (behind and not fault.ever):
            return None
        if fault.kind == "EINTR" and behind % 2:
            return None  # a call that is interrupted for ever would be tried for ever, and rightly
        self.injected.append((method, threading.current_thread().name))
        return fault.kind

    def disk(self, fd: int) -> Disk:
        identity = os.fstat(fd)
        disk = self.disks.get(identity.st_ino)
        if disk is None:
            disk = self.disks[identity.st_ino] = Disk()
            disk.pages = identity.st_size // PAGE_BYTES
        return disk

    def power_cut(self, path: Path) -> bytes:
        """What a power cut at this moment leaves of the file."""
        with self._lock:
            data, disk = path.read_bytes(), self.disks.get(path.stat().st_ino)
            return data if disk is None else disk.image(data)

    # -- the calls

    def stat(self, fd: int) -> os.stat_result:
        self.refuse("stat")
        return super().stat(fd)

    def refuse(self, method: str) -> None:
        """Count a call, and raise what it is to meet."""
        with self._lock:
            raise_fault(self.meets(method))

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        self.refuse("open")
        fd = super().open(path, flags, mode)
        self.told[fd] = self.losses
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self.refuse("close")

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        with self._lock:
            kind = self.meets("pread")
        raise_fault(kind)
        return super().pread(fd, max(1, length // 2) if kind == SHORT else length, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        with self._lock:
            return self.write("pwrite", super().pwrite, fd, data, offset)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        with self._lock:
            try:
                count = self.write("pwrite_durably", super().pwrite_durably, fd, data, offset)
                self.tell(fd)
            except InterruptedError:
                raise
            except (OSError, MemoryError):
                self.sync_failed = True
                raise
            first = offset // PAGE_BYTES
            self.disk(fd).synced(fd, first, -(-(offset + count) // PAGE_BYTES) - first)
            return count

    def write(
        self, method: str, call: Callable[[int, memoryview, int], int], fd: int, data: memoryview, offset: int
    ) -> int:
        kind = self.meets(method)
        if kind in (None, SHORT, HALF, LOST, CACHED):
            some = data[: max(1, len(data) // 2)] if kind in (SHORT, HALF) else data
            self.disk(fd).touch(fd, offset, len(some))
            count = call(fd, some, offset)
            if kind in (None, SHORT):
                return count
        self.fail(kind, fd)
        raise AssertionError(kind)

    def fail(self, kind: str | None, fd: int) -> None:
        if kind in (LOST, CACHED):
            self.losses += 1
            self.told[fd] = self.losses
            if kind == LOST:
                self.disk(fd).lose(fd)
            else:
                self.disk(fd).forget()
        raise_fault(kind)

    def tell(self, fd: int) -> None:
        """A sync finds out what another open's sync has lost (I3)."""
        if self.told.get(fd, 0) < self.losses:
            self.told[fd] = self.losses
            raise_fault("EIO")

    def sync(self, fd: int) -> None:
        with self._lock:
            try:
                if (kind := self.meets("sync")) is not None:
                    self.fail(kind, fd)
                self.tell(fd)
            except (OSError, MemoryError):
                self.sync_failed = True
                raise
            super().sync(fd)
            self.disk(fd).synced(fd)

    def drop_cached(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            raise_fault(self.meets("drop_cached"))
            self.disk(fd).drop(fd, offset // PAGE_BYTES, length // PAGE_BYTES)

    def truncate(self, fd: int, length: int) -> None:
        with self._lock:
            raise_fault(self.meets("truncate"))
            size = os.fstat(fd).st_size
            if length < size:
                self.disk(fd).touch(fd, length, size - length)
            super().truncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            raise_fault(self.meets("allocate"))
            super().allocate(fd, offset, length)


def raise_fault(kind: str | None) -> None:
    """Raise what a call meets, if it is to raise."""
    if kind == MEMORY:
        raise MemoryError("injected")
    if kind not in (None, SHORT):
        code = {HALF: errno.ENOSPC, LOST: errno.EIO, CACHED: errno.EIO}.get(kind) or ERRORS[kind]
        raise OSError(code, os.strerror(code))


def _refusing(method: str) -> Any:
    plain = getattr(System, method)

    @functools.wraps(plain)
    def call(self: FaultySystem, *arguments: Any, **named: Any) -> Any:
        self.refuse(method)
        return plain(self, *arguments, **named)

    return call


for _method in (
    "reopen", "sync_directory", "link", "try_lock", "unlock", "locked_elsewhere", "map", "pinned_map",
):  # fmt: skip
    setattr(FaultySystem, _method, _refusing(_method))
