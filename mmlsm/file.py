"""One database file: the only place that talks to the operating system (os, mmap, fcntl).

Any thread may call a `File`; a `Channel` belongs to the thread that asked for it. Nothing here knows what is in a page.
All system calls go through a `System`, so that a test can put a simulated disk or a failing one in its place.

I1. Each syncing thread has its own open of the file, and looks at `File.failure` after its own sync (R10): the kernel
    reports a writeback error once per open, so another thread's sync may have been told what ours was not.
I2. `failure` is set by the first failed sync and never cleared; from then on nothing more is written or synced.
I3. The writer lock and the pin lock (R13) are OFD locks on descriptors of their own, never mapped, closed in a forked
    child: other descriptors and maps neither drop nor keep them when they are closed.
I4. A descriptor that reads or maps is closed when the last reference goes, never by `close()`: a number that another
    thread is about to use is not given to another file meanwhile.
I5. Maps are read-only, never remapped or resized; larger ones are made beside them.
I6. A new file is whole or not there: it gets its name after its bytes are synced. An empty file that is there already
    is all zeros until one synced write of its first page makes it a database.

Where there are no OFD locks (macOS; not tested) the writer lock is an `flock`, and `pins_elsewhere()` is always True:
what was allocated at open is then not reused before the next open that finds a pin lock. Network file systems are not
supported: their locks and maps do not keep these promises.
"""

from __future__ import annotations

import abc
import builtins
import contextlib
import errno
import mmap
import os
import stat
import struct
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from mmlsm import memory
from mmlsm.channel import UNSUPPORTED, Channel, refused, write_all
from mmlsm.descriptor import HOLDER_OFFSET, Descriptor, PinLock, WriterLock, forked_in_child, holder_line, no_fork
from mmlsm.errors import ClosedError, CorruptionError, Error, ForkError, ReadOnlyError, StorageError
from mmlsm.limits import FILE_PAGES_MAX, HEADER_PAGES, PAGE_BYTES

try:
    import fcntl
except ImportError:  # Windows: check_platform refuses to open anything
    fcntl = None  # type: ignore[assignment]

WINDOW_BYTES: Final = 64 << 30
"""Address space of a compiled window to begin with."""

_BLANK_BYTES_MAX: Final = 1 << 20
_FLOCK: Final = struct.Struct("hhqqi4x")
"""C's struct flock on 64-bit Linux: type, whence, start, length, pid (0 for OFD locks)."""


class System:
    """Every call of the operating system that a `File` makes, one method each."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

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


# ---- forks

_files: weakref.WeakSet[File] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child gives up what is the parent's: nothing is written, flushed or unlocked (promise 11)."""
    forked_in_child()
    inherited = list(_files)
    for file in inherited:
        file.forked = True
    for file in inherited:
        file._tell_forked()


if hasattr(os, "register_at_fork"):
    # A fork waits while a lock's descriptor is between its opening and our note of it.
    os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_after_fork_in_child)


# ---- opens of one file


def _reopen(system: System, data: Descriptor, flags: int, path: Path | None) -> int:
    """A new open of the very same file, whatever its name has become."""
    if os.path.exists(own := f"/proc/self/fd/{data.fd}"):
        return system.open(own, flags)
    if path is None:
        return os.dup(data.fd)
    fd = system.open(os.fspath(path), flags)
    if not os.path.samestat(system.stat(fd), system.stat(data.fd)):
        system.close(fd)
        raise OSError(errno.ESTALE, "another file has taken its name")
    return fd


class PinnedMap(mmap.mmap):
    """An interpreted view's map: every slice of it keeps `owner` alive."""

    owner: object = None


_Map = TypeVar("_Map", bound=mmap.mmap)


class File(abc.ABC):
    """One open database file, or its like in memory: `open_file`, `open_memory`."""

    def __init__(self, system: System, data: Descriptor, path: Path | None, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self.failure: StorageError | None = None
        self.forked = False
        self.closed = False
        self.durable_writes = True
        """False once the system has refused single durable writes."""
        self.system = system
        self._data = data
        self._guard = threading.Lock()  # of rank 70: making windows, noting a failure
        self._window: memory.Window | None = None
        self._windows: list[weakref.ref[memory.Window]] = []
        self._fork_callbacks: list[Callable[[], Callable[[], object] | None]] = []
        _files.add(self)

    # -- state

    def check(self) -> None:
        """ForkError in a forked child, ClosedError after `close`."""
        if self.forked:
            raise ForkError("this database was opened before the fork; open it anew in the child")
        if self.closed:
            raise ClosedError("the file is closed")

    def check_writable(self) -> None:
        """As `check`, and ReadOnlyError when it was opened so or has become so by a failed sync."""
        self.check()
        if self.readonly:
            raise ReadOnlyError("the database is open read-only")
        self.check_failure()

    def check_failure(self) -> None:
        """ReadOnlyError when a sync of any thread has failed."""
        if self.failure is not None:
            why = os.strerror(self.failure.errno or errno.EIO)
            raise ReadOnlyError(f"an earlier sync failed ({why}), so the database is read-only until it is reopened")

    def sync_failed(self, error: OSError) -> StorageError:
        """Note the failure for every thread (I2); what the thread that met it is to raise."""
        failure = refused(
            error,
            "a sync failed: whether the commits that it covered survive is unknown until the database is reopened, "
            "and it is read-only until then",
        )
        with self._guard:
            if self.failure is None:
                self.failure = failure
        return failure

    def on_fork(self, callback: Callable[[], object]) -> None:
        """Call this in each forked child. A bound method is held weakly. It must not do I/O or take locks."""
        bound = getattr(callback, "__self__", None) is not None
        self._fork_callbacks.append(weakref.WeakMethod(callback) if bound else lambda: callback)

    def _tell_forked(self) -> None:
        for reference in self._fork_callbacks:
            if callback := reference():
                callback()

    # -- size

    @property
    def bytes(self) -> int:
        """Size of the file now."""
        self.check()
        return self.system.stat(self._data.fd).st_size

    @property
    def pages(self) -> int:
        """Whole pages of the file now."""
        return self.bytes // PAGE_BYTES

    def resize(self, pages: int) -> None:
        """Make the file this many pages long, shorter or longer; new pages read as zeros."""
        self.check_writable()
        if pages > FILE_PAGES_MAX:
            raise StorageError(errno.EFBIG, f"a database has at most {FILE_PAGES_MAX} pages (16 TiB)")
        self._call(f"making the file {pages} pages long", self.system.truncate, self._data.fd, pages * PAGE_BYTES)

    def preallocate(self, first: int, pages: int) -> None:
        """Later writes to these pages cannot meet ENOSPC. What they hold is kept or becomes zeros."""
        self.check_writable()
        if not pages:
            return
        offset, length = first * PAGE_BYTES, pages * PAGE_BYTES
        doing = f"reserving {length} bytes of disk space"
        try:
            self._call(doing, self.system.allocate, self._data.fd, offset, length)
        except StorageError as error:
            if error.errno not in UNSUPPORTED:
                raise
            zeros = bytes(min(length, 1 << 20))
            for at in range(offset, offset + length, len(zeros)):
                piece = zeros[: offset + length - at]
                self._call(doing, write_all, self.system.pwrite, self._data.fd, piece, at)

    def _call(self, doing: str, call: Callable[..., None], *arguments: Any) -> None:
        while True:
            try:
                return call(*arguments)
            except InterruptedError:
                continue
            except OSError as error:
                raise refused(error, doing) from error

    # -- bytes

    def pread(self, offset: int, length: int) -> builtins.bytes:
        """`length` bytes from `offset` on, fewer only at the end of the file. The interpreter is free meanwhile.

        StorageError where the medium cannot be read. No memory is taken for bytes that the file does not have.
        """
        self.check()
        if length > 1 << 20 or offset >= 1 << 60:  # lengths and places that come from damaged bytes
            length = min(length, max(0, self.bytes - offset))
            if not length:
                return b""
        pieces: list[builtins.bytes] = []
        while length > 0:
            try:
                piece = self.system.pread(self._data.fd, length, offset)
            except InterruptedError:
                continue
            except OSError as error:
                raise refused(error, f"reading {length} bytes at {offset}") from error
            if len(piece) == length and not pieces:
                return piece
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def channel(self) -> Channel:
        """A new open of the file for the calling thread's writes and syncs."""
        self.check_writable()
        try:
            fd = _reopen(self.system, self._data, os.O_RDWR, self.path)
        except OSError as error:
            raise refused(error, "opening the file once more") from error
        return Channel(self, Descriptor(self.system, fd))

    # -- maps

    def window(self, pages: int) -> memory.Window:
        """A read-only map of at least the first `pages` pages: the same one as long as it is large enough (I5).

        CorruptionError when the file is shorter than that.
        """
        window = self._window
        if window is None or window.pages < pages:
            self.check()  # before the guard, which a forked child may have inherited locked
            with self._guard:
                window = self._window
                if window is None or window.pages < pages:
                    window = self._window = self._new_window(pages)
                    self._windows = [r for r in self._windows if r() is not None] + [weakref.ref(window)]
        self.check()
        return window

    def _new_window(self, pages: int) -> memory.Window:
        there = self._check_there(pages)
        try:
            if not memory.COMPILED:
                return memory.Window.over(self._map(mmap.mmap, there))
            return self._reserve_window(pages * PAGE_BYTES)
        except OSError as error:
            raise refused(error, f"mapping {pages} pages") from error

    def _reserve_window(self, least_bytes: int) -> memory.Window:
        length = WINDOW_BYTES
        while length < least_bytes:
            length *= 2
        while True:
            try:
                return memory.Window.reserve(self._data.fd, length)
            except (OSError, MemoryError) as error:
                # A limit on address space: be content with less, down to what is asked and some room to grow.
                refused = isinstance(error, OSError) and error.errno != errno.ENOMEM
                if refused or length <= least_bytes:
                    raise
                length = max(length // 2, least_bytes)

    def pinned_map(self, pages: int, owner: object) -> PinnedMap:
        """A map of the first `pages` pages of its own; it and every slice of it keep `owner` alive."""
        self.check()
        self._check_there(pages)
        try:
            mapping = self._map(PinnedMap, pages)
        except OSError as error:
            raise refused(error, f"mapping {pages} pages") from error
        mapping.owner = owner
        return mapping

    def _check_there(self, pages: int) -> int:
        there = self.pages
        if not 0 < pages <= there:
            raise CorruptionError(f"page {pages - 1} is wanted but the file has {there} pages", page=pages - 1)
        return there

    def _map(self, kind: type[_Map], pages: int) -> _Map:
        if sys.version_info >= (3, 13):  # else each map duplicates the descriptor
            return kind(self._data.fd, pages * PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ, trackfd=False)
        return kind(self._data.fd, pages * PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)

    def forget(self, first: int, count: int) -> None:
        """What these pages held is no longer known to be sound, in any window that is still in use (R4)."""
        for reference in self._windows:
            if (window := reference()) is not None:
                window.forget(first, count)

    # -- locks

    @property
    @abc.abstractmethod
    def pin(self) -> object:
        """The shared side of the pin lock: whoever needs the bytes past close keeps a reference to it."""

    @abc.abstractmethod
    def pins_elsewhere(self) -> bool:
        """True while another process, or views of an earlier open here, hold the pin lock (R13)."""

    def close(self) -> None:
        """Give up the writer lock. Nothing is written; maps, and the pin lock's holders, stay as they are."""
        if self.forked:
            self.check()
        self.closed = True
        self._window = None


class DiskFile(File):
    """A named file, with its locks."""

    def __init__(self, system: System, data: Descriptor, path: Path, readonly: bool) -> None:
        super().__init__(system, data, path, readonly)
        self._writer: WriterLock | None = None
        self._pin: PinLock | None = None
        mode = os.O_RDONLY if readonly else os.O_RDWR
        try:
            with no_fork:
                # The writer lock first: who has it finds, in the pin lock, every view of the writers before.
                if not readonly:
                    self._writer = WriterLock(system, _reopen(system, data, mode, path), path, data)
                self._pin = PinLock(system, _reopen(system, data, mode, path))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, Error):
                raise refused(error, f"opening {path} once more for its locks") from error
            raise

    @property
    def pin(self) -> object:
        self.check()
        return self._pin

    def pins_elsewhere(self) -> bool:
        self.check()
        assert self._pin is not None
        return self._pin.held_elsewhere()

    def close(self) -> None:
        super().close()
        if self._writer is not None:
            self._writer.close()
        self._pin = None  # closed by whoever has the last reference to it

    def _announce(self) -> None:
        """Leave our pid for the LockedError of others. Advisory: no sum, no sync, and no harm if it fails."""
        if self.pages >= HEADER_PAGES:
            with contextlib.suppress(OSError):
                write_all(self.system.pwrite, self._data.fd, holder_line(self.system.process_id()), HOLDER_OFFSET)

    def _fill_if_blank(self, first_image: Callable[[], builtins.bytes]) -> None:
        """Make an empty file a database in place (I6): what may be there without the rest is zeros or page 0."""
        size = self.bytes
        if size > _BLANK_BYTES_MAX or self.pread(0, size).strip(b"\0"):
            return
        image = first_image()
        if size > len(image):
            return
        with contextlib.closing(self.channel()) as channel:
            self.resize(len(image) // PAGE_BYTES)
            channel.sync()
            channel.pwrite(0, image[:PAGE_BYTES])
            channel.sync()
            channel.pwrite(PAGE_BYTES, image[PAGE_BYTES:])
            channel.sync()


class MemoryFile(File):
    """A file without a name, a lock or a life after the process."""

    @property
    def pin(self) -> object:
        self.check()
        return self._data

    def pins_elsewhere(self) -> bool:
        self.check()
        return False


# ---- opening


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
    shown = Path(os.path.abspath(path))
    image = first_image if create and not readonly else None
    try:
        data = _open_or_create(system, shown, readonly, image)
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise refused(error, f"opening {shown}") from error
    file = DiskFile(system, data, shown, readonly)
    try:
        if image is not None:
            file._fill_if_blank(image)
        if accept is not None:
            accept(file.pread(0, HEADER_PAGES * PAGE_BYTES))
        if not readonly:
            # Whoever made the file may have been killed before its name was durable: each writer sees to it.
            directory_sync(os.path.dirname(os.path.realpath(shown)), system)
            file._announce()
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
    """Make a new file appear whole under this name (I6); do nothing if the name is taken meanwhile."""
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
            system.link(unnamed.fd, last, directory.fd)
            system.sync_directory(directory.fd)
            return
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.EPERM, errno.EXDEV, errno.ENOENT, errno.EINVAL}:
                raise
    # No unnamed files here: begin with an empty one, which the writer fills in place.
    with contextlib.suppress(FileExistsError):
        Descriptor(system, system.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)).close()
