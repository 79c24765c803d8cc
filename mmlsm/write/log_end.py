"""Where a log ends: is that all, or does something stand behind it that a crash or damage has cut off?

One thread. A torn tail is what a crash leaves, and looks like damage. What tells the two apart are records behind it,
for each says what was durable before it was made: no crash takes that.

I1. What `durable_behind` finds was durable: a record of this epoch whose sum is right says so, and its commits are not
    in segments, for those are of a superblock whose log begins behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from mmlsm import limits
from mmlsm.errors import CorruptionError
from mmlsm.write.log_record import HEADER, HEADER_BYTES, Header, decode_header

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.format.superblock import LogPosition
    from mmlsm.space.bitmap import Bitmap
    from mmlsm.write.log_scan import Commit, LogScan

PAGE: Final = limits.PAGE_BYTES
BLOCK: Final = 1 << 20


def whole_log(file: File, scan: LogScan, bits: Bitmap) -> Iterator[Commit]:
    """The commits of the scan. CorruptionError where it ends before one that was durable.

    It looks twice before it says so: beside a writer in another process the end may have been looked at before the
    records behind it. `bits`: the manifest's pages, among which the log is not. Cost beside the scan's: what is left
    of its last extent, and where a part of a record stands at its end, 64 bytes of each free page.
    """
    yield from scan
    while (lost := durable_behind(file, scan, bits)) is not None:
        seq, why = scan.seq, scan.ended
        scan.look_again()
        yield from scan
        if scan.seq == seq:
            page = scan.position.offset // PAGE
            raise CorruptionError(
                f"page {page}: the log is damaged behind commit {seq} ({why}), and commits up to {lost} were durable; "
                "restore a backup, or salvage what is sound",
                page=page,
            )


def durable_behind(file: File, scan: LogScan, bits: Bitmap) -> int | None:
    """A commit behind the end of a scan that was durable, as a record made after it says; None: none says so."""
    position = scan.position
    if not position.page:
        return None
    records = later_records(file, scan)
    if is_part(file.pread(position.offset, HEADER_BYTES), position):  # perhaps of a link
        records = chain(records, extents_elsewhere(file, bits))
    for _, header in records:
        if header.epoch == position.epoch and header.durable > scan.seq:
            return header.durable
    return None


def cut_off(file: File, scan: LogScan) -> str | None:
    """What stands behind the end of a scan that has ended, as a sentence; None where there is nothing of this log."""
    position = scan.position
    if not position.page:
        return None
    page = position.offset // PAGE
    for _, later in later_records(file, scan):
        return f"page {page}: the log breaks off after commit {scan.seq}, but has commit {later.seq} behind that"
    if file.pages < position.page + position.pages:
        return f"page {page}: the log goes on after commit {scan.seq} where the file ends"
    if is_part(file.pread(position.offset, HEADER_BYTES), position):
        return f"page {page}: the log breaks off after commit {scan.seq}, in the middle of a record"
    return None


def is_part(data: bytes, position: LogPosition) -> bool:
    """Whether a header that is not the expected one has something of it."""
    if len(data) < HEADER_BYTES:
        return False
    header = Header._make(HEADER.unpack(data))
    if header.epoch == position.epoch or (position.predecessor and header.predecessor == position.predecessor):
        return True
    mended = HEADER.pack(*header._replace(epoch=position.epoch, predecessor=position.predecessor))
    return decode_header(mended, 0) is not None


def later_records(file: File, scan: LogScan) -> Iterator[tuple[int, Header]]:
    """(file offset, header) of the whole headers of later commits in the extent where the scan ended, from there on."""
    position = scan.position
    mark = position.epoch.to_bytes(8, "little")
    end = min((position.page + position.pages) * PAGE, file.bytes)
    for at in range(position.offset, end, BLOCK):
        data = file.pread(at, min(BLOCK + HEADER_BYTES, end - at))
        found = data.find(mark)
        while 0 <= found < BLOCK:
            header = decode_header(data, found)
            if header is not None and header.seq > scan.seq:
                yield at + found, header
            found = data.find(mark, found + 1)


def extents_elsewhere(file: File, bits: Bitmap) -> Iterator[tuple[int, Header]]:
    """(file offset, header) of the whole headers that begin a page which the manifest does not hold.

    Among them are those of the extents that links led to.
    """
    end, pages = 0, file.pages
    for first, count in chain(bits.extents(), [(pages, 0)]):
        for page in range(end, min(first, pages)):
            header = decode_header(file.pread(page * PAGE, HEADER_BYTES), 0)
            if header is not None:
                yield page * PAGE, header
        end = first + count
