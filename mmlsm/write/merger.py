"""The merge thread: merges, lets go of what no reader holds, gives space back, truncates.

I1. It holds a strong reference to the Store only, never to a Database; it stops at step boundaries.
I2. It alone tears segments down, and only tries the exclusive side of their locks: it never waits on a reader (R11).
I3. Finalisers reach it through `store.released`, a SimpleQueue, and take no lock (R12).
I4. A merge that fails has given everything back; the error is kept for `stats()` and the merge is tried again.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mmlsm.errors import ClosedError, Error, ReadOnlyError
from mmlsm.format.manifest import Level, SegmentRecord
from mmlsm.limits import PAGE_BYTES
from mmlsm.write.merge_policy import MergePlan, plan
from mmlsm.write.merge_run import MergeResult, Stopped, merge_segments
from mmlsm.write.store import Edit, Store

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.read.version import Version

IDLE_S = 0.5
"""Nothing installed for this long, and for as long as the merge would take at IDLE_BYTES_PER_S: the database is idle,
and converges to one run. So a small change to a large database is not followed by a large merge at once."""

IDLE_BYTES_PER_S = 25_000_000

RETRY_S = 1.0


class Merger(threading.Thread):
    """`wake()` after an install; `request_compaction()` and `stop()` from any thread."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="mmlsm-merge", daemon=True)
        # constant after construction
        self.store = store
        self.lock = threading.Condition()
        # guarded by lock
        self.stopping = False
        self.abandoned: tuple[threading.Thread, File] | None = None
        self.compactions: list[Compaction] = []
        # this thread's own, read by stats()
        self.error: Error | None = None
        self.fault: Exception | None = None
        self.merges = 0
        self.bytes_written = 0
        self.entries_merged = 0
        self.installed_at = time.monotonic()
        self.expecting = False
        self.channel: Channel | None = None

    # -- any thread

    def wake(self) -> None:
        """Something was installed or released."""
        self.store.released.put(None)

    def stop(self) -> None:
        """Stop at the next step boundary; the caller joins."""
        with self.lock:
            self.stopping = True
            self.lock.notify_all()
        self.wake()

    def abandon(self, writer: threading.Thread, file: File) -> None:
        """End, and close the file once the writer thread has ended too; takes no lock (R12)."""
        self.abandoned = (writer, file)
        self.wake()

    def request_compaction(self, progress: Callable[[int, int], object] | None) -> Compaction:
        """Ask for everything to be merged into one run and space to be given back; wait on what is answered."""
        request = Compaction(progress)
        with self.lock:
            if self.stopping or self.fault is not None:
                request.finish(Error(f"the merge thread has failed: {self.fault!r}") if self.fault else gone())
            self.compactions.append(request)
        self.wake()
        return request

    # -- the thread

    def run(self) -> None:
        while True:
            with self.lock:
                if self.stopping or self.abandoned is not None:
                    break
            try:
                busy = self.step()
                self.error = None
            except Stopped:
                continue
            except ReadOnlyError as error:
                self.error = error
                self.fail_compactions(error)
                busy = False
            except Error as error:
                self.error = error
                self.fail_compactions(error)
                self.pause(RETRY_S)
                continue
            except Exception as error:  # a fault of ours: keep it for close(), and do no more
                self.fault = error
                self.fail_compactions(Error(f"the merge thread has failed: {error!r}"))
                break
            # The word to stop is given before its wake-up, which the step may have drained.
            if not busy and not self.stopping and self.abandoned is None:
                self.drain(block=True)
        self.fail_compactions(gone())
        if self.channel is not None:
            with contextlib.suppress(Error):
                self.channel.close()
        if self.abandoned is not None:
            writer, file = self.abandoned
            writer.join()
            with contextlib.suppress(Error):
                file.close()

    def pause(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        with self.lock:
            if not self.stopping:
                self.lock.wait(seconds)

    def step(self) -> bool:
        """One round: drain, reclaim, merge if the policy says so. Whether there may be more to do at once."""
        if self.channel is None:
            self.channel = self.store.file.channel()
        self.drain(block=False)
        self.reclaim()
        with self.lock:
            self.compactions = [request for request in self.compactions if not request.cancelled]
            request = self.compactions[0] if self.compactions else None
        version = self.store.state.version
        chosen = self.choose(version, request)
        if chosen is not None:
            self.merge(version, chosen, request)
            return True
        if request is not None:
            self.move_manifest()
            with self.lock:
                self.compactions.pop(0)
            request.finish(None)
            return True
        return False

    def choose(self, version: Version, request: Compaction | None) -> MergePlan | None:
        """What to merge now."""
        records = [run[0].record for level in version.levels for run in level]
        sizes = [record.pages for record in records]
        tombstones = bool(records) and records[-1].tombstones > 0
        if request is not None:
            return plan(sizes, idle=True, has_tombstones=tombstones) or self.relocation(version, request)
        if not self.store.settings.auto_merge:
            return None
        patience_s = IDLE_S + sum(sizes) * PAGE_BYTES / IDLE_BYTES_PER_S
        idle = time.monotonic() - self.installed_at >= patience_s
        self.expecting = plan(sizes, idle=True, has_tombstones=tombstones) is not None
        return plan(sizes, idle=idle, has_tombstones=tombstones)

    def relocation(self, version: Version, request: Compaction) -> MergePlan | None:
        """The last step of a compaction: write the only run once more, into the free pages before it.

        Its merge wrote to the end of the file, so all that it read is free now. Not where it would gain less than a
        tenth of the file.
        """
        if request.relocated or len(version.segments) != 1:
            return None
        request.relocated = True
        wanted, end = version.segments[0].record.pages, 0
        for extent in self.store.allocator.free_extents():
            if wanted <= 0:
                break
            end, wanted = extent.first + min(extent.count, wanted), wanted - extent.count
        gains = wanted <= 0 and end < 0.9 * self.store.allocator.total
        return MergePlan(0, 1, True) if gains else None

    def move_manifest(self) -> None:
        """Install the present version once more: the manifest may be all that stands at the end of the file."""
        space = self.store.allocator.counts()
        if space.free >= max(8, space.total // 16) and not self.store.file.pins_elsewhere():
            assert self.channel is not None
            self.store.install(self.channel, Edit(lambda levels, _: levels))
            self.drain(block=False)
            self.reclaim()

    def merge(self, version: Version, chosen: MergePlan, request: Compaction | None) -> None:
        """Merge the planned runs of `version`, which this reference pins, and install the result."""
        store, channel = self.store, self.channel
        assert channel is not None
        runs = [run for level in version.levels for run in level][chosen.first : chosen.last]
        segments = [segment for run in runs for segment in run]

        def pause(done: int, total: int) -> None:
            if self.stopping or self.abandoned is not None:
                raise Stopped
            self.drain(block=False)
            if request is not None:
                request.report(done, total)

        result = merge_segments(
            store.file,
            channel,
            store.allocator,
            store.settings,
            segments,
            drop_tombstones=chosen.bottom,
            with_filter=not chosen.bottom,
            birth=store.manifest.install + 1,
            segment_id=store.next_segment_id(),
            at_end=request is not None and not request.relocated,
            pause=pause,
        )
        self.install(channel, [segment.record for segment in segments], result)
        self.merges += 1
        self.bytes_written += result.bytes_written
        self.entries_merged += result.entries_in
        self.installed_at = time.monotonic()

    def install(self, channel: Channel, inputs: list[SegmentRecord], result: MergeResult) -> None:
        """Put the result in the place of the runs that it was made of, whatever was flushed meanwhile."""
        store = self.store
        merged = {record.id for record in inputs}

        def levels(present: tuple[Level, ...], number: int) -> tuple[Level, ...]:
            runs = [run for level in present for run in level]
            at = next(i for i, run in enumerate(runs) if run[0].id in merged)
            rest = [run for run in runs if run[0].id not in merged]
            if result.record is not None:
                record = result.record
                rest.insert(at, (record if record.overflow else replace(record, installed=number),))
            return (tuple(rest),) if rest else ()

        retire = [(list(extents), born) for extents, born in result.unlinked]
        edit = Edit(levels=levels, commit=list(result.written), retire=retire)
        try:
            store.install(channel, edit)
        except BaseException:
            if store.file.failure is None:
                for extent in result.written:
                    store.allocator.give_back(extent)
            raise

    def drain(self, *, block: bool) -> None:
        """Take in what finalisers posted; wait for something when `block`.

        With a merge to come when the database is idle, or retired pages that another process may pin, only for a while.
        """
        store = self.store
        timeout = IDLE_S if self.expecting or store.reclaimer.pending() else None
        with contextlib.suppress(queue.Empty):
            while True:
                message = store.released.get(timeout=timeout) if block else store.released.get_nowait()
                block = False
                if message is None:
                    self.installed_at = time.monotonic()
                    continue
                if callable(message):
                    message()
                    continue
                install, segments = message
                for segment in segments:
                    segment.lock.release_shared()
                store.reclaimer.unpin(install)
                store.made_at.pop(install, None)

    def reclaim(self) -> None:
        """Free what no pinned version sees, tear down segments that are gone, cut the file's free tail off."""
        store = self.store
        if store.file.failure is not None:
            return
        with store.install_lock:
            present = {record.id for record in store.manifest.segments()}
            for number, segment in list(store.segments.items()):
                if number not in present and segment.lock.try_acquire_exclusive():
                    del store.segments[number]
            if (store.reclaimer.pending() or store.allocator.free_extents()) and not store.file.pins_elsewhere():
                store.reclaimer.reclaim(store.superblock.install)
                store.allocator.truncate()

    def fail_compactions(self, error: Error | None) -> None:
        """End every waiting request."""
        with self.lock:
            waiting, self.compactions = self.compactions, []
        for request in waiting:
            request.finish(error)


def gone() -> ClosedError:
    """For who waits for a compaction when the database is closed."""
    return ClosedError("the database was closed before the compaction was done")


class Compaction:
    """A request to merge everything, and its progress, which the asking thread reports."""

    def __init__(self, progress: Callable[[int, int], object] | None) -> None:
        self.progress = progress
        self.lock = threading.Condition()
        self.done = 0
        self.total = 0
        self.cancelled = False
        self.relocated = False
        self.finished = False
        self.error: Error | None = None

    def report(self, done: int, total: int) -> None:
        """The merge thread's word; raises Stopped when the asking thread has given up."""
        with self.lock:
            self.done, self.total = done, total
            self.lock.notify_all()
            if self.cancelled:
                raise Stopped

    def finish(self, error: Error | None) -> None:
        """Let `wait` return, or raise the error."""
        with self.lock:
            self.finished, self.error = True, error
            self.lock.notify_all()

    def wait(self) -> None:
        """Until it is done; what `progress` raises stops the merge cleanly and is raised here."""
        try:
            while True:
                with self.lock:
                    if not self.finished:
                        self.lock.wait(0.1)
                    done, total, finished = self.done, self.total, self.finished
                if self.progress is not None:
                    self.progress(done, total)
                if finished:
                    break
        except BaseException:
            with self.lock:
                self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
