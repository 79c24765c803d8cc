"""What both demos share: the plan, the threads, and the book in which they note what they did and what was wrong.

I1. Each thread writes to a `Tally` of its own, so counting takes no lock; the display reads them as they are.
I2. Whatever a thread raises is a failed check, and stops the others.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mmlsm.settings import Durability

if TYPE_CHECKING:
    from mmlsm import Database
    from mmlsm.cli.output import Tell

READER_PAUSE_S: Final = 0.001
"""Readers ask, they do not hammer: in one process they share the GIL with the writers."""

SWEEP_SHARE: Final = 0.08
"""Share of the time that readers spend on adding up whole snapshots."""

FAULTS_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for."""

    roots: tuple[Path, ...] = ()
    data: Path | None = None
    most: int | None = None
    database: Path | None = None
    keep: bool = False
    threads: int = 4
    readers: int = 2
    durability: Durability = "group"
    batch: int = 1000
    memtable_bytes: int = 64 << 20
    seed: int = 1


@dataclass(slots=True)
class Tally:
    """One thread's figures. Bytes are those of keys and values."""

    entries: int = 0
    bytes: int = 0
    commits: int = 0
    queries: int = 0
    sweeps: int = 0
    checks: Counter[str] = field(default_factory=Counter)


class Fault(Exception):
    """The database answered something that cannot be right."""


def expect(what: str, found: object, expected: object) -> None:
    """Fault, unless what was found is what must be there."""
    if found != expected:
        raise Fault(f"{what}: found {found!r:.120}, expected {expected!r:.120}")


class Work(Protocol):
    """One of the two demos."""

    unit: str
    """What an entry is: "files", "lines"."""
    total: int | None
    """How many there will be, where that is known."""

    def write(self, database: Database, index: int, tally: Tally, crew: Crew) -> None:
        """Writer `index`, until all is written or `crew.stopped`."""

    def note(self) -> str:
        """A few words for the progress bar."""

    def ask(self, database: Database, dice: random.Random, tally: Tally) -> None:
        """One live query by a reader, checked; Fault when the answer is wrong."""

    def sweep(self, database: Database, tally: Tally) -> None:
        """Add up a whole snapshot, checked."""

    def finish(self, database: Database) -> None:
        """What is to be done before the database is closed."""

    def prove(self, database: Database, tell: Tell) -> list[tuple[str, str]]:
        """Compare the reopened database with everything that was written: (check, detail) of each; Fault."""


class Crew:
    """The writer and reader threads over one database."""

    def __init__(self, work: Work, database: Database, plan: Plan) -> None:
        self.work = work
        self.database = database
        self.plan = plan
        self.writers = [Tally() for _ in range(plan.threads)]
        self.readers = [Tally() for _ in range(plan.readers)]
        self.faults: list[str] = []
        self.stopped = False
        self._written = threading.Event()
        self._sweeping = threading.Lock()
        self._sweep_s = 0.0
        self._began = 0.0
        self.seconds = 0.0

    def run(self, show: Callable[[Crew], object]) -> None:
        """Start all, call `show` ten times a second, and come back when the writers are done and the readers ended."""
        writers, readers = (
            [threading.Thread(target=target, args=(i,), name=f"{name} {i}") for i in range(count)]
            for name, target, count in (
                ("writer", self._writer, self.plan.threads),
                ("reader", self._reader, self.plan.readers),
            )
        )
        self._began = time.perf_counter()
        try:
            for thread in (*writers, *readers):
                thread.start()
            for thread in writers:
                while thread.is_alive():
                    thread.join(0.1)
                    show(self)
            self.database.sync()
            self.seconds = time.perf_counter() - self._began
        except BaseException:
            self.stopped = True
            raise
        finally:
            self._written.set()
            for thread in (*writers, *readers):
                if thread.ident is not None:
                    thread.join()
            show(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    @property
    def written(self) -> int:
        """Entries written so far."""
        return sum(tally.entries for tally in self.writers)

    @property
    def read(self) -> int:
        """Entries that readers were given so far."""
        return sum(tally.entries for tally in self.readers)

    def checks(self) -> Counter[str]:
        """How often the readers checked what."""
        return sum((tally.checks for tally in self.readers), Counter())

    def _fail(self, error: BaseException) -> None:
        self.stopped = True
        name = threading.current_thread().name
        text = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
        self.faults.append(f"{name}: {text}")

    def _writer(self, index: int) -> None:
        try:
            self.work.write(self.database, index, self.writers[index], self)
        except BaseException as error:
            self._fail(error)

    def _reader(self, index: int) -> None:
        dice = random.Random(f"{self.plan.seed}/{index}")
        tally = self.readers[index]
        try:
            while not self._written.is_set() and not self.stopped:
                if self._may_sweep():
                    self._sweep(tally)
                else:
                    self.work.ask(self.database, dice, tally)
                    tally.queries += 1
                time.sleep(READER_PAUSE_S)
            if index == 0 and not self.stopped:
                self.work.sweep(self.database, tally)
                tally.sweeps += 1
        except BaseException as error:
            self._fail(error)

    def _may_sweep(self) -> bool:
        """Whether it is time to add a whole snapshot up again, and this thread's turn."""
        return self._sweep_s <= SWEEP_SHARE * self.elapsed_s and self._sweeping.acquire(blocking=False)

    def _sweep(self, tally: Tally) -> None:
        """REQUIRES the sweeping lock; gives it up."""
        began = time.perf_counter()
        try:
            self.work.sweep(self.database, tally)
            tally.sweeps += 1
        finally:
            self._sweep_s += time.perf_counter() - began
            self._sweeping.release()
