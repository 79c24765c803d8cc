"""A simulated disk: a System on a real file that notes each call that changes the file, with its begin and its end.

`Log` is what happened, in one order: its ticks. `RecordedSystem` notes the calls, any thread; whoever drives the
database notes what it was promised (`Log.mark`). Nothing is really synced: what a power cut leaves is told from the
log alone (rig/crashes/images.py).

I1. A call takes effect at the tick of its end, and the order of the ends is that of the effects: both happen under one
    lock. Between its begin and its end other threads' calls may begin and end.
I2. A log that is frozen takes nothing more; calls go on working on the file.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mmlsm.file import System

BEGIN: Final = "begin"
END: Final = "end"
MARK: Final = "mark"

WRITE: Final = "write"
DURABLE_WRITE: Final = "durable write"
RESIZE: Final = "resize"
ALLOCATE: Final = "allocate"
SYNC: Final = "sync"
LINK: Final = "link"
SYNC_DIRECTORY: Final = "sync directory"
KINDS: Final = (WRITE, DURABLE_WRITE, RESIZE, ALLOCATE, SYNC, LINK, SYNC_DIRECTORY)

PHASES: Final = {
    "_create": "creation",
    "fill_if_blank": "creation",
    "announce": "opening",
    "open_file": "opening",
    "_flush_replayed": "recovery",
    "_open_for_writing": "recovery",
    "begin_log": "first commit",
    "move_log": "moving the log",
    "prepare": "log ahead",
    "room": "log extent",
    "sync": "sync",
    "write_out": "commit",
    "leave_clean": "close",
    "flush_oldest": "flush",
    "rework": "relocation",
    "move_extent": "moving a large value",
    "set_aside": "setting aside",
    "merge_tier": "merge of tiers",
    "drain": "merge into the bottom",
    "move_manifest": "moving the manifest",
    "reclaim": "reclaim",
    "take": "large value",
    "commit": "commit",
}
"""Functions of mmlsm, and the phase that a call made below them belongs to: the innermost that stands here counts."""


@dataclass(slots=True)
class Call:
    """One call: `data` at `offset`, or the file's new `size` (at least that, where it is an allocation)."""

    kind: str
    phase: str
    offset: int = 0
    data: bytes = b""
    size: int = -1


@dataclass(frozen=True, slots=True)
class Tick:
    """`BEGIN` or `END` of a call, or a `MARK`: a word and what goes with it."""

    what: str
    call: Call | None = None
    word: str = ""
    value: Any = None


@dataclass(slots=True)
class Log:
    """What happened to one file, from `base` on: its bytes, all durable, or None where there is no file."""

    base: bytes | bytearray | None = None
    ticks: list[Tick] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    frozen: bool = False

    def mark(self, word: str, value: Any = None) -> None:
        """Note a word of the workload's; any thread."""
        with self.lock:
            self.add(Tick(MARK, word=word, value=value))

    def add(self, tick: Tick) -> None:
        """REQUIRES lock."""
        if not self.frozen:
            self.ticks.append(tick)

    def freeze(self) -> None:
        """The crash, if nothing came before."""
        with self.lock:
            self.frozen = True


class RecordedSystem(System):
    """See the module's text. `unnamed`: whether the file system knows unnamed files; `durable_writes`: and writes with
    a sync of their own. `slow_s`: how long a sync takes at most, so that other threads come in between."""

    def __init__(
        self, log: Log, seed: int = 0, *, unnamed: bool = True, durable_writes: bool = True, slow_s: float = 0.0003
    ) -> None:
        self.log = log
        self.rng = random.Random(seed)
        self.unnamed = unnamed
        self.durable_writes = durable_writes
        self.slow_s = slow_s

    def process_id(self) -> int:
        return 1

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        if not self.unnamed and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files")
        if not flags & os.O_CREAT:
            return super().open(path, flags, mode)
        return self._noted(Call(LINK, phase_now()), super().open, path, flags, mode)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return self._noted(Call(WRITE, phase_now(), offset, bytes(data)), super().pwrite, fd, data, offset)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        if not self.durable_writes:
            raise OSError(errno.EOPNOTSUPP, "no durable writes")
        call = Call(DURABLE_WRITE, phase_now(), offset, bytes(data))
        return self._noted(call, super().pwrite, fd, data, offset)

    def sync(self, fd: int) -> None:
        self._noted(Call(SYNC, phase_now()), lambda: None)

    def sync_directory(self, fd: int) -> None:
        self._noted(Call(SYNC_DIRECTORY, phase_now()), lambda: None)

    def truncate(self, fd: int, length: int) -> None:
        self._noted(Call(RESIZE, phase_now(), size=length), super().truncate, fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        def grow() -> None:
            if self.stat(fd).st_size < offset + length:
                os.ftruncate(fd, offset + length)

        self._noted(Call(ALLOCATE, phase_now(), offset, size=offset + length), grow)

    def link(self, fd: int, name: str, directory_fd: int) -> None:
        self._noted(Call(LINK, phase_now()), super().link, fd, name, directory_fd)

    def _noted(self, call: Call, make: Callable[..., Any], *arguments: Any) -> Any:
        log = self.log
        with log.lock:
            log.add(Tick(BEGIN, call))
        if call.kind in (SYNC, DURABLE_WRITE):
            time.sleep(self.rng.random() * self.slow_s)
        with log.lock:
            result = make(*arguments)
            log.add(Tick(END, call))
        return result


def phase_now() -> str:
    """What the database is doing in this thread."""
    frame = sys._getframe(2)
    while frame is not None:
        phase = PHASES.get(frame.f_code.co_name)
        if phase is not None and "mmlsm" in frame.f_code.co_filename:
            return phase
        frame = frame.f_back  # type: ignore[assignment]
    return "other"
