"""Database: the facade. Reads come from Reader, writes go to the Engine, which wires the parts together.

Safe to share between threads.

I1. A Database that is dropped without `close()` is collected, and its Engine with it: the threads behind it hold no
    reference to it, and end. That is as good as kill -9 (promise 11).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmlsm import memory
from mmlsm.check import Report
from mmlsm.engine import Engine
from mmlsm.errors import ClosedError, ConflictError, ReadOnlyError
from mmlsm.file import SYSTEM, System
from mmlsm.read.given import as_key, as_value, as_value_or_stream
from mmlsm.read.reader import MISSING, Reader, ReadState
from mmlsm.read.snapshot import Held, Hold, Holders, SeqPin, Snapshot
from mmlsm.settings import Allocation, Durability, Settings, Verify, durability_of
from mmlsm.stats import MergeStats, SegmentStats, SpaceStats, StallStats, Stats, pin_stats, told, trouble_of
from mmlsm.write.batch import Batch
from mmlsm.write.merge_jobs import levels_of
from mmlsm.write.merge_policy import runs_bound
from mmlsm.write.transaction import Transaction

PathLike = str | Path


class Database(Reader, MutableMapping[bytes, bytes]):  # type: ignore[misc]  # ranges where Mapping has views
    """One open file; `open()` makes it. Keys and values are bytes; see Reader for what reads."""

    def __init__(self, path: PathLike, settings: Settings, system: System = SYSTEM) -> None:
        engine = self._engine = Engine(path, settings, system, self)
        self._path = Path(path)
        self._bare: Reader | None = None
        self._held = Holders()
        """Who holds versions, for `stats()`."""
        this = weakref.ref(self)

        def on_state(state: ReadState) -> None:
            database = this()
            if database is not None:
                database.state = state
                database._bare = None  # it would pin the version before

        def on_publish(seq: int) -> None:
            database = this()
            if database is not None:
                database.seq = seq

        Reader.__init__(self, engine.watch(on_state, on_publish), engine.pins.published, engine.life, False, True)

    # -- reading

    def snapshot(self) -> Snapshot:
        """One still state, at least as new as every commit that has returned; a context manager. O(1)."""
        return self._snapshot("snapshot")

    def _snapshot(self, kind: str | None) -> Snapshot:
        """A still state; who holds it is known to `stats()` if they say who they are. Cursors do not, for it costs."""
        self.life.check_open()
        pin = SeqPin(self._engine.pins)
        state = self.state
        if state is None:
            raise ClosedError("the database is closed: open it again")
        seq = max(pin.seq, state.version.seq)
        return Snapshot(state, seq, self.life, (pin, kind and Hold(self._held, kind, state.version.install)))

    def still(self) -> Reader:
        """What a cursor or range reads: a snapshot of now, or with empty memtables just the version."""
        state = self.state
        if state is None or any(table.entries for table in state.tables):
            return self._snapshot(None)
        bare = self._bare
        if bare is None or bare.state is None or bare.state.version is not state.version:
            bare = Reader(ReadState((), state.version, state.file, state.verify), state.version.seq, self.life)
            self._bare = bare
            if self.state is not state:
                self._bare = None  # `on_state` came in between, and this would pin the version before
        return bare

    # -- writing

    def put(self, key: bytes, value: Any) -> None:
        """Set `key` to `value`: bytes-like, or a readable binary stream of any length. One commit."""
        self._commit({as_key(key): self._values().take(value)}, None)

    def __setitem__(self, key: bytes, value: Any) -> None:
        self.put(key, value)

    def delete(self, key: bytes) -> None:
        """Delete `key`, there or not. One commit, nothing is read."""
        self._commit({as_key(key): None}, None)

    def __delitem__(self, key: bytes) -> None:
        with self.begin(write=True) as transaction:
            del transaction[key]

    def pop(self, key: bytes, default: Any = MISSING) -> Any:
        """Delete `key` and answer its value; `default`, or KeyError, where it is absent."""
        with self.begin(write=True) as transaction:
            return transaction.pop(key, default)

    def setdefault(self, key: bytes, default: Any = b"") -> bytes:
        """The value of `key`, which is set to `default`, whatever `put` takes, where it is absent."""
        default = as_value_or_stream(default)
        with self.begin(write=True) as transaction:
            value: bytes | None = transaction.get(key)
            if value is None:
                transaction.put(key, default)
                value = transaction[key]  # what was stored: a stream has been read by now
            return value

    def popitem(self) -> tuple[bytes, bytes]:
        """Delete the pair with the least key and answer it; KeyError when the database is empty."""
        with self.begin(write=True) as transaction:
            pair = transaction.first()
            if pair is None:
                raise KeyError("popitem(): the database is empty")
            transaction.delete(pair[0])
            return pair

    def clear(self) -> None:
        """Delete every key, in one commit. Cost: a tombstone for each."""
        with self.begin(write=True) as transaction:
            for key in transaction:
                transaction.delete(key)

    def put_many(self, items: Mapping[bytes, Any] | Iterable[tuple[bytes, Any]]) -> None:
        """Set all pairs in one atomic commit; of a key given twice the later counts."""
        with self.batch() as batch:
            for key, value in items.items() if isinstance(items, Mapping) else items:
                batch.put(key, value)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """`put_many`, with what a dict's update takes."""
        if more:
            raise TypeError("keys are bytes, keyword arguments are str: pass a mapping or pairs")
        self.put_many([(key, other[key]) for key in other.keys()] if hasattr(other, "keys") else other)  # noqa: SIM118

    def compare_and_set(self, key: bytes, expected: bytes | None, new: Any) -> bool:
        """Set `key` to `new` if its value is `expected`; None means absent, in both places. Whether it was."""
        # Before anything is looked at: what is no value is an error whatever there is now.
        wanted = None if expected is None else as_value(expected)
        new = None if new is None else as_value_or_stream(new)
        with self.begin(write=True) as transaction:
            if transaction.get(key) != wanted:
                transaction.abort()
                return False
            if new is None:
                transaction.delete(key)
            else:
                transaction.put(key, new)
            return True

    def batch(self, *, durability: Durability | None = None) -> Batch:
        """Collect writes and commit them as one at the end of a `with` block; dropped on an exception."""
        mode = None if durability is None else durability_of(durability)
        return Batch(self._commit, self._values(), mode, self.life)

    def begin(self, write: bool = False, *, timeout: float | None = None) -> Transaction:
        """A transaction. `write`: the one writer, first come first served; LockTimeout after `timeout` seconds."""
        self.life.check_open()
        engine = self._engine
        if not write:
            still = self._snapshot("transaction")
            assert still.state is not None
            seq = still.seq  # alone: the commit is called after the snapshot was let go
            return Transaction(
                still.state, still.seq, self.life, still, write=False, values=None,
                commit=lambda items, durability, drop: seq, tenure=None,
            )  # fmt: skip
        values = self._values()
        engine.lock_for_writing(timeout)
        lock = engine.write_lock
        tenure = lock.tenure
        try:
            committer = engine.committer
            # All that is ordered, published or not, and nothing that comes after the transaction's end.
            pin = SeqPin(engine.pins, 0 if committer is None else committer.last_seq)
            state = self.state
            if state is None:
                raise ClosedError("the database is closed: open it again")

            def commit(items: dict[bytes, Any], durability: Durability | None, drop: Callable[[object], None]) -> int:
                try:
                    return engine.commit(items, durability, locked=True)
                except BaseException:
                    self._give_back(items, drop)
                    raise

            hold = Hold(self._held, "transaction", state.version.install)
            transaction = Transaction(
                state, pin.seq, self.life, (pin, hold), write=True,
                values=values.since(state.version.install), commit=commit, tenure=(lock, tenure),
            )  # fmt: skip
            engine.note_writer(transaction, tenure)
            return transaction
        except BaseException:
            while lock.tenure == tenure:
                try:  # noqa: SIM105  # no call before the one that is tried again
                    lock.release_of(tenure)
                except BaseException:
                    pass
            raise

    def run(self, fn: Callable[[Transaction], Any], *, retries: int = 10) -> Any:
        """`fn(transaction)` in a write transaction, committed; retried on ConflictError. What `fn` returned."""
        for attempt in range(retries + 1):
            try:
                with self.begin(write=True) as transaction:
                    return fn(transaction)
            except ConflictError:
                if attempt == retries:
                    raise
        raise ValueError(f"retries={retries}: must not be negative")

    def sync(self) -> int:
        """Make all commits so far durable; the last durable seq. Holds up no commit."""
        return self._engine.sync()

    def compact(self, *, progress: Callable[[int, int], object] | None = None) -> None:
        """Merge everything into one run, then give space back. `progress(done, total)` entries; raising stops it."""
        self._values()
        self._engine.compact(progress)

    def _values(self) -> Any:
        """Where values go; ReadOnlyError for a read-only handle."""
        self.life.check_open()
        engine = self._engine
        if engine.store is None:
            raise ReadOnlyError("the database is open read-only: open it without readonly=True to write")
        return engine.values

    def _commit(self, items: dict[bytes, Any], durability: Durability | None) -> int:
        try:
            return self._engine.commit(items, durability)
        except BaseException:
            self._give_back(items)
            raise

    def _give_back(self, items: dict[bytes, Any], give: Callable[[object], None] | None = None) -> None:
        """Extents of a commit that was never ordered come back; those of one whose fate is unknown stay.

        Of one that was ordered, and ended by an error later, nothing is left in `items`: the order empties it.
        """
        if self._engine.file.failure is None and self._engine.store is not None:
            committer = self._engine.committer
            if committer is None or committer.failure is None:
                for value in items.values():
                    (give or self._engine.values.give_back)(value)

    # -- the rest

    @property
    def path(self) -> Path:
        """Where the file is, as it was given."""
        return self._path

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self.life.is_ended()

    @property
    def readonly(self) -> bool:
        """Whether it was opened read-only."""
        return self._engine.store is None

    def verify(self, *, progress: Callable[[int, int], object] | None = None) -> Report:
        """The whole-file proof: every page has one owner, every key its place, every sum is right. Reads everything."""
        return self._engine.verify(progress)

    def stats(self) -> Stats:
        """Figures of this moment."""
        self.life.check_open()
        return gather(self._engine, self.state, self.seq, self._held.present())

    def close(self) -> None:
        """Flush, join both threads, leave the file clean; raises what they could not do. Twice is no error.

        Views of values stay valid; other handles raise ClosedError.
        """
        try:
            self._engine.close()
        finally:
            if self._engine.closed:
                self.state = self._bare = None

    def __enter__(self) -> Self:
        self.life.check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<mmlsm.Database {str(self._path)!r}{' closed' if self.closed else ''}>"


def gather(engine: Engine, state: ReadState | None, seq: int, held: tuple[Held, ...]) -> Stats:
    """The figures of `Database.stats()`."""
    if state is None:
        raise ClosedError("the database is closed: open it again")
    version, store, committer = state.version, engine.store, engine.committer
    segments = [
        SegmentStats.of(segment.record, level, i)
        for level, runs in enumerate(version.levels)
        for i, run in enumerate(runs)
        for segment in run
    ]
    now = time.monotonic()
    if store is not None:
        pinned, pending = engine.reclaimer.pinned(), engine.reclaimer.pending()
        space = SpaceStats.of(engine.allocator.counts(), sum(retirement.pages for retirement in pending))
        pins = pin_stats(pinned, pending, dict(store.made_at), version.install, held, now)
        superblock = store.superblock
    else:
        space = SpaceStats.at_rest(engine.root, engine.replay, engine.file.pages)
        pins = pin_stats([version.install], (), {version.install: version.made_at}, version.install, held, now)
        superblock = engine.root.superblock
    writing = store is not None
    stalls = engine.pressure.stalls if writing else {}
    stalled = tuple(StallStats(cause, counted.count, counted.seconds) for cause, counted in stalls.items())
    merged = engine.merger.merged if writing else {}
    return Stats(
        seq=seq,
        install=version.install,
        generation=superblock.generation,
        durability=engine.settings.durability,
        compiled=memory.COMPILED,
        clean=superblock.clean,
        file_bytes=engine.file.bytes,
        entries=sum(s.entries for s in segments) + sum(len(t.entries) for t in state.tables),
        memtables=len(state.tables),
        memtable_bytes=sum(t.data_bytes for t in state.tables),
        memtable_entries=sum(len(t.entries) for t in state.tables),
        log_bytes=sum(e.count for e in committer.log.extents) * 4096 if committer is not None else 0,
        levels=tuple(tuple(sum(s.record.entries for s in run) for run in runs) for runs in version.levels),
        runs=sum(len(runs) for runs in version.levels),
        runs_bound=runs_bound(levels_of(version), engine.settings),
        segments=tuple(segments),
        space=space,
        pins=pins,
        snapshots=len(engine.pins.view()[1]),
        commits=committer.last_seq - engine.last_seq if committer is not None else 0,
        log_bytes_written=committer.bytes_written if committer is not None else 0,
        log_syncs=committer.syncs if committer is not None else 0,
        flushes=engine.writer.flushes if writing else 0,
        flush_bytes_written=engine.writer.bytes_written if writing else 0,
        merges=engine.merger.merges if writing else 0,
        merge_bytes_written=engine.merger.bytes_written if writing else 0,
        merged=tuple(
            MergeStats(into, done.merges, done.bytes_read, done.bytes_written, done.pages_reused)
            for into, done in merged.items()
        ),
        install_bytes_written=store.bytes_installed if store is not None else 0,
        stalls=sum(stall.stalls for stall in stalled),
        stall_s=sum(stall.seconds for stall in stalled),
        stalled=stalled,
        flush_error=trouble_of(engine.writer) if writing else None,
        merge_error=trouble_of(engine.merger) if writing else None,
        failure=told(engine.file.failure or (committer.failure if committer is not None else None)),
    )


def open(
    path: PathLike,
    *,
    readonly: bool = False,
    create: bool = True,
    durability: Durability = "full",
    memtable_bytes: int = 64 << 20,
    leaf_bytes: int = 8192,
    auto_merge: bool = True,
    verify: Verify = "first-read",
    group_interval: float = 0.05,
    allocation: Allocation = "earliest",
) -> Database:
    """Open the database in the file at `path`, made if absent; ":memory:" for one without a file.

    durability: "full", a commit returns once it is on the device; "group", once the operating system has it, synced
    within `group_interval` seconds; "off", at once, durable from `sync()` or `close()` on. verify: "first-read" proves
    each page the first time, "always" each time, "never" not at all. Sizes in bytes.

    LockedError when it is open for writing elsewhere; FormatError when the file is not one of ours; StorageError when
    the operating system refuses; CorruptionError when what opening needs is damaged. The file is then untouched.
    """
    return Database(
        path,
        Settings(
            readonly=readonly, create=create, durability=durability, memtable_bytes=memtable_bytes,
            leaf_bytes=leaf_bytes, auto_merge=auto_merge, verify=verify, group_interval=group_interval,
            allocation=allocation,
        ),
    )  # fmt: skip
