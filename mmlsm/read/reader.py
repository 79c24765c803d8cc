# cython: boundscheck=False, wraparound=False, binding=False, nonecheck=True
"""Reader: what Database, Snapshot and Transaction have in common: reading as of a seq.

Any thread may read through a Database or Snapshot at once; a Transaction belongs to one thread. No read waits for a
writer, a flush or a merge (promise 5): it takes the current state, one reference, and walks it.

I1. A reader loads `seq` before `state`: a state is never older than the commits that its seq promises.
I2. `state` is immutable and None only once the handle has ended.
I3. A Database reads at a seq that is not registered (`floating`): where a version that it should see was unlinked
    meanwhile, it reads again at a newer seq.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t, uint64_t
    from cython.cimports.mmlsm.memory import compare, cut, key_hash
    from cython.cimports.mmlsm.read.entries import Entry, EntryTable
    from cython.cimports.mmlsm.read.life import Life
    from cython.cimports.mmlsm.read.merged import Merged
    from cython.cimports.mmlsm.read.segment import Segment
else:
    from mmlsm.memory import compare, cut, key_hash
    from mmlsm.read.entries import Entry, EntryTable
    from mmlsm.read.life import Life
    from mmlsm.read.merged import Merged
    from mmlsm.read.segment import Segment

from mmlsm.errors import ClosedError
from mmlsm.format.manifest import Reference
from mmlsm.read.batch_get import BatchGet
from mmlsm.read.cursor import Cursor, Range, bounds_of, not_copied
from mmlsm.read.given import as_key
from mmlsm.read.pages import Pages, read_payload
from mmlsm.read.table_source import TableSource
from mmlsm.read.value_stream import open_payload
from mmlsm.read.view import view_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

MISSING: Any = object()

Key = bytes | bytearray | memoryview


@cython.final
@cython.cclass
class ReadState:
    """All that a read needs: memtables newest first, then a version's segments newest first. Immutable.

    `keeper`: what views of a memtable's values hold in the version's place.
    """

    def __init__(self, tables: tuple, version: Any, file: Any, verify: str, keeper: Any = None) -> None:
        self.tables = tables
        self.version = version
        self.segments = version.segments
        self.file = file
        self.verify = verify
        self.keeper = version if keeper is None else keeper

    def ended(self) -> ReadState:
        """A state with nothing in it, that pins nothing: what a closed database keeps."""
        return ReadState((), self.version.ended(), self.file, self.verify)

    def read_reference(self, reference: Reference) -> bytes:
        """The payload of a memtable's overflow value."""
        return read_payload(self.file, reference, self.verify == "never")

    def view_reference(self, reference: Reference) -> memoryview:
        """A view of the payload of a memtable's overflow value, pinning the version."""
        pages = Pages(self.file, self.file.window(reference.page + reference.pages), self.verify, None)
        pages.touch_extent(reference)
        return view_of(self.keeper, self.file, pages.window, reference.page << 12, reference.length)


@cython.cclass
class Reader:
    """Reads one state: `get`, ranges, cursors. See docs/guide for the whole interface.

    Keys are bytes-like in and bytes out, ordered bytewise. All methods raise ClosedError after `close()`, ForkError in
    a forked child, CorruptionError where the bytes that the answer needs are damaged.
    """

    def __init__(self, state: ReadState, seq: int64_t, life: Life, live: bool = False, floating: bool = False) -> None:
        self.state: ReadState | None = state
        self.seq = seq
        self.life = life
        self.live = live
        self.floating = floating

    def key_of(self, key):
        """`key` as bytes of an allowed length."""
        if type(key) is bytes and len(key) <= 65535:
            return key
        return as_key(key)

    def fetch(self, key, what):
        """Find `key`. `what`: 0 the value, 1 its length, 2 a view, 3 a stream, 4 True. None where it is absent."""
        seq: int64_t = self.seq
        state: ReadState = self.state
        table: EntryTable
        entry: Entry
        segment: Segment
        position: int64_t
        h: uint64_t = 0
        n: cython.Py_ssize_t = len(key)
        self.life.check()
        if state is None:
            raise ClosedError("this handle is closed")
        for table in state.tables:
            if not table.entries:
                continue
            entry = table.lookup(key, seq)
            if self.floating:
                if table.trimmed > seq:
                    return self.fetch(key, what)
            elif self.state is not state:  # closed meanwhile by another thread: nothing was pinned any more
                raise ClosedError("this handle is closed")
            if entry is not None:
                if entry.value is None:
                    return None
                own: cython.bint = self.live and table is state.tables[0]
                return answer_entry(entry.value, state, what, own)
        if len(state.segments) > 1:
            h = key_hash(key, n)
        for segment in state.segments:
            if segment.filter_blocks and h == 0:
                h = key_hash(key, n)
            if not segment.may_hold(key, n, h):
                continue
            position = segment.find(key, n)
            if position >= 0:
                if what == 0:
                    return segment.value_of(position)
                if segment.kind_of(position) == 1:
                    return None
                if what == 1:
                    return segment.value_length_of(position)
                if what == 4:
                    return True
                if what == 2:
                    return segment.view_at(position, state.version)
                if segment.kind_of(position) == 2:
                    return open_payload(state, segment.reference_of(position), segment.segment_id)
                return open_payload(state, segment.value_of(position))
        return None

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of `key` as bytes, or `default`. One descent a segment that may hold it."""
        value = self.fetch(key if type(key) is bytes and len(key) <= 65535 else as_key(key), 0)
        return default if value is None else value

    def get_many(self, keys: Iterable[Key], default: Any = None) -> list[Any]:
        """The values of `keys`, aligned with them, `default` where absent; all from one state.

        Cheaper a key than `get`: the batch goes down the trees abreast, outside the GIL.
        """
        wanted = list(keys)  # first: what makes them may end this reader
        for i in range(len(wanted)):
            wanted[i] = self.key_of(wanted[i])
        still: Reader = self.still()
        values: list = BatchGet(still.opened(), wanted).run(still.seq)
        if default is not None:
            for i in range(len(values)):
                if values[i] is None:
                    values[i] = default
        return values

    def get_view(self, key: Key) -> memoryview | None:
        """A read-only memoryview of the value in the map: no copy, valid and unchanging while held, past close too.

        It pins the version that it was read from: `stats()` shows what that holds.
        """
        return self.fetch(self.key_of(key), 2)

    def open_value(self, key: Key) -> BinaryIO | None:
        """The value as a readable, seekable binary stream; never loads the whole value."""
        return self.fetch(self.key_of(key), 3)

    def value_length(self, key: Key) -> int | None:
        """Bytes of the value, without reading it; None where the key is absent."""
        return self.fetch(self.key_of(key), 1)

    def __contains__(self, key: object) -> bool:
        return self.fetch(self.key_of(key), 4) is not None

    def __getitem__(self, key: Key) -> Any:
        value = self.fetch(self.key_of(key), 0)
        if value is None:
            raise KeyError(key)
        return value

    def __reduce__(self) -> str:
        raise not_copied(self)

    def still(self) -> Reader:
        """A reader of one still state: itself, except for a Database."""
        return self

    def opened(self) -> ReadState:
        """The state that is read; ClosedError once there is none."""
        state: ReadState = self.state
        self.life.check()
        if state is None:
            raise ClosedError("this handle is closed")
        return state

    def merged(self) -> Merged:
        """A walk over all sources of this reader's state, unpositioned."""
        state: ReadState = self.opened()
        sources: list = []
        for i, table in enumerate(state.tables):
            live = self.live and i == 0
            if live or table.entries:
                sources.append(TableSource(table, state, self.seq, live))
        for segment in state.segments:
            sources.append(segment.source(state.version))
        return Merged(sources)

    def cursor(self) -> Cursor:
        """A cursor over one still state; a context manager."""
        return Cursor(self.still())

    def items(self, start=None, stop=None, *, prefix=None, reverse=False, include_start=True, include_stop=False,
              limit=None, views=False) -> Range:
        """(key, value) pairs of start <= key < stop in order: lazy, re-iterable, reversible.

        `prefix` instead of start and stop; `reverse` only turns the order; `views` gives values as memoryviews.
        Each iteration reads the state at its own start.
        """
        return Range(self, 3 if views else 0, start, stop, prefix, reverse, include_start, include_stop, limit)

    def keys(self, start=None, stop=None, *, prefix=None, reverse=False, include_start=True, include_stop=False,
             limit=None) -> Range:
        """Keys alone; see `items`."""
        return Range(self, 1, start, stop, prefix, reverse, include_start, include_stop, limit)

    def values(self, start=None, stop=None, *, prefix=None, reverse=False, include_start=True, include_stop=False,
               limit=None, views=False) -> Range:
        """Values alone; see `items`."""
        return Range(self, 4 if views else 2, start, stop, prefix, reverse, include_start, include_stop, limit)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    def __reversed__(self) -> Iterator[bytes]:
        return iter(self.keys(reverse=True))

    def __len__(self) -> int:
        """How many keys there are, exactly: by a scan of keys. `count(exact=False)` estimates without one."""
        return self.count()

    def __bool__(self) -> bool:
        return True

    def first(self) -> tuple[bytes, bytes] | None:
        """The pair with the least key, or None."""
        return self.nearest(b"", 0, True)

    def last(self) -> tuple[bytes, bytes] | None:
        """The pair with the greatest key, or None."""
        return self.nearest(None, -1, True)

    def floor(self, key: Key) -> tuple[bytes, bytes] | None:
        """The pair with the greatest key <= `key`, or None."""
        return self.nearest(as_key(key), -1, True)

    def ceiling(self, key: Key) -> tuple[bytes, bytes] | None:
        """The pair with the least key >= `key`, or None."""
        return self.nearest(as_key(key), 0, True)

    def lower(self, key: Key) -> tuple[bytes, bytes] | None:
        """The pair with the greatest key < `key`, or None."""
        return self.nearest(as_key(key), -1, False)

    def higher(self, key: Key) -> tuple[bytes, bytes] | None:
        """The pair with the least key > `key`, or None."""
        return self.nearest(as_key(key), 0, False)

    def nearest(self, key, side: cython.int, inclusive: cython.bint):
        """The pair next to `key` (None: the end), below (side -1) or above (0); `inclusive` allows the key itself."""
        still: Reader = self.still()
        merged: Merged = still.merged()
        n: cython.Py_ssize_t = 0 if key is None else len(key)
        target: bytes = b"" if key is None else key
        if key is None:
            merged.last()
        elif side < 0:
            merged.seek_le(target, n)
        else:
            merged.seek_ge(target, n)
        if not inclusive and merged.current is not None and compare(
            merged.current.key, 0, merged.current.key_bytes, target, 0, n
        ) == 0:
            if side < 0:
                merged.prev()
            else:
                merged.next()
        if merged.current is None:
            return None
        return cut(merged.current.key, 0, merged.current.key_bytes), merged.current.value()

    def count(self, start=None, stop=None, *, prefix=None, exact: bool = True) -> int:
        """How many keys lie in the range: by a scan, or from the parents alone with exact=False.

        The estimate counts each segment's entries, so overwritten and deleted keys count more than once.
        """
        if exact:
            total: int64_t = 0
            for _ in self.keys(start, stop, prefix=prefix):
                total += 1
            return total
        start, stop = bounds_of(start, stop, prefix)
        still: Reader = self.still()
        state: ReadState = still.opened()
        estimate = sum(len(table.entries) for table in state.tables) if start is None and stop is None else 0
        for segment in state.segments:
            high = segment.entries if stop is None else segment.rank(stop)
            estimate += max(0, high - (0 if start is None else segment.rank(start)))
        return estimate

    def approximate_size(self, start=None, stop=None) -> int:
        """About how many bytes of the file the range takes, from the parents alone."""
        start, stop = bounds_of(start, stop, None)
        still: Reader = self.still()
        state: ReadState = still.opened()
        size = 0
        for segment in state.segments:
            high = segment.entries if stop is None else segment.rank(stop)
            share = max(0, high - (0 if start is None else segment.rank(start)))
            size += segment.record.pages * 4096 * share // max(1, segment.entries)
        return size


def answer_entry(value, state: ReadState, what: int, own: bool):
    """`fetch`'s answer from a memtable's value; `own`: from a transaction's overlay, whose extents no version pins."""
    reference = isinstance(value, Reference)
    if what == 0:
        return state.read_reference(value) if reference else value
    if what == 1:
        return value.length if reference else len(value)
    if what == 2:
        if reference and not own:
            return state.view_reference(value)
        return memoryview(state.read_reference(value) if reference else value)
    if what == 3:
        return open_payload(state, value)
    return True
