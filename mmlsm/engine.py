"""Engine: the one place where the parts are wired together: open and recover, commit, seal, flush, close.

Behind a Database; any thread. The two worker threads know the Store, not the Engine, so a Database that is forgotten is
collected and ends them (`abandon`), which is as good as kill -9 (promise 11).

I1. Nothing is written before the first commit, but for what recovery demands: slots that differ, a log to replay.
I2. `close` leaves a file whose log is empty and whose superblock says clean, or raises what kept it from that: see
    closing.py.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmlsm import closing, limits
from mmlsm.check import Layout, Report, check_file, layout_at_rest, prove_log, root_problems
from mmlsm.errors import Error, LockTimeout, ReadOnlyError
from mmlsm.file import File, System, name_of, open_file, open_memory
from mmlsm.format.superblock import NO_LOG
from mmlsm.headroom import FRAMES_TO_END, TRIES_MOST, Headroom, make_sure_of
from mmlsm.locks import FairLock, new_lock
from mmlsm.read.life import Life
from mmlsm.read.reader import ReadState
from mmlsm.read.segment import Segment
from mmlsm.read.version import Version
from mmlsm.register import Entry, entry_of
from mmlsm.settings import Durability, Settings, durability_of
from mmlsm.space.allocator import Allocator
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent
from mmlsm.space.reclaim import Reclaimer
from mmlsm.write.commit import Committer
from mmlsm.write.flush import flush
from mmlsm.write.log import LogWriter, new_epoch
from mmlsm.write.merger import Merger
from mmlsm.write.pins import Pins
from mmlsm.write.pressure import BackPressure
from mmlsm.write.recovery import (
    Replay,
    Root,
    accept,
    check_numbers,
    extents_in_use,
    first_image,
    maybe_seen,
    read_all,
    require_writable,
    still_retired,
)
from mmlsm.write.store import Store
from mmlsm.write.values import ValueWriter
from mmlsm.write.writer import Writer

POISON = b"\xdd" * limits.PAGE_BYTES


class Engine:
    """One open database, until it is closed or `owner`, which is referred to weakly, is gone."""

    def __init__(self, path: str | Path, settings: Settings, system: System, owner: object) -> None:
        if sys.is_finalizing():
            raise Error("the interpreter is ending: no database can be opened any more")
        self.settings = settings
        self.life = Life()
        self.pins = Pins(debug=settings.debug)
        self.write_lock = FairLock(settings.debug)
        self.committer: Committer | None = None
        self.writing: tuple[Entry[Callable[[], None]], int] | None = None
        """The last write transaction, weakly, and its tenure of the write lock."""
        self._begin_lock = new_lock()
        self.close_lock = new_lock()
        self.closing_step = 0
        self.closing_flushed = False
        self.closing_errors: list[BaseException] = []
        self._on_publish: Callable[[int], object] = lambda seq: None
        if name_of(path) == ":memory:":
            self.file: File = open_memory(system=system)
            with contextlib.closing(self.file.channel()) as channel:
                channel.pwrite(0, first_image())
        else:
            self.file = open_file(
                path, readonly=settings.readonly, create=settings.create,
                first_image=first_image, accept=accept, system=system,
            )  # fmt: skip
        try:
            self.file.on_fork(self.tell_forked)
            root, replay = read_all(self.file)
            # A writer gives no number again that a crash may have taken.
            exact = settings.readonly or root.superblock.clean
            self.last_seq = replay.seq if exact else max(replay.seq, root.superblock.seq_ceiling)
            self.pins.published = self.last_seq
            self.root = root
            self.log_extents: list[Extent] = list(replay.log_extents)
            self.value_extents: list[Extent] = list(replay.value_extents)
            if settings.readonly:
                self.store: Store | None = None
                self.replay = replay
                self.readonly_state = self._readonly_state(root, replay)
            else:
                self._open_for_writing(root, replay, owner)
        except BaseException:
            self.file.close()
            raise

    # -- opening

    def _readonly_state(self, root: Root, replay: Replay) -> ReadState:
        """What there is to read, in memory alone: nothing is started, nothing written."""
        levels = tuple(
            tuple(tuple(Segment(self.file, record, self.settings.verify) for record in run) for run in level)
            for level in root.manifest.levels
        )
        version = Version(root.manifest.install, root.superblock.seq, levels, self.file.pin)
        tables = () if replay.table is None else (replay.table,)
        return ReadState(tables, version, self.file, self.settings.verify)

    def _open_for_writing(self, root: Root, replay: Replay, owner: object) -> None:
        """Build the write side; repair and recover where the last life did not end well."""
        require_writable(root)
        file, settings = self.file, self.settings
        poison_channel = file.channel() if settings.debug else None

        def poison(extent: tuple[int, int]) -> None:
            assert poison_channel is not None
            for page in range(extent[0], extent[0] + extent[1]):
                poison_channel.pwrite(page * limits.PAGE_BYTES, POISON)

        self.poison_channel = poison_channel
        pinned = file.pins_elsewhere()
        check_numbers(root, replay)
        retired = still_retired(root, replay, file.pages) if pinned else ()
        if pinned:
            retired = (*retired, *maybe_seen(root, replay, retired, file.pages))
        used = extents_in_use(root, replay, retired)
        self.allocator = Allocator(
            file.pages,
            used,
            policy=settings.allocation,
            resize=file.resize,
            forget=file.forget,
            poison=poison if settings.debug else None,
            debug=settings.debug,
        )
        self.reclaimer = Reclaimer(self.allocator, retired, debug=settings.debug)
        self.store = store = Store(
            file, self.allocator, self.reclaimer, settings, root.superblock, root.manifest, root.bits, root.slot_order
        )
        channel = self.channel = file.channel()
        self.values = ValueWriter(store, channel)
        if not root.slots_agree:
            with store.install_lock:
                store.write_superblock(channel)
        if replay.table is not None:
            self._flush_replayed(store, replay)
        store.raise_struck()
        self.writer = Writer(store)
        self.merger = Merger(store, self.writer.restart_log)
        self.pressure = BackPressure(store, self.writer, self.merger, self.life)
        store.on_install.append(self.merger.wake)
        store.on_install.append(self.writer.tell_progress)
        self._end_with(owner, store)
        try:
            self.writer.start()
            self.merger.start()
        except BaseException:
            self.writer.abandon()
            self.merger.stop()
            self.writer.wait_until_over()
            self.merger.wait_until_over()
            raise

    def _flush_replayed(self, store: Store, replay: Replay) -> None:
        """Make the recovered commits a segment, so that the next life begins with an empty log (R6)."""
        table = replay.table
        assert table is not None
        table.sealed = True
        with store.order_lock:
            store.set_state((table,), store.state.version)
        flush(
            store,
            self.channel,
            table,
            log=NO_LOG,
            log_extents=replay.log_extents,
            extents=replay.value_extents,
            live=True,
        )

    def _begin_committing(self) -> Committer:
        """The committer, made at the first commit: a new epoch of the log is named durably before it (R6)."""
        store = self.store
        with self._begin_lock:
            if self.committer is not None:
                return self.committer
            self.life.check_open()
            if store is None:
                raise ReadOnlyError("the database is open read-only: open it without readonly=True to write")
            self.file.check_writable()
            log = LogWriter(self.file, self.allocator, self.settings, new_epoch(), self.last_seq)
            try:
                store.begin_log(self.channel, log.position, self.last_seq)
                committer = Committer(
                    self.file,
                    log,
                    self.settings,
                    self.write_lock,
                    self.pins,
                    last_seq=self.last_seq,
                    on_full=self._seal,
                    on_publish=self._on_publish,
                    order_lock=store.order_lock,
                )
                with store.order_lock:
                    store.log = log
                    self.writer.committer = self.committer = committer
                    tables, version = (committer.memtable, *store.state.tables), store.state.version
                    try:
                        store.set_state(tables, version)
                    except BaseException:  # as in `_seal`
                        struck, tries = None, 0
                        while tries < TRIES_MOST:
                            try:
                                with Headroom(struck):
                                    store.set_state(tables, version)
                                break
                            except BaseException as again:
                                struck = again
                                tries += isinstance(again, Exception) and not isinstance(again, MemoryError)
                        raise
            except BaseException:
                if self.committer is None and self.file.failure is None:
                    log.close()
                    for extent in log.extents:
                        self.allocator.give_back(extent)
                raise
            store.raise_struck()
            return committer

    def watch(self, on_state: Callable[[ReadState], None], on_publish: Callable[[int], None]) -> ReadState:
        """Be told of each new state and published seq; the present state."""
        self._on_publish = on_publish
        if self.store is None:
            return self.readonly_state
        with self.store.order_lock:
            self.store.on_state.append(on_state)
            return self.store.state

    # -- committing

    def commit(self, items: Any, durability: Durability | None, *, locked: bool = False) -> int:
        """Commit pairs as one; the seq. The write lock, if the caller has it, is given up in any case."""
        try:
            mode = self.settings.durability if durability is None else durability_of(durability)
            self.life.check_open()
            committer = self.committer or self._begin_committing()
            if not locked:
                self.release_dropped()
                if self.write_lock.owner == threading.get_ident():
                    raise Error("this thread has a write transaction open: write through it, or end it first")
                self.pressure.slow_down()
        except BaseException:
            if locked:
                self.write_lock.release()
            raise
        seq = committer.commit(items, mode, locked=locked)
        if mode == "group" and not self.writer.group_pending:
            self.writer.note_group_commit()
        return seq

    def note_writer(self, transaction: object, tenure: int) -> None:
        """Have the write lock freed when the transaction is gone, whether it was ended or not."""
        lock, store = self.write_lock, self.store
        assert store is not None
        self.writing = entry_of(transaction, store.released.put, lambda: lock.release_of(tenure)), tenure

    def release_dropped(self) -> None:
        """Free the write lock of a transaction that is gone; the merge thread is told too, for those who wait."""
        writing = self.writing
        if writing is not None and writing[0]() is None:
            self.write_lock.release_of(writing[1])

    def lock_for_writing(self, timeout: float | None) -> None:
        """Take the write lock, first come first served; LockTimeout when it is not free in time."""
        make_sure_of(FRAMES_TO_END)  # or at the recursion limit it could be taken, and not be let go of
        self.release_dropped()
        if self.write_lock.owner == threading.get_ident():
            raise Error("this thread has a write transaction open already: end it before beginning another")
        committer = self._begin_committing()
        if committer.failure is not None or self.file.failure is not None:
            raise committer.refusal()
        self.pressure.slow_down()
        if not self.write_lock.acquire(timeout):
            raise LockTimeout(f"the write lock was not free within {timeout} seconds")
        tenure = self.write_lock.tenure
        try:
            self.life.check_open()
        except BaseException:
            while self.write_lock.tenure == tenure:
                try:  # noqa: SIM105  # no call before the one that is tried again
                    self.write_lock.release_of(tenure)
                except BaseException:
                    pass
            raise

    def _seal(self) -> None:
        """The memtable has reached its bound: go on with a new one. REQUIRES the order lock."""
        try:
            self._seal_or_go_on()
        except BaseException:  # no strike may leave a memtable that takes commits and that readers do not see
            struck, tries = None, 0
            while tries < TRIES_MOST:
                try:
                    with Headroom(struck):
                        self._seal_or_go_on()
                    break
                except BaseException as again:
                    struck = again
                    tries += isinstance(again, Exception) and not isinstance(again, MemoryError)
            raise

    def _seal_or_go_on(self) -> None:
        committer, store = self.committer, self.store
        assert committer is not None and store is not None
        tables = store.state.tables
        if tables and tables[0] is committer.memtable and committer.memtable.entry_count:
            committer.switch_memtable()
        newest = committer.memtable
        store.set_state((newest, *(table for table in tables if table is not newest)), store.state.version)
        self.writer.wake()

    def flush(self) -> None:
        """Seal the memtable and wait until what is sealed now is flushed, whatever comes; errors of the flush."""
        if (committer := self.committer) is None or (store := self.store) is None:
            return
        with committer.order_lock:
            if committer.memtable.entry_count:
                self._seal()
            sealed = store.state.tables[1:2]  # the newest of them is flushed last
        self.writer.wake()
        self.writer.wait_until_flushed(lambda: not any(table is one for table in store.state.tables for one in sealed))

    def compact(self, progress: Callable[[int, int], object] | None) -> None:
        """Everything into one run, then space back."""
        self.life.check_open()
        self.file.check_writable()
        self.flush()
        self.merger.request_compaction(progress).wait()

    def sync(self) -> int:
        """Make every commit so far durable; the last durable seq."""
        self.life.check_open()
        if self.committer is None:
            return self.last_seq
        return self.committer.sync()

    # -- proving

    def verify(self, progress: Callable[[int, int], object] | None) -> Report:
        """The whole-file proof of this moment."""
        self.life.check_open()
        if self.store is None:
            return check_file(self.file, layout_at_rest(self.file, self.root, self.replay), progress)
        layout, _version = self.layout()
        report = check_file(self.file, layout, progress)
        store, committer = self.store, self.committer
        if committer is not None and committer.groups:  # else nothing is written yet
            prove_log(self.file, report, lambda: (store.superblock, committer.written_seq))
        return report

    def layout(self) -> tuple[Layout, Version]:
        """One moment of the file, and the version that keeps it in place."""
        store = self.store
        assert store is not None
        with store.install_lock:
            wrong = root_problems(self.file, store.superblock, store.manifest, slots=self.file.failure is None)
            with store.order_lock:
                version = store.state.version
                # Reservations come and go meanwhile, but none becomes live, and the file is not cut.
                promised, used = self.allocator.reserved_extents(), self.allocator.live_bits()
                reserved = Bitmap(used.pages)
                for extent in promised:
                    reserved.set(*extent)
                log = list(self.committer.log.extents) if self.committer is not None else []
                # The writer thread lets go what is before the superblock's, and then tells the log; a close does not.
                log = log[next((i for i, one in enumerate(log) if one.first == store.superblock.log.page), 0) :]
                log = [one for one in log if one.end <= reserved.pages and reserved.all_set(*one)]
                for extent in log:
                    reserved.clear(*extent)
                layout = Layout(
                    store.superblock,
                    store.manifest,
                    used,
                    [extent for retirement in self.reclaimer.pending() for extent in retirement.extents],
                    list(log),
                    list(reserved.extents()),
                    used.pages,
                    tuple(wrong),
                    in_memory=tuple(sorted(set().union(*(table.references for table in store.state.tables)))),
                )
        return layout, version

    # -- ending

    def close(self) -> None:
        """Flush, end both threads, leave a clean file; raises the first thing that went wrong. Twice is no error."""
        closing.close(self)

    @property
    def closed(self) -> bool:
        """Whether a close has come to its end."""
        return self.closing_step == closing.COUNT

    def tell_forked(self) -> None:
        """In a forked child: every handle says so, and no lock that a thread of the parent held is waited for."""
        self.life.end(2)
        self.write_lock.renew()
        if self.store is not None:
            self.values.gate.tell_forked()

    def abandon(self) -> None:
        """End the threads without a word to the file. Takes no lock (R12)."""
        self.life.end(1)
        if self.store is not None and self.store.opener is not None:
            self.store.opener.what()

    def _end_with(self, owner: object, store: Store) -> None:
        """Have the merge thread abandon all when the owner is gone: C alone tells it (register.py)."""
        life, file, writer, merger = self.life, self.file, self.writer, self.merger

        def abandon() -> None:
            life.end(1)
            writer.abandon()
            merger.abandon(writer, file)

        store.opener = entry_of(owner, store.released.put, abandon)
