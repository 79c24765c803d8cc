"""A flush: a sealed memtable becomes the newest run.

Runs on the writer thread, at open after a crash, and at close. It holds no lock but for the install at its end.

I1. The memtable's commits are all published before it is flushed, and the log is let go only with the install.
I2. Overflow values that the newest versions refer to become the segment's; those of overwritten versions retire.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmlsm.format.manifest import Level, Reference, SegmentRecord
from mmlsm.read.ordering import in_order
from mmlsm.space.extents import Extent
from mmlsm.write.merge_policy import shape_of
from mmlsm.write.merge_run import node_bytes
from mmlsm.write.segment_writer import SegmentWriter, pack_value
from mmlsm.write.store import Edit, Store, sync_early

if TYPE_CHECKING:
    from mmlsm.file import Channel
    from mmlsm.format.superblock import LogPosition
    from mmlsm.write.memtable import Memtable

ITEMS_A_STEP = 1000
"""Entries between two chances for other threads to take the GIL."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """A segment written from a memtable, not yet installed."""

    record: SegmentRecord | None
    written: list[Extent]
    kept: set[Extent]
    overflow: tuple[int, ...]
    bytes_written: int
    alone: bool
    """Nothing is older: it has no filter and no tombstones, and becomes the bottom."""


def write_memtable(store: Store, channel: Channel, table: Memtable, pause: Callable[[], object]) -> Flushed:
    """Write the segment, calling `pause` every ITEMS_A_STEP entries; gives everything back if it fails."""
    count = table.entry_count
    alone = next(store.manifest.segments(), None) is None
    mean = table.live_bytes // max(1, count) + 12
    writer = SegmentWriter(
        channel,
        store.allocator,
        store.settings,
        birth=store.manifest.install + 1,
        leaf_bytes=node_bytes(store.settings, mean),
        expected_entries=0 if alone else count,
    )
    kept: set[Extent] = set()
    try:
        entries = table.entries
        for keys in in_order(list(entries)):
            for at in range(0, len(keys), ITEMS_A_STEP):
                step = [(key, entries[key].value) for key in keys[at : at + ITEMS_A_STEP]]
                if alone:
                    step = [item for item in step if item[1] is not None]
                kept.update(Extent(value.page, value.pages) for _, value in step if isinstance(value, Reference))
                writer.add_items([(key, pack_value(value)) for key, value in step])
                pause()
        record = writer.finish(store.next_segment_id(), seq_low=table.first_seq, seq_high=table.last_seq)
    except BaseException:
        writer.abandon()
        raise
    if record is not None and kept:
        record = replace(record, pages=record.pages + sum(extent.count for extent in kept))
    overflow = tuple(extent.first for extent in writer.overflow_extents)
    return Flushed(record, writer.reserved, kept, overflow, writer.bytes_written, alone)


def flush(
    store: Store,
    channel: Channel,
    table: Memtable,
    *,
    log: LogPosition,
    log_extents: list[Extent],
    extents: list[Extent],
    live: bool = False,
    clean: bool = False,
    pause: Callable[[], object] = lambda: None,
) -> int:
    """Write `table`, install it, let the log before `log` go; the bytes written.

    `log_extents` are the log's extents before that position, `extents` all overflow extents that the table's commits
    named; both are reserved, or `live` already, as after a recovery.
    """
    flushed = write_memtable(store, channel, table, pause)
    dropped = [extent for extent in extents if extent not in flushed.kept]

    def levels(present: tuple[Level, ...], number: int) -> tuple[Level, ...]:
        if flushed.record is None:
            return present
        shape, record = shape_of(present), replace(flushed.record, installed=number)
        if flushed.alone:
            return replace(shape, bottom=record).levels()
        tiers = shape.tiers or ((),)
        return replace(shape, tiers=((record, *tiers[0]), *tiers[1:])).levels()

    commit = list(flushed.written)
    if not live:
        commit += [*log_extents, *extents]
    edit = Edit(
        levels=levels,
        commit=commit,
        retire=[*store.reclaimer.grouped_by_birth(dropped), (log_extents, store.manifest.install + 1)],
        overflow=flushed.overflow,
        log=log,
        seq=table.last_seq or None,
        clean=clean,
        without_tables=(table,),
    )
    try:
        sync_early(channel, flushed.bytes_written)
        store.install(channel, edit)
    except BaseException:
        if store.file.failure is None:
            for extent in flushed.written:
                if not store.allocator.is_live(extent):  # else the install stands
                    store.allocator.give_back(extent)
        raise
    return flushed.bytes_written
