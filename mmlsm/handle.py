"""One open database file: its size, bytes, maps and locks, on disk or in memory.

Any thread may call a `File`; a `Channel` belongs to the thread that asked for it. Nothing here knows what is in a page,
and nothing here calls the operating system but through the `System` of file.py, which also makes the files.

I1. Each syncing thread has its own open of the file, and looks at `File.failure` after its own sync (R10): the kernel
    reports a writeback error once per open, so another thread's sync may have been told what ours was not.
I2. `failure` is set by the first failed sync and never cleared; from then on nothing more is written or synced.
I3. The writer lock goes at `close()`; the pin lock with the last reference to `File.pin` (R13).
I4. A descriptor that reads or maps is closed when the last reference goes. `close()` gives up the file's own, and who
    is about to use the number holds one, so that it is not given to another file meanwhile.
I5. Maps are read-only, never remapped or resized; larger ones are made beside them.
"""

from __future__ import annotations

import abc
import builtins
import contextlib
import errno
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mmlsm import memory
from mmlsm.channel import UNSUPPORTED, Channel, refused, write_all
from mmlsm.descriptor import HOLDER_OFFSET, Descriptor, PinLock, WriterLock, forked_in_child, holder_line, no_fork
from mmlsm.errors import ClosedError, CorruptionError, Error, ForkError, ReadOnlyError, StorageError
from mmlsm.limits import FILE_PAGES_MAX, HEADER_PAGES, PAGE_BYTES
from mmlsm.locks import new_lock

if TYPE_CHECKING:
    from mmlsm.file import PinnedMap, System

WINDOW_BYTES: Final = 64 << 30
"""Address space of a compiled window to begin with."""

_BLANK_BYTES_MAX: Final = 1 << 20

_Map = TypeVar("_Map")

_files: weakref.WeakSet[File] = weakref.WeakSet()


def after_fork_in_child() -> None:
    """The child gives up what is the parent's: nothing is written, flushed or unlocked (promise 11)."""
    forked_in_child()
    inherited = list(_files)
    for file in inherited:
        file.forked = True
    for file in inherited:
        file.tell_forked()


class File(abc.ABC):
    """One open database file, or its like in memory: `open_file`, `open_memory`."""

    def __init__(self, system: System, data: Descriptor, path: Path | None, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self.failure: StorageError | None = None
        self.cut_off: Final = StorageError(errno.EIO, "a sync or an install was cut off")
        self.cut_off.__cause__ = MemoryError("no memory to say more")
        self.forked = False
        self.closed = False
        self.durable_writes = True
        """False once the system has refused single durable writes."""
        self.system = system
        self._data = data
        self._guard = new_lock()  # of rank 70: making windows, noting a failure
        self._window: memory.Window | None = None
        self._windows: list[weakref.ref[memory.Window]] = []
        self._fork_callbacks: list[Callable[[], Callable[[], object] | None]] = []
        _files.add(self)

    # -- state

    def check(self) -> None:
        """ForkError in a forked child, ClosedError after `close`."""
        self.check_not_forked()
        if self.closed:
            raise ClosedError("the file is closed")

    def check_not_forked(self) -> None:
        """ForkError in a forked child."""
        if self.forked:
            raise ForkError("this database was opened before the fork; open it anew in the child")

    def check_writable(self) -> None:
        """As `check`, and ReadOnlyError when it was opened so or has become so by a failed sync."""
        self.check()
        if self.readonly:
            raise ReadOnlyError("the database is open read-only")
        self.check_failure()

    def check_failure(self) -> None:
        """ReadOnlyError when a sync of any thread has failed."""
        if self.failure is not None:
            raise ReadOnlyError(
                f"an earlier sync failed ({self.failure.__cause__}), so the database is read-only until it is reopened"
            )

    def sync_failed(self, error: OSError | MemoryError) -> StorageError:
        """Note the failure for every thread (I2); what the thread that met it is to raise."""
        failure = refused(
            error,
            "a sync failed: whether the commits that it covered survive is unknown until the database is reopened, "
            "and it is read-only until then",
        )
        failure.__cause__ = error
        with self._guard:
            if self.failure is None or self.failure is self.cut_off:
                self.failure = failure
        return failure

    def on_fork(self, callback: Callable[[], object]) -> None:
        """Call this in each forked child. A bound method is held weakly. It must not do I/O or take locks."""
        bound = getattr(callback, "__self__", None) is not None
        self._fork_callbacks.append(weakref.WeakMethod(callback) if bound else lambda: callback)

    def tell_forked(self) -> None:
        for reference in self._fork_callbacks:
            if callback := reference():
                callback()

    # -- size

    @property
    def bytes(self) -> int:
        """Size of the file now."""
        data = self._held()
        try:
            return self.system.stat(data.fd).st_size
        except OSError as error:
            raise refused(error, "asking for the file's size") from error

    @property
    def pages(self) -> int:
        """Whole pages of the file now."""
        return self.bytes // PAGE_BYTES

    def resize(self, pages: int) -> None:
        """Make the file this many pages long, shorter or longer; new pages read as zeros."""
        self.check_writable()
        if pages > FILE_PAGES_MAX:
            raise StorageError(errno.EFBIG, f"a database has at most {FILE_PAGES_MAX} pages (16 TiB)")
        length = pages * PAGE_BYTES
        self._call(f"making the file {pages} pages long", lambda fd: self.system.truncate(fd, length))

    def preallocate(self, first: int, pages: int) -> None:
        """Later writes to these pages cannot meet ENOSPC. What they hold is kept or becomes zeros."""
        self.check_writable()
        if not pages:
            return
        offset, length = first * PAGE_BYTES, pages * PAGE_BYTES
        doing = f"reserving {length} bytes of disk space"
        try:
            self._call(doing, lambda fd: self.system.allocate(fd, offset, length))
        except StorageError as error:
            if error.errno not in UNSUPPORTED:
                raise
            zeros = bytes(min(length, 1 << 20))
            for at in range(offset, offset + length, len(zeros)):
                piece = zeros[: offset + length - at]

                def write(fd: int, piece: builtins.bytes = piece, at: int = at) -> None:
                    write_all(self.system.pwrite, fd, piece, at)

                self._call(doing, write)

    def _held(self) -> Descriptor:
        """The descriptor, to be referred to for as long as its number is used (I4)."""
        data = self._data
        self.check()
        return data

    def _call(self, doing: str, call: Callable[[int], None]) -> None:
        data = self._held()
        while True:
            try:
                return call(data.fd)
            except InterruptedError:
                continue
            except OSError as error:
                raise refused(error, doing) from error

    # -- bytes

    def pread(self, offset: int, length: int) -> builtins.bytes:
        """`length` bytes from `offset` on, fewer only at the end of the file. The interpreter is free meanwhile.

        StorageError where the medium cannot be read. No memory is taken for bytes that the file does not have.
        """
        data = self._held()
        if length > 1 << 20 or offset >= 1 << 60:  # lengths and places that come from damaged bytes
            length = min(length, max(0, self.bytes - offset))
            if not length:
                return b""
        pieces: list[builtins.bytes] = []
        while length > 0:
            try:
                piece = self.system.pread(data.fd, length, offset)
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

    def drop_cached(self, offset: int, length: int) -> None:
        """Read what is there on the medium from now on: a failed sync may have left something else in the cache, as if
        it had been written. That is advice to the system, which pages that somebody maps need not follow."""
        data = self._held()
        with contextlib.suppress(OSError):
            self.system.drop_cached(data.fd, offset, length)

    def channel(self) -> Channel:
        """A new open of the file for the calling thread's writes and syncs."""
        self.check_writable()
        data = self._held()
        try:
            fd = self.system.reopen(data.fd, self.path, readonly=False)
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

    def whole_window(self) -> memory.Window:
        """A map of all pages that the file has. It may be cut meanwhile, but never off a page that is in use."""
        while True:
            pages = self.pages
            try:
                return self.window(pages)
            except CorruptionError:
                if self.pages >= pages:
                    raise

    def _new_window(self, pages: int) -> memory.Window:
        try:
            if not memory.COMPILED:
                return memory.Window.over(self._map_all(pages, self.system.map))
            self._check_there(pages)
            return self._reserve_window(pages * PAGE_BYTES)
        except OSError as error:
            raise refused(error, f"mapping {pages} pages") from error

    def _map_all(self, pages: int, call: Callable[..., _Map], *arguments: Any) -> _Map:
        """A map of the whole file, which has at least that many pages."""
        data = self._held()
        while True:
            there = self._check_there(pages)
            try:
                return call(data.fd, there * PAGE_BYTES, *arguments)
            except ValueError:  # it was cut since we looked, so look again
                if self.pages == there:
                    raise

    def _reserve_window(self, least_bytes: int) -> memory.Window:
        data, length = self._held(), WINDOW_BYTES
        while length < least_bytes:
            length *= 2
        while True:
            try:
                return memory.Window.reserve(data.fd, length)
            except (OSError, MemoryError) as error:
                # A limit on address space: be content with less, down to what is asked and some room to grow.
                refused = isinstance(error, OSError) and error.errno != errno.ENOMEM
                if refused or length <= least_bytes:
                    raise
                length = max(length // 2, least_bytes)

    def pinned_map(self, pages: int, owner: object) -> PinnedMap:
        """A map of its own, of at least the first `pages` pages; it and every slice of it keep `owner` alive."""
        self.check()
        try:
            return self._map_all(pages, self.system.pinned_map, owner)
        except OSError as error:
            raise refused(error, f"mapping {pages} pages") from error

    def _check_there(self, pages: int) -> int:
        there = self.pages
        if not 0 < pages <= there:
            raise CorruptionError(f"page {pages - 1} is wanted but the file has {there} pages", page=pages - 1)
        return there

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
        self._data = Descriptor(self.system, -1)


class DiskFile(File):
    """A named file, with its locks."""

    def __init__(self, system: System, data: Descriptor, path: Path, readonly: bool) -> None:
        super().__init__(system, data, path, readonly)
        self._writer: WriterLock | None = None
        self._pin: PinLock | None = None
        try:
            with no_fork:
                # The writer lock first: who has it finds, in the pin lock, every view of the writers before.
                if not readonly:
                    self._writer = WriterLock(system, system.reopen(data.fd, path, readonly=False), path, data)
                self._pin = PinLock(system, system.reopen(data.fd, path, readonly=readonly))
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

    def announce(self) -> None:
        """Leave our pid for the LockedError of others. Advisory: no sum, no sync, and no harm if it fails."""
        if self.pages >= HEADER_PAGES:
            data = self._held()
            with contextlib.suppress(OSError):
                write_all(self.system.pwrite, data.fd, holder_line(self.system.process_id()), HOLDER_OFFSET)

    def fill_if_blank(self, first_image: Callable[[], builtins.bytes]) -> None:
        """Make an empty file a database in place (I2 of file.py): first only zeros are there, then page 0, then all."""
        size = self.bytes
        if size > _BLANK_BYTES_MAX or not self._is_blank(min(size, PAGE_BYTES)) or not self._is_blank(size):
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

    def _is_blank(self, length: int) -> bool:
        """Whether there are only zeros before this place."""
        data = self.pread(0, length)
        return data == bytes(len(data))


class MemoryFile(File):
    """A file without a name, a lock or a life after the process."""

    @property
    def pin(self) -> object:
        self.check()
        return self._data

    def pins_elsewhere(self) -> bool:
        self.check()
        return False
