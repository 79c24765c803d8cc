"""Named points: a System whose process is killed or stopped in the middle of one call, the n-th of its kind.

A point is (place, method, number, when). The place is who calls: "opening", "closing", else "committing" for the
user's threads, "flushing" for the writer thread, "merging" for the merge thread (compaction and relocation too). The
method is one of System's, or "superblock" for a write into one of its slots. When is "before", "inside" (a part of the
bytes is written; of what is no write, as before) or "after".
"""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any, NamedTuple

from mmlsm.file import System
from mmlsm.limits import PAGE_BYTES
from rig.kills.forks import say

WRITES = ("pwrite", "pwrite_durably")
METHODS = (*WRITES, "sync", "truncate", "allocate", "link", "sync_directory")
SUPERBLOCK_BYTES = 2 * PAGE_BYTES

CALLS = {
    "opening": (*WRITES, "superblock", "sync", "truncate", "allocate", "link", "sync_directory"),
    "committing": (*WRITES, *WRITES, "superblock", "sync", "truncate", "allocate"),
    "flushing": ("pwrite", "superblock", "sync", "truncate", "allocate"),
    "merging": ("pwrite", "superblock", "sync", "truncate"),
    "closing": ("pwrite", "superblock", "sync", "truncate"),
}
"""Who makes calls of what; what is written twice is chosen twice as often."""
FREQUENT = {"pwrite": 5, "pwrite_durably": 3, "superblock": 3, "sync": 2}
"""How many calls on average go by before the one; of others, and at opening and closing, hardly any."""
CALLS_MOST = 100
"""Whatever the point, no later call than this one is gone past."""


class Point(NamedTuple):
    """One moment in the middle of the I/O."""

    place: str
    method: str
    number: int
    when: str

    @classmethod
    def any(cls, rng: random.Random, place: str | None = None) -> Point:
        """One of those that CALLS tells of."""
        place = place or rng.choice(list(CALLS))
        method = rng.choice(CALLS[place])
        mean = 0.7 if place in ("opening", "closing") else FREQUENT.get(method, 0.3)
        number = 1 + int(rng.expovariate(1 / mean))
        return cls(place, method, number, rng.choice(["before", "inside", "inside", "after"]))


class Struck(System):
    """As System, but at `point` it says "at", and a signal hits the whole process: SIGKILL or SIGSTOP.

    A point that does not come is another: where the CALLS_MOST-th call is made. At closing it is waited for.
    """

    def __init__(self, point: Point | None, strike: signal.Signals, seed: int) -> None:
        self.point = point
        self.phase = "opening"
        """"opening", "closing", or "" between."""
        self._strike = strike
        self._rng = random.Random(seed)
        self._calls = 0
        self._at_place = 0
        self._lock = threading.Lock()

    def strikes(self, method: str) -> bool:
        """Whether this call is the point's."""
        point = self.point
        if point is None or (point.place == "closing" and self.phase != "closing"):
            return False
        with self._lock:
            self._calls += 1
            if (self._place(), method) == (point.place, point.method):
                self._at_place += 1
                if self._at_place == point.number:
                    return True
            return self._calls == CALLS_MOST

    def strike(self, method: str, when: str) -> None:
        """Say so, and be struck. Only after SIGSTOP does it return."""
        say(f"at {self._place()} {method} {when}")
        os.kill(os.getpid(), self._strike)

    def part_of(self, length: int) -> int:
        """So many bytes of a write go out before it is struck: any number, almost all, whole sectors, whole pages."""
        part = self._rng.randrange(length)
        almost = max(0, length - 1 - self._rng.randrange(64))
        return self._rng.choice([part, almost, almost, part - part % 512, part - part % 4096])

    def _place(self) -> str:
        name = threading.current_thread().name
        if name == "mmlsm-merge":
            return "merging"
        if name == "mmlsm-writer":
            return "flushing"
        return self.phase or "committing"


def _struck(method: str) -> Any:
    plain = getattr(System, method)

    def call(self: Struck, *arguments: Any, **named: Any) -> Any:
        kind = "superblock" if method in WRITES and arguments[2] < SUPERBLOCK_BYTES else method
        if self.point is None or not self.strikes(kind):
            return plain(self, *arguments, **named)
        when = self.point.when
        if when == "after":
            answer = plain(self, *arguments, **named)
            self.strike(kind, when)
            return answer
        if when == "inside" and method in WRITES and (part := self.part_of(len(arguments[1]))):
            fd, data, offset = arguments
            done = plain(self, fd, data[:part], offset)
            self.strike(kind, when)
            return done
        self.strike(kind, "before")
        return plain(self, *arguments, **named)

    return call


for _method in METHODS:
    setattr(Struck, _method, _struck(_method))
