"""What the benchmarks that load a database share: filling it, watching it meanwhile, waiting until it is idle, counting
the pages of its reads, and each case in a process of its own.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import multiprocessing
import random
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import psutil  # type: ignore[import-untyped, unused-ignore]
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmlsm import COMPILED, Database
from mmlsm.limits import PAGE_BYTES
from mmlsm.read.reader import Reader, ReadState
from mmlsm.read.segment import Segment
from mmlsm.settings import Settings
from mmlsm.stats import Stats
from mmlsm.write.merger import IDLE_BYTES_PER_S, IDLE_S

WIDTH = 240
"""Of tables, where there is no terminal."""
SAMPLE_S = 0.02
QUIET_S = 2.0
"""Nothing changes for this long, and as long as the merge thread waits before it gives space back: it is idle."""
PATIENCE_S = 120.0
"""Nothing changes for this long, but there is more than one run: it will not become idle."""
ROUNDS = 7
"""In which two files take turns."""

Pair = tuple[bytes, bytes]
Case = TypeVar("Case")


# -- loading


@dataclass(slots=True)
class Filled:
    """What `fill` wrote. `bytes` are those of all keys and values that were put, repeats too."""

    entries: int = 0
    bytes: int = 0
    seconds: float = 0.0
    longest_commit_s: float = 0.0


def fill(database: Database, pairs: Iterable[Pair], batch_entries: int, tell: Callable[[int], object]) -> Filled:
    """Put all pairs, so many to a commit, from this thread; `tell(entries)` after each."""
    filled = Filled()
    began = time.perf_counter()
    left = iter(pairs)
    while chunk := list(itertools.islice(left, batch_entries)):
        start = time.perf_counter()
        with database.batch() as batch:
            put = batch.put
            for key, value in chunk:
                put(key, value)
        filled.longest_commit_s = max(filled.longest_commit_s, time.perf_counter() - start)
        filled.entries += len(chunk)
        filled.bytes += sum(len(key) + len(value) for key, value in chunk)
        tell(filled.entries)
    filled.seconds = time.perf_counter() - began
    return filled


def settle(database: Database) -> tuple[float, bool]:
    """Wait until the database is idle: when it last changed (monotonic), and whether one run was left."""
    changed = time.monotonic()
    before: object = None
    while True:
        stats = database.stats()
        if error := stats.flush_error or stats.merge_error:
            raise RuntimeError(error)
        now = time.monotonic()
        present = (stats.generation, stats.file_bytes, stats.memtables, stats.space)
        if present != before:
            before, changed = present, now
        settled = stats.runs <= 1 and stats.memtables == 1
        quiet_s = QUIET_S + IDLE_S + stats.file_bytes / IDLE_BYTES_PER_S
        if now - changed >= (quiet_s if settled else PATIENCE_S + quiet_s):
            return changed, settled
        time.sleep(SAMPLE_S)


def bytes_beyond_log(stats: Stats) -> int:
    """What flushes, merges and installs wrote."""
    return stats.flush_bytes_written + stats.merge_bytes_written + stats.install_bytes_written


class Watch(threading.Thread):
    """While the block runs, looks at the database and this process 50 times a second, and keeps the extremes."""

    def __init__(self, database: Database, fan_out: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.database = database
        self.fan_out = fan_out
        self.peak_file = 0
        self.peak_rss = 0
        self.peak_own = 0
        """Without the pages of mapped files, which are the kernel's cache."""
        self.most_runs = 0
        self.bound_then = 0
        self.beyond_bound = 0
        """By how many runs the bound was passed at worst."""
        self.newest_most = 0
        """Most runs in the newest level."""
        self.newest_full_s = 0.0
        """The longest time that the newest level had a merge's worth of runs."""
        self._full_since: float | None = None
        self._process = psutil.Process()
        self._done = threading.Event()
        self._fault: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._done.set()
        self.join()
        if kind is None and self._fault is not None:
            raise self._fault

    def run(self) -> None:
        try:
            while not self._done.is_set():
                self.look()
                self._done.wait(SAMPLE_S)
            self.look()
        except BaseException as fault:
            self._fault = fault

    def look(self) -> None:
        stats = self.database.stats()
        self.peak_file = max(self.peak_file, stats.file_bytes)
        memory = self._process.memory_info()
        self.peak_rss = max(self.peak_rss, memory.rss)
        self.peak_own = max(self.peak_own, memory.rss - getattr(memory, "shared", 0))
        if stats.runs > self.most_runs:
            self.most_runs, self.bound_then = stats.runs, stats.runs_bound
        self.beyond_bound = max(self.beyond_bound, stats.runs - stats.runs_bound)
        newest = len(stats.levels[0]) if stats.levels else 0
        self.newest_most = max(self.newest_most, newest)
        now = time.monotonic()
        if newest < self.fan_out:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        else:
            self.newest_full_s = max(self.newest_full_s, now - self._full_since)


# -- reading


class CountingFile:
    """A database's file for segments of our own: an own window, in which no page is proved yet, and reads counted."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.window = file._new_window(file.pages)
        self.nodes = 0
        self.pages = 0

    def whole_window(self) -> Any:
        return self.window

    def pread(self, offset: int, length: int) -> Any:
        self.nodes += 1
        self.pages += length // PAGE_BYTES
        return self.file.pread(offset, length)


@dataclass(frozen=True, slots=True)
class ReadCost:
    """Of one get, on average: segments' nodes visited, and pages of 4 KiB: those of the nodes, and one for each filter
    asked.
    """

    nodes: float
    pages: float


def read_cost(database: Database, keys: Sequence[bytes]) -> ReadCost:
    """What a get of these keys, all present, costs in the segments of this moment.

    Newest segment first: fences, filter, descent; the first hit ends it, as in a get. Keys that only a memtable has
    are left out. Each segment is opened once more with verify="always", which reads each node that it visits through
    `pread`; those are counted.
    """
    state = database.state  # holds the version, so that no page of it is used anew
    assert state is not None
    file = CountingFile(state.file)
    probes = []
    for segment in state.segments:
        own = Segment(file, segment.record, "always")
        reader = Reader(ReadState((), SimpleNamespace(segments=(own,)), file, "always"), database.seq, database.life)
        reader.get(segment.record.first_key)  # proves the filter, once
        probes.append((segment.record.first_key, segment.record.last_key, int(bool(segment.record.filter)), reader))
    file.nodes = file.pages = 0
    found = filters = 0
    for key in keys:
        before = (file.nodes, file.pages, filters)
        for first, last, has_filter, reader in probes:
            if first <= key <= last:
                filters += has_filter
                if reader.get(key) is not None:
                    found += 1
                    break
        else:
            file.nodes, file.pages, filters = before
    return ReadCost(file.nodes / max(1, found), (file.pages + filters) / max(1, found))


class Beside(NamedTuple):
    """How many times longer than in a fresh file with the same data: the median of some rounds."""

    get: float
    scan: float


def beside_fresh(database: Database, keys: Sequence[bytes], folder: Path) -> Beside:
    """Time gets and scans of the database and of a file made of it by one sequential load and `compact()`, in turns.

    In this thread's processor time, for other things run beside.
    """
    with Database(folder / "fresh.db", Settings(durability="off")) as fresh:
        fill(fresh, database.items(), 1000, lambda entries: None)
        fresh.compact()
        gets, scans = [], []
        for number in range(ROUNDS + 1):
            first, second = (database, fresh) if number % 2 else (fresh, database)
            times = {one: (_seconds_of_gets(one, keys), _seconds_of_scan(one)) for one in (first, second)}
            if number:  # the first round warms
                gets.append(times[database][0] / times[fresh][0])
                scans.append(times[database][1] / times[fresh][1])
    return Beside(statistics.median(gets), statistics.median(scans))


def _seconds_of_gets(database: Database, keys: Sequence[bytes]) -> float:
    began = time.thread_time()
    for key in keys:
        database[key]
    return time.thread_time() - began


def _seconds_of_scan(database: Database) -> float:
    began = time.thread_time()
    collections.deque(database.items(), 0)
    return time.thread_time() - began


# -- cases


def parser_of(text: str | None, keys: int) -> argparse.ArgumentParser:
    """The arguments that all have; `keys` is the default."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="LINES", type=Path, help="key<TAB>value lines; default: this machine's files")
    parser.add_argument("--keys", metavar="N", type=int, default=keys, help=f"at most so many (default: {keys:,})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="all figures")
    parser.add_argument("--markdown", action="store_true", help="tables as they go into a document")
    parser.add_argument("--directory", type=Path, help="where the files go meanwhile (default: a temporary folder)")
    return parser


def what_runs() -> str:
    """Which mmlsm and Python, for the line above the figures."""
    mode = "compiled" if COMPILED else "INTERPRETED: the times say nothing about a usual installation"
    return f"mmlsm {mode}, Python {sys.version.split()[0]}"


def in_own_process(work: Callable[[Case], dict[str, Any]], case: Case) -> dict[str, Any]:
    """What `work(case)` answers in a new process; an exception of it as {"error": its text}."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, case).result()
        except Exception as error:
            traceback.print_exception(error)
            return {"error": f"{type(error).__name__}: {error}"}


def sampled(count: int, most: int) -> list[int]:
    """At most so many of the first `count` numbers, at random."""
    return random.Random(2).sample(range(count), min(count, most))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> None:
    """A table; columns of figures stand to the right."""
    table = Table(title=title or None, title_justify="left", box=box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        figures = any(row[i][:1].isdigit() for row in rows)
        table.add_column(name, justify="right" if figures else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def unsettled(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a case of any benchmark: it failed, or did not come to one run."""
    if "error" in row:
        yield row["error"]
    elif not row["settled"]:
        yield "it did not come to one run"
