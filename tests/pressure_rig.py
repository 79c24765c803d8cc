"""A database under load that is only numbers, for tests of back-pressure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mmlsm
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.pressure import BackPressure

TABLE = 1 << 18


class Load:
    """A database that is only numbers, with a clock of its own: memtables of 256 KiB, slow flushes and merges.

    A flush takes `flush_s`, a merge of the `fan_out` oldest runs `merge_s`; both go on while a commit sleeps or waits.
    """

    def __init__(self, *, flush_s: float, merge_s: float = 0.0, auto_merge: bool = True) -> None:
        self.flush_s, self.merge_s = flush_s, merge_s
        self.now, self.flush_left, self.merge_left = 0.0, flush_s, merge_s
        self.written = self.filled = self.flushes = 0
        self.sealed = self.runs = 0
        self.install = self.tier = self.draining = self.bottom = 0
        self.drain_rate = self.drained = 0.0
        self.on_install: list[Any] = []
        self.sleeps: list[float] = []
        self.longest = [0, 0]
        self.error: Exception | None = None
        self.fault: Exception | None = None
        self.over = False
        self.ended = False
        self.committer = SimpleNamespace(log=SimpleNamespace(end=0))
        self.settings = Settings(auto_merge=auto_merge, memtable_bytes=TABLE)
        life = SimpleNamespace(check_open=self.check_open)
        self.pressure = BackPressure(self, self, self, life)  # type: ignore[arg-type]
        self.pressure.clock = lambda: self.now
        self.pressure.sleep = self.sleep

    @property
    def state(self) -> Any:
        tables = [SimpleNamespace(log_bytes=self.filled), *[SimpleNamespace(log_bytes=TABLE)] * self.sealed]
        levels = ((((),) * self.runs),) if self.runs else ()
        return SimpleNamespace(tables=tables, version=SimpleNamespace(levels=levels))

    @property
    def manifest(self) -> Any:
        levels = tuple(((SimpleNamespace(pages=n),),) if n else () for n in (self.tier, self.draining, self.bottom))
        return SimpleNamespace(install=self.install, levels=levels)

    def installed(self, **pages: int) -> None:
        vars(self).update(pages)
        self.install += 1
        for tell in self.on_install:
            tell()

    def check_open(self) -> None:
        if self.ended:
            raise mmlsm.ClosedError("closed")

    def wait_until_flushed(self, ready: Any) -> float:
        begun = self.now
        while not ready():
            if self.error is not None:
                raise self.error
            self.pass_time(0.01)
        return self.now - begun

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        for _ in range(10):
            self.pass_time(seconds / 10)

    def pass_time(self, seconds: float) -> None:
        """The flush and the merge under way go on, at most one of each: it is called for short times."""
        self.now += seconds
        if self.sealed:
            self.flush_left -= seconds
            if self.flush_left <= 0:
                self.sealed, self.runs, self.flushes = self.sealed - 1, self.runs + 1, self.flushes + 1
                self.flush_left += self.flush_s
        if self.runs >= self.settings.fan_out:
            self.merge_left -= seconds
            if self.merge_left <= 0:
                self.runs -= self.settings.fan_out
                self.merge_left += self.merge_s

        if self.draining and self.drain_rate:
            self.drained += seconds * self.drain_rate
            if self.drained >= 16:
                self.installed(draining=max(0, self.draining - int(self.drained)))
                self.drained %= 1

    def commit(self, size: int, takes_s: float = 0.0) -> None:
        self.pressure.slow_down()
        if takes_s:
            self.pass_time(takes_s)
        self.committer.log.end += size
        self.written += size
        self.filled += size
        if self.filled >= TABLE:
            self.filled, self.sealed = 0, self.sealed + 1
            if self.bottom:
                self.installed(tier=self.tier + TABLE // PAGE_BYTES)
        self.longest = [max(self.longest[0], self.sealed), max(self.longest[1], self.runs + self.sealed)]


def counts(load: Load) -> dict[str, int]:
    return {cause: stalls.count for cause, stalls in load.pressure.stalls.items()}
