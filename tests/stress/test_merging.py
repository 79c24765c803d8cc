"""A crowd on one file whose pages, memtables and merges are tiny: every reader sees exactly one committed state.

MMLSM_STRESS_SECONDS=1800 for the long form, or --effort; what it reached is its last line.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import format_reader
import mmlsm
import proof
from actors_rig import everybody
from commit_rig import eventually, in_threads
from crowd_rig import knobs, run_rounds
from mmlsm.settings import Settings

CHILD = Path(__file__).resolve().parent.parent / "crowd_child.py"


@pytest.mark.timeout(4 * 3600)
def test_whatever_a_crowd_does_every_reader_sees_one_committed_state(
    tmp_path: Path, seed: int, effort: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = float(os.environ.get("MMLSM_STRESS_SECONDS", 3 * effort))
    totals = run_rounds(tmp_path, seed, seconds, everybody)
    with capsys.disabled():
        print(f"\nseed {seed}: {totals}")
    assert len(totals.steps) == 8
    assert totals.enough(), totals


@pytest.mark.parametrize(("planted", "debug"), [("planted", "debug"), ("planted", "plain"), ("sound", "debug")])
def test_a_planted_crime_is_found_with_checks_and_without(tmp_path: Path, planted: str, debug: str) -> None:
    done = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path), "1", "20" if planted == "planted" else "0.1", debug, planted],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    if planted == "sound":
        assert (done.returncode, done.stdout[:6]) == (0, "clean:"), done.stdout
    else:
        assert done.returncode < 0 or "found: " in done.stdout, done.stdout


# -- many threads delete while others step a cursor


class Nodes(format_reader.Reader):
    """Reads a file by the document of its format, and notes how many entries and children its nodes have."""

    def __init__(self, path: Path) -> None:
        self.leaves: list[int] = []
        self.parents: list[int] = []
        super().__init__(path)
        for segment in self.segments:
            self.entries(segment)

    def leaf(self, data: bytes, n: int, *rest: Any) -> Iterator[tuple[bytes, bytes | None]]:
        self.leaves.append(n)
        return super().leaf(data, n, *rest)

    def parent(self, data: bytes, n: int, *rest: Any) -> Iterator[tuple[bytes, bytes | None]]:
        self.parents.append(n)
        return super().parent(data, n, *rest)


class Deletions:
    """Keys that many threads delete, each its own; what is marked was deleted before, or may be by now."""

    def __init__(self, db: mmlsm.Database, count: int, kept_each: int, rng: random.Random) -> None:
        self.db = db
        self.keys = [b"%06d" % i for i in range(count)]
        self.kept = set(self.keys[::kept_each])
        self.began: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.left = threading.Semaphore(0)
        self.walks = 0
        self.doomed = [key for key in self.keys if key not in self.kept]
        if rng.random() < 0.5:
            rng.shuffle(self.doomed)

    def delete(self, keys: list[bytes]) -> None:
        for key in keys:
            self.began.add(key)
            self.db.delete(key)
            self.gone.add(key)

    def walk(self, stop: threading.Event, rng: random.Random) -> None:
        """Steps through all, with a few back now and then: in order, without the gone, with all that are kept."""
        while not stop.is_set():
            gone = set(self.gone)
            seen: list[bytes] = []
            with self.db.cursor() as cursor:
                forward = rng.random() < 0.5
                ahead, back = (cursor.next, cursor.prev) if forward else (cursor.prev, cursor.next)
                moved = cursor.first() if forward else cursor.last()
                while moved:
                    seen.append(cursor.key)
                    if len(seen) > 1 and rng.random() < 0.02:
                        assert back()
                        assert cursor.key == seen[-2]
                        assert ahead()
                        assert cursor.key == seen[-1]
                    moved = ahead()
            began = set(self.began)
            assert seen == sorted(set(seen), reverse=not forward), "out of order, or one of them twice"
            assert not gone & set(seen), "keys that were deleted before the cursor was opened"
            assert set(self.keys) - began <= set(seen), "keys that nobody has deleted are passed over"
            self.walks += 1


def no_node_is_empty(path: Path, survivors: int) -> int:
    """How many leaves the file has, of which none is empty."""
    nodes = Nodes(path)
    assert min(nodes.leaves) > 0, "an empty leaf"
    assert all(count > 0 for count in nodes.parents), "an empty parent"
    assert sum(nodes.leaves) >= survivors
    return len(nodes.leaves)


@pytest.mark.timeout(3600)
def test_cursors_step_on_while_many_threads_delete_and_no_empty_page_is_left(
    path: Path, seed: int, effort: int, mode: str
) -> None:
    rng = random.Random(seed)
    drawn = knobs(rng) | {"node_entries_max": 4, "leaf_bytes": 4096, "memtable_bytes": 8192, "durability": "off"}
    with mmlsm.Database(path, Settings(**drawn)) as db:
        deletions = Deletions(db, (1500 if mode == "compiled" else 800) * effort, 40, rng)
        db.update(dict.fromkeys(deletions.keys, b"x" * 20))
        db.compact()
        before = db.stats()
        stop = threading.Event()

        def delete_all() -> None:
            try:
                in_threads(*[lambda i=i: deletions.delete(deletions.doomed[i::8]) for i in range(8)], timeout=600)
            finally:
                stop.set()

        walks = [lambda i=i: deletions.walk(stop, random.Random(f"{seed} {i}")) for i in range(3)]
        in_threads(delete_all, *walks, timeout=700)
        assert list(db) == sorted(deletions.kept)
        assert deletions.walks > 0
        # Deletions may be quicker than the first merge.
        assert eventually(lambda: db.stats().merges > before.merges)
    assert no_node_is_empty(path, len(deletions.kept)) > 1
    with mmlsm.Database(path, Settings(**drawn)) as db:
        db.compact()
        assert list(db) == sorted(deletions.kept)
    leaves = no_node_is_empty(path, len(deletions.kept))
    assert leaves <= len(deletions.kept), "more leaves than there are keys"
    proof.prove_file(path)


# -- versions that pile up

SNAPSHOTS = 10_000
SNAPSHOT_BYTES_MOST = 2048
"""Memory of a snapshot that is held, with its share of what it keeps alive: memtables and versions."""


def test_ten_thousand_snapshots_over_many_merges_cost_little_each(open_db: Callable[..., Any]) -> None:
    rng = random.Random(1)
    db = open_db(memtable_bytes=12_000, leaf_bytes=4096, debug=False, log_extent_bytes=1 << 13)
    model = {b"%03d" % i: b"" for i in range(200)}
    db.update(model)
    held: list[tuple[mmlsm.Snapshot, dict[bytes, bytes] | None]] = []
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(SNAPSHOTS):
            key, value = b"%03d" % rng.randrange(200), b"%d" % i
            db.put(key, value)
            model[key] = value
            held.append((db.snapshot(), dict(model) if i % 250 == 0 else None))
        stats = db.stats()
        for snapshot, pairs in held:
            if pairs is not None:
                assert dict(snapshot.items()) == pairs
        held[:] = [(snapshot, None) for snapshot, _ in held]
        del pairs
        gc.collect()
        cost = tracemalloc.get_traced_memory()[0] - before
        print(f"{stats.install} installs, {stats.merges} merges, {len(stats.pins)} versions; {cost} bytes")
        assert stats.snapshots == SNAPSHOTS
        assert len(stats.pins) > 50
        assert stats.merges > 20
        assert cost < SNAPSHOTS * SNAPSHOT_BYTES_MOST
        proof.prove(db)
        held.clear()
        del snapshot
        db.compact()
        gc.collect()
        assert db.stats().snapshots == 0  # whoever looks takes the entries of the gone out
        assert tracemalloc.get_traced_memory()[0] - before < cost / 4
    finally:
        tracemalloc.stop()
    assert dict(db.items()) == model
