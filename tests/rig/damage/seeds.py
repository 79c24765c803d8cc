"""Small databases made by real workloads, to be damaged: each with what is in it, and with an older self.

`make_seeds` takes some seconds; `save` and `load` hand seeds to other processes. Of a seed with an unreplayed log every
prefix of its commits is a state that a reader may be given, where damage there reads as the log's end.
"""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import mmlsm
from format_reader import Reader
from mmlsm.settings import Settings
from mmlsm.write import node_writer, overflow
from mmlsm.write.merge_jobs import NOTHING, MergeJobs
from mmlsm.write.merge_policy import Drain

Pairs = dict[bytes, bytes]
TINY = {"leaf_bytes": 4096, "node_entries_max": 4, "log_extent_bytes": 1 << 16}


@dataclass(frozen=True, slots=True)
class Segment:
    """What one segment holds; None is a tombstone."""

    id: int
    first_key: bytes
    last_key: bytes
    entries: dict[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Seed:
    """A database file. `states`: without its log, then after each commit of the log; the last is the present one."""

    name: str
    data: bytes
    older: list[bytes]
    """The same file at moments before."""
    states: list[Pairs]
    segments: list[Segment]
    """Newest first."""
    seen: set[str] = field(default_factory=set)
    """Which things of the format are in it, as tests/format_reader.py calls them."""

    @property
    def pairs(self) -> Pairs:
        return self.states[-1]


class Workshop:
    """One database being made. `keep` has what is in it."""

    def __init__(self, path: Path, seed: int, **settings: Any) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.keep: Pairs = {}
        self.older: list[bytes] = []
        self.db = mmlsm.Database(
            path, Settings(**{"durability": "full", "auto_merge": False, "leaf_bytes": 4096, **settings})
        )

    def put(self, items: dict[bytes, bytes | None]) -> None:
        with self.db.batch() as batch:
            for key, value in items.items():
                if value is None:
                    batch.delete(key)
                    self.keep.pop(key, None)
                else:
                    batch.put(key, value)
                    self.keep[key] = value

    def run(self, items: dict[bytes, bytes | None]) -> None:
        """One run of these, in a segment of its own."""
        self.put(items)
        self.remember()
        self.db._engine.flush()
        self.remember()

    def remember(self) -> None:
        """The file as it is now is one of its older selves."""
        self.older.append(self.image())

    def image(self) -> bytes:
        """The file as a kill would leave it now."""
        store = self.db._engine.store
        assert store is not None
        with store.install_lock:
            return self.path.read_bytes()

    def small(self, count: int, low: int = 0, high: int = 400) -> dict[bytes, bytes | None]:
        """`count` small pairs, a few of them deletions."""
        rng = self.rng
        return {
            b"key %03d" % number: None if rng.random() < 0.15 else rng.randbytes(rng.choice([0, 1, 10, 40]))
            for number in rng.sample(range(low, high), count)
        }


@contextmanager
def workshop(folder: Path, name: str, seed: int, **settings: Any):
    path = folder / f"{name}.db"
    path.unlink(missing_ok=True)
    made = Workshop(path, seed, **settings)
    try:
        yield made
    finally:
        made.db.close()


def empty(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    with workshop(folder, "empty", seed) as made:
        made.remember()
    return made.path.read_bytes(), made.older, {}


def tiny_nodes(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Deep trees: a bottom and two runs above it, closed."""
    with workshop(folder, "tiny nodes", seed, **TINY) as made:
        made.run(made.small(40))
        made.db.compact()
        made.remember()
        made.run(made.small(22))
        made.run(made.small(16, 100, 300))
    return made.path.read_bytes(), made.older, made.keep


def plain(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Pages as they are by default, several runs with filters and tombstones."""
    with workshop(folder, "plain", seed, leaf_bytes=8192) as made:
        made.run(made.small(300))
        made.db.compact()
        made.run(made.small(200))
        made.remember()
        made.run(made.small(150))
        made.run(made.small(30, 150, 250))
    return made.path.read_bytes(), made.older, made.keep


def long_keys(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Keys and values in extents, separators that refer to them, long common prefixes."""
    with workshop(folder, "long keys", seed, **TINY) as made:
        rng = made.rng

        def items(count: int) -> dict[bytes, bytes | None]:
            found: dict[bytes, bytes | None] = {}
            for _ in range(count):
                stem = rng.choice([b"p" * 4200, b"p" * 4300, b"q" * 90, b"same prefix " * 7])
                found[stem + b"%03d" % rng.randrange(60)] = rng.randbytes(rng.choice([0, 20, 20, 9000]))
            return found

        made.run(items(14))
        made.db.compact()
        made.remember()
        made.run(items(10))
    return made.path.read_bytes(), made.older, made.keep


def chunks(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Values above 64 KiB, whose chunks have sums of their own."""
    with workshop(folder, "chunks", seed) as made:
        made.run({b"a": made.rng.randbytes(66_000), b"b": b"small", b"c": made.rng.randbytes(10_000)})
        made.remember()
        made.run({b"d": made.rng.randbytes(131_073), b"b": b"other", b"c": None})
    return made.path.read_bytes(), made.older, made.keep


def killed(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """A log of two extents with commits that no segment has, and a value that was put as a stream."""
    with workshop(folder, "killed", seed, **TINY) as made:
        made.run(made.small(20))
        made.remember()
        made.put(made.small(5))
        stream = made.rng.randbytes(65_600)
        made.db.put(b"stream", io.BytesIO(stream))
        made.keep[b"stream"] = stream
        for i in range(14):
            made.put({**made.small(3), b"fill %d" % (i % 4): made.rng.randbytes(made.rng.choice([100, 3000, 9000]))})
            made.remember()
        data, keep = made.image(), dict(made.keep)
    return data, made.older, keep


def first_log(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Killed before the first flush: there is no manifest."""
    with workshop(folder, "first log", seed) as made:
        made.remember()
        for _ in range(5):
            made.put(made.small(6))
            made.remember()
        data, keep = made.image(), dict(made.keep)
    return data, made.older, keep


def retired(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Killed while a snapshot held an older version: the manifest has retired extents."""
    with workshop(folder, "retired", seed, **TINY) as made:
        made.run(made.small(24))
        made.run(made.small(12))
        made.remember()
        with made.db.snapshot():
            made.db.compact()
            made.run(made.small(6))
            data, keep = made.image(), dict(made.keep)
    return data, made.older, keep


def draining(folder: Path, seed: int) -> tuple[bytes, list[bytes], Pairs]:
    """Killed between two slices of a merge into the bottom: a run that drains, and a rotation key."""
    with workshop(folder, "draining", seed, **TINY, slice_bytes=1) as made:
        made.run(made.small(30))
        made.db.compact()
        made.remember()
        made.run(made.small(30))
        made.run(made.small(16))
        engine = made.db._engine
        store = engine.store
        assert store is not None
        engine.merger.stop()
        engine.merger.join()
        jobs = MergeJobs(store, engine.channel, lambda under_way, done, total: None)
        ids = tuple(segment.record.id for segment in store.state.version.segments[:2])
        jobs.drain(store.state.version, Drain(ids), NOTHING)
        data, keep = made.image(), dict(made.keep)
    return data, made.older, keep


MAKERS: list[Callable[[Path, int], tuple[bytes, list[bytes], Pairs]]] = [
    empty, tiny_nodes, plain, long_keys, chunks, killed, first_log, retired, draining,
]  # fmt: skip


def make_seed(maker: Callable[[Path, int], tuple[bytes, list[bytes], Pairs]], folder: Path, number: int) -> Seed:
    data, older, keep = maker(folder, number)
    path = folder / "seed.db"
    path.write_bytes(data)
    reader = Reader(path)
    segments = [Segment(one.id, one.first_key, one.last_key, dict(reader.entries(one))) for one in reader.segments]
    state: dict[bytes, bytes | None] = {}
    for segment in reversed(segments):
        state.update(segment.entries)
    states = [present(state)]
    for _, items in reader.commits():
        state.update(items)
        states.append(present(state))
    path.unlink()
    assert states[-1] == keep, maker.__name__
    return Seed(maker.__name__, data, older, states, segments, reader.seen)


def present(state: dict[bytes, bytes | None]) -> Pairs:
    """What is there, in key order."""
    return {key: value for key, value in sorted(state.items()) if value is not None}


def make_seeds(folder: Path, number: int) -> list[Seed]:
    """All of them, of one random seed. Reservations are small here, so that the files are."""
    with mock.patch.object(node_writer, "RESERVE_PAGES", 8), mock.patch.object(overflow, "STREAM_PAGES", 64):
        return [make_seed(maker, folder, number) for maker in MAKERS]


def save(seeds: list[Seed], path: Path) -> None:
    path.write_bytes(pickle.dumps(seeds))


def load(path: Path) -> list[Seed]:
    found: list[Seed] = pickle.loads(path.read_bytes())
    return found
