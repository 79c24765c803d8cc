"""A sustained random load with small and large memtables, and with merges of few and of many runs.

    python benchmarks/load.py [--data LINES] [--keys N] [--memtables 1,8,64] [--factors 2,4,10] [--json | --markdown]

A short run: --keys 200000 --memtables 1.

All lines of --data (`key<TAB>value`, .xz is unpacked; without it the paths of this machine's files) are put in random
order, 1,000 to a commit, by one thread that waits for nothing but the database; then nothing is done until it is idle.
Each case has a process and a file of its own, and reads its lines from a shuffled file, so its memory is the
database's. --memtables are MiB, --factors how many runs of a tier make a merge (`Settings.fan_out`).

keys/s      of the load alone, reading the lines included
idle        seconds from the load's end to the last change
runs        at the most, seen 50 times a second while loading and until idle; bound: what the policy's formula gives
            for the size at that moment. The aim is never to be above it
newest      most runs in the newest level, and the longest time that it had a merge's worth of them
held up     commits that waited, by cause: for a flush, for a merge, or were slowed; how many, and seconds in all
commit      the longest single one
memory      at its highest: the process's, and that without pages of mapped files, which are the kernel's cache
write       bytes written by flushes, merges and installs for each byte of keys and values, until idle
file        at its largest, and when idle, for each byte of keys and values

Afterwards each is proved: one run, verify(), the number of entries. Exit code 1 where a case fails or misses an aim.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keysets
from observed import (
    Watch,
    bytes_beyond_log,
    fill,
    in_own_process,
    parser_of,
    print_table,
    settle,
    unsettled,
    what_runs,
)

import mmlsm
from mmlsm.settings import DURABILITIES, Durability, Settings

TELL_EVERY = 1_000_000
CAUSES = ("flush", "merge", "slowed")


@dataclass(frozen=True, slots=True)
class Case:
    """What one process measures. `lines` is the shuffled file."""

    memtable_bytes: int
    fan_out: int
    durability: Durability
    batch: int
    entries: int
    lines: Path
    folder: Path

    @property
    def name(self) -> str:
        return f"memtables of {self.memtable_bytes / 2**20:g} MiB, {self.fan_out} runs to a merge"


def measured(case: Case) -> dict[str, Any]:
    """The figures of one case."""
    settings = Settings(durability=case.durability, memtable_bytes=case.memtable_bytes, fan_out=case.fan_out)
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        database = mmlsm.Database(Path(folder) / "load.db", settings)
        try:
            return loaded(database, case)
        finally:
            database.close()


def loaded(database: mmlsm.Database, case: Case) -> dict[str, Any]:
    """Load, settle, prove."""

    def tell(entries: int) -> None:
        if entries % TELL_EVERY == 0:
            print(f"    {entries:,} of {case.entries:,}, {database.stats().runs} runs", file=sys.stderr)

    with Watch(database, case.fan_out) as watch:
        filled = fill(database, keysets.read_lines(case.lines), case.batch, tell)
        ended = time.monotonic()
        at_end = database.stats()
        changed, settled = settle(database)
        idle = database.stats()
    report = database.verify()
    if not report.ok:
        raise AssertionError(report.problems[0])
    if not len(database) == filled.entries == case.entries:
        raise AssertionError(f"{len(database):,} entries, not {case.entries:,}")
    return {
        "entries": filled.entries,
        "put_bytes": filled.bytes,
        "load_s": filled.seconds,
        "idle_s": max(0.0, changed - ended),
        "settled": settled,
        "runs_at_end": at_end.runs,
        "runs_most": watch.most_runs,
        "bound_then": watch.bound_then,
        "beyond_bound": watch.beyond_bound,
        "newest_most": watch.newest_most,
        "newest_full_s": watch.newest_full_s,
        "stalls": idle.stalls,
        "stall_s": idle.stall_s,
        "stalled": {stalled.cause: (stalled.stalls, stalled.seconds) for stalled in idle.stalled},
        "longest_commit_s": filled.longest_commit_s,
        "peak_rss": watch.peak_rss,
        "peak_own": watch.peak_own,
        "write": bytes_beyond_log(idle) / filled.bytes,
        "flushes": idle.flushes,
        "merges": idle.merges,
        "merged": [asdict(merged) for merged in idle.merged],
        "file_peak": watch.peak_file / filled.bytes,
        "file": idle.file_bytes / filled.bytes,
    }


def faults_of(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a case."""
    yield from unsettled(row)
    if "error" in row:
        return
    if row["beyond_bound"] > 0:
        yield f"{row['beyond_bound']} runs above the bound"


COLUMNS = (
    "memtable", "fan-out", "load", "keys/s", "idle", "runs, bound", "newest", "held up: flush", "merge", "slowed",
    "commit", "memory, own", "write", "file", "idle",
)  # fmt: skip


def cells_of(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    names = [f"{row['memtable_bytes'] / 2**20:g} MiB", str(row["fan_out"])]
    if "error" in row:
        return [*names, "FAILED", *[""] * (len(COLUMNS) - len(names) - 1)]
    stalls = [row["stalled"].get(cause, (0, 0.0)) for cause in CAUSES]
    return [
        *names,
        f"{row['load_s']:.1f} s",
        f"{row['entries'] / row['load_s']:,.0f}",
        f"{row['idle_s']:.1f} s",
        f"{row['runs_most']}, {row['bound_then']}",
        f"{row['newest_most']}, {row['newest_full_s']:.1f} s",
        *(f"{count:,}, {seconds:.1f} s" for count, seconds in stalls),
        f"{row['longest_commit_s'] * 1000:,.0f} ms",
        f"{row['peak_rss'] >> 20:,}, {row['peak_own'] >> 20:,} MiB",
        f"{row['write']:.2f}",
        f"{row['file_peak']:.2f}",
        f"{row['file']:.2f}",
    ]


def numbers(text: str) -> list[int]:
    """For argparse: 2,4,10."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = parser_of(__doc__, 10_000_000)
    parser.add_argument("--memtables", metavar="MIB,...", type=numbers, default=[1, 8, 64], help="(default: 1,8,64)")
    parser.add_argument("--factors", metavar="N,...", type=numbers, default=[Settings().fan_out],
                        help=f"(default: {Settings().fan_out})")  # fmt: skip
    parser.add_argument("--durability", choices=DURABILITIES, default="group", help="(default: group)")
    parser.add_argument("--batch", metavar="N", type=int, default=1000, help="entries in a commit (default: 1000)")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        keysets.write_lines(arguments.data, arguments.keys, folder / "lines")
        entries = keysets.shuffle_lines(folder / "lines", folder / "shuffled", arguments.seed)
        for factor in arguments.factors:
            for memtable in arguments.memtables:
                case = Case(memtable << 20, factor, arguments.durability, arguments.batch, entries,
                            folder / "shuffled", folder)  # fmt: skip
                row = {"memtable_bytes": case.memtable_bytes, "fan_out": factor} | in_own_process(measured, case)
                rows.append(row)
                print(f"{case.name}: {'; '.join(faults_of(row)) or 'done'}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{entries:,} keys, durability {arguments.durability}, {what_runs()}\n")
        print_table("", COLUMNS, [cells_of(row) for row in rows], arguments.markdown)
    sys.exit(any(list(faults_of(row)) for row in rows))


if __name__ == "__main__":
    main()
