"""A value as a readable, seekable stream that never holds more of it than one chunk.

One thread at a time reads a stream. It holds the state that it was read from, so the value stays in place.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, BinaryIO

from mmlsm.format.manifest import Reference
from mmlsm.read.pages import read_chunks, read_sums

if TYPE_CHECKING:
    from mmlsm.read.reader import ReadState


def open_payload(state: ReadState, value: bytes | Reference, segment_id: int | None = None) -> BinaryIO:
    """A stream over a value that is at hand or in an overflow extent; `segment_id` is for errors."""
    if isinstance(value, Reference):
        return io.BufferedReader(PayloadStream(state, value, segment_id), 65536)
    return io.BytesIO(value)


class PayloadStream(io.RawIOBase):
    """Reads an overflow extent chunk by chunk, each proved by its sum."""

    def __init__(self, state: ReadState, reference: Reference, segment_id: int | None) -> None:
        self._state = state
        self._reference = reference
        self._segment_id = segment_id
        self._at = 0
        self._never = state.verify == "never"
        self._sums = () if self._never else read_sums(state.file, reference, segment_id)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(f"whence={whence!r}: choose one of 0, 1, 2")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reference.length}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}: before the value's beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._reference.length)
        filled = 0
        if self._at < stop:
            file, never, segment_id = self._state.file, self._never, self._segment_id
            for chunk in read_chunks(file, self._reference, self._at, stop, never, segment_id, self._sums):
                view[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        self._at += filled
        return filled
