"""A crowd of actors on one database, in rounds: open, let all of them work, close in the middle, prove, compare.

Each actor is a thread with a Random of its own (tests/actors_rig.py has them). A journal is the model
(tests/journal_rig.py). At each install a checking thread proves the whole file: in strict rounds the installing thread
waits for that, so that no install goes unproved; in the others proofs fall behind, as readers do.
"""

from __future__ import annotations

import dataclasses
import gc
import queue
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmlsm
import proof
from journal_rig import PATIENCE_S, Journal, same
from mmlsm.channel import Channel
from mmlsm.settings import Settings

KEYS = 700
ROUND_S = 1.2
KNOWN = frozenset(field.name for field in dataclasses.fields(Settings))


def key_of(i: int) -> bytes:
    """Key number `i`, in the order of numbers; some are so long that they overflow."""
    return b"key %05d" % i + (b"x" * 900 if i % 29 == 0 else b"")


def knobs(rng: random.Random) -> dict[str, Any]:
    """Settings that make pages, memtables and merges tiny, drawn at random."""
    drawn = {
        "debug": rng.random() < 0.7,
        "durability": rng.choice(["off", "group"]),
        "memtable_bytes": rng.choice([4096, 8192, 30_000]),
        "leaf_bytes": rng.choice([4096, 8192]),
        "node_entries_max": rng.choice([3, 4, 4, 8, 8192]),
        "log_extent_bytes": rng.choice([1 << 13, 1 << 16]),
        "verify": rng.choice(["first-read", "always", "never"]),
        "allocation": rng.choice(["earliest", "best"]),
        "fan_out": rng.choice([2, 3, 4]),
        "bottom_ratio": rng.choice([2, 4]),
        "slice_bytes": rng.choice([4096, 20_000, 1 << 20]),
        "reuse": rng.random() < 0.8,
        "reuse_leaves_min": rng.choice([1, 2, 4]),
        "leaf_fullness_min": rng.choice([0.0, 0.3, 0.5, 1.0]),
    }
    return {name: value for name, value in drawn.items() if name in KNOWN}


class Crowd:
    """One round. `rng` draws what the round is like; `journal` is what its commits are told to."""

    def __init__(self, path: Path, rng: random.Random, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.seed = rng.random()
        self.strict = rng.random() < 0.5
        self.db = mmlsm.Database(path, Settings(**settings))
        self.journal = Journal(dict(self.db.items()), self.db.seq)
        self.stopped = threading.Event()
        self.closing = False
        self.errors: list[BaseException] = []
        self.steps: Counter[str] = Counter()
        self.checker = Checker(self)
        self.merges: Counter[str] = Counter()
        self.pages_reused = 0
        self.views: list[tuple[memoryview, bytes]] = []
        """Views that are held, with what they must show, past the close too."""

    def fail(self, who: str, error: BaseException) -> None:
        error.add_note(f"{who}: {''.join(traceback.format_exception(error))}")
        self.errors.append(error)
        self.stopped.set()

    def look(self) -> None:
        """Stats of this moment: parts that make up the file, and no error of a thread behind."""
        stats = self.db.stats()
        assert stats.flush_error is None, stats.flush_error
        assert stats.merge_error is None, stats.merge_error
        space = stats.space
        assert 3 + space.live + space.retired + space.reserved + space.free == space.total
        assert len({segment.id for segment in stats.segments}) == len(stats.segments)

    def work(self, name: str, step: Callable[[], object]) -> None:
        """What the thread of an actor does."""
        try:
            while not self.stopped.is_set():
                self.steps[name] += 1
                step()
        except mmlsm.ClosedError as error:
            if not self.closing:
                self.fail(name, error)
        except BaseException as error:
            self.fail(name, error)

    def run(self, actors: Iterable[tuple[str, Callable[[], object]]], seconds: float, *, close: bool) -> None:
        """Let them work for so long, then close under them, or stop them and close."""
        threads = [
            threading.Thread(target=self.work, args=(f"{name}", step), name=f"{name} {i}", daemon=True)
            for i, (name, step) in enumerate(actors)
        ]
        for thread in threads:
            thread.start()
        self.stopped.wait(seconds)
        try:
            self.look()
            if close and not self.errors:
                self.closing = True
                self.db.close()
        except BaseException as error:
            self.fail("the one who closes", error)
        self.stopped.set()
        for thread in threads:
            thread.join(PATIENCE_S + 20)
            if thread.is_alive():
                frame = sys._current_frames().get(thread.ident or 0)
                self.errors.append(AssertionError(f"{thread.name} hangs: {traceback.format_stack(frame)}"))
        self.end()

    def end(self) -> None:
        """Close, if nobody has, and say what went wrong."""
        try:
            if not self.db.closed:
                self.closing = True
                self.db.close()
        except BaseException as error:
            self.errors.append(error)
        for into, totals in self.db._engine.merger.merged.items():
            self.merges[into] += totals.merges
            self.pages_reused += totals.pages_reused
        self.checker.stop()
        if self.errors:
            raise self.errors[0]

    def compare(self) -> dict[bytes, bytes]:
        """The closed file is sound, and has exactly what was committed."""
        proof.prove_file(self.path)
        with mmlsm.open(self.path, readonly=True) as again:
            want = self.journal.state(again.seq)
            assert again.seq == self.journal.last
            same(again.items(), want, f"what was committed up to {again.seq}")
        return want


class Checker:
    """Proves the whole file at each install, on its own thread, for the hook runs on the writer and merge threads."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.installs = self.proofs = 0
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="checker", daemon=True)
        self._thread.start()
        crowd.db._engine.store.on_install.append(self.on_install)

    def on_install(self) -> None:
        with self._lock:
            self.installs += 1
        done = threading.Event()
        self._events.put(done)
        if self.crowd.strict and not self.crowd.stopped.is_set() and not done.wait(PATIENCE_S):
            self.crowd.fail("install", AssertionError("an install waits for ever for its proof"))

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            waiting = [event]
            while not self._events.empty():  # one proof for all that were installed meanwhile
                if (event := self._events.get()) is None:
                    return
                waiting.append(event)
            try:
                if not self.crowd.errors:
                    proof.prove(self.crowd.db)
                    self.proofs += 1
            except mmlsm.ClosedError as error:
                if not self.crowd.closing:
                    self.crowd.fail("checker", error)
            except BaseException as error:
                self.crowd.fail("checker", error)
            finally:
                for done in waiting:
                    done.set()

    def stop(self) -> None:
        self._events.put(None)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the checker hangs"


@contextmanager
def hurried(rng: random.Random) -> Iterator[None]:
    """In half of the rounds threads switch as often as they can; in the others those that do I/O yield at random."""
    if rng.random() < 0.5:
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            yield
        finally:
            sys.setswitchinterval(before)
        return
    plain = {name: getattr(Channel, name) for name in ("pwrite", "pwrite_durably", "sync")}
    own = random.Random(rng.random())

    def yielding(call: Callable[..., Any]) -> Callable[..., Any]:
        def late(*arguments: Any) -> Any:
            if own.random() < 0.05:
                time.sleep(own.random() * 0.002)
            return call(*arguments)

        return late

    for name, call in plain.items():
        setattr(Channel, name, yielding(call))
    try:
        yield
    finally:
        for name, call in plain.items():
            setattr(Channel, name, call)


ROUNDS_MOST = 30
"""No more than these for the sake of what has not happened yet."""


@dataclasses.dataclass
class Totals:
    """What the rounds reached, for the test's last line and for the asserts that enough happened."""

    rounds: int = 0
    commits: int = 0
    installs: int = 0
    proofs: int = 0
    pages_reused: int = 0
    merges: Counter[str] = dataclasses.field(default_factory=Counter)
    steps: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, crowd: Crowd) -> None:
        self.rounds += 1
        self.commits += crowd.journal.last - crowd.journal.first
        self.installs += crowd.checker.installs
        self.proofs += crowd.checker.proofs
        self.merges += crowd.merges
        self.pages_reused += crowd.pages_reused
        self.steps += crowd.steps

    def enough(self) -> bool:
        """Whether all that the crowd is for has happened."""
        return (
            self.rounds >= 2
            and min(self.steps.values()) >= self.rounds
            and self.commits > 10 * self.rounds
            and self.installs > 5 * self.rounds
            and self.merges.total() >= self.rounds
            and self.merges["bottom"] > 0
            and self.pages_reused > 0
            and self.proofs >= self.rounds
        )

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {sum(self.steps.values())} steps, {self.commits} commits, "
            f"{self.installs} installs, {self.proofs} proofs, {sum(self.merges.values())} merges "
            f"({dict(sorted(self.merges.items()))}), {self.pages_reused} pages reused; "
            f"{dict(sorted(self.steps.items()))}"
        )


def run_rounds(
    folder: Path, seed: int, seconds: float, cast: Callable[[Crowd], Iterable[tuple[str, Callable[[], object]]]],
    **fixed: Any,
) -> Totals:  # fmt: skip
    """Rounds until the time is up and enough has happened, for which a busy machine may need some more; some are on the
    file of the round before. `fixed` settings are not drawn."""
    totals = Totals()
    until = time.monotonic() + seconds
    path, want = folder / "0.db", {}
    views: list[tuple[memoryview, bytes]] = []
    while time.monotonic() < until or (not totals.enough() and totals.rounds < ROUNDS_MOST):
        rng = random.Random(f"{seed} {totals.rounds}")
        settings = knobs(rng) | fixed
        try:
            with hurried(rng):
                crowd = Crowd(path, rng, settings)
                same(crowd.db.items(), want, "what the round before has left")
                crowd.run(cast(crowd), ROUND_S * rng.uniform(0.6, 1.4), close=rng.random() < 0.8)
                assert all(view == copy for view, copy in views), "a view changed after its database was closed"
                views = crowd.views if rng.random() < 0.3 else []
                want = crowd.compare()
        except BaseException as error:
            error.add_note(f"seed {seed}, round {totals.rounds}, {settings}")
            raise
        totals.add(crowd)
        if rng.random() < 0.4:
            path.unlink()
            path, want = folder / f"{totals.rounds}.db", {}
        crowd = None
        gc.collect()
    return totals
