"""One database file: the only place that talks to the operating system (os, mmap, fcntl).

Any thread may call a `File`; a `Channel` belongs to the thread that asked for it. Nothing here knows what is in a page.
All system calls go through a `System`, so that a test can put a simulated disk or a failing one in its place.

I1. Each syncing thread has its own open of the file, and looks at `File.failure` after its own sync (R10): the kernel
    reports a writeback error once per open, so another thread's sync may have been told what ours was not.
I2. `failure` is set by the first failed sync and never cleared; from then on nothing more is written or synced.
I3. The writer lock and the pin lock (R13) are OFD locks on descriptors of their own, never mapped, closed in a forked
    child: closing other descriptors, maps and children neither drop nor keep them.
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
import re
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
from mmlsm.errors import ClosedError, CorruptionError, Error, ForkError, LockedError, ReadOnlyError, StorageError
from mmlsm.limits import FILE_PAGES_MAX, HEADER_PAGES, PAGE_BYTES

try:
    import fcntl
except ImportError:  # Windows: check_platform refuses to open anything
    fcntl = None  # type: ignore[assignment]

WRITER_BYTE: Final = 1 << 62
"""Offset of the one byte whose lock makes a process the writer; far behind any page."""
PIN_BYTE: Final = WRITER_BYTE + 1
"""Offset of the byte that every open, and every view that outlives one, holds shared."""

HOLDER_OFFSET: Final = 2 * PAGE_BYTES
HOLDER_BYTES: Final = 64
_HOLDER: Final = re.compile(rb"mmlsm writer pid (\d{1,10})\n")

WINDOW_BYTES: Final = 64 << 30
"""Address space of a compiled window to begin with."""

_BLANK_BYTES_MAX: Final = 1 << 20
_FLOCK: Final = struct.Struct("hhqqi4x")
"""C's struct flock on 64-bit Linux: type, whence, start, length, pid (0 for OFD locks)."""
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


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


SYSTEM: Final = System()


def check_platform() -> None:
    """Error on a platform where the promises do not hold."""
    platform: str = sys.platform
    if platform not in ("linux", "darwin") or sys.maxsize < 1 << 62 or sys.byteorder != "little" or fcntl is None:
        raise Error(
            f"mmlsm runs on 64-bit little-endian Linux and macOS, not on {platform} "
            f"({sys.maxsize.bit_length() + 1} bits, {sys.byteorder} endian)"
        )


def _refused(error: OSError, doing: str) -> StorageError:
    return StorageError(error.errno, f"{doing}: {error.strerror or error}")


# ---- descriptors, and what becomes of them in a forked child


class Descriptor:
    """One open file descriptor, closed once: by `close()`, when the last reference goes, or in a forked child."""

    def __init__(self, system: System, fd: int) -> None:
        self.fd = fd
        self._system = system
        self._owned = [fd]  # pop() is atomic, so two closers cannot close one number twice

    def close(self) -> None:
        try:
            fd = self._owned.pop()
        except IndexError:
            return
        self.fd = -1
        with contextlib.suppress(OSError):
            self._system.close(fd)

    def __del__(self) -> None:
        self.close()


_locks: weakref.WeakSet[ByteLock] = weakref.WeakSet()
_files: weakref.WeakSet[File] = weakref.WeakSet()
_writing_here: dict[tuple[int, int], WriterLock] = {}
"""(device, inode) of each file that this process has open for writing."""


def _after_fork_in_child() -> None:
    """The child gives up what is the parent's: nothing is written, flushed or unlocked (promise 11)."""
    for lock in list(_locks):
        lock.close()
    _writing_here.clear()
    for file in list(_files):
        file._mark_forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class ByteLock(Descriptor):
    """A lock of one byte of a file, on a descriptor of its own: let go when that is closed (I3)."""

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(system, fd)
        _locks.add(self)

    def _take(self, kind: int, byte: int) -> bool:
        """False when another open file holds a lock against it. Never waits."""
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
            elif byte == WRITER_BYTE:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise _refused(error, "this file system cannot lock files") from error
        return True


class PinLock(ByteLock):
    """The shared side of the pin lock. Whoever needs the bytes past close keeps a reference to it, and no more."""

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(system, fd)
        if not self._take(fcntl.F_RDLCK, PIN_BYTE):
            raise LockedError("another program holds the pin lock of this file for itself alone")

    def held_elsewhere(self) -> bool:
        """True when the exclusive side could not be had, because some other open or its views hold the pin lock.

        Asks without taking, so that nobody who opens at this moment is refused.
        """
        if not hasattr(fcntl, "F_OFD_GETLK"):
            return True
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, PIN_BYTE, 1, 0)
        try:
            answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, asked)
        except OSError as error:
            raise _refused(error, "asking for the pin lock") from error
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class WriterLock(ByteLock):
    """The right of one File to write, and this process's note of where it was opened."""

    def __init__(self, system: System, fd: int, path: Path, data: Descriptor) -> None:
        super().__init__(system, fd)
        identity = system.stat(fd)
        self._key = (identity.st_dev, identity.st_ino)
        self._opened_at = _caller()
        if (first := _writing_here.setdefault(self._key, self)) is not self:
            raise LockedError(
                f"{path} is open for writing in this process already, opened at {first._opened_at}; "
                "share that database between threads, or close it first",
                os.getpid(),
            )
        if not self._take(fcntl.F_WRLCK, WRITER_BYTE):
            pid = _holder(system, data)
            raise LockedError(
                f"{path} is open for writing in {f'process {pid}' if pid else 'another process'}; one writer at a time",
                pid,
            )

    def close(self) -> None:
        # The descriptor first: who finds no note of it here must find it unlocked. No lock is taken (R12).
        super().close()
        if _writing_here.get(self._key) is self:
            _writing_here.pop(self._key, None)

    _key: tuple[int, int] = (-1, -1)


def _caller() -> str:
    """Where the code stands that called into mmlsm."""
    frame = sys._getframe(1)
    while str(frame.f_globals.get("__name__", "")).partition(".")[0] == "mmlsm" and frame.f_back:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _holder(system: System, data: Descriptor) -> int | None:
    """The pid that the last writer left in the holder page."""
    try:
        found = _HOLDER.match(system.pread(data.fd, HOLDER_BYTES, HOLDER_OFFSET))
    except OSError:
        return None
    return int(found[1]) if found else None


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


# ---- reading and writing


def _write_all(write: Callable[[int, memoryview, int], int], fd: int, data: Any, offset: int) -> None:
    """All of `data`, through short writes and interruptions. The views are released, also when it fails."""
    with memoryview(data) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view):
            with view[done:] as rest:
                try:
                    count = write(fd, rest, offset + done)
                except InterruptedError:
                    continue
            if count <= 0:
                raise OSError(errno.EIO, "the operating system took no bytes and named no error")
            done += count


class PinnedMap(mmap.mmap):
    """An interpreted view's map: every slice of it keeps `owner` alive."""

    owner: object = None


_Map = TypeVar("_Map", bound=mmap.mmap)


class Channel:
    """One thread's own open of a file, for writing and syncing (R10). Made by `File.channel`."""

    def __init__(self, file: File, descriptor: Descriptor) -> None:
        self._file = file
        self._descriptor = descriptor
        self._system = file._system

    def pwrite(self, offset: int, data: Any) -> None:
        """Hand all of `data` (bytes-like) to the operating system; StorageError if it does not take it all."""
        self._file.check_writable()
        try:
            _write_all(self._system.pwrite, self._descriptor.fd, data, offset)
        except OSError as error:
            raise _refused(error, "writing") from error

    def pwrite_durably(self, offset: int, data: Any) -> None:
        """As `pwrite`, and on return the bytes survive power loss. A failure is as final as that of `sync`."""
        file = self._file
        file.check_writable()
        if file.durable_writes:
            try:
                _write_all(self._system.pwrite_durably, self._descriptor.fd, data, offset)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise file._sync_failed(error) from error
                file.durable_writes = False  # not on this kernel or file system: never asked again
            else:
                file._check_failure()
                return
        self.pwrite(offset, data)
        self.sync()

    def sync(self) -> None:
        """All that was written to the file before, by any thread, survives power loss.

        A failure is final (I2): StorageError here, ReadOnlyError for each later write or sync of any channel.
        """
        self._file.check_writable()
        try:
            self._system.sync(self._descriptor.fd)
        except OSError as error:
            raise self._file._sync_failed(error) from error
        self._file._check_failure()

    def close(self) -> None:
        """Give up this open. Syncs nothing."""
        self._descriptor.close()


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
        self._system = system
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
        self._check_failure()

    def _check_failure(self) -> None:
        if self.failure is not None:
            raise ReadOnlyError(
                f"an earlier sync failed ({self.failure.strerror}), so the database is read-only until it is reopened"
            )

    def _sync_failed(self, error: OSError) -> StorageError:
        failure = _refused(
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
        self._fork_callbacks.append(weakref.WeakMethod(callback) if bound else lambda: callback)  # type: ignore[type-var]

    def _mark_forked(self) -> None:
        self.forked = True
        for reference in self._fork_callbacks:
            if callback := reference():
                callback()

    # -- size

    @property
    def bytes(self) -> int:
        """Size of the file now."""
        self.check()
        return self._system.stat(self._data.fd).st_size

    @property
    def pages(self) -> int:
        """Whole pages of the file now."""
        return self.bytes // PAGE_BYTES

    def resize(self, pages: int) -> None:
        """Make the file this many pages long, shorter or longer; new pages read as zeros."""
        self.check_writable()
        if pages > FILE_PAGES_MAX:
            raise StorageError(errno.EFBIG, f"a database has at most {FILE_PAGES_MAX} pages (16 TiB)")
        self._call(f"making the file {pages} pages long", self._system.truncate, self._data.fd, pages * PAGE_BYTES)

    def preallocate(self, first: int, pages: int) -> None:
        """Later writes to these pages cannot meet ENOSPC. What they hold is kept or becomes zeros."""
        self.check_writable()
        offset, length = first * PAGE_BYTES, pages * PAGE_BYTES
        doing = f"reserving {length} bytes of disk space"
        try:
            self._call(doing, self._system.allocate, self._data.fd, offset, length)
        except StorageError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            zeros = bytes(min(length, 1 << 20))
            for at in range(offset, offset + length, len(zeros)):
                piece = zeros[: offset + length - at]
                self._call(doing, _write_all, self._system.pwrite, self._data.fd, piece, at)

    def _call(self, doing: str, call: Callable[..., None], *arguments: Any) -> None:
        while True:
            try:
                return call(*arguments)
            except InterruptedError:
                continue
            except OSError as error:
                raise _refused(error, doing) from error

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
                piece = self._system.pread(self._data.fd, length, offset)
            except InterruptedError:
                continue
            except OSError as error:
                raise _refused(error, f"reading {length} bytes at {offset}") from error
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
            fd = _reopen(self._system, self._data, os.O_RDWR, self.path)
        except OSError as error:
            raise _refused(error, "opening the file once more") from error
        return Channel(self, Descriptor(self._system, fd))

    # -- maps

    def window(self, pages: int) -> memory.Window:
        """A read-only map of at least the first `pages` pages: the same one as long as it is large enough (I5).

        CorruptionError when the file is shorter than that.
        """
        window = self._window
        if window is None or window.pages < pages:
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
            raise _refused(error, f"mapping {pages} pages") from error

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
            raise _refused(error, f"mapping {pages} pages") from error
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
        try:
            # The pin is taken after the right to write: who becomes the writer finds every view of those before.
            if not readonly:
                self._writer = WriterLock(system, _reopen(system, data, os.O_RDWR, path), path, data)
            mode = os.O_RDONLY if readonly else os.O_RDWR
            self._pin = PinLock(system, _reopen(system, data, mode, path))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, Error):
                raise _refused(error, f"locking {path}") from error
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
            line = b"mmlsm writer pid %d\n" % os.getpid()
            with contextlib.suppress(OSError):
                _write_all(self._system.pwrite, self._data.fd, line.ljust(HOLDER_BYTES, b"\0"), HOLDER_OFFSET)

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
        raise _refused(error, f"opening {shown}") from error
    file = DiskFile(system, data, shown, readonly)
    try:
        if image is not None:
            file._fill_if_blank(image)
        if accept is not None:
            accept(file.pread(0, HEADER_PAGES * PAGE_BYTES))
        if not readonly:
            # Whoever made the file may have been killed before its name was durable: each writer sees to it.
            directory_sync(os.path.realpath(shown.parent if not shown.is_symlink() else shown.resolve().parent), system)
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
        if error.errno not in _UNSUPPORTED | {errno.EINVAL, errno.EACCES, errno.EPERM}:
            raise _refused(error, f"making the name of the database in {path} durable") from error


def _open_or_create(
    system: System, shown: Path, readonly: bool, first_image: Callable[[], bytes] | None
) -> Descriptor:
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
        _write_all(system.pwrite, unnamed.fd, image, 0)
        system.sync(unnamed.fd)
        try:
            system.link(unnamed.fd, last, directory.fd)
            system.sync_directory(directory.fd)
            return
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED | {errno.EPERM, errno.EXDEV, errno.ENOENT, errno.EINVAL}:
                raise
    # No unnamed files here: begin with an empty one, which the writer fills in place.
    with contextlib.suppress(FileExistsError):
        Descriptor(system, system.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)).close()
