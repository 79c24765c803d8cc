"""Maps: windows that are never resized, and maps that keep their owner alive."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import weakref
from pathlib import Path

import pytest

from file_rig import IMAGE, Faulty, image
from mmlsm import memory
from mmlsm.errors import CorruptionError, ForkError, LockedError, StorageError
from mmlsm.file import File, open_file, open_memory
from mmlsm.limits import PAGE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.mmlsm"


@pytest.fixture
def file(path: Path):
    opened = open_file(path, first_image=image)
    yield opened
    with contextlib.suppress(ForkError):
        opened.close()


@pytest.fixture(params=["disk", "memory"])
def faulty(request, path):
    """A file of 8 pages and the system below it."""
    system = Faulty()
    if request.param == "disk":
        file = open_file(path, first_image=image, system=system)
    else:
        file = open_memory(system=system)
    file.resize(8)
    system.calls.clear()
    yield file, system
    file.close()


def test_a_window_is_the_same_one_while_it_is_large_enough(faulty):
    file, _ = faulty
    window = file.window(1)
    assert window.pages >= 8
    assert file.window(8) is window
    file.resize(9)
    assert file.window(9).pages >= 9
    assert file.window(3) is file.window(9)
    if not memory.COMPILED:
        assert file.window(9) is not window
        assert window.pages == 8, "never resized"


def test_a_page_that_the_file_does_not_have_is_corruption(faulty):
    file, _ = faulty
    if not memory.COMPILED:
        with pytest.raises(CorruptionError) as refused:
            file.window(9)
        assert refused.value.page == 8
    with pytest.raises(CorruptionError):
        file.pinned_map(9, None)
    with pytest.raises(CorruptionError):
        file.window((1 << 32) + 1)


def test_what_was_verified_is_forgotten_in_every_window_alive(faulty):
    file, _ = faulty

    class Window:
        forgotten: tuple[int, int] | None = None
        pages = 8

        def forget(self, first: int, count: int) -> None:
            self.forgotten = (first, count)

    windows = [Window(), Window()]
    made = iter(windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_new_window", lambda pages: next(made))
        file.window(8)
        windows[1].pages = 20
        file.window(20)
    made = iter(())
    file.forget(3, 4)
    assert [window.forgotten for window in windows] == [(3, 4), (3, 4)]
    del windows[0]
    gc.collect()
    file.forget(5, 1)
    assert windows[0].forgotten == (5, 1)


def test_a_refused_reservation_is_halved_down_to_what_is_needed(faulty, monkeypatch):
    file, _ = faulty
    asked: list[int] = []

    class Window:
        pages = 8

        @classmethod
        def reserve(cls, fd: int, length: int) -> Window:
            asked.append(length)
            if length > limit:
                raise OSError(errno.ENOMEM, "no address space")
            return cls()

    monkeypatch.setattr(memory, "COMPILED", True)
    monkeypatch.setattr(memory, "Window", Window)
    limit = 5 << 30
    file.window(8)
    assert asked == [64 << 30, 32 << 30, 16 << 30, 8 << 30, 4 << 30]
    file._window, limit = None, 0
    asked.clear()
    with pytest.raises(StorageError) as refused:
        file.window(8)
    assert refused.value.errno == errno.ENOMEM
    assert asked[-1] == 8 * PAGE_BYTES
    monkeypatch.setattr(File, "_check_there", lambda self, pages: pages)
    asked.clear()
    limit = 1 << 60
    file.window((100 << 30) // PAGE_BYTES)
    assert asked == [128 << 30]


def test_a_window_made_by_racing_threads_is_one(faulty):
    file, _ = faulty
    start = threading.Barrier(4)
    windows: list[object] = []

    def ask() -> None:
        start.wait()
        windows.append(file.window(8))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, windows))) == 1


def test_every_slice_of_a_pinned_map_keeps_its_owner(file):
    class Owner:
        pass

    gone: list[bool] = []
    owner = Owner()
    weakref.finalize(owner, gone.append, True)
    mapping = file.pinned_map(2, owner)
    piece = memoryview(mapping)[2:10][1:]
    assert piece.readonly
    del mapping, owner
    gc.collect()
    assert not gone
    assert bytes(piece) == IMAGE[3:10]
    file.close()
    assert bytes(piece) == IMAGE[3:10]
    del piece
    gc.collect()
    assert gone == [True]


def test_a_map_sees_what_is_written_later(faulty):
    file, _ = faulty
    view = memoryview(file.pinned_map(8, None))
    file.channel().pwrite(4 * PAGE_BYTES, b"later")
    assert bytes(view[4 * PAGE_BYTES : 4 * PAGE_BYTES + 5]) == b"later"


def test_nothing_leaks_a_descriptor(path):
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    open_file(path, first_image=image).close()
    before = count()
    for _ in range(5):
        file = open_file(path)
        channel = file.channel()
        file.window(3)
        file.pinned_map(3, None)
        with pytest.raises(LockedError):
            open_file(path)
        channel.close()
        file.close()
        open_file(path, readonly=True).close()
    del file, channel
    with pytest.raises(ZeroDivisionError):
        open_file(path, accept=lambda head: 1 // 0)
    assert count() == before
