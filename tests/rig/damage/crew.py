"""The parent of processes that try mutants: gives them trials, sees that they live and go on, gathers what they say.

`damage` has generation after generation of seeds damaged, each until all that is systematic is done.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rig.damage.mutations import Campaign
from rig.damage.seeds import make_seeds, save

CHILD = Path(__file__).with_name("child.py")
BATCH = 100
SILENCE_S = 60.0
"""A child that is at one trial for so long hangs."""
FINDINGS_MOST = 20
GENERATIONS_MOST = 1000
"""Of one campaign's seed; some 80,000 mutants each."""
DATA_BYTES = 2 << 30
"""What a child may have of memory of its own, maps of files not counted."""


class Hand:
    """One child. `at` is its trial when it was last looked at, `since` when it got there."""

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.folder = crew.folder / f"child {number}"
        self.folder.mkdir(exist_ok=True)
        self.errors = self.folder / "stderr"
        (self.folder / "trial").write_bytes(bytes(8))
        self.begin = self.end = 0
        self.start()

    def start(self) -> None:
        self.at, self.since, self.heard = -1, time.monotonic(), b""
        with self.errors.open("w") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, str(CHILD), str(self.crew.seeds), str(self.crew.number), str(self.folder),
                 str(DATA_BYTES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip
        assert self.popen.stdout is not None
        self.crew.selector.register(self.popen.stdout, selectors.EVENT_READ, self)

    def give(self, begin: int, end: int) -> None:
        """Have it try these."""
        self.begin, self.end = begin, end
        with (self.folder / "trial").open("r+b") as file:
            file.write(struct.pack("<Q", begin))
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"%d %d\n" % (begin, end))

    def trial(self) -> int:
        """The one under way."""
        return int(struct.unpack("<Q", (self.folder / "trial").read_bytes())[0])

    def hangs(self) -> bool:
        """Whether it has been at one trial for too long."""
        trial = self.trial()
        if trial != self.at:
            self.at, self.since = trial, time.monotonic()
        return self.begin < self.end and time.monotonic() - self.since > SILENCE_S

    def finish(self) -> int:
        """End it, if it lives; its exit code."""
        self.crew.selector.unregister(self.popen.stdout)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
        self.popen.kill()
        return self.popen.wait()


@dataclass
class Figures:
    """What was reached: each mutant by the hash of its bytes, so that none counts twice; and what was found."""

    mutants: set[int] = field(default_factory=set)
    trials: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    """Changes behind sums that were made right again, by the names of fields."""
    unchanged: set[str] = field(default_factory=set)
    """Names of fields whose turn has come, and that no child has changed."""
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    findings: list[dict[str, Any]] = field(default_factory=list)


class Crew:
    """`count` children that try mutants of the `seeds` in a file; `run` has them try, and adds to `figures`."""

    def __init__(self, seeds: Path, number: int, folder: Path, figures: Figures, count: int = 2) -> None:
        self.seeds = seeds
        self.number = number
        self.folder = folder
        self.figures = figures
        self.selector = selectors.DefaultSelector()
        self.hands = [Hand(self, i) for i in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for hand in self.hands:
            hand.finish()
        self.selector.close()

    def run(self, begin: int, end: int, may_go_on: Callable[[], bool]) -> None:
        """Try the mutants of [begin, end), as long as `may_go_on()`."""
        following = begin
        idle = set(self.hands)
        while True:
            for hand in [*idle]:
                if following < end and may_go_on():
                    last = min(following + BATCH, end)
                    hand.give(following, last)
                    following = last
                    idle.discard(hand)
            if len(idle) == len(self.hands):
                return
            for key, _ in self.selector.select(1.0):
                if self.hear(key.data):
                    idle.add(key.data)
            for hand in self.hands:
                if hand not in idle and hand.hangs():
                    self.died(hand, "hangs")

    def hear(self, hand: Hand) -> bool:
        """What a child says, or its end; whether its batch is done."""
        assert hand.popen.stdout is not None
        piece = os.read(hand.popen.stdout.fileno(), 1 << 16)
        if not piece:
            self.died(hand, "died")
            return False
        *lines, hand.heard = (hand.heard + piece).split(b"\n")
        return sum(self.take(hand, json.loads(line)) for line in lines) > 0

    def take(self, hand: Hand, said: dict[str, Any]) -> bool:
        """One thing that a child said; whether its batch is done."""
        figures = self.figures
        if "finding" in said:
            figures.findings.append({"seeds": str(self.seeds), **said})
        if "done" not in said:
            return False
        figures.mutants.update(said["mutants"])
        figures.trials += hand.end - hand.begin
        figures.kinds.update(said["kinds"])
        figures.fields.update(said["fields"])
        figures.outcomes.update(said["outcomes"])
        figures.slowest = max(figures.slowest, tuple(said["slowest"]))
        hand.begin = hand.end
        return True

    def died(self, hand: Hand, how: str) -> None:
        """Note the trial that killed a child, or that it hangs in; another goes on behind it."""
        trial = hand.trial()
        if how == "hangs":
            hand.popen.send_signal(signal.SIGUSR1)  # it writes down where it is
            time.sleep(0.5)
            hand.popen.kill()
        hand.popen.wait()
        code = hand.finish()
        text = f"the process {how} ({code}):\n{hand.errors.read_text()[-3000:]}"
        self.figures.findings.append({"seeds": str(self.seeds), "finding": text, "trial": trial})
        hand.start()
        hand.give(trial + 1, hand.end)


def damage(
    folder: Path, number: int, count: int, may_go_on: Callable[[], bool], findings_most: int = FINDINGS_MOST
) -> Figures:
    """Try so many different mutants, as long as `may_go_on()` and little is found."""
    figures = Figures()

    def goes_on() -> bool:
        return len(figures.mutants) < count and len(figures.findings) < findings_most and may_go_on()

    generation = number * GENERATIONS_MOST
    while goes_on():
        seeds = make_seeds(folder, generation)
        place = folder / f"seeds {generation}"
        save(seeds, place)
        campaign = Campaign(seeds, generation)
        with Crew(place, generation, folder, figures) as crew:
            before = figures.trials
            crew.run(0, campaign.count, goes_on)
        if figures.trials - before >= campaign.fields_within:
            figures.unchanged |= campaign.fields - figures.fields.keys()
        if not any(finding["seeds"] == str(place) for finding in figures.findings):
            place.unlink()
        generation += 1
    return figures
