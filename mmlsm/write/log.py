"""The log: commits in extents of their own until their memtable is flushed (docs/format.md, "Log").

`LogWriter` orders records and buffers their bytes; who leads the commit group writes them (write/commit.py). All its
methods are called under the order lock, except `prepare` and `close`, which are the writer thread's.
write/log_scan.py reads a log back.

I1. Every record names the epoch's salt and the sum of the record before it. Bytes of an extent's earlier life, of
    this epoch or another, do not verify at any place that the chain reaches, so they are never replayed (R6).
I2. Each extent keeps LINK_BYTES free behind its last record: the link to the next always fits.
I3. `room` either makes room or raises with nothing changed; `append` after it cannot fail for want of space: the
    extent's blocks are allocated.
I4. All that an append changes hangs on one assignment, of `_state`. An interruption before it leaves bytes behind
    which the next call cuts off.
I5. A record says which commit of this epoch was durable before it was made. So what is missing below that, when the
    log is read back, was damaged, and not cut off by a crash.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from mmlsm import limits
from mmlsm.format.checksum import checksum
from mmlsm.format.superblock import LogPosition
from mmlsm.space.extents import Extent
from mmlsm.write import log_record

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.settings import Settings
    from mmlsm.space.allocator import Allocator

PAGE: Final = limits.PAGE_BYTES
EXTENT_PAGES_FIRST: Final = 16
RECORD_BYTES: Final = log_record.HEADER_BYTES
LINK_BYTES: Final = log_record.LINK_BYTES


def new_epoch() -> int:
    """A salt for a new life of the log, never 0: zeros are not a record."""
    return secrets.randbits(64) or 1


class Segment:
    """Bytes not yet known to be written: `data` belongs at `offset` of the file, and at `start` of the log's bytes."""

    __slots__ = ("data", "offset", "start")

    def __init__(self, offset: int, start: int) -> None:
        self.offset = offset
        self.start = start
        self.data = bytearray()


class State(NamedTuple):
    """Where the log ends. `end` counts all bytes ever appended; `segment` takes the next ones."""

    extent: Extent
    limit: int
    """File offset that a commit must not pass: the extent's end less a link (I2)."""
    offset: int
    predecessor: int
    end: int
    seq: int
    segment: Segment


_make_state: Final[Callable[[tuple[object, ...]], State]] = partial(tuple.__new__, State)  # a third of State's price


class LogWriter:
    """Appends records in a new epoch, from a fresh extent on; StorageError when there is no space for it.

    `seq` is the last commit before. `position` must be in a durable superblock before the first commit (R6).
    """

    def __init__(self, file: File, allocator: Allocator, settings: Settings, epoch: int, seq: int = 0) -> None:
        assert 0 < epoch < 1 << 64
        self.epoch = epoch
        self._file = file
        self._allocator = allocator
        self._pages_most = max(1, settings.log_extent_bytes // PAGE)
        self._pages_next = min(EXTENT_PAGES_FIRST, self._pages_most)
        self._spare: Extent | None = None
        self._segments: list[Segment] = []
        self._seq_before = seq
        self._durable = 0
        extent = self._reserve(0)
        self._extents = [extent]
        self._state: State
        self._begin(extent, 0, 0, seq)

    # -- what others ask

    @property
    def end(self) -> int:
        """Bytes of log ever appended, links included: a clock that commits and writes are compared by."""
        return self._state.end

    @property
    def position(self) -> LogPosition:
        """Where the next record goes."""
        state = self._state
        return LogPosition(state.extent.first, state.extent.count, state.offset, self.epoch, state.predecessor)

    @property
    def unwritten_bytes(self) -> int:
        """Bytes appended and not yet known to be written."""
        return self._state.end - self._segments[0].start

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What the log owns, in the order of the chain: reservations, that their memtable's flush commits and retires.

        What `prepare` keeps ready is not among them.
        """
        return tuple(self._extents)

    @property
    def spare(self) -> tuple[Extent, ...]:
        """What `prepare` keeps ready."""
        spare = self._spare
        return () if spare is None else (spare,)

    # -- appending

    def room(self, length: int) -> None:
        """Make sure that a commit of `length` payload bytes fits, in a new extent if need be (I3)."""
        state = self._state
        if state.offset + RECORD_BYTES + length <= state.limit:
            return
        extent = self._take_spare(length) or self._reserve(length)
        try:
            self._link(extent)
        except BaseException:
            if self._state.extent != extent:
                self._extents = [one for one in self._extents if one != extent]
                self._allocator.give_back(extent)
            raise

    def append(self, payload: bytes, seq: int, payload_sum: int) -> int:
        """Add the commit `seq` to the buffer; where the log then ends. REQUIRES `room`. Again: does nothing."""
        state = self._state
        if state.seq >= seq:
            return state.end
        assert state.offset + RECORD_BYTES + len(payload) <= state.limit, "an append without room"
        header, own = log_record.encode_header(
            self.epoch, seq, state.predecessor, len(payload), log_record.COMMIT_RECORD, payload_sum, self._durable
        )
        data = self._clean(state)
        data += header
        data += payload
        length = RECORD_BYTES + len(payload)
        end = state.end + length
        self._state = _make_state((state.extent, state.limit, state.offset + length, own, end, seq, state.segment))
        return end

    def take(self) -> list[tuple[int, bytearray]]:
        """All that is not known to be written, as (file offset, bytes), in order; it stays until `written`."""
        state = self._state
        if self._clean(state):
            segment = Segment(state.offset, state.end)
            self._segments.append(segment)
            self._state = state._replace(segment=segment)
        return [(segment.offset, segment.data) for segment in self._segments if segment.data]

    def written(self, end: int) -> None:
        """Everything before `end`, which was the log's when it was taken, has been written: forget it."""
        current = self._state.segment
        count = 0
        for segment in self._segments:
            if segment is current or segment.start + len(segment.data) > end:
                break
            count += 1
        del self._segments[:count]

    def synced(self, seq: int) -> None:
        """Everything up to the commit `seq` is durable: the records from now on say so (I5)."""
        if seq > self._seq_before:
            self._durable = seq

    def release_before(self, position: LogPosition) -> list[Extent]:
        """Give up the extents wholly before `position`: the install that retires them calls it (R1)."""
        for i, extent in enumerate(self._extents):
            if extent.first == position.page:
                released = self._extents[:i]
                self._extents = self._extents[i:]
                return released
        raise AssertionError(f"the log has no extent at page {position.page}")

    # -- the writer thread's

    def prepare(self) -> bool:
        """Have the next extent ready when more than half of the current one is used, so that no commit waits for it.

        Called without the order lock, by one thread. StorageError when there is no space; nothing changed then.
        """
        state = self._state
        if self._spare is not None or 2 * state.offset < (2 * state.extent.first + state.extent.count) * PAGE:
            return False
        self._spare = self._reserve(0)
        return True

    def restart(self) -> None:
        """Go on in a small fresh extent, the earliest that is free. StorageError, nothing changed, without space.

        REQUIRES the order lock, on the thread that calls `prepare`.
        """
        self.close()
        before, self._pages_next = self._pages_next, min(EXTENT_PAGES_FIRST, self._pages_most)
        extent = None
        try:
            extent = self._reserve(0, early=True)
            self._link(extent)
        except BaseException:
            self._pages_next = before
            if extent is not None and self._state.extent != extent:
                self._extents = [one for one in self._extents if one != extent]
                self._allocator.give_back(extent)
            raise

    def close(self) -> None:
        """Give back what was prepared. REQUIRES that nobody appends any more."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._allocator.give_back(spare)

    # -- inside

    def _begin(self, extent: Extent, predecessor: int, end: int, seq: int) -> None:
        segment = Segment(extent.first * PAGE, end)
        self._segments.append(segment)
        self._state = State(extent, extent.end * PAGE - LINK_BYTES, segment.offset, predecessor, end, seq, segment)

    def _link(self, extent: Extent) -> None:
        state = self._state
        payload = log_record.encode_link(*extent)
        assert state.offset + LINK_BYTES <= state.extent.end * PAGE, "no room was kept for a link (I2)"
        header, own = log_record.encode_header(
            self.epoch, state.seq, state.predecessor, len(payload), log_record.LINK_RECORD, checksum(payload),
            self._durable,
        )  # fmt: skip
        data = self._clean(state)
        data += header
        data += payload
        self._extents.append(extent)
        self._begin(extent, own, state.end + LINK_BYTES, state.seq)

    def _clean(self, state: State) -> bytearray:
        """The current segment's bytes, without what an interrupted call left (I4)."""
        segments = self._segments
        while segments[-1] is not state.segment:
            segments.pop()
        data = state.segment.data
        if len(data) != state.offset - state.segment.offset:
            del data[state.offset - state.segment.offset :]
        return data

    def _take_spare(self, length: int) -> Extent | None:
        spare = self._spare
        if spare is None or spare.count * PAGE < RECORD_BYTES + length + LINK_BYTES:
            return None
        self._spare = None
        return spare

    def _reserve(self, length: int, *, early: bool = False) -> Extent:
        """An extent for at least one commit of `length` bytes, its blocks allocated (R2); twice the one before."""
        pages = max(self._pages_next, -(-(RECORD_BYTES + length + LINK_BYTES) // PAGE))
        extent = self._allocator.reserve(pages, early=early)
        try:
            self._file.preallocate(extent.first, extent.count)
        except BaseException:
            self._allocator.give_back(extent)
            raise
        self._pages_next = min(2 * self._pages_next, self._pages_most)
        return extent
