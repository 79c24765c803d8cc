"""The standard streams of a command: closed before its start, gone in the middle.

One thread.

I1. What standard output cannot take is an OSError, never nothing; where a command prints nothing, none is missed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from typing import BinaryIO

from mmlsm.cli.arguments import UsageError


class ClosedOutput(io.RawIOBase):
    """In the place of a standard output that was closed: whoever prints learns of it."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


def prepare() -> None:
    """Have a standard output and error, whatever there was."""
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(ClosedOutput()), "utf-8")
    if sys.stderr is None:
        sys.stderr = open("/dev/null", "w")  # noqa: SIM115


def standard_input() -> BinaryIO:
    """Standard input's bytes; UsageError where it was closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return sys.stdin.buffer


def forget_output() -> None:
    """Nothing more is to be written, also not at exit: whoever read it has gone, or it cannot be written."""
    with contextlib.suppress(OSError):
        sys.stdout.close()
    sys.stdout = io.StringIO()
