"""Many threads commit in all durabilities while others read: one order, prefix states only, snapshots that hold."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from bisect import bisect_right

import pytest

from commit_rig import CommitRig, in_threads
from mmlsm.errors import ReadOnlyError, StorageError
from mmlsm.format.manifest import Reference
from mmlsm.read.snapshot import SeqPin

DURABILITIES = ("off", "group", "full")
KEYS = [b"key %d" % i for i in range(12)]


@pytest.fixture
def hurried():
    """Threads switch as often as the interpreter lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class History:
    """What the log says: for each key its versions by seq."""

    def __init__(self, rig: CommitRig) -> None:
        self.versions: dict[bytes, tuple[list[int], list[object]]] = {}
        self.last = 0
        for commit in rig.scan():
            assert commit.seq == self.last + 1, "the log has a hole"
            self.last = commit.seq
            for key, value in commit.items:
                seqs, values = self.versions.setdefault(key, ([], []))
                if seqs and seqs[-1] == commit.seq:
                    values[-1] = value
                else:
                    seqs.append(commit.seq)
                    values.append(value)

    def at(self, key: bytes, seq: int) -> object:
        seqs, values = self.versions.get(key, ([], []))
        at = bisect_right(seqs, seq)
        return values[at - 1] if at else None


def read(tables: tuple, key: bytes, seq: int) -> object:
    for table in tables:
        entry = table.lookup(key, seq)
        if entry is not None:
            return entry.value
    return None


def check_observed(
    rig: CommitRig,
    observed: list[tuple[int, dict[bytes, object]]],
    live: list[tuple[int, int, bytes, object]],
    total: int,
) -> None:
    """What snapshots and point reads saw, against the log."""
    rig.committer.sync()
    assert rig.published == list(range(1, total + 1)), "each is published once, in order"
    history = History(rig)
    assert history.last == rig.committer.last_seq == total
    assert len(observed) > 10
    assert len(live) > 10
    for seq, state in observed:
        assert state == {key: history.at(key, seq) for key in KEYS}, f"not the state after commit {seq}"
    for before, after, key, value in live:
        assert any(history.at(key, seq) == value for seq in range(before, after + 1)), "neither old nor new"
    for table in rig.tables:
        table.check()
    reserved = sum(extent.count for extent in rig.log.extents) + (rig.log._spare.count if rig.log._spare else 0)
    assert sum(extent.count for extent in rig.allocator.reserved_extents()) == reserved


@pytest.mark.parametrize("slow_disk", [False, True])
def test_mixed_durabilities_publish_one_order_of_prefix_states(seed, effort, hurried, slow_disk):
    rig = CommitRig(memtable_bytes=60_000, log_extent_bytes=8192)
    if slow_disk:
        rig.note(lambda name: time.sleep(0.0002 if name == "pwrite" else 0.001))
    committer, pins = rig.committer, rig.pins
    stop = threading.Event()
    observed: list[tuple[int, dict[bytes, object]]] = []
    live: list[tuple[int, int, bytes, object]] = []

    def write(number: int, count: int) -> None:
        own = random.Random(seed * 100 + number)
        last = 0
        for n in range(count):
            keys = own.sample(KEYS, own.choice((1, 1, 2, 5)))
            items: list[tuple[bytes, object]] = [(key, own.choice((b"%d/%d" % (number, n), None))) for key in keys]
            items.append((b"writer %d" % number, b"%d" % n))
            if own.random() < 0.05:
                items.append((b"large", Reference(5000, 100 + n, 2, number)))
            durability = own.choice(DURABILITIES)
            if own.random() < 0.2:
                rig.write_lock.acquire()
                seq = committer.commit(items, durability, locked=True)
            else:
                seq = committer.commit(items, durability)
            assert seq > last
            last = seq
            assert pins.published >= seq, "a commit returned before readers see it (promise 5)"
            if durability == "full":
                assert committer.synced_seq >= seq
            elif durability == "group":
                assert committer.written_seq >= seq
            assert rig.get(b"writer %d" % number) == b"%d" % n

    def snapshots(number: int) -> None:
        own = random.Random(seed * 100 + number)
        held: list[tuple[SeqPin, tuple, dict[bytes, object]]] = []
        while not stop.is_set() or held:
            if not stop.is_set() and (len(held) < 6 or own.random() < 0.3):
                pin = SeqPin(pins)
                seq, tables = pin.seq, rig.tables
                state = {key: read(tables, key, seq) for key in KEYS}
                observed.append((seq, state))
                held.append((pin, tables, state))
            elif held:
                pin, tables, state = held.pop(own.randrange(len(held)))
                seq = pin.seq
                keys = {key for table in tables for key in table.keys_from(None, True, 100)}
                assert {key: read(tables, key, seq) for key in KEYS} == state, "a snapshot moved"
                assert keys >= {key for key, value in state.items() if value is not None}
                del pin

    def gets() -> None:
        own = random.Random(seed)
        while not stop.is_set():
            key = own.choice(KEYS)
            before = pins.published
            value = rig.get(key)
            live.append((before, pins.published, key, value))

    def syncs() -> None:
        while not stop.is_set():
            before = pins.published
            assert committer.sync() >= before
            rig.log.prepare()
            time.sleep(0.001)

    readers = [lambda: snapshots(50), lambda: snapshots(51), gets, syncs]
    writers = 6
    count = (25 if slow_disk else 120) * effort

    def write_all() -> None:
        try:
            in_threads(*[lambda w=w: write(w, count) for w in range(writers)], timeout=100 * effort)
        finally:
            stop.set()

    in_threads(write_all, *readers, timeout=110 * effort)
    check_observed(rig, observed, live, writers * count)


def test_no_wake_up_is_lost_over_many_groups(seed, effort, hurried):
    # All pairs of durabilities meet, on a disk that is now fast, now slow; a lost wake-up hangs and is told.
    rng = random.Random(seed)
    for _ in range(4 * effort):
        rig = CommitRig()
        pause = rng.choice((0, 0, 0.0001, 0.0005))
        rig.note(lambda name, pause=pause: pause and time.sleep(pause))
        mix = [rng.choice(DURABILITIES) for _ in range(rng.choice((2, 3, 9)))]

        def work(durability: str, rig: CommitRig = rig) -> None:
            for n in range(60):
                rig.committer.commit([(b"k", b"%d" % n)], durability)

        in_threads(*[lambda d=d, work=work: work(d) for d in mix], rig.committer.sync, timeout=60)
        assert rig.published == list(range(1, 60 * len(mix) + 1))
        assert not rig.committer._pending
        assert rig.committer._leader is None


def test_finalisers_that_release_pins_anywhere_cannot_lock_up(effort, hurried):
    # Garbage collection runs inside locked regions of the same thread (R12).
    rig = CommitRig()

    class Snapshot:
        def __init__(self) -> None:
            self.pin = SeqPin(rig.pins)
            self.me = self  # only the collector ends it

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:

        def work(number: int) -> None:
            for n in range(300 * effort):
                Snapshot()
                rig.committer.commit([(b"%d" % number, b"%d" % n)], "off")

        in_threads(*[lambda t=t: work(t) for t in range(4)])
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert rig.pins.view() == (1200 * effort, ())


def test_failures_under_load_end_every_commit_with_an_answer(seed, hurried):
    rng = random.Random(seed)
    for _ in range(10):
        rig = CommitRig()
        left = rng.randrange(1, 40)

        def fail(name: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise StorageError(5, "Input/output error")

        rig.note(fail)
        acknowledged: list[tuple[int, str]] = []

        def work(number: int, rig: CommitRig = rig, acknowledged: list = acknowledged) -> None:
            own = random.Random(number)
            for n in range(1000):
                durability = own.choice(DURABILITIES)
                try:
                    seq = rig.committer.commit([(b"%d" % number, b"%d" % n)], durability)
                except (StorageError, ReadOnlyError):
                    return
                acknowledged.append((seq, durability))
            raise AssertionError("the failure was not told")

        in_threads(*[lambda t=t, work=work: work(t) for t in range(5)], timeout=60)
        assert all(seq <= rig.pins.published for seq, _ in acknowledged)
        logged = {commit.seq for commit in rig.scan()}
        assert all(seq in logged for seq, durability in acknowledged if durability != "off")
