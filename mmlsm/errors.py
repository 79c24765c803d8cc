"""Every exception that mmlsm raises on purpose; all derive from `Error`.

Each also derives from the builtin that a caller would expect to catch, and each message says what to do.
"""

from __future__ import annotations


class Error(Exception):
    """Root of all mmlsm exceptions."""


class ClosedError(Error, ValueError):
    """A handle was used after it, or the database behind it, was closed."""


class ForkError(Error, RuntimeError):
    """A handle was used in a forked child; open the database anew there."""


class LockedError(Error, OSError):
    """The file is open for writing elsewhere.

    `pid` is the holder's process id, or None when it cannot be told.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class LockTimeout(Error, TimeoutError):
    """The write lock was not free within the given time."""


class ReadOnlyError(Error, OSError):
    """A write was asked of a handle that is read-only, by choice or after a failed sync."""


class StorageError(Error, OSError):
    """The operating system refused an I/O call; `errno` is kept."""


class CorruptionError(Error):
    """Bytes in the file are not what was written.

    `page` is the page number and `segment` the segment's id, each None where it is not known.
    """

    def __init__(self, message: str, *, page: int | None = None, segment: int | None = None) -> None:
        super().__init__(message)
        self.page = page
        self.segment = segment


class FormatError(Error):
    """The file is not an mmlsm database, or of a version that this program does not know."""


class KeySizeError(Error, ValueError):
    """A key is longer than 65,535 bytes."""


class ConflictError(Error):
    """An optimistic transaction met a change of something it had read or written: `key`."""

    def __init__(self, message: str, key: bytes | None = None) -> None:
        super().__init__(message)
        self.key = key


def without_advice(error: Exception) -> str:
    """What an error's message says is wrong; what to do comes behind a semicolon."""
    return str(error).partition("; ")[0]
