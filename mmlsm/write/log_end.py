"""Where a log ends: is that all, or does something stand behind it that a crash or damage has cut off?

One thread. A torn tail is what a crash leaves, and looks like damage: nobody can tell the two apart afterwards. What
can be told is whether there is anything at all behind the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmlsm import limits
from mmlsm.write.log_record import HEADER, HEADER_BYTES, Header, decode_header

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.format.superblock import LogPosition
    from mmlsm.write.log_scan import LogScan

BLOCK: Final = 1 << 20


def cut_off(file: File, scan: LogScan) -> str | None:
    """What stands behind the end of a scan that has ended, as a sentence; None where there is nothing of this log."""
    position = scan.position
    if not position.page:
        return None
    page = position.offset // limits.PAGE_BYTES
    later = later_record(file, scan)
    if later is not None:
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


def later_record(file: File, scan: LogScan) -> Header | None:
    """The first whole header of a later commit in what is left of the extent where the scan ended."""
    position = scan.position
    mark = position.epoch.to_bytes(8, "little")
    end = (position.page + position.pages) * limits.PAGE_BYTES
    at = position.offset
    while at < end:
        data = file.pread(at, min(BLOCK, end - at) + HEADER_BYTES)
        found = data.find(mark)
        while found >= 0:
            header = decode_header(data, found)
            if header is not None and header.seq > scan.seq:
                return header
            found = data.find(mark, found + 1)
        if len(data) < BLOCK:
            break
        at += BLOCK
    return None
