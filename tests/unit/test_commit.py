"""Commits in three durabilities: what each waits for, who writes, the order of publication, and what failures leave."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from commit_rig import CommitRig, in_threads
from mmlsm.errors import ReadOnlyError, StorageError
from mmlsm.file import System
from mmlsm.format.manifest import Reference
from mmlsm.headroom import TRIES_MOST
from mmlsm.read.snapshot import SeqPin
from mmlsm.write.log_scan import scan_log

BIG = Reference(5000, 100, 2, 1)


def pair(n: int) -> list[tuple[bytes, bytes]]:
    return [(b"%d" % n, b"v")]


def eventually(truth) -> None:
    for _ in range(20_000):
        if truth():
            return
        time.sleep(0.0005)
    raise AssertionError("it never came true")


class Held:
    """Holds up I/O of one name until `go`; `reached` when somebody is there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, name: str) -> None:
        if name == self.name and not self.go.is_set():
            self.reached.set()
            assert self.go.wait(20)


class Started(threading.Thread):
    """A commit in a thread of its own: `seq` or `error` once it is done."""

    def __init__(self, rig: CommitRig, items, durability) -> None:
        super().__init__(daemon=True)
        self.rig, self.items, self.durability = rig, items, durability
        self.seq: int | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.seq = self.rig.committer.commit(self.items, self.durability)
        except BaseException as error:
            self.error = error

    def done(self) -> Started:
        self.join(20)
        assert not self.is_alive(), "the commit waits for ever"
        return self


def test_each_durability_does_its_io_and_no_more():
    rig = CommitRig()
    calls = rig.note()
    assert rig.committer.commit(pair(1), "off") == 1
    assert (calls, rig.at(b"1", rig.pins.published)) == ([], b"v")
    assert rig.committer.commit(pair(2), "group") == 2
    assert calls == ["pwrite"]
    rig.committer.sync()
    assert calls == ["pwrite", "sync"]
    assert rig.committer.commit({b"3": b"v"}, "full") == 3
    assert calls == ["pwrite", "sync", "pwrite_durably"]
    assert rig.committer.sync() == 3
    assert calls == ["pwrite", "sync", "pwrite_durably"], "nothing was left to sync"
    assert [commit.seq for commit in rig.scan()] == [1, 2, 3]
    assert rig.published == [1, 2, 3]


def test_a_full_commit_takes_unsynced_commits_before_it_along():
    # A durable write of its own bytes alone would leave a hole before it.
    rig = CommitRig()
    calls = rig.note()
    rig.committer.commit(pair(1), "group")
    rig.committer.commit(pair(2), "full")
    assert calls == ["pwrite", "pwrite", "sync"]
    assert rig.committer.synced_end == rig.log.end
    rig.committer.commit(pair(3), "off")
    rig.committer.commit(pair(4), "full")
    assert calls == ["pwrite", "pwrite", "sync", "pwrite_durably"]


def test_overflow_values_are_durable_before_a_durable_record_names_them():
    rig = CommitRig()
    calls = rig.note()
    rig.committer.commit([(b"k", BIG)], "full")
    assert calls == ["sync", "pwrite_durably"]
    calls.clear()
    rig.committer.commit([(b"k", BIG._replace(sum=2))], "off")
    rig.committer.commit(pair(2), "full")
    assert calls == ["sync", "pwrite_durably"]
    calls.clear()
    rig.committer.commit(pair(3), "full")
    assert calls == ["pwrite_durably"]
    rig.committer.commit([(b"k", BIG._replace(sum=3))], "group")
    rig.committer.sync()
    calls.clear()
    rig.committer.commit(pair(4), "full")
    assert calls == ["pwrite_durably"]


def test_ordering_passes_on_while_a_full_commit_is_written_and_publication_keeps_the_order():
    rig = CommitRig()
    held = Held("pwrite_durably")
    rig.note(held)
    full = Started(rig, pair(1), "full")
    assert held.reached.wait(20)
    rest = []
    for n, durability in ((2, "off"), (3, "group"), (4, "full"), (5, "off")):
        rest.append(Started(rig, pair(n), durability))
        eventually(lambda n=n: rig.committer.last_seq == n)
    assert rig.write_lock.owner is None, "the write lock has passed on"
    assert rig.pins.published == 0
    assert all(thread.is_alive() for thread in [full, *rest])
    held.go.set()
    assert [thread.done().seq for thread in [full, *rest]] == [1, 2, 3, 4, 5]
    assert rig.published == [1, 2, 3, 4, 5]
    assert rig.calls == ["pwrite_durably", "pwrite_durably"], "one write for all that came meanwhile"


def test_a_group_commit_that_comes_while_another_is_written_waits_for_its_own_write():
    rig = CommitRig()
    held = Held("pwrite")
    rig.note(held)
    first = Started(rig, pair(1), "group")
    assert held.reached.wait(20)
    second = Started(rig, pair(2), "group")
    eventually(lambda: rig.committer.last_seq == 2)
    held.go.set()
    assert [first.done().seq, second.done().seq] == [1, 2]
    assert [commit.seq for commit in rig.scan()] == [1, 2]


def test_commits_are_published_under_the_order_lock():
    rig = CommitRig()
    locked = []
    rig.committer.on_publish = lambda seq: locked.append(rig.committer.order_lock.locked())
    for n, durability in enumerate(("off", "group", "full")):
        rig.committer.commit(pair(n), durability)
    assert locked == [True] * 3


def test_off_commits_wait_for_no_io_when_nothing_before_them_does():
    rig = CommitRig()
    held = Held("sync")
    rig.note(held)
    rig.committer.commit(pair(1), "group")
    syncing = threading.Thread(target=rig.committer.sync, daemon=True)
    syncing.start()
    assert held.reached.wait(20)
    assert rig.committer.commit(pair(2), "off") == 2
    assert rig.committer.commit(pair(3), "group") == 3, "nor does an interval's sync hold up a group commit"
    assert rig.pins.published == 3
    held.go.set()
    syncing.join(20)
    assert rig.committer.synced_seq == 1, "what was written after the sync began is not called durable"


def test_an_off_commit_that_finds_a_full_buffer_writes_it_without_sync():
    rig = CommitRig()
    calls = rig.note()
    for n in range(30):
        rig.committer.commit([(b"%d" % n, b"v" * 100_000)], "off")
    assert set(calls) == {"pwrite"}
    assert rig.log.unwritten_bytes < 1_200_000
    assert rig.committer.synced_end == 0


def test_a_failed_write_fails_all_that_is_not_published_and_nothing_else():
    rig = CommitRig()
    held = Held("pwrite_durably")

    def failing(name: str) -> None:
        held(name)
        if name == "pwrite_durably":
            raise StorageError(errno.EIO, "writing: Input/output error")

    rig.committer.commit(pair(1), "off")
    rig.note(failing)
    threads = [Started(rig, pair(2), "full")]
    assert held.reached.wait(20)
    for n, durability in ((3, "off"), (4, "group"), (5, "full")):
        threads.append(Started(rig, pair(n), durability))
        eventually(lambda n=n: rig.committer.last_seq == n)
    asking = Failing(rig.committer.sync)
    held.go.set()
    for thread in threads:
        error = thread.done().error
        assert isinstance(error, StorageError)
        assert error.errno == errno.EIO
        assert "unknown until the database is reopened" in str(error)
    asking.done()
    for durability in ("off", "group", "full"):
        with pytest.raises(ReadOnlyError, match="Input/output error"):
            rig.committer.commit(pair(9), durability)
    with pytest.raises(ReadOnlyError):
        rig.committer.sync()
    assert rig.pins.published == 1
    assert rig.at(b"1", rig.pins.published) == b"v"
    assert rig.write_lock.owner is None


class Failing(threading.Thread):
    def __init__(self, work) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.start()

    def run(self) -> None:
        self.error = None
        try:
            self.work()
        except (StorageError, ReadOnlyError) as error:
            self.error = error

    def done(self) -> None:
        self.join(20)
        assert self.error is not None


@pytest.mark.parametrize("durability", ["full", "group", "off"])
def test_a_failed_sync_is_final(durability):
    class Disk(System):
        failing = False

        def sync(self, fd: int) -> None:
            if self.failing:
                raise OSError(errno.EIO, "Input/output error")

        def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
            self.sync(fd)
            return super().pwrite(fd, data, offset)

    disk = Disk()
    rig = CommitRig(disk)
    rig.committer.commit(pair(1), "full")
    disk.failing = True
    if durability == "full":
        with pytest.raises(StorageError, match="unknown until"):
            rig.committer.commit(pair(2), "full")
        assert rig.pins.published == 1
    else:
        rig.committer.commit(pair(2), durability)
        with pytest.raises(StorageError, match="unknown until"):
            rig.committer.sync()
        assert rig.pins.published == 2
    disk.failing = False
    assert rig.file.failure is not None
    for again in ("full", "off"):
        with pytest.raises(ReadOnlyError):
            rig.committer.commit(pair(3), again)


def test_a_failed_sync_of_another_thread_ends_commits_here():
    rig = CommitRig()
    rig.committer.commit(pair(1), "off")
    rig.file.sync_failed(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(ReadOnlyError):
        rig.committer.commit(pair(2), "off")
    with pytest.raises(ReadOnlyError):
        rig.committer.sync()


def test_no_space_for_the_log_raises_before_anything_happened_and_later_commits_go_on():
    class Disk(System):
        full = False

        def allocate(self, fd: int, offset: int, length: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().allocate(fd, offset, length)

    disk = Disk()
    rig = CommitRig(disk)
    rig.committer.commit(pair(1), "full")
    disk.full = True
    with pytest.raises(StorageError) as caught:
        rig.committer.commit([(b"large", b"v" * 100_000)], "full")
    assert caught.value.errno == errno.ENOSPC
    assert (rig.committer.last_seq, rig.pins.published, rig.at(b"large", 9)) == (1, 1, None)
    assert rig.write_lock.owner is None
    assert rig.committer.commit(pair(2), "full") == 2
    disk.full = False
    assert rig.committer.commit([(b"large", b"v" * 100_000)], "full") == 3
    assert [commit.seq for commit in rig.scan()] == [1, 2, 3]


def test_a_commit_of_nothing_is_none():
    rig = CommitRig()
    rig.committer.commit(pair(1), "off")
    assert rig.committer.commit([], "full") == rig.committer.commit({}, "full") == 1
    assert rig.committer.last_seq == 1


def test_the_write_lock_is_taken_or_brought_along_and_given_up_in_any_case():
    rig = CommitRig()
    lock = rig.write_lock
    lock.acquire()
    with pytest.raises(RuntimeError, match="write transaction"):
        rig.committer.commit(pair(1), "full")
    assert lock.owner is not None, "what another call took is not ours to give up"
    rig.committer.commit(pair(1), "full", locked=True)
    assert lock.owner is None
    lock.acquire()
    with pytest.raises(AttributeError):
        rig.committer.commit([(b"k", "text")], "full", locked=True)
    assert lock.owner is None
    with pytest.raises(AssertionError):
        rig.committer.commit(pair(2), "full", locked=True)
    lock.acquire()
    assert rig.committer.commit([], "full", locked=True) == 1
    assert lock.owner is None


def test_an_exception_that_memory_makes_half_way_does_not_split_a_commit(monkeypatch):
    rig = CommitRig()
    rig.committer.commit(pair(1), "off")
    publish, failures = rig.committer._publish, [MemoryError(), KeyboardInterrupt()]

    def failing(seq: int) -> None:
        if failures:
            raise failures.pop(0)
        publish(seq)

    monkeypatch.setattr(rig.committer, "_publish", failing)
    assert rig.committer.commit(pair(2), "off") == 2, "what could be mended was"
    failures[:] = [MemoryError() for _ in range(TRIES_MOST + 2)]
    with pytest.raises(MemoryError):
        rig.committer.commit(pair(3), "off")
    with pytest.raises(ReadOnlyError):
        rig.committer.commit(pair(4), "off")
    assert rig.pins.published == 2


def test_the_memtable_is_switched_at_its_bytes():
    rig = CommitRig(memtable_bytes=1 << 16)
    for n in range(500):
        rig.committer.commit([(b"%d" % n, b"v" * 500)], "off")
    sealed = rig.tables[1:]
    assert len(sealed) >= 3
    assert all(table.sealed and table.data_bytes < 2 << 16 for table in sealed)
    assert [table.log_start for table in sealed] == sorted((t.log_start for t in sealed), key=lambda p: -p.offset)
    assert [rig.at(b"%d" % n, 500) for n in (0, 499)] == [b"v" * 500] * 2
    rig.committer.sync()
    for newer, older in zip(rig.tables, rig.tables[1:], strict=False):
        assert newer.first_seq == older.last_seq + 1
    start = rig.tables[0].log_start


    assert [c.seq for c in scan_log(rig.file, start)] == list(range(rig.tables[0].first_seq, 501))


def test_a_small_store_overwritten_for_ever_has_a_small_log_and_unique_keys_do_not_seal_early():
    rig = CommitRig(memtable_bytes=64 << 20)
    for n in range(3000):
        rig.committer.commit([(b"k%d" % (n % 10), b"v" * 1000)], "off")
    assert len(rig.tables) == 4, "sealed at each MiB of log, as ten values live"
    assert all(table.log_bytes < (1 << 20) + 2000 for table in rig.tables)
    rig = CommitRig(memtable_bytes=64 << 20)
    for n in range(20_000):
        rig.committer.commit([(b"%d" % n, b"")], "off")
    assert rig.tables[0].log_bytes > 1 << 20
    assert len(rig.tables) == 1


def test_many_commits_at_once_share_their_writes():
    rig = CommitRig()
    calls = rig.note(lambda name: time.sleep(0.002))
    in_threads(*[lambda t=t: [rig.committer.commit(pair(t * 100 + n), "full") for n in range(20)] for t in range(8)])
    assert rig.published == list(range(1, 161))
    assert len(calls) < 100


def test_pins_are_counted_ordered_and_released_without_a_lock():
    rig = CommitRig()
    pins = rig.pins
    assert pins.view() == (0, ())
    first = SeqPin(pins)
    rig.committer.commit(pair(1), "off")
    second, third = SeqPin(pins), SeqPin(pins)
    assert (first.seq, second.seq, third.seq) == (0, 1, 1)
    assert pins.view() == (1, (0, 1, 1))
    with pins._lock:
        del second, first
    assert pins.view() == (1, (1,))
    del third
    assert pins.view() == (1, ())


def test_a_sync_calls_nothing_durable_that_was_not_written_before_it(monkeypatch):
    rig = CommitRig()
    rig.committer.commit(pair(1), "group")
    write_out = rig.committer.write_out

    def write_out_while_another_commits() -> int:
        wanted = write_out()
        rig.committer.commit(pair(2), "off")
        return wanted

    monkeypatch.setattr(rig.committer, "write_out", write_out_while_another_commits)
    assert rig.committer.sync() == 1
    assert rig.committer.synced_end < rig.log.end
