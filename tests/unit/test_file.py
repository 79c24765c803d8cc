"""Reading and writing through every kind of failure, and failed syncs that are final."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from file_rig import Faulty, image
from mmlsm.errors import ForkError, ReadOnlyError, StorageError
from mmlsm.file import System, open_file, open_memory
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


def test_no_database_gets_the_number_of_a_closed_standard_stream(path):
    """Or what anybody prints there would be written into it."""
    path.touch()
    kept = os.dup(0)
    try:
        os.close(0)
        fd = System().open(os.fspath(path), os.O_RDWR)
        assert not os.path.exists("/proc/self/fd/0")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert fd > 2
    assert os.path.samestat(os.fstat(fd), path.stat())
    assert not os.get_inheritable(fd)
    os.close(fd)
