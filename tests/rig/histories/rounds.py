"""Rounds of a history: open, let all actors work, close, check every answer; and on, in the same file or another."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmlsm
from crowd_rig import hurried, key_of, knobs
from journal_rig import PATIENCE_S, same
from mmlsm.settings import Settings
from rig.histories.actors import Disturber, Reader, Writer, value_of
from rig.histories.checker import Figures, History
from rig.histories.forms import Actor

ROUND_ANSWERS = 30_000
ROUND_COMMITS = 120
ROUND_S = 2.0
CAST: tuple[type[Actor], ...] = (Writer, Writer, Writer, Reader, Reader, Reader, Reader, Disturber)
KNOBS_LARGE = {"memtable_bytes": 1 << 20, "leaf_bytes": 8192, "node_entries_max": 8192, "log_extent_bytes": 1 << 20}


def settings_of(rng: random.Random) -> dict[str, Any]:
    """Tiny memtables, pages and merges mostly; any durability."""
    own = {
        "debug": rng.random() < 0.3,
        "durability": rng.choice(["off", "group", "full"]),
        "memtable_bytes": rng.choice([4096, 8192, 30_000, 200_000]),
        "fan_out": rng.choice([2, 4, 8]),
    }
    return knobs(rng) | own | (KNOBS_LARGE if rng.random() < 0.1 else {})


@dataclass
class Totals:
    """What the rounds reached."""

    rounds: int = 0
    figures: Figures = field(default_factory=Figures)
    asked: Counter[str] = field(default_factory=Counter)
    """Answers by the form of asking; some of them none, where a round ended in the middle."""
    installs: int = 0
    merges: Counter[str] = field(default_factory=Counter)


class Round:
    """One life of a database and its history, which goes on from `history`'s last state, if there is one."""

    def __init__(self, path: Path, rng: random.Random, settings: dict[str, Any], history: History | None) -> None:
        self.path = path
        self.db = mmlsm.Database(path, Settings(**settings))
        if history is None:
            keys = [key_of(i) for i in range(rng.choice([30, 200, 700]))]
            pairs = {key: value_of(b"0", i, 60) for i, key in enumerate(keys) if rng.random() < 0.8}
            batch = self.db.batch()
            for key, value in pairs.items():
                batch.put(key, value)
            history = History(keys, pairs, batch.commit())
        else:
            assert self.db.seq == history.last, "seq is not what it was at close"
            same(self.db.items(), history.pairs(), "what there was at close")
            history = History(history.keys[:-1], history.pairs(), history.last)
        self.history = history
        noted = note_seqs(self.db)
        shared: list[Any] = [None] * 4
        self.actors = [role(history, self.db, noted, shared, random.Random(rng.random())) for role in CAST]
        self.stopped = threading.Event()
        self.closing = False
        self.errors: list[BaseException] = []

    def work(self, actor: Actor) -> None:
        """What an actor's thread does."""
        try:
            while not self.stopped.is_set():
                actor.step()
        except mmlsm.ClosedError as error:
            if not self.closing:
                self.fail(error)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        error.add_note("".join(traceback.format_exception(error)))
        self.errors.append(error)
        self.stopped.set()

    def run(self, *, close: bool) -> None:
        """Let all work until there is enough to check, then close under them, or stop them and close."""
        threads = [threading.Thread(target=self.work, args=(actor,), daemon=True) for actor in self.actors]
        for thread in threads:
            thread.start()
        until = time.monotonic() + ROUND_S
        while self.is_small() and time.monotonic() < until and not self.stopped.wait(0.01):
            pass
        stats = self.db.stats()
        assert stats.flush_error is None, stats.flush_error
        assert stats.merge_error is None, stats.merge_error
        if close and not self.errors:
            self.closing = True
            self.db.close()
        self.stopped.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            if thread.is_alive():
                stack = traceback.format_stack(sys._current_frames()[thread.ident or 0])
                self.errors.append(AssertionError(f"a thread hangs: {''.join(stack)}"))
        if self.errors:
            raise self.errors[0]
        self.db.close()
        assert all(view == copy for actor in self.actors for view, copy in actor.views), "a view changed at close"

    def is_small(self) -> bool:
        """Whether there has not been enough yet."""
        answers = sum(actor.asked.total() for actor in self.actors)
        return answers < ROUND_ANSWERS or self.db.seq < self.history.first + ROUND_COMMITS

    def check(self) -> Figures:
        """Every answer of the round, and what is in the closed file."""
        figures = self.history.check()
        self.history.logs.clear()
        with mmlsm.open(self.path, readonly=True) as again:
            assert again.seq == self.history.last, "seq is not what it was at close"
            same(again.items(), self.history.pairs(), f"the state after commit {again.seq}, the last")
        return figures


def note_seqs(db: Any) -> threading.local:
    """From now on `.seq` is that of this thread's last commit, also where the call does not answer it."""
    noted = threading.local()
    plain = db._engine.commit

    def commit(items: Any, *arguments: Any, **how: Any) -> int:
        writes = bool(items)  # a commit that is ordered empties them
        seq: int = plain(items, *arguments, **how)
        if writes:
            noted.seq = seq
        return seq

    db._engine.commit = commit
    return noted


def run_rounds(
    folder: Path, seed: int, answers: int, left: Callable[[], float] = lambda: float("inf"), **fixed: Any
) -> Totals:
    """Rounds until so many answers are checked or no time is left; `fixed` settings are not drawn."""
    totals = Totals()
    path, history = folder / "0.db", None
    while totals.figures.answers < answers and left() > 0:
        rng = random.Random(f"{seed} {totals.rounds}")
        settings = settings_of(rng) | fixed
        try:
            with hurried(rng):
                one = Round(path, rng, settings, history)
                one.run(close=rng.random() < 0.5)
            totals.figures.add(one.check())
        except BaseException as error:
            error.add_note(f"seed {seed}, round {totals.rounds}, {settings}")
            raise
        totals.rounds += 1
        for actor in one.actors:
            totals.asked += actor.asked
        totals.installs += one.db._engine.store.installs
        for into, merged in one.db._engine.merger.merged.items():
            totals.merges[into] += merged.merges
        history = one.history
        if rng.random() < 0.3:
            path.unlink()
            path, history = folder / f"{totals.rounds}.db", None
        one = None
        gc.collect()
    return totals
