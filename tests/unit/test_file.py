"""The one class that does I/O: locks across processes and forks, creation, failures injected at each call, maps."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import stat
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from mmlsm import file as file_module
from mmlsm import memory
from mmlsm.errors import ClosedError, CorruptionError, ForkError, LockedError, ReadOnlyError, StorageError
from mmlsm.file import File, System, open_file, open_memory
from mmlsm.limits import HEADER_PAGES, PAGE_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

IMAGE = b"a database".ljust(PAGE_BYTES, b"\0") + b"its copy".ljust(PAGE_BYTES, b"\0") + bytes(PAGE_BYTES)


def image() -> bytes:
    return IMAGE


def no_image() -> bytes:
    raise AssertionError("a first image is wanted for a file that is there")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.mmlsm"


@pytest.fixture
def file(path: Path):
    opened = open_file(path, first_image=image)
    yield opened
    with contextlib.suppress(ForkError):
        opened.close()


class Process:
    """Another Python, that runs a program and is talked to by lines."""

    def __init__(self, program: str, *arguments: object) -> None:
        start = "import os, sys; from mmlsm.file import *; from mmlsm.errors import *\n"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", start + program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


HOLD = """
file = open_file(sys.argv[1], create=False)
print(os.getpid(), flush=True)
sys.stdin.readline()
"""


def in_forked_child(work) -> str:
    """What `work` returns in a forked child (its repr, or that of what it raised)."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = repr(work())
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


@contextlib.contextmanager
def living_child(work):
    """A forked child that does `work` when the yielded function asks for its answer, and lives until the block ends."""
    ask, answer = socket.socketpair()
    child = os.fork()
    if not child:
        ask.close()
        with contextlib.suppress(BaseException):
            if answer.recv(1):
                answer.send(work().encode())
            answer.recv(1)
        os._exit(0)
    answer.close()
    try:
        yield lambda: (ask.send(b"!"), ask.recv(100).decode())[1]
    finally:
        ask.close()
        os.waitpid(child, 0)


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
    with pytest.raises(LockedError, match=r"in this process already, opened at .*test_file\.py:\d+") as refused:
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
    monkeypatch.setattr(file_module, "forked_in_child", lambda: None)
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


# ---- creation


def test_a_new_file_is_the_image_with_our_pid_and_nothing_beside_it(path, file):
    assert os.listdir(path.parent) == [path.name]
    head = path.read_bytes()
    assert head[: 2 * PAGE_BYTES] == IMAGE[: 2 * PAGE_BYTES]
    assert head[2 * PAGE_BYTES :].startswith(b"mmlsm writer pid %d\n" % os.getpid())
    assert file.path == path


def test_a_new_file_has_the_mode_of_the_users_mask(path):
    mask = os.umask(0o027)
    try:
        open_file(path, first_image=image).close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_without_create_a_missing_file_is_named_and_not_made(path):
    with pytest.raises(StorageError, match="create=True makes one") as refused:
        open_file(path, create=False, first_image=no_image)
    assert refused.value.errno == errno.ENOENT
    with pytest.raises(StorageError, match="a readonly open creates none"):
        open_file(path, readonly=True, first_image=no_image)
    assert not path.exists()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(StorageError) as refused:
        open_file(tmp_path / "nowhere" / "data", first_image=image)
    assert refused.value.errno == errno.ENOENT


@pytest.mark.parametrize("size", [0, 100, PAGE_BYTES, len(IMAGE)])
def test_an_empty_file_or_one_of_zeros_becomes_a_database_in_place(path, size):
    path.write_bytes(bytes(size))
    before = path.stat().st_ino
    open_file(path, first_image=image).close()
    assert path.stat().st_ino == before
    assert path.read_bytes()[: 2 * PAGE_BYTES] == IMAGE[: 2 * PAGE_BYTES]


@pytest.mark.parametrize("content", [bytes(len(IMAGE) + 1), bytes(PAGE_BYTES - 1) + b"x", b"x"])
def test_a_file_with_anything_else_in_it_is_not_written_over(path, content):
    def refuse(head: bytes) -> None:
        assert head == content[: HEADER_PAGES * PAGE_BYTES]
        raise ValueError("not a database")

    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a database"):
        open_file(path, first_image=image, accept=refuse)
    assert path.read_bytes() == content
    path.write_bytes(content)
    os.unlink(path)


def test_what_is_refused_is_left_untouched_and_unlocked(path):
    open_file(path, first_image=image).close()
    path.write_bytes(IMAGE[: 2 * PAGE_BYTES] + b"mmlsm writer pid 1\n".ljust(PAGE_BYTES, b"\0"))
    before = path.read_bytes()

    def refuse(head: bytes) -> None:
        raise ValueError(f"refused {len(head)} bytes")

    with pytest.raises(ValueError, match="refused 12288 bytes"):
        open_file(path, accept=refuse)
    assert path.read_bytes() == before
    open_file(path).close()


def test_a_dangling_symlink_gets_its_target(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    open_file(link, first_image=image).close()
    assert link.is_symlink()
    assert (tmp_path / "target").is_file()


class NoUnnamedFiles(System):
    """A file system without O_TMPFILE."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files")
        return super().open(path, flags, mode)


class NoProc(System):
    """A system where an unnamed file cannot be given a name."""

    def link(self, fd: int, name: str, directory_fd: int) -> None:
        raise OSError(errno.ENOENT, "no /proc")


@pytest.mark.parametrize("system", [System(), NoUnnamedFiles(), NoProc()], ids=lambda s: type(s).__name__)
def test_creation_works_without_unnamed_files_too(path, system):
    open_file(path, first_image=image, system=system).close()
    assert path.read_bytes()[: 2 * PAGE_BYTES] == IMAGE[: 2 * PAGE_BYTES]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("system", [System(), NoUnnamedFiles()], ids=lambda s: type(s).__name__)
def test_of_racing_creators_one_wins_and_the_others_open_its_file(path, system):
    start = threading.Barrier(4)
    won: list[File] = []
    lost: list[LockedError] = []

    def make(number: int) -> None:
        start.wait()
        try:
            won.append(open_file(path, first_image=lambda: b"%d" % number + IMAGE[1:], system=system))
        except LockedError as error:
            lost.append(error)

    for _ in range(20):
        threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        winner = won.pop()
        lost.clear()
        assert winner.pread(0, PAGE_BYTES)[1:] == IMAGE[1:PAGE_BYTES]
        winner.close()
        os.unlink(path)


def test_a_creator_that_finds_the_name_taken_at_the_last_moment_opens_the_winners_file(path):
    class Late(System):
        def link(self, fd: int, name: str, directory_fd: int) -> None:
            path.write_bytes(b"winner" + IMAGE[6:])
            super().link(fd, name, directory_fd)

    file = open_file(path, first_image=image, system=Late())
    assert file.pread(0, 6) == b"winner"
    file.close()


def test_two_processes_that_create_at_once_leave_one_whole_file(path):
    program = """
sys.stdin.readline()
try:
    file = open_file(sys.argv[1], first_image=lambda: sys.argv[2].encode() + bytes(12287))
    print("won", flush=True)
    sys.stdin.readline()
except LockedError:
    print("lost", flush=True)
"""
    with Process(program, path, "a") as one, Process(program, path, "b") as two:
        for process in (one, two):
            process.popen.stdin.write("go\n")
            process.popen.stdin.flush()
        assert sorted([one.line(), two.line()]) == ["lost", "won"]
    assert path.stat().st_size == 12288
    assert path.read_bytes()[:2] in (b"a\0", b"b\0")


class Stopped(BaseException):
    """The process is gone: nothing is caught, nothing is tidied."""


class DiesAt(System):
    """Raises at the n-th call that changes the disk."""

    def __init__(self, step: int) -> None:
        self.left = step

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped

    def pwrite(self, fd, data, offset):
        self._step()
        return super().pwrite(fd, data, offset)

    def sync(self, fd):
        self._step()
        super().sync(fd)

    def truncate(self, fd, length):
        self._step()
        super().truncate(fd, length)

    def link(self, fd, name, directory_fd):
        self._step()
        super().link(fd, name, directory_fd)

    def sync_directory(self, fd):
        self._step()
        super().sync_directory(fd)


@pytest.mark.parametrize("empty_before", [False, True])
def test_a_creator_killed_at_any_step_leaves_nothing_or_what_the_next_one_can_open(path, empty_before):
    for step in range(40):
        if empty_before:
            path.write_bytes(b"")
        try:
            open_file(path, first_image=image, system=DiesAt(step)).close()
            break
        except Stopped:
            pass
        if path.exists():
            left = path.read_bytes()
            assert not left.strip(b"\0") or left[:PAGE_BYTES] == IMAGE[:PAGE_BYTES]
        open_file(path, first_image=image).close()
        assert os.listdir(path.parent) == [path.name]
        os.unlink(path)
    assert 3 <= step < 30


def test_a_name_is_durable_before_the_opener_can_commit(path):
    calls: list[str] = []

    class Recorder(System):
        def sync(self, fd):
            calls.append("sync")
            super().sync(fd)

        def link(self, fd, name, directory_fd):
            calls.append("link")
            super().link(fd, name, directory_fd)

        def sync_directory(self, fd):
            assert stat.S_ISDIR(os.fstat(fd).st_mode)
            calls.append("directory")
            super().sync_directory(fd)

    open_file(path, first_image=image, system=Recorder()).close()
    assert calls[:3] == ["sync", "link", "directory"]
    calls.clear()
    open_file(path, system=Recorder()).close()
    assert calls == ["directory"], "the file may be that of a creator who was killed before this"


# ---- what is not a database file


def test_a_folder_a_pipe_and_a_loop_of_links_are_refused(tmp_path):
    with pytest.raises(StorageError) as refused:
        open_file(tmp_path)
    assert refused.value.errno == errno.EISDIR
    with pytest.raises(StorageError, match="a directory"):
        open_file(tmp_path, readonly=True)
    os.mkfifo(tmp_path / "pipe")
    for readonly in (False, True):
        with pytest.raises(StorageError, match="not a regular file"):
            open_file(tmp_path / "pipe", readonly=readonly)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError) as refused:
        open_file(tmp_path / "loop", create=False)
    assert refused.value.errno == errno.ELOOP


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_or_folder_without_the_right_to_write_says_what_to_do(path, file):
    file.close()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        with pytest.raises(StorageError, match="readonly=True") as refused:
            open_file(path)
        assert refused.value.errno == errno.EACCES
        assert open_file(path, readonly=True).pages == HEADER_PAGES
        with pytest.raises(StorageError) as refused:
            open_file(path.with_name("new"), first_image=image)
        assert refused.value.errno == errno.EACCES
    finally:
        path.parent.chmod(0o755)


class ReadOnlyMedium(System):
    """What a read-only file system answers."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().open(path, flags, mode)


def test_a_read_only_file_system_is_read_with_its_pin_and_refuses_writers(path, file):
    system = ReadOnlyMedium()
    with pytest.raises(StorageError, match="readonly=True") as refused:
        open_file(path, system=system)
    assert refused.value.errno == errno.EROFS
    with pytest.raises(StorageError) as refused:
        open_file(path.with_name("new"), first_image=image, system=system)
    assert refused.value.errno == errno.EROFS
    reader = open_file(path, readonly=True, system=system)
    assert reader.pread(0, 10) == IMAGE[:10]
    assert file.pins_elsewhere()
    reader.close()
    assert not file.pins_elsewhere()


def test_a_readonly_file_writes_nothing(path, file):
    file.close()
    before = path.read_bytes()
    reader = open_file(path, readonly=True)
    for call in (reader.channel, lambda: reader.resize(9), lambda: reader.preallocate(0, 1)):
        with pytest.raises(ReadOnlyError):
            call()
    assert path.read_bytes() == before
    open_file(path).close()


def test_a_file_system_without_locks_is_said(path):
    class NoLocks(System):
        def try_lock(self, fd, byte, *, exclusive):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with pytest.raises(StorageError, match="cannot be locked") as refused:
        open_file(path, first_image=image, system=NoLocks())
    assert refused.value.errno == errno.ENOLCK
    open_file(path).close()


def test_every_call_after_close_says_closed(file):
    channel = file.channel()
    file.close()
    for call in (
        lambda: file.pages,
        lambda: file.pread(0, 1),
        lambda: file.window(1),
        lambda: file.pinned_map(1, None),
        lambda: file.pin,
        lambda: file.resize(1),
        file.channel,
        file.pins_elsewhere,
        lambda: channel.pwrite(0, b"x"),
        channel.sync,
    ):
        with pytest.raises(ClosedError):
            call()


# ---- reading, writing, and what goes wrong


class Faulty(System):
    """Does what a list of outcomes says, one for each call of one method, then works again.

    An outcome is an errno, or for reads and writes a number of bytes as `("short", n)`.
    """

    def __init__(self, **outcomes: list[object]) -> None:
        self.outcomes = outcomes
        self.calls: list[str] = []

    def _next(self, name: str, full: int = 0) -> int:
        self.calls.append(name)
        todo = self.outcomes.get(name)
        outcome = todo.pop(0) if todo else None
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        return min(full, outcome[1]) if isinstance(outcome, tuple) else full

    def pread(self, fd, length, offset):
        return super().pread(fd, self._next("pread", length), offset)

    def pwrite(self, fd, data, offset):
        count = self._next("pwrite", len(data))
        return super().pwrite(fd, data[:count], offset)

    def pwrite_durably(self, fd, data, offset):
        count = self._next("pwrite_durably", len(data))
        return super().pwrite_durably(fd, data[:count], offset)

    def sync(self, fd):
        self._next("sync")
        super().sync(fd)

    def truncate(self, fd, length):
        self._next("truncate")
        super().truncate(fd, length)

    def allocate(self, fd, offset, length):
        self._next("allocate")
        super().allocate(fd, offset, length)


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


WRITES = ["pwrite", "pwrite_durably"]


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_written_is_read(faulty, method, kind):
    file, _ = faulty
    data = bytes(range(256)) * 16
    getattr(file.channel(), method)(5000, kind(data))
    assert file.pread(5000, 4096) == data
    assert file.pread(5000 + 4000, 1000) == data[4000:] + bytes(904)


@pytest.mark.parametrize("method", WRITES)
def test_short_and_interrupted_writes_are_gone_on_with(faulty, method):
    file, system = faulty
    system.outcomes[method] = [("short", 1), errno.EINTR, ("short", 100), errno.EINTR, errno.EINTR]
    data = os.urandom(5000)
    getattr(file.channel(), method)(4096, data)
    assert file.pread(4096, 5000) == data
    assert system.calls.count(method) == 6
    assert file.failure is None


def test_short_and_interrupted_reads_are_gone_on_with_and_the_end_of_the_file_is_short(faulty):
    file, system = faulty
    data = os.urandom(5000)
    file.channel().pwrite(0, data)
    system.outcomes["pread"] = [("short", 1), errno.EINTR, ("short", 100)]
    assert file.pread(0, 5000) == data
    assert file.pread(8 * PAGE_BYTES - 10, 100) == bytes(10)
    assert file.pread(8 * PAGE_BYTES, 100) == b""


def test_absurd_places_and_lengths_take_no_memory(faulty):
    file, _ = faulty
    assert len(file.pread(4096, 1 << 62)) == 7 * PAGE_BYTES
    assert file.pread((1 << 64) + 5, 10) == b""
    assert file.pread(1 << 62, 1 << 62) == b""


def test_a_write_that_takes_nothing_is_an_error_and_not_a_hang(faulty):
    file, system = faulty
    system.outcomes["pwrite"] = [("short", 0)]
    with pytest.raises(StorageError) as refused:
        file.channel().pwrite(0, b"abc")
    assert refused.value.errno == errno.EIO


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_write_names_its_error_and_may_be_tried_again(faulty, code):
    file, system = faulty
    channel = file.channel()
    buffer = bytearray(b"abc")
    system.outcomes["pwrite"] = [("short", 1), code]
    with pytest.raises(StorageError) as refused:
        channel.pwrite(0, buffer)
    assert refused.value.errno == code
    assert os.strerror(code) in str(refused.value)
    buffer += b"def"  # the buffer is not left exported, also while the exception is held
    assert file.failure is None
    channel.pwrite(0, buffer)
    channel.sync()
    assert file.pread(0, 6) == b"abcdef"


def test_a_medium_that_cannot_be_read_is_named(faulty):
    file, system = faulty
    system.outcomes["pread"] = [errno.EIO]
    with pytest.raises(StorageError) as refused:
        file.pread(0, 100)
    assert refused.value.errno == errno.EIO
    assert len(file.pread(0, 100)) == 100


@pytest.mark.parametrize(("name", "call"), [
    ("truncate", lambda file: file.resize(20)),
    ("allocate", lambda file: file.preallocate(8, 12)),
])  # fmt: skip
def test_no_space_for_growth_is_named_and_growth_works_when_there_is_again(faulty, name, call):
    file, system = faulty
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        system.outcomes[name] = [errno.EINTR, code]
        with pytest.raises(StorageError) as refused:
            call(file)
        assert refused.value.errno == code
        assert file.pages == 8
    system.outcomes[name] = [errno.EINTR]
    call(file)
    assert file.pages == 20


def test_preallocated_pages_have_their_place_and_read_as_zeros(faulty):
    file, _ = faulty
    file.channel().pwrite(3 * PAGE_BYTES, b"kept")
    file.preallocate(3, 5)
    file.preallocate(3, 0)
    assert file.pages == 8
    assert file.pread(3 * PAGE_BYTES, 4) in (b"kept", bytes(4))
    assert file.pread(7 * PAGE_BYTES, PAGE_BYTES) == bytes(PAGE_BYTES)
    if file.path is not None:
        assert file.path.stat().st_blocks * 512 >= 5 * PAGE_BYTES


@pytest.mark.parametrize("outcomes", [[], [("short", 5), errno.EINTR]])
def test_where_nothing_can_be_preallocated_zeros_are_written(faulty, outcomes):
    file, system = faulty
    file.resize(400)
    system.outcomes.update(allocate=[errno.EOPNOTSUPP], pwrite=outcomes)
    file.channel().pwrite(9 * PAGE_BYTES, b"x" * 5000)
    file.preallocate(10, 300)
    assert file.pread(10 * PAGE_BYTES, 300 * PAGE_BYTES) == bytes(300 * PAGE_BYTES)
    assert file.pread(9 * PAGE_BYTES, PAGE_BYTES) == b"x" * PAGE_BYTES
    assert file.pages == 400


def test_no_space_for_the_zeros_is_named(faulty):
    file, system = faulty
    system.outcomes.update(allocate=[errno.EOPNOTSUPP], pwrite=[errno.ENOSPC])
    with pytest.raises(StorageError) as refused:
        file.preallocate(3, 2)
    assert refused.value.errno == errno.ENOSPC


def test_a_file_larger_than_page_numbers_reach_is_refused(faulty):
    file, _ = faulty
    with pytest.raises(StorageError) as refused:
        file.resize((1 << 32) + 1)
    assert refused.value.errno == errno.EFBIG
    assert file.pages == 8


def test_resizing_goes_both_ways_and_new_pages_are_zeros(faulty):
    file, _ = faulty
    file.channel().pwrite(7 * PAGE_BYTES, b"x" * PAGE_BYTES)
    file.resize(7)
    assert (file.pages, file.bytes) == (7, 7 * PAGE_BYTES)
    file.resize(9)
    assert file.pread(7 * PAGE_BYTES, 2 * PAGE_BYTES) == bytes(2 * PAGE_BYTES)


def test_a_partial_last_page_does_not_count(path, file):
    with path.open("ab") as raw:
        raw.write(b"x")
    assert file.pages == HEADER_PAGES
    assert file.bytes == HEADER_PAGES * PAGE_BYTES + 1


# ---- a failed sync is final (promise 7, R10)


@pytest.mark.parametrize("how", ["sync", "pwrite_durably"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_sync_in_one_channel_is_final_for_all(faulty, how, code):
    file, system = faulty
    writer, merger = file.channel(), file.channel()
    writer.pwrite(0, b"abc")
    system.outcomes[how] = [code]
    with pytest.raises(StorageError, match="unknown until the database is reopened") as refused:
        writer.sync() if how == "sync" else writer.pwrite_durably(0, b"abc")
    assert refused.value.errno == code
    assert file.failure is refused.value
    system.calls.clear()
    for channel in (writer, merger, None):
        for call in (
            lambda c: c.pwrite(0, b"x"),
            lambda c: c.pwrite_durably(0, b"x"),
            lambda c: c.sync(),
            lambda c: file.resize(9),
            lambda c: file.preallocate(1, 1),
            lambda c: file.channel(),
        ):
            with pytest.raises(ReadOnlyError, match="earlier sync failed"):
                call(channel) if channel else file.resize(9)
    assert not system.calls, "nothing is written, and no sync is retried as if nothing had happened"
    assert file.pread(0, 3) == b"abc"
    assert file.window(8).pages >= 8


def test_a_sync_that_succeeds_beside_a_failed_one_does_not_acknowledge(faulty):
    file, system = faulty
    writer, merger = file.channel(), file.channel()

    for method in ("sync", "pwrite_durably"):
        file.failure = None
        real = getattr(type(system), method)

        def meanwhile(*arguments, real=real, method=method):
            delattr(system, method)
            system.outcomes["sync"] = [errno.EIO]
            with pytest.raises(StorageError):
                merger.sync()
            return real(system, *arguments)

        setattr(system, method, meanwhile)
        with pytest.raises(ReadOnlyError):
            writer.sync() if method == "sync" else writer.pwrite_durably(0, b"abc")


def test_the_first_failure_is_the_one_that_is_kept(faulty):
    file, _ = faulty
    first = file.sync_failed(OSError(errno.EIO, "first"))
    second = file.sync_failed(OSError(errno.ENOSPC, "second"))
    assert file.failure is first is not second


def test_reopening_starts_without_the_failure(path):
    system = Faulty(sync=[])
    file = open_file(path, first_image=image, system=system)
    system.outcomes["sync"] = [errno.EIO]
    with pytest.raises(StorageError):
        file.channel().sync()
    file.close()
    file = open_file(path, system=system)
    file.channel().sync()
    file.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_is_no_durable_write_a_write_and_a_sync_do(faulty, code):
    file, system = faulty
    channel = file.channel()
    system.outcomes["pwrite_durably"] = [code]
    channel.pwrite_durably(0, b"abc")
    assert system.calls == ["pwrite_durably", "pwrite", "sync"]
    channel.pwrite_durably(3, b"def")
    assert system.calls[3:] == ["pwrite", "sync"], "it is not asked for again"
    assert file.pread(0, 6) == b"abcdef"
    system.outcomes["sync"] = [errno.EIO]
    with pytest.raises(StorageError):
        channel.pwrite_durably(0, b"x")
    assert file.failure is not None


def test_each_channel_is_an_open_of_its_own_also_after_the_name_is_gone(path, file):
    class Recorder(System):
        def __init__(self) -> None:
            self.fds: list[int] = []

        def sync(self, fd):
            self.fds.append(fd)

    file.system = recorder = Recorder()
    one, two = file.channel(), file.channel()
    path.rename(path.with_name("renamed"))
    path.write_bytes(b"another file")
    three = file.channel()
    for channel in (one, two, three):
        channel.sync()
    flags = []
    for fd in recorder.fds:
        assert os.fstat(fd).st_ino == path.with_name("renamed").stat().st_ino
        os.lseek(fd, len(flags) * 7, os.SEEK_SET)
        flags.append(fd)
    assert [os.lseek(fd, 0, os.SEEK_CUR) for fd in flags] == [0, 7, 14], "one description each: errors are told to each"


# ---- maps


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
