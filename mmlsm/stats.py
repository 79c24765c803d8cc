"""What `Database.stats()` answers: plain figures of one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mmlsm.format.manifest import Retirement, SegmentRecord
from mmlsm.limits import HEADER_PAGES, PAGE_BYTES
from mmlsm.read.snapshot import Held
from mmlsm.space.allocator import SpaceCounts
from mmlsm.space.reclaim import held_pages
from mmlsm.write.recovery import still_retired, used_pages

if TYPE_CHECKING:
    from mmlsm.write.merger import Merger
    from mmlsm.write.recovery import Replay, Root
    from mmlsm.write.writer import Writer


@dataclass(frozen=True, slots=True)
class SegmentStats:
    """One segment. Sizes in bytes."""

    id: int
    level: int
    run: int
    entries: int
    tombstones: int
    height: int
    pages: int
    data_bytes: int
    leaf_bytes: int
    filter_bytes: int
    seq_low: int
    seq_high: int
    first_key: bytes
    last_key: bytes

    @classmethod
    def of(cls, record: SegmentRecord, level: int, run: int) -> Self:
        """Of the segment of a record, in that run of that level."""
        return cls(
            id=record.id, level=level, run=run, entries=record.entries, tombstones=record.tombstones,
            height=record.height, pages=record.pages, data_bytes=record.data_bytes,
            leaf_bytes=record.leaf_pages * PAGE_BYTES, filter_bytes=record.filter.length if record.filter else 0,
            seq_low=record.seq_low, seq_high=record.seq_high, first_key=record.first_key, last_key=record.last_key,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a version: a "snapshot" or "transaction", made `age_s` seconds ago by that thread.

    Cursors, iterators, views and streams are not listed, for that would cost each of them: where nobody else is known
    it is a "cursor, iterator or view", of the version's age and of no thread.
    """

    kind: str
    age_s: float
    thread: str


@dataclass(frozen=True, slots=True)
class PinStats:
    """A version that somebody still holds: its install number and how long ago it was made, in seconds.

    `pages`: the retired pages that it still sees, alone or with others, and that so cannot be used again.
    """

    install: int
    age_s: float
    current: bool
    pages: int
    holders: tuple[Holder, ...]


def pin_stats(
    pinned: list[int],
    retired: Iterable[Retirement],
    made_at: Mapping[int, float],
    current: int,
    held: Iterable[Held],
    now: float,
) -> tuple[PinStats, ...]:
    """The pinned versions, ascending, with who holds them; `current` is held by the database itself."""
    known: dict[int, list[Holder]] = {}
    for holder in held:
        known.setdefault(holder.install, []).append(Holder(holder.kind, now - holder.since, holder.thread))
    result = []
    for install, pages in zip(pinned, held_pages(retired, pinned), strict=True):
        age_s = now - made_at.get(install, now)
        holders = known.get(install, [])
        if not holders and install != current:
            holders = [Holder("cursor, iterator or view", age_s, "")]
        result.append(PinStats(install, age_s, install == current, pages, tuple(holders)))
    return tuple(result)


def trouble_of(thread: Writer | Merger) -> str | None:
    """What keeps the writer or merge thread from its work: a sync that failed anywhere, too."""
    return told(thread.fault or thread.error or thread.store.file.failure)


def told(error: BaseException | None) -> str | None:
    """What an error says."""
    return None if error is None else str(error) or repr(error)


@dataclass(frozen=True, slots=True)
class SpaceStats:
    """Pages of the file by use; `live` without what is retired. How the free ones lie: many small extents are
    fragmentation. And what was done since the database was opened: reservations, pages of them that came back, how
    often the file grew and was cut, and by how many pages that was."""

    total: int
    live: int
    retired: int
    reserved: int
    free: int
    free_extents: int = 0
    free_largest: int = 0
    free_mean: float = 0.0
    reservations: int = 0
    given_back: int = 0
    growths: int = 0
    truncations: int = 0
    truncated: int = 0

    @classmethod
    def of(cls, counts: SpaceCounts, retired: int) -> Self:
        """Of an allocator's counts and how many of its live pages are retired."""
        return cls(
            total=counts.total, live=counts.live - retired, retired=retired, reserved=counts.reserved,
            free=counts.free, free_extents=counts.free_extents, free_largest=counts.free_largest,
            free_mean=counts.free / max(1, counts.free_extents), reservations=counts.reservations,
            given_back=counts.given_back, growths=counts.growths, truncations=counts.truncations,
            truncated=counts.truncated,
        )  # fmt: skip

    @classmethod
    def at_rest(cls, root: Root, replay: Replay, total: int) -> Self:
        """Of a file of so many pages by now, as a read-only handle found it: a page counts once, whoever claims it."""
        retirements = still_retired(root, replay, total)
        retired = sum(retirement.pages for retirement in retirements)
        used = used_pages(root, retirements)
        used.resize(max([total, used.pages, *(extent.end for extent in (*replay.log_extents, *replay.value_extents))]))
        used.set(0, HEADER_PAGES)
        durable = used.used_within(0, total)
        for extent in (*replay.log_extents, *replay.value_extents):
            used.set(*extent)
        gaps = [extent.count for extent in used.gaps(total)]
        free = sum(gaps)
        return cls(
            total=total, live=durable - HEADER_PAGES - retired, retired=retired, reserved=total - durable - free,
            free=free, free_extents=len(gaps), free_largest=max(gaps, default=0), free_mean=free / max(1, len(gaps)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MergeStats:
    """What merges into one level did since the database was opened: "tier 1" and so on, "bottom", "rework".

    `pages_reused`: pages of inputs that became the output's as they were.
    """

    into: str
    merges: int
    bytes_read: int
    bytes_written: int
    pages_reused: int


@dataclass(frozen=True, slots=True)
class StallStats:
    """Commits that waited: "flush" and "merge" at the limits, "slowed" before them (write/pressure.py has the rule)."""

    cause: str
    stalls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one moment; see `docs/` for what they mean."""

    seq: int
    install: int
    generation: int
    durability: str
    compiled: bool
    clean: bool
    file_bytes: int
    entries: int
    memtables: int
    memtable_bytes: int
    memtable_entries: int
    log_bytes: int
    levels: tuple[tuple[int, ...], ...]
    """Entries of each run of each level, newest first."""
    runs: int
    runs_bound: int
    """Commits wait for merges rather than let there be more runs than this."""
    segments: tuple[SegmentStats, ...]
    space: SpaceStats
    pins: tuple[PinStats, ...]
    snapshots: int
    commits: int
    log_bytes_written: int
    log_syncs: int
    flushes: int
    flush_bytes_written: int
    merges: int
    merge_bytes_written: int
    merged: tuple[MergeStats, ...]
    """What `merges` and `merge_bytes_written` are the sums of."""
    install_bytes_written: int
    stalls: int
    stall_s: float
    stalled: tuple[StallStats, ...]
    """What `stalls` and `stall_s` are the sums of."""
    flush_error: str | None
    merge_error: str | None
    failure: str | None
    """Why the handle is read-only until the database is opened again: a write of the log or a sync that failed."""
