"""kill -9 at random moments and at named points: after each, the file holds exactly the first k commits, k promised.

Children of a fork server commit from several threads, with flushes, merges and truncations all the time, and say over a
pipe what the promise covers: in `full` and `group` each commit that returned, in `off` what `sync()` answered and what
a `close()` ended. The same file goes on, kill after kill, the kills of its creation and of recoveries among them.
`make stress-long TESTS=tests/stress/test_kill.py` for the long form; `--seed` replays.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import mmlsm
from campaign import Campaign
from mmlsm.settings import DURABILITIES
from rig.kills.forks import PATIENCE_S, Child, ForkServer, fork_server
from rig.kills.life import BLANK, job_of, small_settings
from rig.kills.points import CALLS, Point
from rig.numbered import History

FEW, MANY = 200, 500
"""Of so many kills some are of each durability, and of so many some at each place: one in 24 is at opening. CI comes to
the first only: whether a point is met depends on what the threads are at."""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as started:
        yield started


def strike(child: Child, point: Point | None, rng: random.Random) -> str:
    """Let the child run into its point, or kill it after a random while; where it was hit, "" if it ended before."""
    if point is not None:
        child.listen(PATIENCE_S)
        assert child.ended, "it has neither come to its point nor to its end"
    else:
        child.listen(PATIENCE_S, until=rng.choice(["opening", "ready", "ready", "closing"]))
        child.listen(rng.choice([0.001, 0.003, 0.01, 0.03, 0.1, 0.3]) * rng.random())
    if not child.end():
        return ""
    return next((line.removeprefix("at ") for line in child.lines if line.startswith("at ")), "at random")


def kill_once(server: ForkServer, path: Path, history: History, rng: random.Random) -> tuple[str, str]:
    """One life of the file, and a look at what it left; where it was hit, and its durability."""
    place = "opening" if not history.named and rng.random() < 0.7 else None
    point = Point.any(rng, place) if rng.random() < 0.7 else None
    closes = point is None or point.place == "closing"
    commits = rng.randrange(1, 60) if closes else None
    job = job_of(path, rng, loss="kill", expected=history.count, point=point, commits=commits)
    with still_read(path) if history.named and rng.random() < 0.1 else nullcontext():
        child = server.start("rig.kills.life:live", job)
        hit = strike(child, point, rng)
    history.hear(child.lines)
    history.check(path)
    return hit, job["durability"]


@contextmanager
def still_read(path: Path) -> Iterator[None]:
    """Meanwhile somebody else reads the file: what he has open does not change, and stands where it stood."""
    with mmlsm.open(path, readonly=True) as db:
        before = dict(db.items())
        yield
        assert dict(db.items()) == before, "a reader in another process saw something else after the kill"


@pytest.mark.timeout(900)
def test_after_a_kill_a_prefix_of_the_commits_is_there(
    campaign: Campaign, server: ForkServer, tmp_path: Path, mode: str
) -> None:
    hits: Counter[str] = Counter()
    durabilities: Counter[str] = Counter()
    history, path, commits, seed = History(), tmp_path / "0.db", 0, campaign.seed
    few = FEW if mode == "compiled" else FEW // 2
    for number in campaign.trials(few * 13 // 10, 100_000):
        rng = random.Random(f"{campaign.seed} {number}")
        try:
            hit, durability = kill_once(server, path, history, rng)
            if history.named and rng.random() < 0.1:
                history.go_on(path, rng, small_settings(rng))
        except BaseException as error:
            error.add_note(f"seed {seed}, trial {number}")
            raise
        hits[hit] += 1
        durabilities[durability] += hit != ""
        assert {name.name for name in tmp_path.iterdir()} <= {path.name}, "something was left beside the file"
        if rng.random() < 0.04:
            commits += history.count
            path.unlink(missing_ok=True)
            history, path = History(), tmp_path / f"{number}.db"
            if rng.random() < 0.3:
                path.write_bytes(bytes(rng.choice(BLANK)))
    ended = hits.pop("", 0)
    kills, named = sum(hits.values()), sum(hits.values()) - hits["at random"]
    places: Counter[str] = Counter()
    for hit, count in hits.items():
        places[hit if hit == "at random" else hit.split()[0]] += count
    assert kills >= campaign.count(few, 0), hits
    assert named > 0, "no named point was met"
    commits += history.count
    assert commits > kills, "the kills left no time for any commit"
    campaign.report(kills=kills, at_points=named, points=len(hits) - 1, places=places, durabilities=durabilities,
                    closed=ended, commits=commits)  # fmt: skip
    assert kills < FEW or durabilities.keys() >= {*DURABILITIES, "mixed"}, durabilities
    assert kills < MANY or places.keys() >= CALLS.keys(), places


def test_a_killed_writer_frees_its_lock_though_a_forked_child_lives(server: ForkServer, path: Path) -> None:
    writer = server.start("rig.kills.life:live_and_fork", {"path": str(path)})
    try:
        assert writer.listen(PATIENCE_S, until="")
        with pytest.raises(mmlsm.LockedError) as caught:
            mmlsm.open(path)
        assert caught.value.pid == writer.pid
        assert writer.end()
        with mmlsm.open(path) as db:
            assert db[b"before"] == b"the fork"
            db[b"after"] = b"the kill"
    finally:
        os.kill(int(writer.lines[0]), signal.SIGKILL)
