"""One life of a database, in a child of the fork server: opened, written to by several threads, struck down.

What a child is told, its job: `path`; `settings`; `durability`, "mixed" for another at each commit; `expected`, how
many commits it must find; `seed`; `loss`, what its promises are to survive: "kill" or "power"; `commits`, after so many
it closes, now and then while threads go on to commit, 0 for none at all, None for never; `point` (points.py) and
`strike`, a signal's number.

What it says: "opening"; "ready" once open; "gave N SEQ" for each commit that returned; "done N" once the first N are
promised; "closing"; "closed"; "at POINT" when it is struck there. A failure is said line by line (rig/kills/forks.py).
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import mmlsm
from mmlsm.settings import DURABILITIES, Settings
from rig.kills.forks import say, say_error
from rig.kills.points import Point, Struck
from rig.numbered import COUNTER, THREADS, write

PROMISED = {"kill": {"full", "group"}, "power": {"full"}}
"""What a commit that returned promises to survive, by its durability."""
BLANK = (0, 1, 4096, 12_288)
"""So many zeros are no database yet, but a place for one."""


def job_of(path: object, rng: random.Random, **more: Any) -> dict[str, Any]:
    """A job with settings that make flushes, merges and truncations frequent; `more` overrides."""
    return {
        "path": str(path),
        "settings": small_settings(rng),
        "durability": rng.choice([*DURABILITIES, "mixed"]),
        "seed": rng.randrange(1 << 32),
        "strike": int(signal.SIGKILL),
        "point": None,
        "commits": None,
        **more,
    }


def small_settings(rng: random.Random) -> dict[str, Any]:
    """Inner knobs that make much happen with little data; a large memtable now and then, for a long log."""
    return {
        "memtable_bytes": rng.choice([4096, 8192, 32768, 1 << 20]),
        "leaf_bytes": rng.choice([4096, 8192]),
        "node_entries_max": rng.choice([4, 8, 16, 8192]),
        "fan_out": rng.choice([2, 4]),
        "slice_bytes": rng.choice([1 << 14, 8 << 20]),
        "log_extent_bytes": 1 << 16,
        "allocation": rng.choice(["earliest", "best"]),
        "group_interval": rng.choice([0.005, 0.05]),
    }


def live(job: dict[str, Any]) -> None:
    """Open, commit from several threads, and close if it comes to that."""
    sys.setswitchinterval(1e-4)
    point = None if job["point"] is None else Point(*job["point"])
    system = Struck(point, signal.Signals(job["strike"]), job["seed"])
    say("opening")
    durability = "full" if job["durability"] == "mixed" else job["durability"]
    db = mmlsm.Database(job["path"], Settings(durability=durability, **job["settings"]), system)
    found = int(db.get(COUNTER, b"0"))
    assert found == job["expected"], f"{job['expected']} commits were there, the writer finds {found}"
    system.phase = ""
    say("ready")
    if job["commits"] == 0:
        time.sleep(60)
    returned: list[int] = []
    commits = job["commits"]
    amid = commits is not None and job["seed"] % 3 == 0
    left = itertools.repeat(None) if commits is None or amid else itertools.repeat(None, commits)
    threads = [
        threading.Thread(target=guarded, args=(system, commit_all, db, job, left, i, returned)) for i in range(THREADS)
    ]
    threading.Thread(target=guarded, args=(system, hold, db, job), daemon=True).start()
    for thread in threads:
        thread.start()
    if amid:
        while len(returned) < commits:
            time.sleep(0.001)
    else:
        for thread in threads:
            thread.join()
    say("closing")
    system.phase = "closing"
    db.close()
    for thread in threads:
        thread.join()
    say(f"done {max(returned)}")
    say("closed")


def guarded(system: Struck, work: Callable[..., None], *arguments: Any) -> None:
    """What a thread does; its failure ends the process, but that all is closed now is none."""
    try:
        work(*arguments)
    except BaseException as error:
        if not (isinstance(error, mmlsm.ClosedError) and system.phase == "closing"):
            say_error()
            os._exit(3)


def hold(db: Any, job: dict[str, Any]) -> None:
    """Hold one snapshot after the other, so that what is retired is freed now at once and now late."""
    rng = random.Random(job["seed"])
    while True:
        with db.snapshot() as snapshot:
            time.sleep(rng.choice([0.0, 0.001, 0.02]))
            assert int(snapshot.get(COUNTER, b"0")) <= int(db.get(COUNTER, b"0"))
        time.sleep(rng.choice([0.0, 0.01]))


def commit_all(db: Any, job: dict[str, Any], left: Any, thread: int, returned: list[int]) -> None:
    """Commit as long as something is `left`."""
    rng = random.Random(f"{job['seed']} {thread}")
    for _ in left:
        returned.append(commit(db, job, rng))
        if rng.random() < 0.01:
            db.compact()


def commit(db: Any, job: dict[str, Any], rng: random.Random) -> int:
    """Make the next commit, and say what is promised of it; its number."""
    durability = rng.choice(DURABILITIES) if job["durability"] == "mixed" else job["durability"]
    with db.begin(write=True) as transaction:
        number = int(transaction.get(COUNTER, b"0")) + 1
        write(transaction, number)
        seq = transaction.commit(durability=durability)
    say(f"gave {number} {seq}")
    if durability in PROMISED[job["loss"]]:
        say(f"done {number}")
    elif rng.random() < 0.05:
        last = int(db[COUNTER])
        assert db.sync() >= seq, "what sync() made durable does not reach this thread's last commit"
        say(f"done {last}")
    return number


def live_and_fork(job: dict[str, Any]) -> None:
    """Open, commit, and fork a child that lives on; says its pid."""
    db = mmlsm.open(job["path"])
    db[b"before"] = b"the fork"
    if not os.fork():
        say(str(os.getpid()))  # by now it has given up what is its parent's
    time.sleep(60)
