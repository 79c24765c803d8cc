"""kill -9 at random moments: after each, the file holds exactly the first k commits, for a k that was promised.

A child commits from several threads, with flushes and merges all the time, and acknowledges over a pipe what the
promise covers: in `full` and `group` each commit that returned, in `off` what `sync()` answered. Commits are numbered
by the counter that each one writes; what else it writes is a function of its number and of nothing else, so the state
after k commits can be told without the child. Short in CI; MMLSM_STRESS=long for 700 kills and more.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mmlsm
import proof
from kill_child import COUNTER, OPENED, Replayed
from mmlsm.settings import Settings

LONG = os.environ.get("MMLSM_STRESS") == "long"
KILLS = 120 if LONG else 10
"""For each mode and seed."""
CHILD = Path(__file__).resolve().parent.parent / "kill_child.py"
TINY = {"memtable_bytes": 8192, "leaf_bytes": 4096, "node_entries_max": 8, "log_extent_bytes": 1 << 16}


@contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    popen = subprocess.Popen(
        [sys.executable, str(CHILD), *map(str, arguments)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()
        assert popen.stdout is not None
        popen.stdout.close()


def kill_after(popen: subprocess.Popen[bytes], seconds: float, ready: bytes = b"ready") -> tuple[list[bytes], bool]:
    """Let it run for so long from its first line on, then kill it; all whole lines, and whether it still ran."""
    assert popen.stdout is not None
    os.set_blocking(popen.stdout.fileno(), False)
    data = b""
    deadline = time.monotonic() + 60
    begun = False
    with selectors.DefaultSelector() as selector:
        selector.register(popen.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(min(left, 0.05)):
                piece = popen.stdout.read()
                if piece == b"":
                    break
                data += piece or b""
                if not begun and ready in data:
                    begun = True
                    deadline = time.monotonic() + seconds
            elif popen.poll() is not None:
                break
    running = popen.poll() is None
    popen.send_signal(signal.SIGKILL)
    popen.wait()
    while piece := popen.stdout.read():
        data += piece
    return data.split(b"\n")[:-1], running


def recovered(path: Path, acknowledged: int, replayed: Replayed) -> int:
    """Prove a killed file whole and a prefix; how many commits it has."""
    proof.prove_file(path)
    with mmlsm.open(path, readonly=True) as db:
        count = int(db.get(COUNTER, b"0"))
        assert count >= acknowledged, f"{acknowledged} commits were acknowledged, {count} are there"
        replayed.check(db, count)
    return count


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("durability", ["full", "group", "off"])
def test_after_a_kill_a_prefix_of_the_commits_is_there(durability: str, path: Path, seed: int) -> None:
    rng = random.Random(f"{durability} {seed}")
    print(f"seed {seed}")
    replayed = Replayed()
    count = total = 0
    for kill in range(KILLS):
        pause = rng.choice([0.01, 0.03, 0.1, 0.3, 0.6, 1.0]) * rng.random()
        with child("commit", path, durability, count, seed * 1000 + kill) as popen:
            lines, running = kill_after(popen, pause)
        assert running, (popen.returncode, lines[-3:])
        acknowledged = max([count, *(int(line.split()[1]) for line in lines if line.startswith(b"done "))])
        if rng.random() < 0.3:  # the next crash hits the recovery itself
            with child("open", path, durability, 0, 0) as popen:
                kill_after(popen, rng.random() * 0.01, ready=b"opening")
        total = recovered(path, acknowledged, replayed)
        if rng.random() < 0.3:
            with mmlsm.Database(path, Settings(debug=True, durability="full", **TINY)) as db:
                proof.prove(db)
                replayed.check(db, total)
                replayed.commit(db, total + 1, rng.choice(["full", "group", "off"]))
                total += 1
            assert recovered(path, total, replayed) == total
        count = total
    print(f"{count} commits over {KILLS} kills")
    assert count > KILLS, "the kills left no time for any commit"


@pytest.mark.timeout(600)
def test_a_kill_during_creation_leaves_no_file_or_a_sound_one(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for kill in range(100 if LONG else 6):
        path = tmp_path / f"{kill}.db"
        if kill % 3 == 0:
            path.write_bytes(b"")
        with child("open", path, "full", 0, 0) as popen:
            kill_after(popen, rng.random() * 0.01, ready=b"opening")
        if path.exists() and path.stat().st_size and path.read_bytes().strip(b"\0"):
            proof.prove_file(path)
        with mmlsm.open(path) as db:
            assert set(db) <= {OPENED}
            db[b"a"] = b"1"
        with mmlsm.open(path) as db:
            assert db[b"a"] == b"1"
        assert [name.name for name in tmp_path.iterdir() if name.name.startswith(".")] == []


@pytest.mark.timeout(600)
def test_a_killed_writer_frees_its_lock_though_a_forked_child_lives(path: Path) -> None:
    with child("fork", path, "full", 0, 0) as popen:
        assert popen.stdout is not None
        assert [popen.stdout.readline() for _ in range(2)] == [b"opening\n", b"ready\n"]
        grandchild = int(popen.stdout.readline())
        try:
            with pytest.raises(mmlsm.LockedError) as caught:
                mmlsm.open(path)
            assert caught.value.pid == popen.pid
            popen.kill()
            popen.wait()
            with mmlsm.open(path) as db:
                assert db[b"before"] == b"the fork"
                db[b"after"] = b"the kill"
        finally:
            os.kill(grandchild, signal.SIGKILL)
