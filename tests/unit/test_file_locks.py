"""Who may open a file, and who pins it: other processes, links, killed holders, forked children."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from file_rig import HOLD, IMAGE, Process, image, in_forked_child, living_child
from mmlsm import handle
from mmlsm.descriptor import HOLDER_OFFSET, holder_line
from mmlsm.errors import ForkError, LockedError
from mmlsm.file import System, open_file, open_memory
from mmlsm.limits import HEADER_PAGES

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.mmlsm"


@pytest.fixture
def file(path: Path):
    opened = open_file(path, first_image=image)
    yield opened
    with contextlib.suppress(ForkError):
        opened.close()


# ---- one writer (promise 10)


def test_a_second_process_is_refused_at_once_and_told_the_holders_pid(path, file):
    program = """
try:
    open_file(sys.argv[1], create=False)
except LockedError as error:
    print(error.pid, error, flush=True)
"""
    with Process(program, path) as other:
        said = other.line()
    assert said.startswith(f"{os.getpid()} ")
    assert f"process {os.getpid()}" in said


def test_a_writer_says_who_it_is_before_it_waits_for_the_device(path):
    """Or who came meanwhile would be told the pid of the one before."""
    open_file(path, first_image=image).close()
    lines = []

    class Looking(System):
        def sync_directory(self, fd):
            lines.append(path.read_bytes()[HOLDER_OFFSET:][:64])
            super().sync_directory(fd)

    with open(path, "r+b") as other:
        other.seek(HOLDER_OFFSET)
        other.write(holder_line(1))
    open_file(path, system=Looking()).close()
    assert [line.rstrip(b"\0") for line in lines] == [b"mmlsm writer pid %d\n" % os.getpid()]


def test_the_holder_in_another_process_is_named_here(path):
    open_file(path, first_image=image).close()
    with Process(HOLD, path) as other:
        pid = int(other.line())
        with pytest.raises(LockedError) as refused:
            open_file(path)
        assert refused.value.pid == pid
        assert isinstance(refused.value, OSError)


def test_a_killed_holder_frees_the_file_even_when_a_forked_child_lives_on(path):
    open_file(path, first_image=image).close()
    program = """
import time
file = open_file(sys.argv[1], create=False)
window, view = file.window(3), file.pinned_map(3, None)
child = os.fork()
if not child:
    print("forked", flush=True)
    sys.stdin.readline()  # until the test lets go
    os._exit(0)
time.sleep(1000)
"""
    with Process(program, path) as other:
        assert other.line() == "forked"
        with pytest.raises(LockedError):
            open_file(path)
        other.popen.kill()
        other.popen.wait()
        open_file(path).close()


def test_a_second_open_in_this_process_says_so_and_where_the_first_stands(path, file):
    with pytest.raises(LockedError, match=r"in this process already, opened at .*test_file_locks\.py:\d+") as refused:
        open_file(path)
    assert refused.value.pid == os.getpid()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_the_same_file(path, file, link):
    other = path.with_name("other name")
    link(path, other)
    with pytest.raises(LockedError, match="in this process already"):
        open_file(other)
    said = subprocess.run(
        [sys.executable, "-c", "import sys; from mmlsm.file import open_file; open_file(sys.argv[1])", other],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    ).stderr
    assert f"LockedError: {other} is open for writing in process {os.getpid()}" in said


def test_a_refused_open_leaves_the_holder_as_it_was(path, file):
    for _ in range(3):
        with pytest.raises(LockedError):
            open_file(path)
        gc.collect()
    with Process("open_file(sys.argv[1])", path) as other:
        assert other.popen.wait() == 1, "the failed opens here must not have dropped the lock"


def test_closing_frees_the_file_for_this_process_and_others(path, file):
    file.close()
    file.close()
    with Process("open_file(sys.argv[1], create=False); print('open', flush=True)", path) as other:
        assert other.line() == "open"
        other.popen.wait()
    open_file(path).close()


def test_an_abandoned_file_is_free_again(path):
    file = open_file(path, first_image=image)
    file.channel()
    del file
    gc.collect()
    open_file(path).close()


def test_other_opens_and_closes_of_the_file_here_do_not_drop_the_lock(path, file):
    path.read_bytes()
    file.channel().close()
    file.pinned_map(1, None).close()
    with Process("open_file(sys.argv[1])", path) as other:
        assert other.popen.wait() == 1


# ---- the pin lock (R13)


def test_the_pin_outlives_close_and_is_seen_by_the_next_writer_until_it_goes(path, file):
    assert not file.pins_elsewhere()
    pin = file.pin
    file.close()
    after = open_file(path)
    assert after.pins_elsewhere()
    del pin
    assert not after.pins_elsewhere()
    after.close()


def test_a_closed_handle_that_is_still_referenced_pins_nothing(path, file):
    file.close()
    after = open_file(path)
    assert not after.pins_elsewhere()
    after.close()


def test_pins_of_another_process_are_seen_and_end_with_it(path, file):
    program = "file = open_file(sys.argv[1], readonly=True); print('open', flush=True); sys.stdin.readline()"
    with Process(program, path) as reader:
        assert reader.line() == "open"
        assert file.pins_elsewhere()
    assert not file.pins_elsewhere()


def test_asking_for_pins_refuses_nobody(path, file):
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            file.pins_elsewhere()

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(200):
        open_file(path, readonly=True)
    done.set()
    thread.join()


def test_in_memory_nobody_else_pins():
    file = open_memory()
    assert file.path is None
    assert file.pin is not None
    assert not file.pins_elsewhere()


# ---- forks (promise 11)


def test_in_a_forked_child_each_call_raises_and_the_parents_lock_stays(path, file):
    channel = file.channel()
    calls = [
        lambda: file.pages,
        lambda: file.bytes,
        lambda: file.pread(0, 10),
        lambda: file.resize(9),
        lambda: file.preallocate(3, 1),
        lambda: file.window(1),
        lambda: file.pinned_map(1, None),
        lambda: file.pin,
        file.pins_elsewhere,
        file.channel,
        file.close,
        lambda: channel.pwrite(0, b"child"),
        lambda: channel.pwrite_durably(0, b"child"),
        channel.sync,
    ]

    def work() -> list[str]:
        raised = []
        for call in calls:
            try:
                call()
                raised.append("nothing")
            except Exception as error:
                raised.append(type(error).__name__)
        channel.close()
        return raised

    assert in_forked_child(work) == repr(["ForkError"] * len(calls))
    assert path.read_bytes()[:10] == IMAGE[:10]
    assert file.pages == HEADER_PAGES
    with Process("open_file(sys.argv[1])", path) as other:
        assert other.popen.wait() == 1, "the child must not have unlocked the parent's file"
    channel.pwrite(0, b"parent")


def test_a_forked_child_that_opens_the_file_anew_meets_the_parents_lock(path, file):
    said = in_forked_child(lambda: open_file(path))
    assert said.startswith("LockedError")
    assert f"process {os.getpid()}" in said


def test_a_forked_child_may_open_the_file_once_the_parent_has_closed_it(path, file):
    with living_child(lambda: str(open_file(path).pages)) as go:
        file.close()
        assert go() == "3"


def test_any_thread_of_a_forked_child_may_open_files(path, file):
    def work() -> str:
        pages: list[int] = []
        other = path.with_name("other")
        thread = threading.Thread(target=lambda: pages.append(open_file(other, first_image=image).pages), daemon=True)
        thread.start()
        thread.join(5)
        return "hangs" if thread.is_alive() else f"{pages[0]} pages"

    assert in_forked_child(work) == repr("3 pages")


def test_maps_stay_readable_in_a_forked_child(file):
    view = memoryview(file.pinned_map(1, None))[:10]
    assert in_forked_child(lambda: bytes(view)) == repr(b"a database")


def test_a_pin_held_only_by_a_forked_child_pins_nothing(path, file):
    pin = file.pin
    with living_child(str):
        file.close()
        del pin
        after = open_file(path)
        assert not after.pins_elsewhere()
        after.close()


def test_closing_frees_the_file_even_from_a_child_that_has_not_yet_closed_its_copy(path, file, monkeypatch):
    monkeypatch.setattr(handle, "forked_in_child", lambda: None)
    with living_child(str):
        file.close()
        open_file(path).close()


def test_files_in_memory_are_the_parents_too():
    file = open_memory()
    assert in_forked_child(lambda: file.resize(5)).startswith("ForkError")
    assert file.pages == 0


def test_fork_callbacks_run_in_the_child_and_keep_nobody_alive(file):
    class Owner:
        told = False

        def forked(self) -> None:
            self.told = file.forked

    owners = [Owner()]
    file.on_fork(owners[0].forked)
    assert in_forked_child(lambda: owners[0].told) == "True"
    assert not owners.pop().told
    assert in_forked_child(lambda: [o for o in gc.get_objects() if isinstance(o, Owner)]) == "[]"
