"""One database file: the only place that talks to the operating system (os, mmap, fcntl).

Any thread may call a `File`; a `Channel` belongs to the thread that asked for it. Nothing here knows what is in a page.
All system calls go through a `System`, so that a test can put a simulated disk or a failing one in its place.

I1. `System` is the only code that calls the operating system, but for the memory.Window that C maps by itself.
I2. A new file is whole or not there: it gets its name after its bytes are synced. An empty file that is there already
    is all zeros until one synced write of its first page makes it a database (`DiskFile.fill_if_blank`).
I3. The name of the file is durable before its writer can commit, whoever made it.

Where there are no OFD locks (macOS; not tested) the writer lock is an `flock`, and `pins_elsewhere()` is always True:
what was allocated at open is then not reused before the next open. Network file systems are not supported: their locks
and maps do not keep these promises.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import stat
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from mmlsm.channel import UNSUPPORTED, Channel, refused, write_all
from mmlsm.descriptor import Descriptor, no_fork
from mmlsm.errors import Error, StorageError
from mmlsm.forks import Forks
from mmlsm.handle import DiskFile, File, MemoryFile, after_fork_in_child
from mmlsm.limits import HEADER_PAGES, PAGE_BYTES

__all__ = ["FORKS", "SYSTEM", "Channel", "File", "PinnedMap", "System", "directory_sync", "name_of", "open_file",
           "open_memory", "place_of"]  # fmt: skip

try:
    import fcntl
except ImportError:  # Windows: check_platform refuses to open anything
    fcntl = None  # type: ignore[assignment]

_FLOCK: Final = struct.Struct("hhqqi4x")
"""C's struct flock on 64-bit Linux: type, whence, start, length, pid (0 for OFD locks)."""


_STDERR: Final = 2


class PinnedMap(mmap.mmap):
    """An interpreted view's map: every slice of it keeps `owner` alive."""

    owner: object = None


_Map = TypeVar("_Map", bound=mmap.mmap)


class System:
    """Every call of the operating system that a `File` makes, one method each."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
        if fd > _STDERR:
            return fd
        # The number of a standard stream that was closed: what somebody prints there would end up in the database.
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
        finally:
            os.close(fd)

    def reopen(self, fd: int, path: Path | None, *, readonly: bool) -> int:
        """A new open of the very same file, whatever its name has become."""
        flags = os.O_RDONLY if readonly else os.O_RDWR
        try:
            return self.open(own := f"/proc/self/fd/{fd}", flags)
        except FileNotFoundError:
            if os.path.exists(own):
                raise
        if path is None:
            return os.dup(fd)
        again = self.open(os.fspath(path), flags)
        if not os.path.samestat(self.stat(again), self.stat(fd)):
            self.close(again)
            raise OSError(errno.ESTALE, "another file has taken its name")
        return again

    def close(self, fd: int) -> None:
        os.close(fd)

    def stat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def pwrite_durably(self, fd: int, data: memoryview, offset: int) -> int:
        """Write and sync these bytes (and what it takes to find them) only; EOPNOTSUPP where there is no such call."""
        if not hasattr(os, "RWF_DSYNC"):
            raise OSError(errno.EOPNOTSUPP, "no RWF_DSYNC")
        return os.pwritev(fd, [data], offset, os.RWF_DSYNC)

    def sync(self, fd: int) -> None:
        """On return the file's bytes and size are on the medium itself."""
        if hasattr(fcntl, "F_FULLFSYNC"):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def sync_directory(self, fd: int) -> None:
        os.fsync(fd)

    def drop_cached(self, fd: int, offset: int, length: int) -> None:
        """Have these bytes read from the medium again, where they are not dirty and the system takes such advice."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Give every block of the range its place on the medium; EOPNOTSUPP where there is no such call."""
        if not hasattr(os, "posix_fallocate"):
            raise OSError(errno.EOPNOTSUPP, "no posix_fallocate")
        os.posix_fallocate(fd, offset, length)

    def link(self, fd: int, name: str, directory_fd: int) -> None:
        """Give the unnamed file a name; FileExistsError when the name is taken."""
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        """Lock one byte for this open; False when another open has a lock against it. Never waits."""
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
            elif exclusive:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def unlock(self, fd: int, byte: int) -> None:
        """Give up this open's lock of the byte, also for forked children that share the open."""
        if hasattr(fcntl, "F_OFD_SETLK"):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def locked_elsewhere(self, fd: int, byte: int) -> bool:
        """True when another open has a lock of this byte, shared or not; True where that cannot be asked."""
        if not hasattr(fcntl, "F_OFD_GETLK"):
            return True
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)

    def map(self, fd: int, length: int) -> mmap.mmap:
        """A read-only map of the file's first `length` bytes."""
        return self._map(mmap.mmap, fd, length)

    def pinned_map(self, fd: int, length: int, owner: object) -> PinnedMap:
        """As `map`; every slice of it keeps `owner` alive."""
        mapping = self._map(PinnedMap, fd, length)
        mapping.owner = owner
        return mapping

    def _map(self, kind: type[_Map], fd: int, length: int) -> _Map:
        if sys.version_info >= (3, 13):  # else each map duplicates the descriptor
            return kind(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, trackfd=False)
        return kind(fd, length, mmap.MAP_SHARED, mmap.PROT_READ)

    def process_id(self) -> int:
        return os.getpid()


SYSTEM: Final = System()


def check_platform() -> None:
    """Error on a platform where the promises do not hold."""
    platform: str = sys.platform
    if platform not in ("linux", "darwin") or sys.maxsize < 1 << 62 or sys.byteorder != "little" or fcntl is None:
        raise Error(
            f"mmlsm runs on 64-bit little-endian Linux and macOS, not on {platform} "
            f"({sys.maxsize.bit_length() + 1} bits, {sys.byteorder} endian)"
        )


def _is_over(fd: int) -> bool:
    """Whether the other end of a pipe, into which nobody writes, is closed."""
    asked = select.poll()
    asked.register(fd, 0)
    return asked.poll(0) == [(fd, select.POLLHUP)]


FORKS: Final = Forks(os.pipe, _is_over, os.close)


if hasattr(os, "register_at_fork"):
    # A fork waits while a lock's descriptor is between its opening and our note of it. What comes before a fork is done
    # in the opposite order: the lock is taken first. It and the end of the handles hang on no Python code of the other.
    os.register_at_fork(before=FORKS.before, after_in_parent=FORKS.in_parent, after_in_child=FORKS.in_child)
    os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=after_fork_in_child)


# ---- opening


def name_of(path: str | os.PathLike[str]) -> str:
    """A path as str; TypeError where it is none, ValueError where no file can have such a name."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise TypeError(f"a path is a str or a Path, not {type(name).__name__}")
    try:
        plain = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ValueError(f"no file can be named {name!r}: {error.reason}") from error
    if b"\0" in plain:
        raise ValueError(f"no file can be named {name!r}: there is a NUL in it")
    return name


def place_of(path: str | os.PathLike[str]) -> Path:
    """A path from the root on; StorageError where it is relative to a directory that is gone."""
    name = name_of(path)
    try:
        return Path(os.path.abspath(name))
    except OSError as error:
        raise StorageError(
            error.errno, f"{name} cannot be found from the working directory ({error.strerror}); give an absolute path"
        ) from error


def open_memory(*, system: System = SYSTEM) -> File:
    """A new, empty file in memory."""
    check_platform()
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("mmlsm", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as temporary:
            fd = os.dup(temporary.fileno())
    return MemoryFile(system, Descriptor(system, fd), None, False)


def open_file(
    path: str | os.PathLike[str],
    *,
    readonly: bool = False,
    create: bool = True,
    first_image: Callable[[], bytes] | None = None,
    accept: Callable[[bytes], object] | None = None,
    system: System = SYSTEM,
) -> File:
    """Open a database file, and for writing take its writer lock; LockedError if another has it.

    `first_image` makes the first pages of a new database: whole pages, and its first page alone must be enough for
    it to be opened. It is called when `create` is true, the file is not to be readonly, and there is no file at `path`
    or one that is empty or of nothing but zeros.
    `accept` is given the header pages (fewer bytes of a shorter file), locked, before anything is written to a file
    that was there already: what it raises refuses the file, which is then left untouched.
    """
    check_platform()
    FORKS.let_go()
    shown = place_of(path)
    image = first_image if create and not readonly else None
    try:
        data = _open_or_create(system, shown, readonly, image)
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise refused(error, f"opening {shown}") from error
    file = DiskFile(system, data, shown, readonly)
    try:
        if not readonly:
            file.drop_cached(0, HEADER_PAGES * PAGE_BYTES)
        if image is not None:
            file.fill_if_blank(image)
        if accept is not None:
            accept(file.pread(0, HEADER_PAGES * PAGE_BYTES))
        if not readonly:
            file.announce()
            # Whoever made the file may have been killed before its name was durable: each writer sees to it.
            directory_sync(os.path.dirname(os.path.realpath(shown)), system)
    except BaseException:
        file.close()
        raise
    return file


def directory_sync(path: str, system: System = SYSTEM) -> None:
    """The names in this directory survive power loss, where the file system can do that for a directory at all."""
    try:
        directory = Descriptor(system, system.open(path, os.O_RDONLY | os.O_DIRECTORY))
        system.sync_directory(directory.fd)
        directory.close()
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EINVAL, errno.EACCES, errno.EPERM}:
            raise refused(error, f"making the name of the database in {path} durable") from error


def _open_or_create(system: System, shown: Path, readonly: bool, first_image: Callable[[], bytes] | None) -> Descriptor:
    # O_NONBLOCK: a pipe or device at this place is refused, not waited for.
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_NONBLOCK | os.O_NOCTTY
    name = os.path.realpath(shown)
    for _ in range(8):
        try:
            data = Descriptor(system, system.open(name, flags))
        except FileNotFoundError as error:
            if first_image is None:
                way = "a readonly open creates none" if readonly else "create=True makes one"
                raise StorageError(errno.ENOENT, f"there is no file {shown}; {way}") from error
            _create(system, name, first_image)
            continue  # ours, or that of another creator who was faster: the lock decides who writes
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not readonly:
                raise StorageError(
                    error.errno, f"{shown} cannot be opened for writing ({error.strerror}); readonly=True may do"
                ) from error
            raise
        if not stat.S_ISREG(mode := system.stat(data.fd).st_mode):
            data.close()
            raise StorageError(
                errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
                f"{shown} is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}; a database is one file",
            )
        return data
    raise StorageError(errno.ENOENT, f"{shown} is removed as soon as it is made")


def _create(system: System, name: str, first_image: Callable[[], bytes]) -> None:
    """Make a new file appear whole under this name (I2); do nothing if the name is taken meanwhile."""
    parent, last = os.path.split(name)
    directory = Descriptor(system, system.open(parent, os.O_RDONLY | os.O_DIRECTORY))
    try:
        unnamed = Descriptor(system, system.open(parent, os.O_RDWR | os.O_TMPFILE))
    except (OSError, AttributeError):
        unnamed = None
    if unnamed is not None:
        image = first_image()
        write_all(system.pwrite, unnamed.fd, image, 0)
        system.sync(unnamed.fd)
        try:
            with contextlib.suppress(FileExistsError):
                system.link(unnamed.fd, last, directory.fd)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.EPERM, errno.EXDEV, errno.ENOENT, errno.EINVAL}:
                raise
    # No unnamed files here: begin with an empty one, which the writer fills in place.
    with contextlib.suppress(FileExistsError):
        Descriptor(system, system.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)).close()
