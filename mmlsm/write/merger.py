"""The merge thread: merges, lets go of what no reader holds, gives space back, truncates.

I1. It holds a strong reference to the Store only, never to a Database; it stops at step boundaries.
I2. It alone tears segments down, and only tries the exclusive side of their locks: it never waits on a reader (R11).
I3. What the collector lets go reaches it through `store.released`, a SimpleQueue, and no lock is taken (R12).
I4. A merge that fails has given everything back; the error is kept for `stats()` and the merge is tried again.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmlsm.errors import Error, ReadOnlyError
from mmlsm.file import FORKS
from mmlsm.format.manifest import SegmentRecord
from mmlsm.limits import PAGE_BYTES
from mmlsm.locks import new_lock
from mmlsm.register import Entry
from mmlsm.write.compaction import Compaction, Stopped, gone
from mmlsm.write.merge_jobs import MergeJobs, Totals, UnderWay, bottom_node_pages, bottom_of, levels_of, overlap_bytes
from mmlsm.write.merge_policy import Drain, TierMerge, plan, shape_of
from mmlsm.write.store import Edit, Store
from mmlsm.write.worker import Worker

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.read.segment import Segment
    from mmlsm.read.version import Version

IDLE_S = 0.5
"""Nothing installed for this long, and for as long as the merge would take at IDLE_BYTES_PER_S: the database is idle,
and converges to one run. So a small change to a large database is not followed by a large merge at once."""

IDLE_BYTES_PER_S = 25_000_000

RETRY_S = 1.0

RECLAIM_S = 0.2
"""So often at least in the middle of a merge: flushes go on, and let go of their logs."""

TIDY_FULLNESS = 0.9
"""A compaction writes leaves anew that are less full than that."""

RELOCATIONS_MOST = 48
"""Passes of a compaction that move what stands at the end of the file; eight would move all that is live."""

SMALLER_MOST = 6
"""So often a pass that gained nothing is followed by one of half as much."""

EVERY_LEAF = 2.0
"""No leaf is as full as that."""

REPACK_PAGES_MOST = 8192
"""Up to this size what is too fragmented to be cut is written anew, twice; in a larger file holes weigh little."""

IDLE_FREE_SHARE = 4
"""An idle database whose file is free for more than 1/this of what is live gives the end of it back."""

IDLE_FREE_PAGES = 16
"""But not for less than this."""

RELOCATE_PAGES_MIN = 2048
"""Pages that one pass of giving space back may write, where an eighth of what is live is less."""


class Merger(Worker):
    """`wake()` after an install; `request_compaction()` and `stop()` from any thread."""

    def __init__(self, store: Store, restart_log: Callable[[int], None]) -> None:
        super().__init__("mmlsm-merge")
        # constant after construction
        self.store = store
        self.restart_log = restart_log
        self.lock = new_lock()
        # guarded by lock
        self.stopping = False
        self.abandoned: tuple[Worker, File] | None = None
        self.compactions: list[Compaction] = []
        # this thread's own, as is `fault`, read by stats()
        self.error: Error | MemoryError | None = None
        self.installed_at = time.monotonic()
        self.expecting = False
        self.reclaimed_at = 0.0
        self.relocated_at = self.relocated_pages = 0
        self.relocating = False
        self.request: Compaction | None = None
        self.channel: Channel | None = None
        self.jobs: MergeJobs | None = None

    # -- any thread

    def wake(self) -> None:
        """Something was installed or released."""
        self.store.released.put(None)

    def stop(self) -> None:
        """Stop at the next step boundary; the caller joins."""
        with self.lock:
            self.stopping = True
        self.wake()

    def abandon(self, writer: Worker, file: File) -> None:
        """End, and close the file once the writer thread has ended too; takes no lock (R12)."""
        self.abandoned = (writer, file)
        self.wake()

    @property
    def merged(self) -> dict[str, Totals]:
        """What merges did, by where they went."""
        return {} if self.jobs is None else dict(self.jobs.merged)

    @property
    def merges(self) -> int:
        """Merges installed."""
        return sum(totals.merges for totals in self.merged.values())

    @property
    def bytes_written(self) -> int:
        """Bytes that merges wrote."""
        return sum(totals.bytes_written for totals in self.merged.values())

    def request_compaction(self, progress: Callable[[int, int], object] | None) -> Compaction:
        """Ask for everything to be merged into one run and space to be given back; wait on what is answered."""
        request = Compaction(progress, lambda: self.over)
        with self.lock:
            if self.stopping or self.fault is not None:
                request.finish(Error(f"the merge thread has failed: {self.fault!r}") if self.fault else gone())
            self.compactions.append(request)
        self.wake()
        return request

    # -- the thread

    def work(self) -> None:
        while self.fault is None:
            with self.lock:
                if self.stopping or self.abandoned is not None:
                    break
            try:
                busy = self.step()
                self.error = None
            except Stopped:
                continue
            except ReadOnlyError as error:
                self.error = error.with_traceback(None)  # its frames pin versions
                self.fail_compactions(error)
                busy = False
            except (Error, MemoryError) as error:
                self.error = error.with_traceback(None)
                self.fail_compactions(error)
                self.pause(RETRY_S)
                continue
            # The word to stop is given before its wake-up, which the step may have drained.
            if not busy and not self.stopping and self.abandoned is None:
                self.drain(block=True)
        if self.fault is not None:
            self.fail_compactions(Error(f"the merge thread has failed: {self.fault!r}"))
            self.wait_for_the_end()
        self.fail_compactions(gone())
        if self.jobs is not None:
            self.jobs.end()
        if self.channel is not None:
            with contextlib.suppress(Error):
                self.channel.close()
        if self.abandoned is not None:
            writer, file = self.abandoned
            writer.wait_until_over()
            with contextlib.suppress(Error):
                file.close()

    def wait_for_the_end(self) -> None:
        """Only hear that the database is closed, or that nobody has it: nobody else would end the writer thread."""
        while not self.stopping and self.abandoned is None:
            message = self.store.released.get()
            if isinstance(message, Entry) and message is self.store.opener:
                message.what()

    def pause(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        until = time.monotonic() + seconds
        while not self.stopping and self.abandoned is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def step(self) -> bool:
        """One round: drain, reclaim, merge if the policy says so. Whether there may be more to do at once."""
        if self.jobs is None:
            self.channel = self.store.file.channel()
            self.jobs = MergeJobs(self.store, self.channel, self.interrupt)
        self.drain(block=False)
        self.reclaim()
        with self.lock:
            self.compactions = [request for request in self.compactions if not request.cancelled]
            request = self.compactions[0] if self.compactions else None
        version = self.store.state.version
        self.request = request
        chosen = self.choose(version, request)
        if chosen is not None:
            self.jobs.run(version, chosen)
            self.installed_at = time.monotonic()
            return True
        del version  # it pins what is to be given back
        if request is not None:
            self.tidy(self.jobs)
            with self.lock:
                self.compactions.pop(0)
            request.finish(None)
            return True
        return self.relocate_when_idle(self.jobs)

    def choose(self, version: Version, request: Compaction | None) -> TierMerge | Drain | None:
        """What to merge now."""
        settings = self.store.settings
        shape, bottom = shape_of(levels_of(version)), bottom_of(version)

        def overlap(record: SegmentRecord) -> int:
            return overlap_bytes(bottom, record)

        if request is not None:
            if request.seq is None:
                request.seq = max((record.seq_high for record in shape.upper()), default=0)
            newer = frozenset(record.id for record in shape.upper() if record.seq_low > request.seq)
            return plan(shape.without(newer), settings, idle=True)
        if not settings.auto_merge:
            return None
        self.expecting = plan(shape, settings, idle=True) is not None
        return plan(shape, settings, idle=self.is_idle(version), overlap_bytes=overlap)

    def is_idle(self, version: Version) -> bool:
        """Whether nothing was installed for long enough."""
        pages = sum(segment.record.pages for segment in version.segments)
        return time.monotonic() - self.installed_at >= IDLE_S + pages * PAGE_BYTES / IDLE_BYTES_PER_S

    def interrupt(self, under_way: UnderWay, done: int, total: int) -> None:
        """In the middle of a merge: end it when asked to; let small merges of what is newer come in between."""
        if self.stopping or self.abandoned is not None:
            raise Stopped
        self.drain(block=False)
        if self.request is not None:
            self.request.report(done, total)
        version, settings, chosen = self.store.state.version, self.store.settings, None
        if settings.auto_merge and version.levels:
            shape = shape_of(levels_of(version)).without(under_way.ids)
            chosen = plan(shape, settings, below=under_way.below)
        if chosen is not None:
            assert self.jobs is not None
            self.jobs.run(version, chosen, under_way)
        if chosen is not None or time.monotonic() - self.reclaimed_at > RECLAIM_S:
            self.reclaim()

    # -- giving space back

    def tidy(self, jobs: MergeJobs) -> None:
        """The end of a compaction, when all is one run: fill its leaves, then move what keeps the file long forward.

        Each pass writes at most an eighth of what is live, or 8 MiB, so that is what the file may grow by meanwhile;
        only a small file that is too fragmented for that is written anew as a whole.
        """
        while True:
            most = self.most_at_once()
            gain = jobs.rework(self.store.state.version, cut=0, fullness_min=TIDY_FULLNESS, most=most)
            self.settle()
            if gain * 20 < most:
                break
        self.move_log()
        self.move_log()  # the first may have had no room in front but what it has left since
        self.relocate_all(jobs)
        space = self.store.allocator.counts()
        if space.free * 16 > space.live and space.live <= REPACK_PAGES_MOST:
            jobs.rework(self.store.state.version, cut=0, fullness_min=EVERY_LEAF, most=space.live)
            self.settle()
            self.relocate_all(jobs)
        self.move_log()
        self.move_manifest()

    def relocate_all(self, jobs: MergeJobs) -> None:
        """`relocate` while that makes the file shorter; not for ever beside writers who make it longer."""
        smaller = 0
        for _ in range(RELOCATIONS_MOST):
            if not self.relocate(jobs, self.most_at_once() >> smaller):
                smaller += 1  # large extents fit into fewer gaps: less at a time may fit
                if smaller > SMALLER_MOST:
                    break

    def relocate(self, jobs: MergeJobs, most: int) -> bool | None:
        """Move up to about `most` pages at the end of the file to free ones before them; whether it became shorter.

        None where that was not tried, because of who reads.
        """
        space = self.store.allocator
        before = space.total
        held = self.is_held()  # what is retired then counts as live for the cut
        cut = space.relocation_cut(most, bottom_node_pages(self.store.state.version))
        if cut is None:
            return None if held else False
        if self.store.file.pins_elsewhere() or not self.is_unpinned():
            return None
        moved = jobs.rework(self.store.state.version, cut=cut, fullness_min=0.0, most=before)
        self.settle()
        if moved == -1 or space.total > cut:
            self.move_manifest()
        return space.total < before

    def is_unpinned(self) -> bool:
        """Whether nobody reads an older version: what is moved under a reader is there twice. Waits a moment for it."""
        for _ in range(10):
            self.settle()
            if len(self.store.reclaimer.pinned()) <= 1:
                return True
            self.pause(0.005)
        return False

    def is_held(self) -> bool:
        """Whether somebody reads an older version, or may elsewhere."""
        return len(self.store.reclaimer.pinned()) > 1 or self.store.file.pins_elsewhere()

    def relocate_when_idle(self, jobs: MergeJobs) -> bool:
        """`relocate` where much of the file is free, once nothing else is to be done.

        What gained nothing is tried again after the next install, or once the file is shorter: what a reader held of
        what was moved is free then. What readers have kept from being tried is tried when they are gone.
        """
        store = self.store
        space = store.allocator.counts()
        wasteful = store.settings.auto_merge and space.free > max(space.live // IDLE_FREE_SHARE, IDLE_FREE_PAGES)
        tried = self.relocated_at == store.manifest.install and space.total >= self.relocated_pages
        if not wasteful or len(store.state.version.segments) > 1 or tried:
            self.relocating = False
            return False
        if not self.relocating and not self.is_idle(store.state.version):
            self.expecting = True
            return False
        if self.is_held():
            self.relocating, self.expecting = False, True
            return False
        if not self.relocating:
            self.move_log()
        shorter = self.relocate(jobs, self.most_at_once())
        self.relocating = bool(shorter)
        if shorter is False:
            self.relocated_at, self.relocated_pages = store.manifest.install, store.allocator.total
        return True

    def move_log(self) -> None:
        """Have the log go on further in front, where it stands behind all that there is to hold."""
        space = self.store.allocator.counts()
        self.restart_log(space.live + space.reserved)
        self.settle()

    def most_at_once(self) -> int:
        """Pages that one pass of `tidy` may write."""
        return max(RELOCATE_PAGES_MIN, self.store.allocator.counts().live // 8)

    def settle(self) -> None:
        """Reclaim what the last install let go."""
        self.drain(block=False)
        self.reclaim()

    def move_manifest(self) -> None:
        """Install the present version once more: the manifest may be all that stands at the end of the file."""
        space = self.store.allocator.counts()
        if space.free >= max(8, space.total // 16) and not self.store.file.pins_elsewhere():
            assert self.channel is not None and self.jobs is not None
            self.jobs.installed = self.store.install(self.channel, Edit(lambda levels, _: levels))
            self.settle()

    def drain(self, *, block: bool) -> None:
        """Take in what finalisers posted; wait for something when `block`.

        With a merge to come when the database is idle, or retired pages that another process may pin, only for a while.
        """
        store = self.store
        timeout = IDLE_S if self.expecting or store.reclaimer.pending() else None
        with contextlib.suppress(queue.Empty):
            while block or not store.released.empty():
                message = store.released.get(timeout=timeout) if block else store.released.get_nowait()
                block = False
                if message is None:
                    if self.jobs is None or store.manifest.install != self.jobs.installed:
                        self.installed_at = time.monotonic()
                    continue
                held = message.what if isinstance(message, Entry) else message
                if callable(held):
                    held()
                    continue
                self.unpin(message)

    def unpin(self, entry: Entry[tuple[int, list[Segment]]]) -> None:
        """A version is gone. Once for each, however often it is told; where memory fails, again from there."""
        store, (install, segments) = self.store, entry.what
        number = id(entry)
        if store.versions.get(number) is entry:
            while segments:
                segments[-1].lock.release_shared()
                del segments[-1]
            store.made_at.pop(install, None)
            store.reclaimer.unpin(install)
            del store.versions[number]

    def reclaim(self) -> None:
        """Free what no pinned version sees, tear down segments that are gone, cut the file's free tail off."""
        store = self.store
        self.reclaimed_at = time.monotonic()
        FORKS.let_go()
        for entry in list(store.versions.values()):
            if entry() is None:  # told already, or not for want of memory
                self.unpin(entry)
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

    def fail_compactions(self, error: Error | MemoryError) -> None:
        """End every waiting request."""
        with self.lock:
            waiting, self.compactions = self.compactions, []
        for request in waiting:
            request.finish(error)
