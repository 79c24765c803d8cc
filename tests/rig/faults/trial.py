"""One trial: a workload meets a fault; then everything that promises 7 and 8 say is looked at.

    python -m rig.faults.trial FOLDER                     serves trials, one JSON a line, from stdin to stdout
    python -m rig.faults.trial FOLDER '{"workload": ...}' runs one, for who looks into a finding

In what order: the live handle while the fault lasts and after it is over; that work goes on, or, after a failed sync,
that nothing does; close; the file as the next process finds it; and what a power cut would have left.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import mmlsm
import proof
from commit_rig import eventually
from mmlsm import handle
from mmlsm.file import SYSTEM, System
from mmlsm.limits import LARGE_VALUE_BYTES
from mmlsm.settings import Settings
from mmlsm.write import merger, pressure, writer
from rig.faults.ledger import REFUSALS, Ledger
from rig.faults.system import CACHED, LOST, METHODS, SHORT, SYNCS, Fault, FaultySystem
from rig.faults.workloads import MODES, TINY, WORKLOADS, Unopened, Work, templates

HANG_S = 60
PATIENCE_S = 20
READING = frozenset({"pread", "map", "pinned_map", "stat"})
"""Methods without which nothing can be read."""
UNTOLD = frozenset({"close", "unlock", "allocate", "truncate", "open", "stat"})
"""Methods that the threads behind can do without, as for log space ahead of need, or that `stats()` cannot."""
THREADS = {"mmlsm-writer": "flush_error", "mmlsm-merge": "merge_error"}


HURRIED: tuple[tuple[Any, str, float], ...] = (
    (writer, "RETRY_S", 0.002), (merger, "RETRY_S", 0.002), (merger, "IDLE_S", 0.002),
    (merger, "IDLE_BYTES_PER_S", 1e9), (merger, "SMALLER_MOST", 1), (merger, "RELOCATIONS_MOST", 6),
    (pressure, "PAUSE_MOST_S", 0.001), (handle, "WINDOW_BYTES", 64 << 20),
)  # fmt: skip


def hurry() -> None:
    """Have the engine's threads wait for less: before they try again, call the database idle, or let a commit go. And
    have compactions look for space less often, and maps reserve less of it."""
    for module, name, value in HURRIED:
        setattr(module, name, value)


class Trial:
    """See the module's text. `check` raises AssertionError, or whatever else the engine raised, for a finding."""

    def __init__(self, folder: Path, workload: str, fault: Fault | None, number: int = 0) -> None:
        self.run, self.template, batch = WORKLOADS[workload]
        self.path = folder / "trial.db"
        self.fault = fault
        self.system = FaultySystem(fault)
        self.ledger = Ledger(batch)
        self.work = Work(self.path, self.system, self.ledger, number)
        self.work.before_close = self.check_live
        self.system.is_known = lambda: self.work.db is None or self.work.db._engine.file.failure is not None
        if fault is not None and fault.kind == LOST:  # a large value that no sync had covered may be gone when read
            self.work.refusals = (*REFUSALS, mmlsm.CorruptionError)
        self.cutting = fault is not None and (fault.kind in (LOST, CACHED) or number % 4 == 0)
        self.cut: tuple[bytes, Ledger] | None = None

    def check(self, made: dict[str, tuple[Path, int]]) -> None:
        self.path.unlink(missing_ok=True)
        if self.template:
            source, count = made[self.template]
            shutil.copyfile(source, self.path)
            self.ledger.begin(count)
        with contextlib.suppress(Unopened):
            self.run(self.work)
        self.look_at_the_disk()
        self.system.heal()
        db, self.work.db = self.work.db, None
        if db is not None:
            self.check_ended(db)
            del db
        self.check_file(self.ledger, self.system)
        if self.cut is not None:
            later = self.system.power_cut(self.path)
            self.path.write_bytes(self.cut[0])
            self.check_file(self.cut[1], SYSTEM)
            # What was recovered out of the cache and closed is durable, also where the medium never had it.
            self.path.write_bytes(later)
            self.check_file(self.ledger, SYSTEM)

    def look_at_the_disk(self) -> None:
        """Note what a power cut would leave, the first time after the fault."""
        if self.cutting and self.cut is None and self.system.injected and self.path.exists():
            twin = self.ledger.twin()
            twin.handed = twin.durable
            self.cut = self.system.power_cut(self.path), twin

    # -- while it is open

    def check_live(self, db: Any) -> None:
        """The handle, if the fault came before its end: with the fault, then without it."""
        system, fault, ledger = self.system, self.fault, self.ledger
        if fault is None or not system.injected:
            return
        self.look_at_the_disk()
        if fault.method not in READING:
            self.check_readable(db)
        if fault.ever and fault.kind not in ("EINTR", SHORT) and fault.method not in UNTOLD:
            self.check_told(db)
        system.heal()
        self.check_readable(db)
        committer = db._engine.committer
        if system.sync_failed:
            assert db._engine.file.failure is not None, "a sync failed, and the handle goes on"
        if db._engine.file.failure is None and (committer is None or committer.failure is None):
            assert not ledger.unknown, "a commit's fate is unknown, but the handle goes on"
            self.check_going_on(db)
        else:
            self.check_final(db)

    def check_readable(self, db: Any) -> None:
        """What returned is there, to the byte; what did not is not."""
        returned = self.ledger.returned
        lost = self.fault is not None and self.fault.kind == LOST
        try:
            self.ledger.check(db, returned, returned)
        except mmlsm.CorruptionError:
            assert lost, "what is there cannot be read"
            self.check_each(db, returned)

    def check_each(self, db: Any, returned: int) -> None:
        """Only a large value that no sync had covered may be lost under the handle, and then that is said."""
        ledger = self.ledger
        uncovered = {key for number in range(ledger.durable + 1, returned + 1) for key in ledger.batch(number)}
        for key, value in ledger.at(returned).items():
            try:
                assert db.get(key) == value, f"{key[:20]!r} has another value"
            except mmlsm.CorruptionError:
                assert key in uncovered, f"{key[:20]!r} is durable, and cannot be read"
                assert len(value) >= LARGE_VALUE_BYTES, f"{key[:20]!r} is in the log, and cannot be read"

    def check_told(self, db: Any) -> None:
        """What keeps a thread from its work is in `stats()`; or, of a compaction, was told to who asked for it.

        With one segment the merge thread may have nothing to do any more: then it answers a compaction all the same.
        So the writer thread with nothing sealed, when what failed was the log's move to another place, which can wait:
        then commits go on, or one was told that its own write failed, and it answers a flush.
        """
        engine = db._engine
        threads = {thread for _, thread in self.system.injected} & THREADS.keys()
        if self.work.refused:
            threads.discard("mmlsm-merge")
        for thread in threads:
            told = eventually(lambda thread=thread: getattr(db.stats(), THREADS[thread]) is not None, PATIENCE_S)
            if not told and thread == "mmlsm-merge" and len(engine.store.state.version.segments) <= 1:
                with contextlib.suppress(mmlsm.Error):
                    db.compact()
                continue
            committer = engine.committer
            known = committer is None or committer.failure is None or self.ledger.unknown > 0
            if not told and thread == "mmlsm-writer" and len(engine.store.state.tables) == 1 and known:
                with contextlib.suppress(mmlsm.Error):
                    engine.flush()
                continue
            assert told, f"{thread} cannot go on, and stats() does not say so"

    def check_final(self, db: Any) -> None:
        """Nothing can be written any more, and nobody tries to."""
        for mode in MODES:
            before = self.ledger.returned
            try:
                self.ledger.commit(db, mode)
            except mmlsm.ReadOnlyError:
                pass
            else:
                raise AssertionError(f"commit {before + 1} has returned after an unknown fate")
        assert db.stats().failure is not None, "nothing is written any more, and stats() does not say so"
        if db._engine.file.failure is None:
            return
        for call in (db.sync, db.compact, db._engine.flush):
            with contextlib.suppress(mmlsm.Error):
                call()
        time.sleep(0.01)
        self.check_readable(db)

    def check_going_on(self, db: Any) -> None:
        """All is as if nothing had been: commits, flushes, merges, figures, and no page is missing."""
        for mode in MODES:
            self.ledger.commit(db, mode)
        for call in (db._engine.flush, db.compact):
            try:
                call()
            except REFUSALS:  # what a try before the end of the fault came to
                call()
        engine = db._engine
        told = eventually(lambda: engine.writer.error is None and engine.merger.error is None, PATIENCE_S)
        assert told, (engine.writer.error, engine.merger.error)
        stats = db.stats()
        assert stats.flush_error is None, stats.flush_error
        assert stats.merge_error is None, stats.merge_error
        assert stats.failure is None, stats.failure
        self.ledger.sync(db)
        proof.prove(db)
        engine.allocator._check()
        kept = eventually(lambda: leaked_pages(engine) == 0, PATIENCE_S)
        assert kept, f"{leaked_pages(engine)} pages are reserved and nobody's"

    # -- afterwards

    def check_ended(self, db: Any) -> None:
        assert db.closed, "close() ended, but the database is not closed"
        for thread in (db._engine.writer, db._engine.merger):
            assert thread.fault is None, repr(thread.fault)
            assert not thread.is_alive(), f"{thread.name} does not end"
        if self.system.sync_failed:
            assert db._engine.file.failure is not None, "a sync failed, and the handle did not know"
            self.check_late()

    def check_late(self) -> None:
        """After a failed sync nothing was written or synced; but a thread may have been on its way to one call."""
        late = self.system.late
        first = next(thread for method, thread in self.system.injected if method in SYNCS)
        for thread, count in Counter(thread for _, thread in late).items():
            assert count <= (thread != first), f"written or synced after a failed sync of {first}: {late}"

    def check_file(self, ledger: Ledger, system: System) -> None:
        """A prefix, proved; it takes a commit; and again."""
        least = ledger.durable if self.fault is not None and self.fault.kind in (LOST, CACHED) else ledger.handed
        with mmlsm.Database(self.path, Settings(**TINY, debug=True), system) as db:
            count = ledger.check(db, least, ledger.tried)
            proof.prove(db)
            ledger.begin(count)
            ledger.commit(db, "full")
        ledger.begin(count + 1)
        with mmlsm.Database(self.path, Settings(**TINY, readonly=True)) as db:
            ledger.check(db, count + 1, count + 1)


def leaked_pages(engine: Any) -> int:
    """Reserved pages that are neither the log's nor those of values that wait for their flush."""
    committer = engine.committer
    with committer.order_lock:
        spare = committer.log._spare
        owned = [*committer.log.extents, *([spare] if spare is not None else [])]
        values = {reference for table in engine.store.state.tables for reference in getattr(table, "references", ())}
        return int(
            engine.allocator.counts().reserved
            - sum(extent.count for extent in owned)
            - sum(reference.pages for reference in values)
        )


# ---- the server


def count_calls(folder: Path, made: dict[str, tuple[Path, int]]) -> dict[str, dict[str, int]]:
    """How often each workload makes each call when nothing fails."""
    counts = {}
    for name in WORKLOADS:
        trial = Trial(folder, name, None)
        calls: Counter[str] = Counter()
        trial.look_at_the_disk = lambda trial=trial, calls=calls: calls.update(trial.system.calls)
        trial.check(made)
        counts[name] = {method: calls[method] for method in METHODS if calls[method]}
    return counts


def run_one(folder: Path, made: dict[str, tuple[Path, int]], task: dict[str, Any]) -> dict[str, Any]:
    """What came of a trial: how many faults were injected, and the finding if there is one."""
    fault = Fault(task["method"], task["call"], task["kind"], task["ever"])
    trial = Trial(folder, task["workload"], fault, task["number"])
    said: list[str] = []
    threading.excepthook = sys.unraisablehook = lambda args: said.append(
        "".join(traceback.format_exception(args.exc_value))
    )
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    try:
        trial.check(made)
        gc.collect(0)
    except BaseException:
        said.append(traceback.format_exc())
        trial.system.heal()
        with contextlib.suppress(BaseException):
            if trial.work.db is not None:
                trial.work.db.close()
    finally:
        faulthandler.cancel_dump_traceback_later()
    final = trial.system.sync_failed
    return {"injected": len(trial.system.injected), "final": final, "finding": "\n".join(said) or None}


def main() -> None:
    hurry()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    made = templates(folder)
    if len(sys.argv) > 2:
        result = run_one(folder, made, json.loads(sys.argv[2]))
        print(result.pop("finding") or "no finding", result)
        return
    print(json.dumps(count_calls(folder, made)), flush=True)
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(run_one(folder, made, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
