"""Planted bugs: small edits of mmlsm's sources, each of which breaks a promise, and the tests that must go red.

`make sabotage` applies them one by one to a copy of the package and runs those tests (sabotage/runner.py). A proof
that cannot fail is no proof: what is here says of each promise what would be noticed.

I1. An edit's old text stands in its file exactly once, so a change of the source that makes it stale is noticed, by
    tests/unit/test_sabotage.py in each run of the suite.
I2. A sabotage breaks a promise that a user can see. What only makes a second line of defence go is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CRASH_IMAGES = "sabotage/campaigns.py::test_crash_images"
FAULTS = "sabotage/campaigns.py::test_faults"
HISTORIES = "sabotage/campaigns.py::test_histories"
DAMAGED_FILES = "sabotage/campaigns.py::test_damaged_files"
KILLS = "stress/test_kill.py::test_after_a_kill_a_prefix_of_the_commits_is_there"
CROWD = "stress/test_merging.py::test_whatever_a_crowd_does_every_reader_sees_one_committed_state"


class StaleError(Exception):
    """The source is no longer what a sabotage was written for."""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One planted bug."""

    name: str
    """What `make sabotage SABOTAGE=name` calls it."""
    promises: str
    """Which promises of docs/reliability.md it breaks, by their numbers."""
    what: str
    """What is wrong then, in words."""
    file: str
    """Below mmlsm/."""
    old: str
    new: str
    tests: tuple[str, ...]
    """What must go red, below tests/, as pytest names it: the rig's campaigns first, and where they meet the bug by
    chance only, or not within seconds, the exact test."""
    compiled: bool = False
    """Planted in the compiled module, for what interpreted code does not do."""

    def applied(self, source: str) -> str:
        """The source with the bug in it; StaleError unless its old text is there exactly once (I1)."""
        found = source.count(self.old)
        if found != 1 or self.old == self.new:
            raise StaleError(f"{self.name}: its text stands {found} times in mmlsm/{self.file}")
        return source.replace(self.old, self.new)

    def plant(self, package: Path) -> None:
        """Apply it to the package's folder."""
        path = package / self.file
        path.write_text(self.applied(path.read_text()))


def everything() -> tuple[Sabotage, ...]:
    """All of them."""
    from sabotage import of_commits, of_locks, of_merges, of_pins, of_recovery, of_sums, of_syncs

    parts = (of_syncs, of_recovery, of_sums, of_commits, of_pins, of_merges, of_locks)
    return tuple(one for part in parts for one in part.PLANTED)
