"""What a caller gives as a value becomes bytes or, when it is large or a stream, an overflow extent.

Any committing thread. An extent is written before its commit is ordered, and synced before a `full` commit's record
is written (R2); until then it is a reservation that the owner of the transaction gives back if it comes to nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mmlsm import limits
from mmlsm.errors import ClosedError
from mmlsm.format.manifest import Reference
from mmlsm.read.reader import as_value
from mmlsm.space.extents import Extent
from mmlsm.write.overflow import write_extent, write_stream

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.space.allocator import Allocator


class Gate:
    """The channel and the allocator as value writers see them: shut at close, when nothing may be written any more."""

    def __init__(self, channel: Channel, allocator: Allocator) -> None:
        self.channel = channel
        self.allocator = allocator
        self.lock = threading.Condition()
        # guarded by lock
        self.shut = False
        self.writing = 0

    def close(self) -> None:
        """Let nobody in any more, and wait for the writes under way."""
        with self.lock:
            self.shut = True
            while self.writing:
                self.lock.wait()

    def check(self) -> None:
        """ClosedError once shut. REQUIRES lock."""
        if self.shut:
            raise ClosedError("the database was closed while a value was written: open it again")

    def pwrite(self, offset: int, data: bytes) -> None:
        """As Channel.pwrite."""
        with self.lock:
            self.check()
            self.writing += 1
        try:
            self.channel.pwrite(offset, data)
        finally:
            with self.lock:
                self.writing -= 1
                self.lock.notify_all()

    def reserve(self, count: int) -> Extent:
        """As Allocator.reserve."""
        with self.lock:
            self.check()
            return self.allocator.reserve(count)

    def extend(self, extent: Extent, count: int) -> Extent | None:
        """As Allocator.extend."""
        with self.lock:
            self.check()
            return self.allocator.extend(extent, count)

    def give_back(self, extent: tuple[int, int]) -> None:
        """As Allocator.give_back; nothing once shut, for close gives everything back."""
        with self.lock:
            if not self.shut:
                self.allocator.give_back(extent)


class ValueWriter:
    """Writes large values ahead of their commits."""

    def __init__(self, file: File, channel: Channel, allocator: Allocator) -> None:
        self.file = file
        self.gate = Gate(channel, allocator)
        self.abandoned: SimpleQueue[list[Reference]] = SimpleQueue()

    def abandon(self, values: Iterable[object]) -> None:
        """For finalisers, which take no lock (R12): the extents among these come back at the next `drain`."""
        large = [value for value in values if isinstance(value, Reference)]
        if large:
            self.abandoned.put(large)

    def drain(self) -> None:
        """Give back what finalisers abandoned."""
        with contextlib.suppress(Empty):
            while True:
                for reference in self.abandoned.get_nowait():
                    self.give_back(reference)

    def take(self, value: Any) -> bytes | Reference:
        """`value`, bytes-like or a readable binary stream, as a memtable keeps it."""
        if type(value) is bytes and len(value) < limits.LARGE_VALUE_BYTES:
            return value
        self.drain()
        if hasattr(value, "read"):
            return write_stream(self.file, self.gate, self.gate, value)
        data = as_value(value)
        if len(data) < limits.LARGE_VALUE_BYTES:
            return data
        return write_extent(self.gate, self.gate, data)

    def give_back(self, value: object) -> None:
        """The value came to nothing: its extent, if it has one, is free again."""
        if isinstance(value, Reference):
            self.gate.give_back(Extent(value.page, value.pages))
