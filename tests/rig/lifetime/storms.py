"""Storms on one small database, in a process of their own: signals whose handler raises, and allocations that fail.

    python -m rig.lifetime.storms signals|memory PATH SEED SECONDS

Says what it did in a line of JSON. Whatever else it says, or another exit code than 0, is a finding.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmlsm
from rig.lifetime.interrupts import Interrupted
from rig.lifetime.world import State, World, reads, writes

SOUND_EVERY = 25
REOPEN_EVERY = 100

STUCK = 3
"""Exit code: a lock stayed taken where memory failed. CPython's locks do where mmlsm is interpreted."""


class Handled:
    """A handler of SIGALRM that raises now and then, once for each time it is armed."""

    pins = True

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.armed = False
        self.raised = 0

    def __call__(self, _number: int, _frame: object) -> None:
        if self.armed and self.rng.random() < 0.2:
            self.armed = False
            self.raised += 1
            raise Interrupted

    def over(self, call: Callable[[], object]) -> None:
        """Call it while signals come, every 0.1 to 1 ms, of which one is raised at most."""
        every = self.rng.uniform(1e-4, 1e-3)
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, every, every)
                call()
            finally:
                self.armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            signal.setitimer(signal.ITIMER_REAL, 0)


class Starved:
    """Allocations of the whole process fail: one, or some in a row; where more do, CPython ends the process.

    What its own C code and Cython's then forget to let go stays pinned, so pins are not looked at.
    """

    pins = False

    def __init__(self, rng: random.Random) -> None:
        import _testcapi

        self.rng = rng
        self.hooks = _testcapi
        self.raised = 0

    def over(self, call: Callable[[], object]) -> None:
        """Call it while they fail."""
        first = int(10 ** self.rng.uniform(0, 4))
        last = first + self.rng.choice([1, 2, 10])
        end = self.hooks.remove_mem_hooks
        try:
            try:
                self.hooks.set_nomemory(first, last)
                call()
            finally:
                end()
        except (MemoryError, mmlsm.Error):
            self.raised += 1
        except (RuntimeError, SystemError) as error:  # how CPython says so for locks, and for frames
            if not re.search("lock|without (setting an )?exception", str(error)):
                raise
            self.raised += 1


class Storm:
    """Operations drawn at random, each under `weather`, and a look at all that must hold afterwards."""

    def __init__(self, path: Path, seed: int, weather: Any, rng: random.Random) -> None:
        self.world = World(path)
        self.weather = weather
        self.rng = rng
        self.done: Counter[str] = Counter()
        self.reopened = 0

    def step(self) -> None:
        world = self.world
        after, call, name = self.drawn()
        self.done[name] += 1
        try:
            self.weather.over(call)
            self.reopened += world.look(after)
            if not sum(self.done.values()) % SOUND_EVERY:
                world.is_sound(pins=self.weather.pins)
        except BaseException as error:
            error.add_note(f"in {name}, number {sum(self.done.values())}")
            for thread in (world.db._engine.writer, world.db._engine.merger):
                if thread.fault is not None:
                    error.add_note("".join(traceback.format_exception(thread.fault)))
            raise
        if not sum(self.done.values()) % REOPEN_EVERY:
            world.reopen()

    def drawn(self) -> tuple[State, Callable[[], object], str]:
        after = dict(self.world.state)
        kinds = writes(self.world)
        if self.rng.random() < 0.6:
            name = self.rng.choice(["put", *kinds])
            return after, kinds[name](after), name
        calls = reads(self.world) | {"close": self.world.db.close}
        name = self.rng.choice(list(calls))
        return after, calls[name], name


def main(kind: str, path: str, seed: str, seconds: str) -> None:
    """One storm."""
    faulthandler.dump_traceback_later(float(seconds) + 60, exit=True)
    rng = random.Random(f"{kind} {seed}")
    sys.unraisablehook = lambda told: None  # an exception in a finaliser comes out nowhere
    gc.disable()
    if kind == "signals":
        weather: Any = Handled(rng)
        signal.signal(signal.SIGALRM, weather)
    else:
        weather = Starved(rng)
    storm = Storm(Path(path), int(seed), weather, rng)
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        try:
            storm.step()
        except AssertionError as error:
            if weather.pins or not re.search("waits for ever|was not free", str(error)):
                raise
            os._exit(STUCK)
        if not sum(storm.done.values()) % 50:
            gc.collect()
    storm.world.is_sound(pins=weather.pins)
    storm.world.db.close()
    told = {"operations": sum(storm.done.values()), "hits": weather.raised, "reopened": storm.reopened}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
