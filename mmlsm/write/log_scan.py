"""Reading a log back after a crash: every commit that the chain from a position verifies, and nothing else.

One thread, before anything is written to the file.

I1. The scan ends at the first record that does not verify: the torn tail, or bytes of another life of the extent. Its
    commits are a prefix of those that were appended, each whole.
I2. It is total: damage ends it, at a cost within the size of the file. Only a record whose sums are right and whose
    kind is unknown is refused (FormatError, R5); and what cannot be read at all is a StorageError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from mmlsm import limits
from mmlsm.errors import CorruptionError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.format.superblock import LogPosition
from mmlsm.space.extents import Extent
from mmlsm.write import log_record
from mmlsm.write.log_record import COMMIT_RECORD, HEADER_BYTES, Header

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.write.log_record import Value

PAGE: Final = limits.PAGE_BYTES
READ_BYTES: Final = 1 << 20


class Commit(NamedTuple):
    """One commit read back; `position` is where the record after it is expected."""

    seq: int
    items: list[tuple[bytes, Value]]
    position: LogPosition


class LogScan(Iterator[Commit]):
    """An iterator of the commits from `position` on. While it goes on and after, `position` is where it stands.

    `extents`: those seen, in order, the one it began in included, each as far as the file goes: a link can outlive the
    growth that it was written for, where nothing was synced; `seq`: the last commit's; `ended`: why it stopped.
    """

    def __init__(
        self, file: File, position: LogPosition, check_reference: Callable[[Reference], bool] | None, seq: int = 0
    ) -> None:
        self.position = position
        self.seq = seq
        self.extents: list[Extent] = []
        self.ended = ""
        self._file = file
        self._check_reference = check_reference
        self._block = b""
        self._block_at = 0
        if position.page:
            self._file_bytes = file.bytes
            self._note(Extent(position.page, position.pages))
        else:
            self.ended = "there is no log"

    def look_again(self) -> None:
        """Go on where it ended, with what the file has there by now."""
        self.ended, self._block, self._file_bytes = "", b"", self._file.bytes

    def skip_to(self, position: LogPosition) -> None:
        """Go on there, whatever the chain does not lead to; commits are later ones all the same."""
        self.position = position
        self.look_again()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Commit:
        while not self.ended:
            record = self._record()
            if record is None:
                break
            header, payload = record
            log_record.refuse_unknown(header)
            if header.kind == COMMIT_RECORD:
                commit = self._commit(header, payload)
                if commit is None:
                    break
                return commit
            self._follow(header, payload)
        raise StopIteration

    def _commit(self, header: Header, payload: bytes) -> Commit | None:
        if not self.seq < header.seq <= limits.NUMBER_MAX:
            self.ended = "a commit's number does not follow the one before"
            return None
        try:
            items = log_record.decode_commit(payload)
        except CorruptionError as error:
            self.ended = str(error)
            return None
        if self._check_reference is not None:
            for _, value in items:
                if isinstance(value, Reference) and not self._check_reference(value):
                    self.ended = f"commit {header.seq} names a value that did not reach the disk"
                    return None
        offset = self.position.offset + HEADER_BYTES + header.length
        self.position = self.position._replace(offset=offset, predecessor=header.sum)
        self.seq = header.seq
        return Commit(header.seq, items, self.position)

    def _follow(self, header: Header, payload: bytes) -> None:
        link = log_record.decode_link(payload)
        if link is None:
            self.ended = "a link is damaged"
            return
        extent = Extent(*link)
        self._note(extent)
        self.position = LogPosition(
            extent.first, extent.count, extent.first * PAGE, self.position.epoch, header.sum
        )

    def _note(self, extent: Extent) -> None:
        there = min(extent.count, self._file_bytes // PAGE - extent.first)
        if there > 0:
            self.extents.append(Extent(extent.first, there))

    def _record(self) -> tuple[Header, bytes] | None:
        """The record at `position`, verified; None after the last."""
        at = self.position
        left = min((at.page + at.pages) * PAGE, self._file_bytes) - at.offset
        header = log_record.decode_header(self._read(HEADER_BYTES), 0) if left >= HEADER_BYTES else None
        if header is None:
            self.ended = "no record"
            return None
        if header.epoch != at.epoch or header.predecessor != at.predecessor:
            self.ended = "a record of another life of the extent"
            return None
        if header.length > left - HEADER_BYTES:
            self.ended = "a record that is longer than its extent"
            return None
        payload = self._read(HEADER_BYTES + header.length)[HEADER_BYTES:]
        if len(payload) < header.length or checksum(payload) != header.payload_sum:
            self.ended = "a torn record"
            return None
        return header, payload

    def _read(self, length: int) -> bytes:
        """`length` bytes at `position`, fewer at the end of the file; read in large blocks."""
        offset = self.position.offset
        start = offset - self._block_at
        if not 0 <= start <= len(self._block) - length:
            extent_end = (self.position.page + self.position.pages) * PAGE
            self._block = self._file.pread(offset, max(length, min(READ_BYTES, extent_end - offset)))
            self._block_at, start = offset, 0
        return self._block[start : start + length]


def scan_log(
    file: File, position: LogPosition, check_reference: Callable[[Reference], bool] | None = None, seq: int = 0
) -> LogScan:
    """Read the log from `position` on; commits must be later than `seq`.

    `check_reference` tells whether an overflow value that a commit names is sound on disk; where it is not, the log
    ends before that commit (R2).
    """
    return LogScan(file, position, check_reference, seq)
