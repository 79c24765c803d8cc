"""The rig of injected faults: each kind does what it says, and planted bugs make its trials red."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mmlsm import channel, handle
from mmlsm.limits import PAGE_BYTES
from mmlsm.write import flush, log, segment_writer, writer
from rig.faults.system import CACHED, HALF, LOST, METHODS, SHORT, Fault, FaultySystem
from rig.faults.trial import HURRIED, Trial
from rig.faults.workloads import templates

pytestmark = pytest.mark.rig

OLD, NEW = b"o" * PAGE_BYTES, b"n" * PAGE_BYTES


class Written:
    """A file of one old page that is durable, on a system with a fault."""

    def __init__(self, path: Path, fault: Fault) -> None:
        self.path = path
        path.write_bytes(OLD)
        self.system = FaultySystem(fault)
        self.fd = self.system.open(str(path), os.O_RDWR)

    def write(self, offset: int = 0, data: bytes = NEW) -> int:
        return self.system.pwrite(self.fd, memoryview(data), offset)

    def failed_sync(self) -> None:
        with pytest.raises(OSError, match="Input/output"):
            self.system.sync(self.fd)

    def close(self) -> None:
        self.system.heal()
        self.system.close(self.fd)


@pytest.fixture
def written(path: Path) -> Iterable[Callable[..., Written]]:
    made: list[Written] = []

    def make(method: str, kind: str, call: int = 1, ever: bool = False) -> Written:
        made.append(Written(path, Fault(method, call, kind, ever)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_every_method_of_the_system_can_fail() -> None:
    own = {name for name, value in vars(FaultySystem).items() if callable(value)}
    assert set(METHODS) <= own
    every = {name for name, value in vars(FaultySystem.__mro__[1]).items() if callable(value)}
    assert {name for name in every if not name.startswith("_")} - {"process_id"} == set(METHODS)


@pytest.mark.parametrize("ever", [False, True])
def test_the_named_call_fails_and_those_after_it_if_it_is_for_ever(written: Any, ever: bool) -> None:
    one = written("pwrite", "EDQUOT", call=2, ever=ever)
    assert one.write() == PAGE_BYTES
    for number in range(2):
        if number == 0 or ever:
            with pytest.raises(OSError, match="quota") as caught:
                one.write()
            assert caught.value.errno == errno.EDQUOT
        else:
            one.write()
    assert len(one.system.injected) == 1 + ever


def test_a_short_write_takes_half_and_a_half_write_fails_after_that(written: Any) -> None:
    assert written("pwrite", SHORT).write() == PAGE_BYTES // 2
    one = written("pwrite", HALF)
    with pytest.raises(OSError, match="space"):
        one.write()
    assert one.path.read_bytes() == NEW[: PAGE_BYTES // 2] + OLD[PAGE_BYTES // 2 :]


def test_what_is_not_synced_is_gone_after_a_power_cut(written: Any) -> None:
    one = written("sync", "EIO", call=2)
    one.write()
    assert one.system.power_cut(one.path) == OLD
    one.system.sync(one.fd)
    one.write(PAGE_BYTES)
    assert one.system.power_cut(one.path) == NEW
    one.failed_sync()
    assert one.path.read_bytes() == NEW + NEW
    assert one.system.power_cut(one.path) == NEW
    one.system.sync(one.fd)
    assert one.system.power_cut(one.path) == NEW + NEW


def test_a_durable_write_makes_no_other_page_durable(written: Any) -> None:
    one = written("sync", "EIO")
    one.write(PAGE_BYTES)
    one.write(2 * PAGE_BYTES)
    one.system.pwrite_durably(one.fd, memoryview(NEW), 0)
    assert one.system.power_cut(one.path) == NEW


def test_a_failed_sync_can_lose_what_was_written(written: Any) -> None:
    one = written("sync", LOST)
    one.write()
    one.write(PAGE_BYTES)
    one.failed_sync()
    assert one.path.read_bytes() == OLD + bytes(PAGE_BYTES)


def test_a_failed_sync_can_leave_what_was_written_in_the_cache_where_no_later_sync_finds_it(written: Any) -> None:
    one = written("sync", CACHED)
    one.write()
    one.failed_sync()
    one.system.sync(one.fd)
    assert one.path.read_bytes() == NEW
    assert one.system.power_cut(one.path) == OLD
    one.write()
    one.system.sync(one.fd)
    assert one.system.power_cut(one.path) == NEW


def test_what_was_cut_off_and_not_synced_is_back_after_a_power_cut(written: Any) -> None:
    one = written("sync", "EIO")
    one.write(PAGE_BYTES)
    one.system.heal()
    one.system.sync(one.fd)
    one.system.truncate(one.fd, PAGE_BYTES)
    assert one.system.power_cut(one.path) == OLD + NEW


@pytest.mark.parametrize("kind", [LOST, CACHED])
def test_what_a_failed_sync_lost_is_told_to_each_open_once(written: Any, kind: str) -> None:
    one = written("sync", kind)
    others = [one.system.open(str(one.path), os.O_RDWR) for _ in range(2)]
    one.write()
    one.failed_sync()
    calls = (one.system.sync, lambda fd: one.system.pwrite_durably(fd, memoryview(NEW), 0))
    for fd, call in zip(others, calls, strict=True):
        with pytest.raises(OSError, match="error"):
            call(fd)
        call(fd)
    later = one.system.open(str(one.path), os.O_RDWR)
    for fd in (one.fd, later):
        one.system.sync(fd)
    for fd in (*others, later):
        one.system.close(fd)


def test_writes_after_a_failed_sync_are_noted(written: Any) -> None:
    one = written("sync", "EIO")
    one.system.is_known = lambda: False
    one.failed_sync()
    one.write()
    assert not one.system.late, "nobody can know yet"
    one.system.is_known = lambda: True
    one.write()
    one.system.sync(one.fd)
    assert [method for method, _ in one.system.late] == ["pwrite", "sync"]


# ---- planted bugs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    return templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in HURRIED:
        monkeypatch.setattr(module, name, value)


def sync_errors_are_swallowed(patch: pytest.MonkeyPatch) -> None:
    plain = channel.Channel.pwrite_durably

    def pwrite_durably(self: Any, offset: int, data: Any) -> None:
        with contextlib.suppress(channel.StorageError):
            plain(self, offset, data)
        self._file.failure = None

    patch.setattr(channel.Channel, "pwrite_durably", pwrite_durably)


def the_handle_stays_writable(patch: pytest.MonkeyPatch) -> None:
    def sync_failed(self: Any, error: Any) -> Any:
        self.failure = None
        return channel.refused(error, "a sync failed")

    patch.setattr(handle.File, "sync_failed", sync_failed)


def syncs_are_retried(patch: pytest.MonkeyPatch) -> None:
    def sync(self: Any) -> None:
        self._file.check_writable()
        with contextlib.suppress(OSError):
            self._system.sync(self._descriptor.fd)
            return
        self._system.sync(self._descriptor.fd)

    patch.setattr(channel.Channel, "sync", sync)


def failed_segments_keep_their_pages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(segment_writer.SegmentWriter, "abandon", lambda self: None)


def failed_log_extents_keep_their_pages(patch: pytest.MonkeyPatch) -> None:
    def reserve(self: Any, length: int, *, early: bool = False) -> Any:
        extent = self._allocator.reserve(max(1, -(-(length + 256) // PAGE_BYTES)))
        self._file.preallocate(extent.first, extent.count)
        return extent

    patch.setattr(log.LogWriter, "_reserve", reserve)


def failed_flushes_lose_their_memtable(patch: pytest.MonkeyPatch) -> None:
    def losing(store: Any, channel: Any, table: Any, **how: Any) -> int:
        try:
            return flush.flush(store, channel, table, **how)
        except BaseException:
            with store.order_lock:
                store.set_state(tuple(t for t in store.state.tables if t is not table), store.state.version)
            raise

    patch.setattr(writer, "flush", losing)


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str, str, range]] = [
    (sync_errors_are_swallowed, "threads", "pwrite_durably", LOST, range(8, 14)),
    (the_handle_stays_writable, "rotate", "sync", "EIO", range(3, 9)),
    (syncs_are_retried, "rotate", "sync", CACHED, range(3, 9)),
    (failed_segments_keep_their_pages, "merges", "pwrite", "ENOSPC", range(4, 40)),
    (failed_log_extents_keep_their_pages, "rotate", "allocate", "ENOSPC", range(2, 6)),
    (failed_flushes_lose_their_memtable, "merges", "pwrite", HALF, range(4, 40)),
]


@pytest.mark.unproved
@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("plant", "workload", "method", "kind", "calls"), PLANTED, ids=[planted[0].__name__ for planted in PLANTED]
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], workload: str, method: str, kind: str, calls: range,
    made: dict[str, tuple[Path, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for call in calls:
        Trial(tmp_path, workload, Fault(method, call, kind)).check(made)
        with monkeypatch.context() as patch:
            plant(patch)
            trial = Trial(tmp_path, workload, Fault(method, call, kind))
            try:
                trial.check(made)
            except Exception as error:
                print(f"{plant.__name__}, call {call}: {error!r}")
                return
            finally:
                trial.system.heal()
                if trial.work.db is not None:
                    with contextlib.suppress(Exception):
                        trial.work.db.close()
        (tmp_path / "trial.db").unlink()
    raise AssertionError("no trial was red")
