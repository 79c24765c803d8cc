"""The standard streams of a command: closed before its start, of a narrow encoding, without an end, gone in the middle,
not willing to wait.

One thread.

I1. What standard output cannot take is an OSError, never nothing; where a command prints nothing, none is missed.
I2. Nothing of standard input is passed over: where it has nothing yet, and does not wait, it is waited for.
I3. Text loses nothing: a character that an encoding does not have is shown as its UTF-8 bytes, as output.text_of does.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import select
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final

from mmlsm.cli.arguments import UsageError
from mmlsm.file import SYSTEM
from mmlsm.format.superblock import MAGIC

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BY_BYTES: Final = "mmlsm-by-bytes"

LINE_BYTES_MOST = 256 << 20
"""What is read whole into memory: a line without its end, a value in hexadecimal."""


class ClosedOutput(io.RawIOBase):
    """In the place of a standard output that was closed: whoever prints learns of it."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


class PatientInput(io.RawIOBase):
    """What a stream has, also where its descriptor does not wait: there Python's streams show an end that is none.

    The descriptor is left as it is, for other processes may have it too.
    """

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def readinto(self, buffer: WriteableBuffer) -> int:
        while (count := self.stream.readinto1(buffer)) is None:
            asked = select.poll()
            asked.register(self.stream.fileno(), select.POLLIN)
            asked.poll()
        return count


def by_bytes(error: UnicodeError) -> tuple[str, int]:
    """Of characters that cannot be encoded each byte in hexadecimal; for the codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    data = error.object[error.start : error.end].encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in data), error.end


codecs.register_error(BY_BYTES, by_bytes)


def prepare() -> None:
    """Have a standard output and error, whatever there was, that take all text."""
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(ClosedOutput()), "utf-8")
    if sys.stderr is None:
        sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors=BY_BYTES)


def refuse_database(target: Path, database: str) -> None:
    """UsageError where what would be written over is a database."""
    if not target.exists():
        return
    if Path(database).exists() and target.samefile(database):
        raise UsageError(f"{target} is the database itself")
    if target.is_file():
        with target.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                raise UsageError(f"{target} is a database, and is not overwritten")


def refuse_own_input(source: IO[bytes], database: str) -> None:
    """UsageError where what would be read is the database: what it is given would make it longer, without an end."""
    try:
        given = SYSTEM.stat(source.fileno())
    except io.UnsupportedOperation:  # no file at all
        return
    path = Path(database)
    if path.exists() and ((there := path.stat()).st_dev, there.st_ino) == (given.st_dev, given.st_ino):
        raise UsageError(f"{database} cannot take what it is to read: the input is the database itself")


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the name when all of it is written, and leaves what was there if that fails."""
    target = target.resolve()
    if target.exists() and not target.is_file():  # a pipe or device takes what comes
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("xb") as file:
            yield file
        if target.exists():
            part.chmod(target.stat().st_mode & 0o7777)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def can_print(text: str) -> bool:
    """Whether standard output has all these characters."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def standard_input() -> BinaryIO:
    """Standard input's bytes; UsageError where it was closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return io.BufferedReader(PatientInput(sys.stdin.buffer))  # type: ignore[arg-type]  # as it is in truth


def forget_output() -> None:
    """Nothing more is to be written, also not at exit: whoever read it has gone, or it cannot be written."""
    with contextlib.suppress(OSError):
        sys.stdout.close()
    sys.stdout = io.StringIO()
