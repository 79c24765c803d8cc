"""Forks wherever a thread of the parent may be, and of a parent at rest: promise 11."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.settings import Durability
from rig.lifetime.forked import each_says_forked, in_child, let_go_of
from rig.lifetime.misuse import handles_of
from rig.lifetime.world import filled
from standstill_rig import COMMITTER, PATIENCE_S, Standstill, standing_still

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of fork beside threads
]

WRITER, MERGER, CALLER = "mmlsm-writer", "mmlsm-merge", COMMITTER

Step = Callable[[mmlsm.Database], object]


def put(durability: Durability) -> Step:
    def commit(db: mmlsm.Database) -> None:
        with db.batch(durability=durability) as batch:
            batch.put(b"new", b"n" * 20_000)

    return commit


FULL, GROUP, OFF = put("full"), put("group"), put("off")


def put_large(db: mmlsm.Database) -> None:
    db.put(b"new", b"n" * (2 << 20))


def flush(db: mmlsm.Database) -> None:
    db._engine.flush()


def layer(db: mmlsm.Database) -> None:
    """A second run for a merge, over the first."""
    db.update({b"%03d" % i: b"w" * 50 for i in range(60)} | {b"other": bytes(1 << 20)})
    flush(db)


def nothing(db: mmlsm.Database) -> None:
    """Before it."""


SYNC, COMPACT, CLOSE = mmlsm.Database.sync, mmlsm.Database.compact, mmlsm.Database.close
COMMITS = (FULL, GROUP, OFF, put_large)
OFTEN, LITTLE = {"group_interval": 0.01}, {"log_extent_bytes": 4096}


@pytest.mark.parametrize(
    ("thread", "method", "before", "what", "settings"),
    [
        pytest.param(CALLER, "pwrite_durably", nothing, FULL, {}, id="full, its write"),
        pytest.param(CALLER, "sync", GROUP, FULL, {}, id="full, the sync of all before"),
        pytest.param(CALLER, "pwrite", nothing, GROUP, {}, id="group, its write"),
        pytest.param(WRITER, "sync", nothing, GROUP, OFTEN, id="group, the interval's sync"),
        pytest.param(CALLER, "pwrite", OFF, SYNC, {}, id="off, the write of sync()"),
        pytest.param(CALLER, "sync", OFF, SYNC, {}, id="off, the sync of sync()"),
        pytest.param(CALLER, "allocate", nothing, OFF, LITTLE, id="off, the log's growth"),
        pytest.param(CALLER, "pwrite", nothing, put_large, {}, id="a large value's write"),
        pytest.param(WRITER, "pwrite", OFF, flush, {}, id="a flush's write"),
        pytest.param(WRITER, "sync", OFF, flush, {}, id="a flush's sync"),
        pytest.param(WRITER, "pwrite_durably", OFF, flush, {}, id="a flush's superblock"),
        pytest.param(MERGER, "pwrite", layer, COMPACT, {}, id="a merge's write"),
        pytest.param(MERGER, "sync", layer, COMPACT, {}, id="a merge's sync"),
        pytest.param(MERGER, "pwrite_durably", layer, COMPACT, {}, id="a merge's superblock"),
        pytest.param(CALLER, "sync", GROUP, CLOSE, {}, id="close(), the sync of its commits"),
        pytest.param(WRITER, "sync", OFF, CLOSE, {}, id="close(), its flush"),
        pytest.param(CALLER, "pwrite_durably", nothing, CLOSE, {}, id="close(), its superblock"),
    ],
)
def test_in_a_child_forked_while_a_thread_stands_still_each_call_says_so(
    path: Path, thread: str, method: str, before: Step, what: Step, settings: dict[str, Any]
) -> None:
    """Whatever that thread holds; the parent goes on, and all that returned is there."""
    system = Standstill()
    db = filled(path, system, auto_merge=False, **{"group_interval": 1000, "log_extent_bytes": 1 << 20, **settings})
    db._engine.flush()
    before(db)
    handles, stream = handles_of(db), db.open_value(b"large")
    view, large = db.get_view(b"a"), db.get_view(b"large")
    assert stream is not None

    def work() -> None:
        each_says_forked(handles, stream, closing=what is CLOSE)
        let_go_of(handles)
        assert (view, large) == (b"1", bytes(2 << 20))
        gc.collect()
        with pytest.raises(mmlsm.LockedError):
            mmlsm.open(path)

    with standing_still(system, thread, method, lambda: what(db)):
        assert in_child(work) == 0
        assert in_child(lambda: os._exit(0)) == 0
    if not db.closed:
        db[b"parent"] = b"goes on"
        db.close()
    proof.prove_file(path)
    assert (view, large) == (b"1", bytes(2 << 20))
    with mmlsm.open(path) as again:
        assert (b"parent" in again) == (what is not CLOSE)
        assert (b"new" in again) == (before in COMMITS or what in COMMITS)


@pytest.mark.parametrize("keeps", ["keeps", "lets go"])
@pytest.mark.parametrize("how", ["os._exit", "sys.exit", "the end", "exec", "multiprocessing"])
def test_a_child_of_a_parent_at_rest_writes_nothing_however_it_ends(path: Path, how: str, keeps: str) -> None:
    """All calls tried, views dropped or kept, atexit handlers and finalisers run: no byte is written, nor any again."""
    told = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "ignore", "-m", "rig.lifetime.forked", path, how, keeps],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "well\n", "")
    proof.prove_file(path)
    with mmlsm.open(path) as db:
        assert (db[b"in the buffer"], db[b"parent"]) == (b"1", b"goes on")
        assert not [key for key in db if key.startswith(b"never")]
