"""The writer thread: flushes sealed memtables, syncs what `group` commits have written, keeps log space ready.

I1. It holds strong references to Store and Committer only, never to a Database.
I2. A flush that fails has given everything back; the error is kept for `stats()` and for writers that wait, and the
    flush is tried again. After a fault of ours nothing is; that is kept for `close()` too.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmlsm.errors import Error, StorageError
from mmlsm.space.extents import Extent
from mmlsm.write.flush import flush
from mmlsm.write.log import EXTENT_PAGES_FIRST
from mmlsm.write.store import Edit, Store
from mmlsm.write.worker import Worker

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.write.commit import Committer
    from mmlsm.write.memtable import Memtable

RETRY_S = 0.5

class Writer(Worker):
    """`wake()` after a seal; `stop()` and join at close."""

    def __init__(self, store: Store) -> None:
        super().__init__("mmlsm-writer")
        # constant after construction; `committer` from the first commit on
        self.store = store
        self.committer: Committer | None = None
        self.wakeups: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.waiters: deque[Any] = deque()
        """Plain locks that are held, one for each who waits for progress: an interrupt in a wait keeps no other."""
        # written by any thread; a stale word costs one round
        self.group_pending = False
        self.stopping = False
        self.abandoned = False
        self.restarting: tuple[threading.Lock, int] | None = None
        # this thread's own, as is `fault`, read by stats() and by who waits for a flush
        self.error: Error | MemoryError | None = None
        self.flushes = 0
        self.synced_at = time.monotonic()
        self.bytes_written = 0
        self.channel: Channel | None = None

    # -- any thread

    def wake(self) -> None:
        """There is something to do."""
        self.wakeups.put(True)

    def note_group_commit(self) -> None:
        """A `group` commit was written: sync it within the interval."""
        if not self.group_pending:
            self.group_pending = True
            self.wakeups.put(True)

    def tell_progress(self) -> None:
        """Something was installed: who waits looks again."""
        with contextlib.suppress(IndexError):
            while True:
                self.waiters.popleft().release()

    def abandon(self) -> None:
        """End without flushing; takes no lock (R12)."""
        self.abandoned = self.stopping = True
        self.wakeups.put(True)

    def stop(self) -> None:
        """Flush what is sealed, then end; the caller joins."""
        self.stopping = True
        self.wakeups.put(True)

    def restart_log(self, behind: int) -> None:
        """Flush, and have the log go on at the earliest free pages, if it is behind page `behind` or needlessly large.

        Back when that is done or not to be. The merge thread asks, when the log may be all that keeps the file long.
        """
        done = allocate_lock()
        done.acquire()
        self.restarting = done, behind
        self.wakeups.put(True)
        while not self.over and not self.stopping and self.store.file.failure is None:
            if done.acquire(timeout=0.05):
                break

    def wait_until_flushed(self, ready: Callable[[], bool]) -> float:
        """Wait until `ready`; the seconds it took. The flush's error when it cannot go on: of a try from now on."""
        begun, earlier = time.monotonic(), self.error
        while not ready():
            self.store.file.check_writable()
            if (error := self.error) is not None and error is not earlier:
                raise error
            over = self.over  # before its fault, which it notes first
            if self.fault is not None:
                raise Error(f"the writer thread has failed: {self.fault!r}") from self.fault
            if over and not self.stopping:
                raise Error("the writer thread has ended")
            if over:
                break
            gate = allocate_lock()
            gate.acquire()
            self.waiters.append(gate)
            if not ready():  # else it may have been told before it was there to be told
                gate.acquire(timeout=0.2)
        return time.monotonic() - begun

    # -- the thread

    def work(self) -> None:
        while self.fault is None:
            timeout = max(0.001, self.sync_due() - time.monotonic()) if self.group_pending else None
            if self.error is not None:
                timeout = min(RETRY_S, timeout or RETRY_S)
            if not self.stopping:  # where memory failed its wake-up may be taken already
                with contextlib.suppress(queue.Empty):
                    self.wakeups.get(timeout=timeout)
            if self.abandoned:
                break
            try:
                self.sync_if_due()
                self.flush_sealed()
                self.move_log()
                if self.committer is None or self.committer.failure is None:  # else it goes on being told
                    self.error = None
            except (Error, MemoryError) as error:
                self.error = error.with_traceback(None)  # its frames hold what was flushed
                if self.store.file.failure is not None:
                    self.group_pending = False
                self.end_restart()
                self.tell_progress()
            if self.stopping:
                break
        if self.fault is not None:
            self.end_restart()
            self.tell_progress()
        if self.channel is not None:
            with contextlib.suppress(Error):
                self.channel.close()

    def sync_due(self) -> float:
        """When the next interval sync is due."""
        return self.synced_at + self.store.settings.group_interval

    def sync_if_due(self) -> None:
        """Make what `group` commits wrote durable within the interval; in the middle of a flush too."""
        committer = self.committer
        if committer is not None and self.group_pending and time.monotonic() >= self.sync_due():
            self.group_pending = False
            self.synced_at = time.monotonic()
            try:
                committer.sync()
            except BaseException:
                self.group_pending = True  # for want of memory, say: it is still due
                raise
            with contextlib.suppress(StorageError):  # no space: the commit that needs the extent will say so
                committer.log.prepare()

    def move_log(self) -> None:
        """Do what `restart_log` asks for."""
        request, self.restarting = self.restarting, None
        if request is None:
            return
        done, behind = request
        try:
            committer, store = self.committer, self.store
            if committer is None:
                return
            log = committer.log
            if not self.is_in_the_way(log.extents, behind) and not any(one.end > behind for one in log.spare):
                return
            with committer.order_lock:
                if committer.memtable.entry_count and committer.on_full is not None:
                    committer.on_full()
            self.flush_sealed()
            if self.channel is None:
                self.channel = store.file.channel()
            with committer.order_lock:
                table = committer.memtable
                if table.entry_count or len(store.state.tables) != 1:
                    return
                old = list(log.extents)
                log.restart()
                position = log.position
                table.begin_at(position)
            committer.write_out()  # nobody writes to the old extents any more
            edit = Edit(
                levels=lambda levels, _: levels,
                commit=old,
                retire=[(old, store.manifest.install + 1)],
                log=position,
            )
            store.install(self.channel, edit)
        finally:
            done.release()

    def end_restart(self) -> None:
        """Something has failed: who waits for a restart of the log goes on without."""
        request, self.restarting = self.restarting, None
        if request is not None:
            request[0].release()

    def is_in_the_way(self, extents: tuple[Extent, ...], behind: int) -> bool:
        """Whether the log stands behind that page, or is more than an eighth of what is before it."""
        large = sum(extent.count for extent in extents) > max(EXTENT_PAGES_FIRST, behind // 8)
        return large or any(extent.end > behind for extent in extents)

    def flush_sealed(self) -> None:
        """Flush every sealed memtable, oldest first."""
        while True:
            tables = self.store.state.tables
            if len(tables) < 2 or self.abandoned:
                return
            self.flush_oldest(tables[-1], tables[-2])

    def flush_oldest(self, table: Memtable, successor: Memtable) -> None:
        """Flush one; its log extents go with it."""
        store, committer = self.store, self.committer
        assert committer is not None and table.sealed
        if self.channel is None:
            self.channel = store.file.channel()
        committer.write_out()
        while committer.pins.published < table.last_seq:
            store.file.check_writable()
            if committer.failure is not None:
                raise committer.refusal()
            time.sleep(0.001)
        start = successor.log_start
        assert start is not None
        with committer.order_lock:
            names = [extent.first for extent in committer.log.extents]
            before = list(committer.log.extents)[: names.index(start.page)]
        self.bytes_written += flush(
            store,
            self.channel,
            table,
            log=start,
            log_extents=before,
            extents=sorted(Extent(r.page, r.pages) for r in table.references),
            pause=self.sync_if_due,
        )
        self.flushes += 1
