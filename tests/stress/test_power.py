"""Power cuts on a real file system: after each, the file holds exactly the first k commits, k promised for power loss.

A child writes into a small ext4 that is loop-mounted (rig/kills/ext4.py tells why a copy of its backing file is what a
power cut leaves). It is stopped at a random moment or at a named point, the copy is taken, and the same file goes on in
the copy, cut after cut, those of its creation and of recoveries among them. Promised is what `full` commits returned,
what `sync()` answered, what a `close()` ended; and the file's name, once it was opened for writing.
Skipped where such a file system cannot be mounted. `make stress-long TESTS=tests/stress/test_power.py` for the long
form; `--seed` replays.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from campaign import Campaign
from rig.kills.ext4 import Disk, disk, reason_for_none
from rig.kills.forks import PATIENCE_S, Child, ForkServer, fork_server
from rig.kills.life import BLANK, job_of, small_settings
from rig.kills.points import Point
from rig.numbered import History


def run_until_cut(child: Child, point: Point | None, rng: random.Random) -> str:
    """Let the child run to its point or for a while, and stop it; where it stands."""
    if point is not None:
        struck = child.listen(PATIENCE_S, until="at ")
        assert struck or child.ended, "it has neither come to its point nor to its end"
    else:
        child.listen(PATIENCE_S, until=rng.choice(["opening", "ready"]))
        child.listen(rng.choice([0.001, 0.01, 0.03, 0.1, 0.3]) * rng.random())
    child.stop()
    return next((line.removeprefix("at ") for line in child.lines if line.startswith("at ")), "at random")


def cut_once(server: ForkServer, disk: Disk, path: Path, history: History, rng: random.Random) -> str:
    """One life of the file, the power cut, and a look at what it left, in the copy that is mounted then."""
    point = Point.any(rng, "opening" if not history.named and rng.random() < 0.7 else None)
    point = point if rng.random() < 0.7 else None
    commits = rng.randrange(1, 60) if point is None or point.place == "closing" else None
    if point is None and rng.random() < 0.3:
        commits = 0
    job = job_of(
        path, rng, loss="power", expected=history.count, point=point, commits=commits, strike=int(signal.SIGSTOP)
    )
    child = server.start("rig.kills.life:live", job)
    try:
        where = run_until_cut(child, point, rng)
        disk.stir(path, rng)
        copy = disk.cut()
    finally:
        child.end()
    history.hear(child.lines)
    disk.unmount()
    disk.mount(copy, rng)
    history.check(path)
    return where


@pytest.mark.timeout(900)
def test_after_a_power_cut_a_prefix_of_the_commits_is_there(campaign: Campaign, tmp_path: Path) -> None:
    if reason := reason_for_none(tmp_path):
        print(f"no power cuts here: {reason}")
        pytest.skip(reason)
    wheres: Counter[str] = Counter()
    commits = 0
    with fork_server() as server, disk(tmp_path) as medium:
        path = medium.place / "test.db"
        history = History()
        for number in campaign.trials(60, 100_000):
            rng = random.Random(f"{campaign.seed} {number}")
            try:
                if number == 0 or rng.random() < 0.05:
                    commits += history.count
                    history = History()
                    medium.unmount()
                    medium.mount(medium.format(rng), rng)
                    if rng.random() < 0.3:
                        path.write_bytes(bytes(rng.choice(BLANK)))
                wheres[cut_once(server, medium, path, history, rng)] += 1
                if history.named and rng.random() < 0.1:
                    history.go_on(path, rng, small_settings(rng))
            except BaseException as error:
                error.add_note(f"seed {campaign.seed}, trial {number}")
                raise
    commits += history.count
    cuts = sum(wheres.values())
    assert commits > cuts, "the cuts left no time for any commit"
    campaign.report(cuts=cuts, at_points=cuts - wheres["at random"], points=len(wheres) - 1, commits=commits)
