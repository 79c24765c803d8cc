"""Write, space and read amplification: four loads of two sets of keys, with page reuse on and off, in the earliest
extent that fits and in the best.

    python benchmarks/space.py [--data LINES] [--keys N] [--only WORD,...] [--set NAME=VALUE,...] [--beside]
                               [--json | --markdown]

All 32 cases of 2,000,000 keys take about half a minute each. A short run: --keys 100000 --memtable-kib 512
--only pairs,uniform,best. --only takes words of the columns keys, load, reuse and fit: paths pairs sequential clustered
uniform zipf on off earliest best; several of one column add up. --set gives a setting (mmlsm/settings.py) each of some
values; all combinations of several --set are measured.

Keys: `paths` are the first N lines of --data (`key<TAB>value` lines, .xz is unpacked; without it the files of this
machine), `pairs` are 16 random bytes with values of 100. N writes each, 1,000 to a commit, durability="off", one
thread:
sequential  sorted
clustered   runs of 100 to 500 neighbours, the runs in random order
uniform     shuffled
zipf        drawn by Zipf's law, exponent 0.99, so popular keys are overwritten again and again, others never written

write       bytes written by flushes, merges and installs, for each byte of the keys and values that were put (repeats
            too): until the load is over, and until the database is idle. `log` is the log's bytes in the same measure.
space       bytes of the file for each byte of keys and values that are live in the end: at the highest until it is
            idle, when idle, and after compact(). The log and the free pages are among them.
read        at the end of the load, before merges catch up: runs; nodes and pages of 4 KiB that a get touches. Counted
            for 20,000 keys that are there, each as likely, with what memtables hold left out: the nodes that the
            descents visit, in each segment whose fences and filter let the key pass until it is found, with all their
            pages; and one page for each filter asked.
reused      bytes of nodes that merges took over as they stood, for each byte of keys and values that were put.
beside      with --beside: gets of the same 20,000 keys, and a scan, when idle: how many times longer they take than in
            a fresh file that the same data were put into in order, and compacted. Processor time of the reading thread,
            warm, medians of seven rounds in turns.
seconds     loading, until idle, compact(). For information: other things run beside.

Each case has a process and a file of its own. Afterwards it is proved: verify(), the number of entries, the values of
the same 20,000 keys. Exit code 1 where a case fails or misses its aim.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import keysets
from observed import (
    Watch,
    beside_fresh,
    bytes_beyond_log,
    fill,
    in_own_process,
    parser_of,
    print_table,
    read_cost,
    sampled,
    settle,
    unsettled,
    what_runs,
)

import mmlsm
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Allocation, Settings

BATCH = 1000
READS = 20_000
SEQUENTIAL_MOST = 1.2
"""Aim: the write amplification of a sequential load, beyond the log, with reuse."""

WORDS = {
    "keys": ("paths", "pairs"),
    "load": tuple(keysets.ORDERS),
    "reuse": ("on", "off"),
    "fit": ("earliest", "best"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What one process measures. `lines` is where the paths stand, `folder` where its file may be."""

    keys: str
    load: str
    reuse: bool
    fit: Allocation
    count: int
    memtable_bytes: int
    seed: int
    knobs: dict[str, Any]
    beside: bool
    lines: Path
    folder: Path

    @property
    def name(self) -> str:
        knobs = "".join(f", {name}={value}" for name, value in self.knobs.items())
        return f"{self.keys}, {self.load}, reuse {'on' if self.reuse else 'off'}, {self.fit} fit{knobs}"

    def settings(self) -> Settings:
        """What its database is opened with."""
        plain = Settings(durability="off", memtable_bytes=self.memtable_bytes, reuse=self.reuse, allocation=self.fit)
        return replace(plain, **self.knobs)


def measured(case: Case) -> dict[str, Any]:
    """The figures of one case."""
    keys: keysets.KeySet = keysets.Lines(case.lines) if case.keys == "paths" else keysets.RandomPairs(case.count)
    order = keysets.ORDERS[case.load](len(keys), random.Random(case.seed))
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        database = mmlsm.Database(Path(folder) / "space.db", case.settings())
        try:
            return loaded(database, keys, order, case, Path(folder))
        finally:
            database.close()


def loaded(database: mmlsm.Database, keys: keysets.KeySet, order: Any, case: Case, folder: Path) -> dict[str, Any]:
    """Load in that order, settle, compact, prove."""
    pair, fan_out = keys.pair, case.settings().fan_out
    with Watch(database, fan_out) as loading:
        filled = fill(database, map(pair, order), BATCH, lambda entries: None)
        at_end = database.stats()
    ended = time.monotonic()
    written = bytearray(len(keys))
    for rank in order:
        written[rank] = 1
    ranks = list(itertools.compress(range(len(keys)), written))
    live = sum(len(key) + len(value) for key, value in map(pair, ranks))
    chosen = [pair(ranks[at]) for at in sampled(len(ranks), READS)]
    reads = read_cost(database, [key for key, _ in chosen])
    with Watch(database, fan_out) as settling:
        changed, settled = settle(database)
    idle = database.stats()
    report = database.verify()
    slower = beside_fresh(database, [key for key, _ in chosen], folder) if case.beside else None
    began = time.perf_counter()
    database.compact()
    compact_s = time.perf_counter() - began
    if not report.ok:
        raise AssertionError(report.problems[0])
    if len(database) != len(ranks) or any(database[key] != value for key, value in chosen):
        raise AssertionError("entries are lost")
    put = filled.bytes
    return {
        "entries": filled.entries,
        "live_entries": len(ranks),
        "put_bytes": put,
        "live_bytes": live,
        "write_loading": bytes_beyond_log(at_end) / put,
        "write": bytes_beyond_log(idle) / put,
        "log": idle.log_bytes_written / put,
        "space_peak_loading": loading.peak_file / live,
        "space_peak": max(loading.peak_file, settling.peak_file) / live,
        "space": idle.file_bytes / live,
        "space_compacted": database.stats().file_bytes / live,
        "runs": at_end.runs,
        "runs_most": loading.most_runs,
        "nodes": reads.nodes,
        "pages": reads.pages,
        "beside": slower and slower._asdict(),
        "reused": sum(merged.pages_reused for merged in idle.merged) * PAGE_BYTES / put,
        "settled": settled,
        "flushes": idle.flushes,
        "flush_bytes": idle.flush_bytes_written,
        "install_bytes": idle.install_bytes_written,
        "merged": [asdict(merged) for merged in idle.merged],
        "stalls": idle.stalls,
        "load_s": filled.seconds,
        "idle_s": max(0.0, changed - ended),
        "compact_s": compact_s,
    }


def faults_of(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a case."""
    yield from unsettled(row)
    if "error" in row:
        return
    if row["load"] == "sequential" and row["reuse"] and row["write"] > SEQUENTIAL_MOST:
        yield f"write amplification {row['write']:.2f}, at most {SEQUENTIAL_MOST} is wanted"


def cells_of(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    knobs = ", ".join(f"{name} {value}" for name, value in row["set"].items())
    names = [row["load"], "on" if row["reuse"] else "off", row["fit"], knobs or "-"]
    if "error" in row:
        return [*names, *[""] * (len(COLUMNS) - len(names) - 1), "FAILED"]
    figures = ("write_loading", "write", "log", "reused", "space_peak", "space", "space_compacted")
    return [
        *names,
        *(f"{row[figure]:.2f}" for figure in figures),
        str(row["runs"]),
        f"{row['nodes']:.2f}",
        f"{row['pages']:.2f}",
        "-" if row["beside"] is None else f"{row['beside']['get']:.2f}, {row['beside']['scan']:.2f}",
        f"{row['load_s']:.1f} + {row['idle_s']:.1f} + {row['compact_s']:.1f}",
    ]


COLUMNS = (
    "load", "reuse", "fit", "set", "write: loading", "idle", "log", "reused", "space: peak", "idle", "compacted",
    "read: runs", "nodes", "pages", "beside: get, scan", "seconds",
)  # fmt: skip


def printed(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    print(f"{what_runs()}, memtables of {arguments.memtable_kib:,} KiB\n")
    for keys in WORDS["keys"]:
        of_keys = [row for row in rows if row["keys"] == keys]
        if of_keys:
            entries = max(row.get("entries", 0) for row in of_keys)
            cells = [cells_of(row) for row in of_keys]
            used = [at for at in range(len(COLUMNS)) if any(line[at] != "-" for line in cells)]
            lines = [[line[at] for at in used] for line in cells]
            print_table(f"{entries:,} {keys}", [COLUMNS[at] for at in used], lines, arguments.markdown)


def chosen_cases(arguments: argparse.Namespace, lines: Path) -> list[Case]:
    """All combinations that --only leaves."""
    only = set(filter(None, arguments.only.split(",")))
    if unknown := only - set(itertools.chain(*WORDS.values())):
        sys.exit(f"--only: unknown: {', '.join(sorted(unknown))}")
    columns = [[word for word in words if word in only] or list(words) for words in WORDS.values()]
    folder = arguments.directory or Path(tempfile.gettempdir())
    return [
        Case(keys, load, reuse == "on", "best" if fit == "best" else "earliest", arguments.keys,
             arguments.memtable_kib << 10, arguments.seed, dict(knobs), arguments.beside, lines, folder)
        for keys, load, reuse, fit in itertools.product(*columns)
        for knobs in itertools.product(*arguments.set)
    ]  # fmt: skip


def values_of(text: str) -> list[tuple[str, Any]]:
    """For argparse: fan_out=2,4 as [("fan_out", 2), ("fan_out", 4)]."""
    name, _, values = text.partition("=")
    if name not in {field.name for field in fields(Settings)}:
        raise argparse.ArgumentTypeError(f"no setting {name!r}")
    return [(name, ast.literal_eval(value)) for value in values.split(",")]


def main() -> None:
    parser = parser_of(__doc__, 2_000_000)
    parser.add_argument("--only", metavar="WORD,...", default="", help="see above")
    parser.add_argument("--memtable-kib", metavar="N", type=int, default=4096, help="(default: 4096)")
    parser.add_argument("--set", metavar="NAME=VALUE,...", type=values_of, action="append", default=[],
                        help="see above; may be repeated")  # fmt: skip
    parser.add_argument("--beside", action="store_true", help="time reads beside a fresh file")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        lines = Path(folder) / "lines"
        cases = chosen_cases(arguments, lines)
        if any(case.keys == "paths" for case in cases):
            keysets.write_lines(arguments.data, arguments.keys, lines)
        for number, case in enumerate(cases, 1):
            row = {"keys": case.keys, "load": case.load, "reuse": case.reuse, "fit": case.fit, "set": case.knobs}
            row |= in_own_process(measured, case)
            rows.append(row)
            print(f"{number}/{len(cases)} {case.name}: {'; '.join(faults_of(row)) or 'done'}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        printed(rows, arguments)
    sys.exit(any(list(faults_of(row)) for row in rows))


if __name__ == "__main__":
    main()
