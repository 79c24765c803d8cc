"""Making and opening files: racing and killed creators, what is refused and left untouched, read-only places."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from file_rig import IMAGE, Process, image, no_image
from mmlsm.errors import ClosedError, ForkError, LockedError, ReadOnlyError, StorageError
from mmlsm.file import File, System, open_file
from mmlsm.limits import HEADER_PAGES, PAGE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.mmlsm"


@pytest.fixture
def file(path: Path):
    opened = open_file(path, first_image=image)
    yield opened
    with contextlib.suppress(ForkError):
        opened.close()


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
