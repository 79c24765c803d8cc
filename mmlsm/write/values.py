"""What a caller gives as a value becomes bytes or, when it is large or a stream, an overflow extent.

Any committing thread. An extent is written before its commit is ordered, and synced before a `full` commit's record
is written (R2); until then it is a reservation that the owner of the transaction gives back if it comes to nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mmlsm import limits
from mmlsm.format.manifest import Reference
from mmlsm.read.reader import as_value
from mmlsm.space.extents import Extent
from mmlsm.write.overflow import write_extent, write_stream

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.space.allocator import Allocator


class ValueWriter:
    """Writes large values ahead of their commits."""

    def __init__(self, file: File, channel: Channel, allocator: Allocator) -> None:
        self.file = file
        self.channel = channel
        self.allocator = allocator
        self.closed = False
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
            return write_stream(self.file, self.channel, self.allocator, value)
        data = as_value(value)
        if len(data) < limits.LARGE_VALUE_BYTES:
            return data
        return write_extent(self.channel, self.allocator, data)

    def give_back(self, value: object) -> None:
        """The value came to nothing: its extent, if it has one, is free again."""
        if isinstance(value, Reference) and not self.closed:
            self.allocator.give_back(Extent(value.page, value.pages))

    def sync(self) -> None:
        """Make what was written so far durable."""
        self.channel.sync()
