"""What `Database.stats()` answers: plain figures of one moment."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class PinStats:
    """A version that somebody still holds: its install number and how long ago it was made, in seconds."""

    install: int
    age_s: float
    current: bool


@dataclass(frozen=True, slots=True)
class SpaceStats:
    """Pages of the file by use; `live` without what is retired."""

    total: int
    live: int
    retired: int
    reserved: int
    free: int
    free_extents: int
    free_largest: int
    truncated: int


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
    install_bytes_written: int
    stalls: int
    stall_s: float
    stalled: tuple[StallStats, ...]
    """What `stalls` and `stall_s` are the sums of."""
    flush_error: str | None
    merge_error: str | None
