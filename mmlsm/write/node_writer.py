"""Where finished nodes go: reservations of many pages at a time, filled in order and written in large pieces.

One thread owns a NodeWriter, for one segment.

I1. Every page written lies in an extent of `reserved` or in the open `run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.space.extents import Extent

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.space.allocator import Allocator

RESERVE_PAGES = 512
WRITE_BYTES = 1 << 20

SYNC_BYTES = 32 << 20
"""So much is written before it is synced: who syncs the file beside a long merge waits for no more than this."""

NO_RUN = Extent(0, 0)


class NodeWriter:
    """`reserved` are the segment's extents so far, overflow extents and filter too; `bytes_written` all their bytes.

    `early`: in the earliest free pages, whatever the policy.
    """

    def __init__(self, channel: Channel, allocator: Allocator, early: bool = False) -> None:
        self.channel = channel
        self.allocator = allocator
        self.early = early
        self.reserved: list[Extent] = []
        self.run = Extent(0, 0)
        self.run_used = 0
        self.pending = bytearray()
        self.bytes_written = self.synced = 0

    def keep(self, extent: Extent) -> None:
        """An extent that somebody else has reserved and written."""
        self.reserved.append(extent)
        self.bytes_written += extent.count * limits.PAGE_BYTES

    def place(self, data: memoryview | bytes) -> int:
        """The page number at which `data` will stand; written when its reservation is full."""
        pages = len(data) // limits.PAGE_BYTES
        if self.run_used + pages > self.run.count:
            self.write_pending()
            self.return_rest()
            self.run = self.allocator.reserve_up_to(RESERVE_PAGES, pages, early=self.early)
            self.run_used = 0
        first = self.run.first + self.run_used
        self.run_used += pages
        self.pending += data
        if len(self.pending) >= WRITE_BYTES:
            self.write_pending()
        return first

    def write_pending(self) -> None:
        """Write what has been placed in the current reservation and not yet written."""
        if self.pending:
            offset = (self.run.first + self.run_used) * limits.PAGE_BYTES - len(self.pending)
            self.channel.pwrite(offset, self.pending)
            self.bytes_written += len(self.pending)
            self.pending = bytearray()
            if self.bytes_written - self.synced >= SYNC_BYTES:
                self.channel.sync()
                self.synced = self.bytes_written

    def return_rest(self) -> None:
        """Close the current reservation: keep what was used, give the rest back."""
        run, used = self.run, self.run_used
        kept, rest = Extent(run.first, used), Extent(run.first + used, run.count - used)
        if used and self.reserved[-1:] != [kept]:  # or this was cut off right behind it, and is done again
            self.reserved.append(kept)
        self.run, self.run_used = NO_RUN, 0  # before the rest goes, which is then never given back twice
        if rest.count:
            self.allocator.give_back(rest)

    def finish(self) -> None:
        """Write all that was placed; give the rest of the reservation back."""
        self.write_pending()
        self.return_rest()

    def abandon(self) -> None:
        """Give back every page."""
        self.pending = bytearray()
        self.return_rest()
        while self.reserved:
            self.allocator.give_back(self.reserved[-1])
            self.reserved.pop()
