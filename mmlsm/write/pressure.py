"""Back-pressure: commits wait for flushes and merges by a stated rule, and what they waited is counted.

Any committing thread, before it takes the write lock.

I1. While SEALED_MOST sealed memtables wait for their flush, or RUNS_STOP runs for a merge, commits wait. From RUNS_SLOW
    runs on each commit sleeps a millisecond for each run too many, so that it does not come to that.
I2. Nobody waits for a thread that cannot go on: its error is raised instead.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from mmlsm.errors import Error
from mmlsm.write.merge_policy import RUNS_SLOW, RUNS_STOP

if TYPE_CHECKING:
    from mmlsm.read.life import Life
    from mmlsm.write.merger import Merger
    from mmlsm.write.store import Store
    from mmlsm.write.writer import Writer

SEALED_MOST: Final = 3
"""With this many sealed memtables commits wait for a flush."""

PAUSE_S: Final = 0.001


class BackPressure:
    """`stalls` commits waited, `stall_s` seconds in all; of many threads at once a stall may go uncounted."""

    def __init__(self, store: Store, writer: Writer, merger: Merger, life: Life) -> None:
        self.store = store
        self.writer = writer
        self.merger = merger
        self.life = life
        self.stalls = 0
        self.stall_s = 0.0

    def slow_down(self) -> None:
        """Wait as long as the rule says (I1)."""
        if self.writer.fault is not None:
            raise Error(f"the writer thread has failed: {self.writer.fault!r}; close the database and open it anew")
        runs = len(self.store.state.version.segments) if self.store.settings.auto_merge else 0
        sealed = len(self.store.state.tables) - 1
        if sealed < SEALED_MOST and runs < RUNS_SLOW:
            return
        self.stalls += 1
        if sealed >= SEALED_MOST or runs >= RUNS_STOP:
            self.stall_s += self.writer.wait_until_flushed(self.may_go_on)
        else:
            pause_s = PAUSE_S * (runs - RUNS_SLOW + 1)
            time.sleep(pause_s)
            self.stall_s += pause_s

    def may_go_on(self) -> bool:
        """Whether flushes and merges have caught up; a merge thread with an error is not waited for."""
        self.life.check_open()
        state = self.store.state
        merging = self.store.settings.auto_merge and self.merger.error is None and self.merger.fault is None
        runs = len(state.version.segments) if merging else 0
        return len(state.tables) - 1 < SEALED_MOST and runs < RUNS_STOP
