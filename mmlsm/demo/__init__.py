"""`mmlsm demo`: many threads fill one database while others ask it, then everything is proved.

One call of `run`, from the main thread. What it does: `crawl` over files, `lines` over a data file.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mmlsm
from mmlsm.cli.output import Output, duration_of, progress_bar, size_of
from mmlsm.demo.crawl import Crawl
from mmlsm.demo.crew import FAULTS_SHOWN, Crew, Fault, Plan, Work
from mmlsm.demo.lines import BadData, Lines, Source

__all__ = ["BadData", "Plan", "run"]

SWITCH_S: Final = 0.001
"""How long a thread may keep the GIL from another that wants it; Python's own 5 ms would starve those that do I/O."""
STATUS_EVERY_S: Final = 10.0


@dataclass(slots=True)
class Outcome:
    """What the demo found out, phase by phase."""

    plan: Plan
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(ok for _, ok, _ in self.checks)

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Note a check's result."""
        self.checks.append((name, ok, detail))


def run(plan: Plan, output: Output) -> int:
    """The whole demo; 0, or 1 when a check fails. BadData for a data file that cannot be loaded."""
    with _place(plan) as path:
        outcome = Outcome(plan)
        mode = "compiled" if mmlsm.COMPILED else "interpreted"
        if not output.as_json:
            output.line(f"mmlsm {mmlsm.__version__} ({mode}), Python {sys.version.split()[0]}, database {path}")
        work = _prepare(plan, output, outcome)
        _live(plan, path, work, output, outcome)
        if outcome.ok:
            _afterwards(path, work, output, outcome)
        outcome.figures["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        _report(outcome, work, output)
        if (plan.keep or plan.database is not None) and not output.as_json:
            output.line()
            output.line(f"The database stays at {path}; look into it with: mmlsm info {path}")
        return 0 if outcome.ok else 1


@contextlib.contextmanager
def _place(plan: Plan) -> Iterator[Path]:
    """Where the database goes."""
    if plan.database is not None:
        if plan.database.exists() and plan.database.stat().st_size:
            raise BadData(f"{plan.database} is there already: the demo wants a new file")
        yield plan.database
    elif plan.keep:
        yield Path(tempfile.mkdtemp(prefix="mmlsm-demo-")) / "demo.mmlsm"
    else:
        with tempfile.TemporaryDirectory(prefix="mmlsm-demo-") as folder:
            yield Path(folder) / "demo.mmlsm"


def _prepare(plan: Plan, output: Output, outcome: Outcome) -> Work:
    """Read and shuffle the data file, if there is one."""
    if plan.data is None:
        for root in plan.roots:
            if not root.is_dir():
                raise BadData(f"{root} is not a folder")
        return Crawl(plan.roots, plan.most, plan.batch)
    began = time.perf_counter()
    with output.progress(f"reading {plan.data.name}") as tell:
        source = Source(plan.data, plan.most, tell)
    work = Lines(source, plan.seed, plan.batch)
    outcome.figures["prepare_s"] = time.perf_counter() - began
    if not output.as_json:
        repeated = f", {source.repeated:,} repeated keys left out" if source.repeated else ""
        output.line(
            f"{len(source):,} lines, {size_of(len(source.data))}, read and shuffled with seed {plan.seed} in "
            f"{duration_of(outcome.figures['prepare_s'])}{repeated}"
        )
    return work


def _live(plan: Plan, path: Path, work: Work, output: Output, outcome: Outcome) -> None:
    """Writers and readers at once, then close."""
    database = mmlsm.open(path, durability=plan.durability, memtable_bytes=plan.memtable_bytes)
    figures = outcome.figures
    try:
        crew = Crew(work, database, plan)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            with _display(work, output) as show:
                crew.run(show)
        finally:
            sys.setswitchinterval(interval)
        for fault in crew.faults[:FAULTS_SHOWN]:
            outcome.check("every thread ran to its end, every answer was right", False, fault)
        if not crew.faults:
            for name, count in sorted(crew.checks().items()):
                outcome.check(name, True, f"{count:,} times while the writers wrote")
            work.finish(database)
        written, size = crew.written, sum(tally.bytes for tally in crew.writers)
        queries = sum(tally.queries + tally.sweeps for tally in crew.readers)
        figures |= {
            "entries": written, "entry_bytes": size, "seconds": crew.seconds,
            "commits": sum(tally.commits for tally in crew.writers), "queries": queries, "entries_read": crew.read,
        }  # fmt: skip
        figures |= _engine_figures(database)
        began = time.perf_counter()
        database.close()
        figures["close_s"] = time.perf_counter() - began
    finally:
        database.close()


def _engine_figures(database: mmlsm.Database) -> dict[str, Any]:
    """What the engine did meanwhile."""
    stats = database.stats()
    log, flushed, merged = stats.log_bytes_written, stats.flush_bytes_written, stats.merge_bytes_written
    return {
        "log_bytes": log, "log_syncs": stats.log_syncs, "flushes": stats.flushes, "flush_bytes": flushed,
        "merges": stats.merges, "merge_bytes": merged, "stalls": stats.stalls, "stall_s": stats.stall_s,
    }  # fmt: skip


def _afterwards(path: Path, work: Work, output: Output, outcome: Outcome) -> None:
    """Reopen, compare with the source, prove the file."""
    figures = outcome.figures
    with mmlsm.open(path, readonly=True) as closed:  # one that may write soon merges on, and the file is in use again
        outcome.check("the file was closed cleanly", closed.stats().clean)
    began = time.perf_counter()
    database = mmlsm.open(path, create=False)
    database.first()
    figures["open_s"] = time.perf_counter() - began
    with database:
        began = time.perf_counter()
        with output.progress("comparing") as tell:
            try:
                for name, detail in work.prove(database, tell):
                    outcome.check(name, True, f"{detail} after reopening")
            except Fault as fault:
                outcome.check("the reopened database holds what was written", False, str(fault))
        figures["compare_s"] = time.perf_counter() - began
        began = time.perf_counter()
        with output.progress("proving the file") as tell:
            report = database.verify(progress=tell)
        figures["verify_s"] = time.perf_counter() - began
        outcome.check(
            "verify: each page has one owner, each key its place, each sum is right",
            report.ok,
            report.problems[0] if report.problems else f"{report.pages:,} pages, {report.leaves:,} leaves",
        )
        stats = database.stats()
        figures["levels"] = [list(level) for level in stats.levels]
        figures["segments"] = len(stats.segments)
        figures["file_bytes"] = stats.file_bytes
        figures["free_bytes"] = stats.space.free * 4096


@contextlib.contextmanager
def _display(work: Work, output: Output) -> Iterator[Callable[[Crew], object]]:
    """Bars on a terminal; elsewhere a line now and then on stderr."""
    if output.as_json:
        yield lambda crew: None
    elif not sys.stderr.isatty():
        last = time.monotonic()

        def say(crew: Crew) -> None:
            nonlocal last
            if time.monotonic() - last >= STATUS_EVERY_S:
                last = time.monotonic()
                print(
                    f"... {crew.elapsed_s:.0f} s: {crew.written:,} {work.unit} written, {crew.read:,} entries read",
                    file=sys.stderr,
                )

        yield say
    else:
        with progress_bar() as bar:
            writing = bar.add_task("writing", total=work.total, note="")
            reading = bar.add_task("reading", total=None, note="")

            def draw(crew: Crew) -> None:
                elapsed = max(crew.elapsed_s, 1e-3)
                note = f"{crew.written / elapsed:,.0f} {work.unit}/s {work.note()}".rstrip()
                bar.update(writing, completed=crew.written, note=note)
                queries = sum(tally.queries + tally.sweeps for tally in crew.readers)
                checks = sum(crew.checks().values())
                note = f"entries, {queries:,} questions, {checks:,} checks"
                bar.update(reading, completed=crew.read, note=note)

            yield draw


def _report(outcome: Outcome, work: Work, output: Output) -> None:
    figures = outcome.figures
    if output.as_json:
        checks = [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in outcome.checks]
        output.json({"ok": outcome.ok, "compiled": mmlsm.COMPILED, **figures, "checks": checks})
        return
    seconds = max(figures["seconds"], 1e-9)
    output.title("While all threads ran")
    plan = outcome.plan
    output.pairs(
        [
            ("threads", f"{plan.threads} writers, {plan.readers} readers, durability {plan.durability}"),
            ("time", duration_of(seconds)),
            ("written", f"{figures['entries']:,} {work.unit}, {figures['entries'] / seconds:,.0f} a second"),
            ("commits", f"{figures['commits']:,}, {figures['commits'] / seconds:,.0f} a second"),
            ("questions", f"{figures['queries']:,}, {figures['queries'] / seconds:,.0f} a second"),
            ("entries read", f"{figures['entries_read']:,}, {figures['entries_read'] / seconds:,.0f} a second"),
            ("log", f"{size_of(figures['log_bytes'])}, {figures['log_syncs']:,} syncs"),
            ("flushes", f"{figures['flushes']:,}, {size_of(figures['flush_bytes'])}"),
            ("merges", f"{figures['merges']:,}, {size_of(figures['merge_bytes'])}"),
            ("commits held up", f"{figures['stalls']:,}, {duration_of(figures['stall_s'])} in all threads"),
        ]
    )
    if "file_bytes" in figures:
        output.title("Afterwards")
        share = figures["file_bytes"] / max(1, figures["entry_bytes"])
        levels = "; ".join(
            f"{i}: {', '.join(f'{run:,}' for run in level)}" for i, level in enumerate(figures["levels"]) if level
        )
        output.pairs(
            [
                ("close", duration_of(figures["close_s"])),
                ("open", duration_of(figures["open_s"])),
                ("compare", duration_of(figures["compare_s"])),
                ("verify", duration_of(figures["verify_s"])),
                ("file", f"{size_of(figures['file_bytes'])}, {share:.2f} times the keys and values"),
                ("free in it", size_of(figures["free_bytes"])),
                ("levels", f"{levels} entries, in {figures['segments']} segments"),
                ("peak memory", size_of(figures["peak_memory_bytes"])),
            ]
        )
    output.title("Checks")
    for name, ok, detail in outcome.checks:
        output.check(name, ok, detail)
