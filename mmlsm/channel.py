"""One thread's own open of a file, for writing and syncing.

A `Channel` belongs to the thread that asked for it. Made by `File.channel`; it calls the operating system only through
the file's `System`.

I1. Bytes are taken whole or not at all as far as the caller can tell: short writes and EINTR are gone on with.
I2. A failed sync is final (R10): it is never retried, it sets the file's `failure`, and each sync, also one that
    succeeds, looks at that before it acknowledges. One that ended for want of memory may have failed as well. The
    failure is noted before any call in which a signal's handler could run and raise something else.
I3. What a signal's handler raises is none of that, and passes as it is: the system has an errno for each refusal, and
    a TimeoutError of a handler has none.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mmlsm.descriptor import Descriptor
from mmlsm.errors import StorageError

if TYPE_CHECKING:
    from mmlsm.file import File

UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
"""Errors that say that there is no such call here, and that nothing was done."""


def refused(error: OSError | MemoryError, doing: str) -> StorageError:
    """What the operating system would not do, with its errno. Raises an error that is not the system's (I3)."""
    if isinstance(error, MemoryError):
        return StorageError(errno.ENOMEM, f"{doing}: no memory")
    if error.errno is None:
        raise error
    return StorageError(error.errno, f"{doing}: {error.strerror or error}")


def write_all(write: Callable[[int, memoryview, int], int], fd: int, data: Any, offset: int) -> None:
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


class Channel:
    """One thread's own open of a file, for writing and syncing (R10). Made by `File.channel`."""

    def __init__(self, file: File, descriptor: Descriptor) -> None:
        self._file = file
        self._descriptor = descriptor
        self._system = file.system

    def pwrite(self, offset: int, data: Any) -> None:
        """Hand all of `data` (bytes-like) to the operating system; StorageError if it does not take it all."""
        self._file.check_writable()
        try:
            write_all(self._system.pwrite, self._descriptor.fd, data, offset)
        except OSError as error:
            raise refused(error, "writing") from error

    def pwrite_durably(self, offset: int, data: Any) -> None:
        """As `pwrite`, and on return the bytes survive power loss. A failure is as final as that of `sync`."""
        file = self._file
        file.check_writable()
        if file.durable_writes:
            try:
                write_all(self._system.pwrite_durably, self._descriptor.fd, data, offset)
            except MemoryError as error:
                file.failure = file.failure or file.cut_off
                raise file.sync_failed(error) from error
            except OSError as error:
                code = error.errno
                if code is None:
                    raise
                if code not in UNSUPPORTED:
                    file.failure = file.failure or file.cut_off
                    raise file.sync_failed(error) from error
                file.durable_writes = False  # not on this kernel or file system: never asked again
            else:
                file.check_failure()
                return
        self.pwrite(offset, data)
        self.sync()

    def sync(self) -> None:
        """All that was written to the file before, by any thread, survives power loss.

        A failure is final (I2): StorageError here, ReadOnlyError for each later write or sync of any channel.
        """
        file = self._file
        file.check_writable()
        try:
            self._system.sync(self._descriptor.fd)
        except MemoryError as error:
            file.failure = file.failure or file.cut_off
            raise file.sync_failed(error) from error
        except OSError as error:
            if error.errno is None:
                raise
            file.failure = file.failure or file.cut_off
            raise file.sync_failed(error) from error
        file.check_failure()

    def close(self) -> None:
        """Give up this open. Syncs nothing."""
        self._descriptor.close()
