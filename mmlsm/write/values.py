"""What a caller gives as a value becomes bytes or, when it is large or a stream, an overflow extent.

Any committing thread. An extent is written before its commit is ordered, and synced before a `full` commit's record
is written (R2); until then it is a reservation that the owner of the transaction gives back if it comes to nothing.

I1. The birth noted of an extent is no later than any version with which a reader can meet its value (R11). Who reads a
    commit took its state after the commit, so the version that readers got when the value was written, `store.state`'s,
    will do; not the manifest's number, which an install raises before readers get its version. A transaction, and
    cursors over it, read its own writes with the version from its beginning: `since`.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from mmlsm import limits
from mmlsm.errors import ClosedError
from mmlsm.format.manifest import Reference
from mmlsm.locks import new_lock
from mmlsm.read.given import as_value_or_stream
from mmlsm.space.extents import Extent
from mmlsm.write.overflow import write_extent, write_stream

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.space.allocator import Allocator, Claim
    from mmlsm.write.store import Store


class Gate:
    """The channel and the allocator as value writers see them: shut at close, when nothing may be written any more.

    Who writes stands in a set, which is changed by calls that Ctrl-C cannot cut in two.
    """

    def __init__(self, channel: Channel, allocator: Allocator) -> None:
        self.channel = channel
        self.allocator = allocator
        self.lock = new_lock()
        # guarded by lock; who is through leaves without it
        self.shut = False
        self.writing: set[object] = set()

    def close(self) -> None:
        """Let nobody in any more, and wait for the writes under way."""
        with self.lock:
            self.shut = True
        while self.writing:
            time.sleep(0.001)

    def tell_forked(self) -> None:
        """In a forked child: nothing is written or given back; a thread of the parent may have held the lock."""
        self.shut = True
        self.lock = new_lock()

    def check(self) -> None:
        """ClosedError once shut. REQUIRES lock."""
        if self.shut:
            raise ClosedError("the database was closed while a value was written: open it again")

    def pwrite(self, offset: int, data: bytes) -> None:
        """As Channel.pwrite."""
        me = object()
        try:
            with self.lock:
                self.check()
                self.writing.add(me)
            self.channel.pwrite(offset, data)
        finally:
            self.writing.discard(me)

    def reserve(self, count: int, claim: Claim | None = None) -> Extent:
        """As Allocator.reserve."""
        with self.lock:
            self.check()
            return self.allocator.reserve(count, claim)

    def extend(self, extent: Extent, count: int, claim: Claim | None = None) -> Extent | None:
        """As Allocator.extend."""
        with self.lock:
            self.check()
            return self.allocator.extend(extent, count, claim)

    def give_back(self, extent: tuple[int, int], claim: Claim | None = None, left: Extent | None = None) -> None:
        """As Allocator.give_back; nothing once shut, for close gives everything back, or the interpreter's end."""
        if sys.is_finalizing():
            return
        with self.lock:
            if not self.shut:
                self.allocator.give_back(extent, claim, left)


class ValueWriter:
    """Writes large values ahead of their commits."""

    def __init__(self, store: Store, channel: Channel) -> None:
        self.store = store
        self.gate = Gate(channel, store.allocator)
        self.abandoned: SimpleQueue[list[Reference]] = SimpleQueue()
        self.born: int | None = None

    def since(self, install: int) -> Self:
        """The same for one transaction, which reads what it writes with version `install` (I1)."""
        twin = copy.copy(self)
        twin.born = install
        return twin

    def abandon(self, values: Iterable[object]) -> None:
        """For finalisers, which take no lock (R12): the extents among these come back at the next `drain`."""
        large = [value for value in values if isinstance(value, Reference)]
        if large:
            self.abandoned.put(large)

    def drain(self) -> None:
        """Give back what finalisers abandoned."""
        with contextlib.suppress(Empty):
            while not self.abandoned.empty():
                for reference in self.abandoned.get_nowait():
                    self.give_back(reference)

    def take(self, value: Any) -> bytes | Reference:
        """`value`, bytes-like or a readable binary stream, as a memtable keeps it."""
        if type(value) is bytes and len(value) < limits.LARGE_VALUE_BYTES:
            return value
        self.drain()
        data = as_value_or_stream(value)
        if not isinstance(data, bytes):
            return self.noted(write_stream(self.store.file, self.gate, self.gate, value))
        if len(data) < limits.LARGE_VALUE_BYTES:
            return data
        return self.noted(write_extent(self.gate, self.gate, data))

    def noted(self, value: bytes | Reference) -> bytes | Reference:
        """`value`; if it is an extent its birth is remembered (I1)."""
        if isinstance(value, Reference):
            install = self.store.state.version.install if self.born is None else self.born
            self.store.reclaimer.note_birth(value.page, install)
        return value

    def give_back(self, value: object) -> None:
        """The value came to nothing: its extent, if it has one, is free again."""
        if isinstance(value, Reference):
            self.gate.give_back(Extent(value.page, value.pages))
