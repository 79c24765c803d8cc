"""Transactions: a still snapshot below, a live overlay of their own writes above.

One thread owns a transaction. A write transaction holds the write lock from `begin` to its end, so nobody else's
commit comes between; readers never wait for it.

I1. Nothing of a transaction is visible to others before `commit` returned, all of it is afterwards (promise 3).
I2. However it ends - commit, abort, an exception, the collector, `close()` - the lock is free and the extents of
    values that came to nothing come back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mmlsm.errors import ClosedError, Error, ReadOnlyError
from mmlsm.format.manifest import Reference
from mmlsm.headroom import FRAMES_LEAST, TRIES_MOST, Headroom, make_sure_of
from mmlsm.read.entries import Entry, EntryTable
from mmlsm.read.given import as_key
from mmlsm.read.life import Life
from mmlsm.read.reader import MISSING, Reader, ReadState
from mmlsm.read.snapshot import Snapshot

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.locks import FairLock
    from mmlsm.read.version import Version
    from mmlsm.settings import Durability
    from mmlsm.write.values import ValueWriter

SEQ_ALL = (1 << 62) - 1


class Kept:
    """What everything holds that reads a write transaction: its version, and values that it wrote and dropped again.

    Their extents come back when nothing holds this any more.
    """

    def __init__(self, version: Version, values: ValueWriter | None) -> None:
        self.version = version
        self.values = values
        self.dropped: list[Reference] = []

    def pinned_map(self, file: File, pages: int) -> Any:
        """As Version.pinned_map, of what keeps this alive."""
        return file.pinned_map(pages, self)

    def give_back(self) -> None:
        """Free what was dropped. REQUIRES that nobody reads it."""
        dropped, self.dropped = self.dropped, []
        for value in dropped:
            if self.values is not None:
                self.values.give_back(value)

    def __del__(self) -> None:
        if self.values is not None:  # takes no lock (R12)
            self.values.abandon(self.dropped)


class Transaction(Reader):
    """Reads its snapshot and its own writes. Leaving the `with` block commits; an exception aborts.

    `commit` is called with the pending items, once; `tenure` is the write lock and the tenure that it then ends. Where
    it is dropped, whoever made it sees to the lock (`Engine.note_writer`).
    """

    def __init__(
        self,
        state: ReadState,
        seq: int,
        life: Life,
        pin: object,
        *,
        write: bool,
        values: ValueWriter | None,
        commit: Callable[[dict[bytes, Any], Durability | None, Callable[[object], None]], int],
        tenure: tuple[FairLock, int] | None,
    ) -> None:
        self._overlay = EntryTable()
        self._kept = Kept(state.version, values)
        if write:
            state = ReadState((self._overlay, *state.tables), state.version, state.file, state.verify, self._kept)
        Reader.__init__(self, state, seq, life, write)
        del state
        self._alone = getrefcount(self.state), getrefcount(self._kept)
        self._pin = pin
        self._write = write
        self._values = values
        self._commit = commit
        self._tenure = tenure
        self._journals: list[list[tuple[bytes, Entry | None]]] = []
        self._thread = threading.get_ident()
        self._finished = False

    def still(self) -> Snapshot:
        """What a cursor or range reads, own writes too. It outlives the transaction: it shares the pin."""
        pin = self._pin
        return Snapshot(self.opened(), self.seq, self.life, pin, self._write)

    # -- writing

    def _writable(self) -> ValueWriter:
        self.life.check_open()
        if self._finished:
            raise ClosedError("the transaction has ended: begin another")
        if not self._write or self._values is None:
            raise ReadOnlyError("this is a read transaction: begin(write=True) makes one that writes")
        if threading.get_ident() != self._thread:
            raise Error("a write transaction belongs to the thread that began it")
        return self._values

    def _set(self, key: bytes, value: object) -> None:
        overlay = self._overlay
        before = overlay.entries.get(key)
        if self._journals:
            self._journals[-1].append((key, before))
        overlay.put(key, value, 0)
        if not self._journals and before is not None:
            self._drop(before.value)

    def _drop(self, value: object) -> None:
        """The value came to nothing. Its extent comes back when no stream, cursor or view of ours may read it."""
        if isinstance(value, Reference):
            self._kept.dropped.append(value)
            if (getrefcount(self.state), getrefcount(self._kept)) <= self._alone:
                self._kept.give_back()

    def put(self, key: bytes, value: Any) -> None:
        """Set `key` to `value`: bytes-like, or a readable binary stream of any length."""
        values, key = self._writable(), as_key(key)
        taken = values.take(value)
        if self._finished:  # by the stream's own read(), or by other code of what was given
            values.give_back(taken)
            raise ClosedError("the transaction has ended while it took a key or value: begin another")
        self._set(key, taken)

    def __setitem__(self, key: bytes, value: Any) -> None:
        self.put(key, value)

    def delete(self, key: bytes) -> None:
        """Delete `key`, there or not."""
        key = as_key(key)
        self._writable()
        self._set(key, None)

    def __delitem__(self, key: bytes) -> None:
        key = as_key(key)
        self._writable()
        if key not in self:
            raise KeyError(key)
        self.delete(key)

    def pop(self, key: bytes, default: Any = MISSING) -> Any:
        """Delete `key` and answer its value; `default`, or KeyError, where it is absent."""
        key = as_key(key)
        self._writable()
        value = self.get(key)
        if value is None:
            if default is MISSING:
                raise KeyError(key)
            return default
        self.delete(key)
        return value

    def replace(self, key: bytes, value: Any) -> bytes | None:
        """Set `key` to `value` and answer what it was, None where it was absent."""
        key = as_key(key)
        self._writable()
        old: bytes | None = self.get(key)
        self.put(key, value)
        return old

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """A block after which, should it raise, the transaction's writes are what they were at its beginning."""
        self._writable()
        journal: list[tuple[bytes, Entry | None]] = []
        self._journals.append(journal)
        depth = len(self._journals)
        try:
            yield
        except BaseException:
            if not self._finished and any(known is journal for known in self._journals):
                for inner in reversed(self._journals[depth - 1 :]):
                    for key, before in reversed(inner):
                        self._take_back(key, before)
                del self._journals[depth - 1 :]
            raise
        if not self._finished:
            if not self._journals or self._journals[-1] is not journal:
                raise Error("savepoints end in turn, the innermost first: this is not the innermost that is open")
            self._journals.pop()
            if self._journals:
                self._journals[-1] += journal
            else:
                for _, before in journal:
                    self._drop(None if before is None else before.value)

    def _take_back(self, key: bytes, before: Entry | None) -> None:
        entries = self._overlay.entries
        now = entries.get(key)
        if now is None or now is before:  # a write that was cut off
            return
        self._overlay.changes += 1
        if before is None:
            del entries[key]
        else:
            entries[key] = before
        self._drop(now.value)

    # -- ending

    def commit(self, *, durability: Durability | None = None) -> int:
        """Commit; the seq. The transaction is over, also where this raises: StorageError says what is known."""
        if self._finished:
            self.life.check_open()
            raise ClosedError("the transaction has ended: begin another")
        if self._write and threading.get_ident() != self._thread:
            raise Error("a write transaction belongs to the thread that began it: commit there, or abort")
        return self._conclude({key: entry.value for key, entry in self._overlay.entries.items()}, durability)

    def abort(self) -> None:
        """Drop all writes. Ending twice is no error."""
        if not self._finished:
            self._conclude(None, None)
        elif self._tenure is not None:  # its end may have been cut off
            lock, tenure = self._tenure
            lock.release_of(tenure)

    def _conclude(self, items: dict[bytes, Any] | None, durability: Durability | None) -> int:
        """Commit, or drop all. Whatever cuts in, the lock is free and the transaction over before that comes out."""
        make_sure_of(FRAMES_LEAST)  # else nothing is done: who began it has more
        interrupted: BaseException | None = None
        if items is not None:
            self._finished = True  # from here on the values are the commit's, whatever is raised, and not ours to drop
        try:
            if items is None:
                return 0
            self.life.check_open()
            return self._commit(items, durability, self._drop)
        finally:
            if self._tenure is not None:
                lock, tenure = self._tenure
                tries = 0
                while lock.tenure == tenure and tries < TRIES_MOST:  # no call before the one that is tried again
                    try:
                        with Headroom(interrupted):
                            if sys.is_finalizing():  # nobody is there to be given the lock
                                break
                            lock.release_of(tenure)
                    except BaseException as error:  # at the very last, the lock is free when the transaction is gone
                        interrupted = error
                        tries += isinstance(error, RecursionError)
            self._finished = True
            self._let_go(items is None)
            if interrupted is not None:
                raise interrupted

    close = abort

    def _let_go(self, dropped: bool) -> None:
        """Give back the extents of values that came to nothing, and what is read."""
        journals, self._journals = self._journals, []
        if dropped:
            for entry in self._overlay.entries.values():
                self._drop(entry.value)
        for _, before in (step for journal in journals for step in journal):  # ended inside a savepoint
            self._drop(None if before is None else before.value)
        self.state = self._pin = None
        del self._kept
        if self._values is not None:
            self._values.drain()

    def __enter__(self) -> Self:
        self.life.check_open()
        if self._finished:
            raise ClosedError("the transaction has ended: begin another")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        elif not self._finished:
            self.commit()

    def __del__(self) -> None:
        if not getattr(self, "_finished", True):
            self._finished = True
            replaced = [entry for journal in self._journals for _, entry in journal if entry is not None]
            self._kept.dropped += [
                entry.value
                for entry in (*self._overlay.entries.values(), *replaced)
                if isinstance(entry.value, Reference)
            ]
