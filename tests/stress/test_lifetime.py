"""Campaigns of misuse and lifetime: strikes, storms of signals, failing allocations, little room, whole lives."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from campaign import Campaign
from rig.lifetime.cycles import leaks, left_of_lives
from rig.lifetime.interrupts import Interrupted, Strike, every_point
from rig.lifetime.lives_struck import closes, first_commits, opens
from rig.lifetime.storms import STUCK
from rig.lifetime.world import World, reads, writes

ERRORS = (KeyboardInterrupt, Interrupted, TimeoutError)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An exception in a finaliser comes out nowhere: CPython only tells of it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("quiet")
def test_strikes_at_any_step_of_any_operation(campaign: Campaign, path: Path) -> None:
    """Each operation is counted once, then struck at a step drawn from as many."""
    world, struck, reopened, counts = World(path), 0, 0, dict[str, int]()
    rng = random.Random(campaign.seed)
    number = -1
    for number in campaign.trials(150, 1_000_000):
        kinds, plain = writes(world), reads(world)
        name = rng.choice([*kinds, *plain])
        after = dict(world.state)
        call = kinds[name](after) if name in kinds else plain[name]
        strike = Strike(rng.randint(1, counts[name]) if name in counts else 0, rng.choice(ERRORS))
        try:
            strike(call)
            counts[name] = max(counts.get(name, 0), strike.points)
            struck += strike.struck
            reopened += world.look(after)
            if number % 20 == 0:
                world.is_sound()
            if number % 100 == 0:
                world.reopen()
        except BaseException as error:
            error.add_note(f"seed {campaign.seed}, trial {number}: {name} struck at {strike.at}: {strike.where}")
            raise
    world.is_sound()
    world.db.close()
    proof.prove_file(path)
    campaign.report(trials=number + 1, struck=struck, reopened=reopened, steps_known=sum(counts.values()))


@pytest.mark.usefixtures("quiet")
def test_strikes_at_every_step_of_each_operation(campaign: Campaign, path: Path) -> None:
    """One step of each operation after the other, in any order, until all have had all of theirs, with each error."""
    world, rng, after = World(path), random.Random(campaign.seed), dict[bytes, bytes]()

    def writing(name: str) -> None:
        nonlocal after
        after = dict(world.state)
        writes(world)[name](after)()

    def reading(name: str) -> None:
        nonlocal after
        after = world.state
        reads(world)[name]()

    world.db[b"large"] = world.state[b"large"] = bytes(3 << 20)
    calls = [partial(writing, name) for name in writes(world)] + [partial(reading, name) for name in reads(world)]
    steps, through, struck, reopened = campaign.trials(100, 10_000_000), Counter[str](), 0, 0
    for error in ERRORS:
        runs = {call.args[0]: every_point(call, rng, error) for call in calls}
        while runs and (number := next(steps, None)) is not None:
            name = [*runs][number % len(runs)]
            strike = next(runs[name], None)
            if strike is None:
                del runs[name]
                through[error.__name__] += 1
                continue
            try:
                struck += strike.struck
                reopened += world.look(after)
                if number % 20 == 0:
                    world.is_sound()
                if number % 500 == 0:
                    world.reopen()
            except BaseException as told:
                told.add_note(f"seed {campaign.seed}: {name} struck at {strike.at}: {strike.where}")
                raise
    world.is_sound()
    world.db.close()
    proof.prove_file(path)
    campaign.report(operations=len(calls), through=through, struck=struck, reopened=reopened)


@pytest.mark.usefixtures("quiet")
def test_strikes_at_every_step_of_what_begins_and_ends_a_life(campaign: Campaign, tmp_path: Path) -> None:
    """The same of opens, first commits and closes, each with its share of the time."""
    rng, struck, through = random.Random(campaign.seed), Counter[str](), 0
    lives = [(lived, error) for error in ERRORS for lived in (first_commits, opens, closes)]
    for number, (lived, error) in enumerate(lives):
        until = campaign.left - campaign.left / (len(lives) - number)

        def strikes(
            call: Callable[[], object], until: float = until, error: Any = error, name: str = lived.__name__
        ) -> Iterator[Strike]:
            nonlocal through
            for count, strike in enumerate(every_point(call, rng, error)):
                yield strike
                struck[name] += strike.struck
                if campaign.left < until or (count == 4 and not campaign.long):
                    return
            through += 1

        path = tmp_path / f"{number}.db"
        lived(path, strikes)
        path.unlink()
    campaign.report(lives=len(lives), through=through, struck=struck)


@pytest.mark.parametrize("kind", ["signals", "memory"])
def test_storms(campaign: Campaign, path: Path, kind: str, mode: str) -> None:
    """Operations in a process of their own, while handlers of signals raise or allocations fail."""
    if kind == "memory" and importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this Python has no _testcapi, which makes allocations fail")
    if kind == "memory" and not campaign.long:
        pytest.skip("CPython itself crashes now and then where memory fails, see docs/reliability.md")
    figures = {"operations": 0, "hits": 0, "reopened": 0, "stuck": 0}
    seconds = 4 if not campaign.long else max(4, min(60, int(campaign.left / 2)))
    number = -1
    for number in campaign.trials(1, 1000):
        seed = campaign.seed * 1000 + number
        ended = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-m", "rig.lifetime.storms", kind, path, str(seed), str(seconds)],
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        if kind == "memory" and ended.returncode == STUCK and mode == "interpreted":
            figures["stuck"] += 1
            path.unlink()
            continue
        assert ended.returncode == 0, f"storm of {kind}, seed {seed}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        for name, figure in json.loads(ended.stdout).items():
            figures[name] += figure
        proof.prove_file(path)
        path.unlink(missing_ok=True)
    assert figures["hits"]
    campaign.report(storms=number + 1, **figures)


LITTLE = """
import resource, sys, mmlsm
path, room = sys.argv[1], int(sys.argv[2])
here = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (here + room, here + room))
try:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1" * 100
        db.compact()
        assert db[b"a"] == b"1" * 100
    print("opened")
except (MemoryError, mmlsm.Error) as error:
    print("refused", type(error).__name__)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="asks /proc for its size")
def test_little_address_space_is_an_error_and_no_hang(campaign: Campaign, path: Path) -> None:
    """Stacks of threads, maps and heaps, in any of which it may end."""
    assert resource.RLIMIT_AS
    rng = random.Random(campaign.seed)
    told = {"opened": 0, "refused": 0}
    for number in campaign.trials(6, 2000):
        room = int(2 ** rng.uniform(16, 27))
        ended = subprocess.run(
            [sys.executable, "-c", LITTLE, path, str(room)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert ended.returncode == 0, (campaign.seed, number, room, ended.returncode, ended.stdout, ended.stderr)
        told[ended.stdout.split()[0]] += 1
        if path.exists():
            with mmlsm.open(path) as db:
                assert db.get(b"a") in (None, b"1" * 100)
                proof.prove(db)
    campaign.report(**told)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
def test_nothing_is_left_of_a_thousand_lives(campaign: Campaign, path: Path, mode: str) -> None:
    """A thousand, once five hundred have warmed up; in CI five hundred of them, or interpreted a few."""
    cycles, before, after = 0, None, None
    short = 500 if mode == "compiled" else 64
    for _ in campaign.trials(1, 100):
        count = campaign.count(short, 1000)
        before, after = left_of_lives(path, count, warming=campaign.count(short, 500))
        cycles += count
        assert leaks(before, after) == []
    campaign.report(lives=cycles, before=before, after=after)
