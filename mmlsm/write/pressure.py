"""Back-pressure: commits are slowed smoothly before a limit, by a stated rule, and what they waited is counted.

Any committing thread, before it takes the write lock.

What waits: sealed memtables for their flush; runs of the newest level, with the memtables that will be runs, for a
merge; and while runs drain into the bottom, all that is above it (`merge_policy.backlog`). The newest memtable counts
by how full it is, so that lengths grow with each commit. From slow mark to stop mark a place p goes from 0 to 1:

              slow mark     stop mark
    flush     2             4              sealed memtables
    merge     2 * fan_out   4 * fan_out    runs and memtables
    merge     2/3           1              backlog

A commit of n bytes of log makes those that come after it n / rate * p / (1 - p) seconds later (`delay_s`), where `rate`
is how many bytes of log a second the flushes, or the merges, have got out of the way of late: at p = 1/2 bytes come in
as fast as they go, so an endless load, once its rate is known, stays before the stop mark. What is owed is one time for
the whole database, from which on the next commit may go: time that passes anyway pays for it, and of many threads each
waits for all.

I1. From the stop mark on commits wait: for a flush, or for a merge. Otherwise a commit sleeps at most PAUSE_MOST_S, and
    not at all while less than PAUSE_LEAST_S is owed.
I2. Nobody starves: who waits at a stop mark goes on after the next flush, or the next merge of the newest level, or
    once as much as a memtable has drained, whoever was faster then. So a thread passes the limit by a commit at most.
I3. Nobody waits for a thread that cannot go on: a writer thread's error is raised instead, and a merge thread with an
    error is not waited for. The backlog counts only while runs drain, for then the policy goes on with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mmlsm.errors import Error
from mmlsm.limits import PAGE_BYTES
from mmlsm.locks import new_lock
from mmlsm.write.merge_policy import backlog, shape_of

if TYPE_CHECKING:
    from mmlsm.read.life import Life
    from mmlsm.read.reader import ReadState
    from mmlsm.write.merger import Merger
    from mmlsm.write.store import Store
    from mmlsm.write.writer import Writer

SEALED_SLOW: Final = 2
"""From this many sealed memtables on commits are slowed."""
SEALED_STOP: Final = 4
"""With this many they wait for a flush."""
RUNS_SLOW_FAN_OUTS: Final = 2
RUNS_STOP_FAN_OUTS: Final = 4
BACKLOG_SLOW: Final = 2 / 3
BACKLOG_STOP: Final = 1.0
PLACE_MOST: Final = 0.98
RATE_FIRST: Final = 32e6
"""Bytes a second that flushes and merges are taken to do before it was measured."""
RATE_LEAST: Final = 1e5
PAUSE_LEAST_S: Final = 0.001
PAUSE_MOST_S: Final = 0.05
OWED_MOST_S: Final = 1.0
NEVER: Final = 1 << 60


def place(length: float, slow: float, stop: float) -> float:
    """How far `length` is from the slow mark (0, or before it) to the stop mark (1, which is never said)."""
    return min(max((length - slow) / (stop - slow), 0.0), PLACE_MOST)


def delay_s(written: float, rate: float, p: float) -> float:
    """Seconds by which `written` bytes put off what comes after them, at place `p` and with `rate` bytes a second."""
    return written / rate * p / (1 - p)


@dataclass(slots=True)
class Stalls:
    """How often commits waited for one cause, and how long in all."""

    count: int = 0
    seconds: float = 0.0


class Drain:
    """How fast something goes, in bytes a second: from each departure to the next while it is busy."""

    def __init__(self) -> None:
        self.rate = RATE_FIRST
        self.gone = 0
        self.since = 0.0

    def begin(self, gone: int, now: float) -> None:
        """Measure from here on; `gone` have left so far."""
        self.gone, self.since = gone, now

    def note(self, gone: int, bytes_each: float, now: float, least: float = 1) -> None:
        """So many have left by now; fewer than `least` more are no departure yet.

        The mean is of seconds a byte: one departure at once, as by chance, halves them.
        """
        if gone - self.gone >= least:
            pace = (now - self.since) / ((gone - self.gone) * bytes_each)
            self.rate = max(RATE_LEAST, 2 / (1 / self.rate + pace))
            self.begin(gone, now)

    def rate_at(self, now: float, least: float) -> float:
        """Bytes a second, no more than as though `least` bytes, which have not left yet, left now."""
        return min(self.rate, max(RATE_LEAST, least / max(now - self.since, 1e-9)))


class BackPressure:
    """`stalls` has what commits waited, by cause: "flush" and "merge" at a stop mark, "slowed" before it."""

    def __init__(self, store: Store, writer: Writer, merger: Merger, life: Life) -> None:
        # constant after construction
        self.store = store
        self.writer = writer
        self.merger = merger
        self.life = life
        self.settings = settings = store.settings
        self.runs_slow = RUNS_SLOW_FAN_OUTS * settings.fan_out if settings.auto_merge else NEVER
        self.runs_stop = RUNS_STOP_FAN_OUTS * settings.fan_out if settings.auto_merge else NEVER + 1
        self.clock = time.monotonic
        self.sleep = time.sleep
        self.lock = new_lock()
        # set without the lock by who finds that nothing is to be slowed: the next one who does begins anew
        self.pressed = False
        # guarded by lock
        self.stalls = {"flush": Stalls(), "merge": Stalls(), "slowed": Stalls()}
        self.flushing = Drain()
        self.merging = Drain()
        self.draining = Drain()
        self.table_bytes = float(settings.memtable_bytes)
        self.log_end = 0
        self.free_at = 0.0
        self.looked_at = -1
        self.backlog = 0.0
        self.drains = False
        self.waiting_bytes = self.added_bytes = self.drained_bytes = 0
        self.look()
        self.added_bytes = 0
        store.on_install.insert(0, self.look)  # before anybody is woken

    def look(self) -> None:
        """Something was installed: see what waits above the bottom. `added_bytes` and `drained_bytes` only grow."""
        manifest, settings = self.store.manifest, self.settings
        if not settings.auto_merge:
            return
        shape = shape_of(manifest.levels)
        waiting = sum(record.pages for record in shape.upper()) * PAGE_BYTES
        behind = backlog(manifest.levels, settings) if shape.draining else 0.0
        with self.lock:
            if manifest.install > self.looked_at:
                self.looked_at = manifest.install
                self.added_bytes += max(0, waiting - self.waiting_bytes)
                self.drained_bytes += max(0, self.waiting_bytes - waiting)
                self.waiting_bytes, self.backlog = waiting, behind
                if self.drains:
                    self.draining.note(self.drained_bytes, 1.0, self.clock(), self.settings.memtable_bytes)
                else:
                    self.draining.begin(self.drained_bytes, self.clock())
                self.drains = bool(shape.draining)

    def slow_down(self) -> None:
        """Wait as long as the rule says. Costs a few comparisons while nothing is to be slowed."""
        if self.writer.fault is not None:
            raise Error(f"the writer thread has failed: {self.writer.fault!r}; close the database and open it anew")
        state = self.store.state
        if not state.tables:
            return  # another thread is at the first commit
        sealed, levels = len(state.tables) - 1, state.version.levels
        runs = len(levels[0]) if levels else 0
        if sealed < SEALED_SLOW and runs + sealed < self.runs_slow and self.backlog < BACKLOG_SLOW:
            self.pressed = False
            return
        owed_s = self.owe(state)
        stopped = False
        if self.at_flush_stop():
            gone = self.writer.flushes
            self.stop("flush", lambda: not self.at_flush_stop() or self.writer.flushes > gone)
            stopped = True
        if self.at_merge_stop():
            gone, enough = self.runs_gone(self.store.state), self.drained_bytes + self.table_bytes
            self.stop("merge", lambda: not self.at_merge_stop() or self.merged(gone, enough))
            stopped = True
        if not stopped and owed_s >= PAUSE_LEAST_S:
            begun = self.clock()
            self.sleep(min(owed_s, PAUSE_MOST_S))
            self.count("slowed", begun)

    def at_flush_stop(self) -> bool:
        """Whether commits are to wait for a flush."""
        return len(self.store.state.tables) > SEALED_STOP

    def at_merge_stop(self) -> bool:
        """Whether commits are to wait for a merge, and there is somebody to do it."""
        state = self.store.state
        if runs_of(state) + len(state.tables) - 1 < self.runs_stop and self.backlog < BACKLOG_STOP:
            return False
        return self.merger.error is None and self.merger.fault is None and not self.merger.over

    def runs_gone(self, state: ReadState) -> int:
        """How many runs of the newest level merges have taken, but for a constant."""
        return self.writer.flushes - runs_of(state)

    def merged(self, gone: int, enough: float) -> bool:
        """Whether more runs than `gone` have gone, or bytes enough have drained."""
        return self.runs_gone(self.store.state) > gone or self.drained_bytes >= enough

    def stop(self, cause: str, ready: Callable[[], bool]) -> None:
        """Wait at a stop mark (I1, I3)."""
        begun = self.clock()

        def may_go_on() -> bool:
            self.life.check_open()
            return ready()

        try:
            self.writer.wait_until_flushed(may_go_on)
        finally:
            self.count(cause, begun)

    def count(self, cause: str, begun: float) -> None:
        """Count a stall that ends now."""
        with self.lock:
            stalls = self.stalls[cause]
            stalls.count += 1
            stalls.seconds += self.clock() - begun

    def owe(self, state: ReadState) -> float:
        """Measure, and charge for what was committed since the last call; the seconds that are owed now."""
        committer = self.writer.committer
        assert committer is not None
        with self.lock:
            now, end = self.clock(), committer.log.end
            sealed, runs, flushes = len(state.tables) - 1, runs_of(state), self.writer.flushes
            if not self.pressed:
                self.pressed = True
                self.log_end = end
                self.flushing.begin(flushes, now)
                self.merging.begin(flushes - runs, now)
            written, self.log_end = max(0, end - self.log_end), end
            if sealed and state.tables[1].log_bytes:
                self.table_bytes = float(state.tables[1].log_bytes)
            self.flushing.note(flushes, self.table_bytes, now)
            self.merging.note(flushes - runs, self.table_bytes, now)
            waiting = sealed + min(1.0, state.tables[0].log_bytes / self.table_bytes)
            flush_rate = self.flushing.rate_at(now, self.table_bytes)
            merge_rate = self.merging.rate_at(now, self.table_bytes * max(1, runs))
            drain_rate = self.draining.rate_at(now, self.waiting_bytes)
            paged = written * (self.added_bytes / end if self.added_bytes and end else 1.0)  # as it will be in segments
            delay = max(
                delay_s(written, flush_rate, place(waiting, SEALED_SLOW, SEALED_STOP)),
                delay_s(written, merge_rate, place(runs + waiting, self.runs_slow, self.runs_stop)),
                delay_s(paged, drain_rate, place(self.backlog, BACKLOG_SLOW, BACKLOG_STOP)),
            )
            self.free_at = min(max(self.free_at, now) + delay, now + OWED_MOST_S)
            return self.free_at - now


def runs_of(state: ReadState) -> int:
    """Runs of the newest level."""
    levels = state.version.levels
    return len(levels[0]) if levels else 0
