"""What a database does before the power fails: small workloads, a few lines each, that together do everything.

    @workload()
    def renames(story):
        story.open()
        story.commit({b"a": b"1"}, "full")
        story.close()

That is all that it takes to join the rig: every tick of its log is a crash point. A workload goes through its `Story`,
which tells the log what was attempted and what was promised. Files stay small (some 100 KiB), so that an image is
checked in milliseconds. Keys begin with a byte below "~".
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock
from uuid import UUID

import mmlsm
import mmlsm.engine
import mmlsm.handle
import mmlsm.write.merger
import mmlsm.write.node_writer
import mmlsm.write.recovery
from commit_rig import eventually, in_threads
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from rig.crashes.recorded import Log, RecordedSystem

Items = dict[bytes, bytes | None]

TINY: Final = {
    "memtable_bytes": 4096,
    "leaf_bytes": 4096,
    "node_entries_max": 6,
    "fan_out": 2,
    "bottom_ratio": 2,
    "slice_bytes": 4096,
    "log_extent_bytes": 8192,
    "group_interval": 0.002,
}
STREAM: Final = 1 << 16
"""A value from here on is given as a stream, so it has an extent before its commit."""


@dataclass(eq=False, slots=True)
class Commit:
    """What was asked for, and its seq once it has returned."""

    items: Items
    durability: str
    seq: int = 0


class Story:
    """One workload's database, and what the log is told of it. `commits` may be added to by several threads."""

    def __init__(self, path: Path, log: Log, seed: str, options: dict[str, Any], settings: dict[str, Any]) -> None:
        self.path = path
        self.log = log
        self.rng = random.Random(seed)
        self.system = RecordedSystem(log, self.rng.randrange(1 << 30), **options)
        # Debug checks write over what is reclaimed: half of the runs are as users have them.
        self.settings = {**TINY, "debug": self.rng.random() < 0.5, **settings}
        self.commits: list[Commit] = []
        self.db: Any = None

    def open(self, **settings: Any) -> Any:
        self.log.mark("open")
        self.db = mmlsm.Database(self.path, Settings(**{**self.settings, **settings}), self.system)
        self.log.mark("opened")
        return self.db

    def commit(self, items: Items, durability: str = "full") -> int:
        """One commit; streams for what is large."""
        commit = Commit(items, durability)
        batch = self.db.batch(durability=durability)
        self.log.mark("attempt", commit)
        self.commits.append(commit)
        for key, value in items.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, io.BytesIO(value) if len(value) >= STREAM else value)
        commit.seq = batch.commit()
        self.log.mark("returned", commit)
        return commit.seq

    def sync(self) -> None:
        self.log.mark("synced", self.db.sync())

    def flush(self) -> None:
        self.db._engine.flush()

    def compact(self) -> None:
        self.db.compact()

    def close(self) -> None:
        last = self.db.seq
        self.db.close()
        self.log.mark("synced", last)

    def page_of(self, key: bytes) -> int:
        """Where the extent of a large value begins."""
        with self.db.open_value(key) as stream:
            return int(stream.raw._reference.page)

    def settle(self) -> None:
        """Wait while the background installs one thing after the other."""
        store = self.db._engine.store
        seen = -1
        while seen != store.installs:
            seen = store.installs
            time.sleep(0.02)

    def some(self, count: int, size: int = 100, keys: int = 60, first: int = 0) -> Items:
        """Values of about that size for some neighbouring keys."""
        rng = self.rng
        at = first + rng.randrange(max(1, keys - count))
        return {b"key %04d" % (at + i): rng.randbytes(rng.randrange(size + 1)) for i in range(count)}

    def gone(self, count: int, keys: int = 60) -> Items:
        """Deletions of some neighbouring keys."""
        return dict.fromkeys(self.some(count, keys=keys))


@dataclass(frozen=True, slots=True)
class Workload:
    """`options` are the RecordedSystem's, `settings` the database's; `base` what is there before, if anything."""

    name: str
    run: Callable[[Story], object]
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    base: bytes | None = None
    idle_s: float = 60.0


WORKLOADS: Final[dict[str, Workload]] = {}


def workload(
    *,
    name: str = "",
    base: bytes | None = None,
    options: dict[str, Any] | None = None,
    idle_s: float = 60.0,
    **settings: Any,
) -> Callable[[Callable[[Story], object]], Callable[[Story], object]]:
    """Have a function join the rig, with these settings of its database, once or under several names."""

    def enter(run: Callable[[Story], object]) -> Callable[[Story], object]:
        called = name or run.__name__
        WORKLOADS[called] = Workload(called, run, options or {}, settings, base, idle_s)
        return run

    return enter


@contextmanager
def seeded(rng: random.Random, idle_s: float) -> Iterator[None]:
    """Make what is random in a file the seed's, so that equal images are equal; say when a database is idle; let it
    reserve few pages at a time and map little, so that files stay small and an open is quick."""
    epochs = iter(lambda: rng.getrandbits(64) | 1, 0)
    with (
        mock.patch.object(mmlsm.write.recovery.uuid, "uuid4", return_value=UUID(int=1)),
        mock.patch.object(mmlsm.engine, "new_epoch", side_effect=epochs),
        mock.patch.object(mmlsm.write.merger, "IDLE_S", idle_s),
        mock.patch.object(mmlsm.write.node_writer, "RESERVE_PAGES", 16),
        mock.patch.object(mmlsm.handle, "WINDOW_BYTES", 1 << 24),
    ):
        yield


# ---- creation


@workload()
@workload(name="creation in place", options={"unnamed": False})
@workload(name="creation in an empty file", base=b"")
@workload(name="creation in zeros", base=bytes(5000))
def creation(story: Story) -> None:
    story.open()
    story.commit({b"first": b"commit"}, "full")
    story.close()


# ---- commits


@workload(memtable_bytes=1 << 20)
@workload(name="full commits without durable writes", memtable_bytes=1 << 20, options={"durable_writes": False})
def full_commits(story: Story) -> None:
    story.open()
    for _ in range(12):
        story.commit(story.some(3), "full")


@workload(memtable_bytes=1 << 20)
def group_commits(story: Story) -> None:
    story.open()
    for i in range(25):
        story.commit(story.some(3, 200), "group")
        if i == 15:
            story.sync()


@workload(memtable_bytes=1 << 20)
def off_commits(story: Story) -> None:
    story.open()
    for i in range(30):
        story.commit(story.some(3, 200), "off")
        if i % 8 == 7:
            story.sync()
    story.close()


@workload(memtable_bytes=1 << 14)
def mixed_commits(story: Story) -> None:
    story.open()
    for _ in range(30):
        story.commit(story.some(2, 300), story.rng.choice(["off", "off", "group", "full"]))


@workload(memtable_bytes=1 << 14)
def commits_of_several_threads(story: Story) -> None:
    story.open()
    modes = ["full", "group", "full", "off", "group"] * 2
    lists = [[(story.some(2, 200), mode) for mode in modes] for _ in range(3)]
    in_threads(*(lambda mine=mine: [story.commit(*one) for one in mine] for mine in lists))


@workload(memtable_bytes=1 << 20)
def log_rotation(story: Story) -> None:
    story.open()
    for i in range(24):
        story.commit(story.some(2, 1500 if i % 5 else 9000), story.rng.choice(["full", "group", "off"]))


# ---- flushes and merges


@workload(auto_merge=False)
def flushes(story: Story) -> None:
    story.open()
    for i in range(8):
        story.commit(story.some(12, 200), story.rng.choice(["full", "group", "off"]))
        if i % 3 == 2:
            story.flush()
    story.close()


@workload(slice_bytes=1 << 20)
@workload(name="merges, best fit", slice_bytes=1 << 20, allocation="best")
def merges(story: Story) -> None:
    """Sequential and clustered keys, so that leaves and parents are taken over."""
    story.open()
    for i in range(6):
        story.commit(story.some(40, 150, keys=41, first=40 * i), "group")
    for _ in range(6):
        story.commit(story.some(8, 150, keys=240), "group")
        story.flush()
    story.settle()


@workload()
def slices(story: Story) -> None:
    story.open()
    for i in range(5):
        story.commit(story.some(60, 150, keys=61, first=60 * i), "off")
    story.flush()
    for _ in range(5):
        story.commit(story.some(30, 200, keys=300), "group")
        story.flush()
    story.settle()
    story.close()


@workload()
def deletes(story: Story) -> None:
    story.open()
    for _ in range(5):
        story.commit(story.some(40, 150), "group")
        story.commit(story.gone(30), "full")
        story.flush()
    story.settle()
    story.commit(dict.fromkeys(key for key in story.db), "full")
    story.flush()


@workload()
def merges_beside_readers(story: Story) -> None:
    """Snapshots pin what merges retire: retirements stand in the manifests."""
    story.open()
    held = []
    for _ in range(8):
        story.commit(story.some(20, 200), "group")
        story.flush()
        held.append(story.db.snapshot())
        if len(held) > 3:
            held.pop(0).close()
    for one in held:
        one.close()
    story.settle()


@workload()
def overflow(story: Story) -> None:
    """Streams of 64 KiB and more, values and keys that a leaf does not hold; they are overwritten and deleted."""
    story.open()
    rng = story.rng
    for i in range(6):
        items = story.some(3, 100)
        items[b"stream %d" % (i % 2)] = rng.randbytes(STREAM + rng.randrange(9000)) if i % 3 != 2 else None
        items[b"value %d" % (i % 3)] = rng.randbytes(2000 + rng.randrange(4000))
        items[b"long key %d " % (i % 3) * 60] = rng.randbytes(50)
        story.commit(items, ["full", "group", "off"][i % 3])
        if i % 2:
            story.flush()
    story.settle()


# ---- space


@workload()
def compaction(story: Story) -> None:
    """Holes everywhere: leaves, a large value, the log and the manifest move forward, and the file is cut."""
    story.open()
    for key, size in ((b"stream", 2 * STREAM), (b"kept", STREAM)):
        story.commit({key: story.rng.randbytes(size)}, "group")
    for i in range(5):
        story.commit(story.some(40, 300, keys=41, first=40 * i), "off")
    story.flush()
    page = story.page_of(b"kept")
    story.commit({**story.gone(120, keys=200), b"stream": None}, "group")
    story.compact()
    assert story.page_of(b"kept") < page, "the large value behind the hole has not moved"
    story.commit({**story.some(5), b"kept": None}, "full")
    story.compact()
    story.close()


@workload(idle_s=0.002)
def relocation_when_idle(story: Story) -> None:
    story.open()
    for key, size in ((b"stream", 2 * STREAM), (b"kept", STREAM)):
        story.commit({key: story.rng.randbytes(size + 5000)}, "group")
    story.commit(story.some(40, 200), "group")
    story.flush()
    page, pages = story.page_of(b"kept"), story.db.stats().space.total
    story.commit({b"stream": None, **story.gone(20)}, "group")
    story.flush()
    assert eventually(lambda: story.page_of(b"kept") < page, 20), "the large value behind the hole has not moved"
    assert eventually(lambda: story.db.stats().space.total <= pages - 2 * STREAM // PAGE_BYTES, 20), "it was not cut"
    story.commit(story.some(5), "full")
    story.close()


@workload()
def emptied(story: Story) -> None:
    story.open()
    for _ in range(3):
        story.commit(story.some(40, 300), "off")
        story.flush()
        story.commit(dict.fromkeys(key for key in story.db), "full")
        story.compact()
    story.close()


# ---- lives


@workload()
def lives(story: Story) -> None:
    for i in range(4):
        story.open()
        story.commit(story.some(20, 200), "group")
        story.commit(story.some(2, 200), "full" if i % 2 else "off")
        if i == 2:
            story.compact()
        story.close()


@workload()
def lives_beside_a_view(story: Story) -> None:
    """A view outlives its handle, so the next writer reuses nothing that it finds: all of that stays retired (R13)."""
    story.open()
    story.commit(story.some(30, 200), "full")
    story.flush()
    view = story.db.get_view(next(iter(story.db)))
    story.close()
    story.open()
    for _ in range(3):
        story.commit(story.some(30, 200), "group")
        story.compact()
    story.close()
    del view
    story.open()
    story.commit(story.some(30, 200), "full")
    story.compact()


@workload()
def everything_at_once(story: Story) -> None:
    story.open()
    stopped = threading.Event()

    def commits(number: int) -> None:
        for i in range(8):
            items = story.some(12, 150)
            if i % 4 == number:
                items[b"stream"] = story.rng.randbytes(STREAM) if number else None
            story.commit(items, story.rng.choice(["off", "group", "full"]))
        stopped.set()

    def compacts() -> None:
        while not stopped.wait(0.01):
            story.compact()

    in_threads(lambda: commits(0), lambda: commits(1), compacts)


# ---- after a crash


def recovery(story: Story) -> None:
    """What is recorded of the life after a crash, for the crashes that hit it."""
    story.open(auto_merge=story.rng.random() < 0.5)
    way = story.rng.randrange(4)
    if way:
        story.commit(story.some(3), story.rng.choice(["full", "group", "off"]))
    if way == 2:
        story.compact()
    if way == 3:
        story.close()
