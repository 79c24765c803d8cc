"""How long a campaign of the rig goes on: a fixed count in CI, and a target or a time in the long form.

    def test_...(campaign):
        for number in campaign.trials(200, 10_000):  # in CI, and in a long run
            ...
        campaign.report(kills=number + 1)

`make stress-long MINUTES=60` gives the selected campaigns that time together. Each has an equal share of what is left,
so what one does not use goes to those after it. What one reached stands at the end of the output and, a line of JSON
for each, in the file that MMLSM_FIGURES names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Final

SHARE_LEAST_S: Final = 5.0


def share(seconds: float, campaigns: int) -> float:
    """What the next of so many campaigns has of so many seconds that are left to all of them."""
    return max(SHARE_LEAST_S, seconds / campaigns)


class Campaign:
    """One test's share of the time, its seed, and what it reached."""

    def __init__(self, name: str, seed: int, seconds: float | None, mode: str) -> None:
        self.name = name
        self.seed = seed
        self.seconds = seconds
        """None in the short form."""
        self.mode = mode
        self.began = time.monotonic()
        self.lines: list[str] = []

    @property
    def long(self) -> bool:
        return self.seconds is not None

    def count(self, short: int, long: int) -> int:
        """How many to do: in CI, or at most in a long run."""
        return long if self.long else short

    @property
    def left(self) -> float:
        """Seconds until a long run has used its share; infinite in the short form, which ends by its count."""
        return float("inf") if self.seconds is None else self.began + self.seconds - time.monotonic()

    def trials(self, short: int, long: int) -> Iterator[int]:
        """0, 1, 2 and so on, until it is enough or the time is up."""
        for number in range(self.count(short, long)):
            if self.left <= 0:
                return
            yield number

    def report(self, **figures: object) -> None:
        """What was reached; shown at the end of the run."""
        seconds = round(time.monotonic() - self.began, 1)
        line = json.dumps(
            {"campaign": self.name, "mode": self.mode, "seed": self.seed, "seconds": seconds, **figures}, default=str
        )
        self.lines.append(line)
        if path := os.environ.get("MMLSM_FIGURES"):
            with open(path, "a") as file:
                file.write(line + "\n")
