"""What `open()` was asked for, checked once, and the few inner knobs that only tests turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmlsm import limits

Durability = Literal["full", "group", "off"]
DURABILITIES = ("full", "group", "off")
Verify = Literal["first-read", "always", "never"]
Allocation = Literal["earliest", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One open database's settings. Sizes in bytes, times in seconds."""

    readonly: bool = False
    create: bool = True
    durability: Durability = "full"
    memtable_bytes: int = limits.MEMTABLE_BYTES_DEFAULT
    leaf_bytes: int = limits.LEAF_BYTES_DEFAULT
    auto_merge: bool = True
    verify: Verify = "first-read"
    group_interval: float = 0.05
    allocation: Allocation = "earliest"

    debug: bool = False
    """Poison reclaimed pages, check the lock order, prove the file at each install."""
    node_entries_max: int = limits.NODE_ENTRIES_MAX
    """Tests make trees deep with few keys by lowering this."""
    fan_out: int = 4
    """Runs of a tier that make a merge into the next."""
    bottom_ratio: int = 4
    """The tiers drain into the bottom once that would be rewritten for at least 1/this of its size."""
    slice_bytes: int = 8 << 20
    """A slice of a merge into the bottom reads about this much (two memtables, if they are less), or 1/8 of the
    bottom, up to 8 times this."""
    reuse: bool = True
    """Whether merges take leaves and parents over by reference."""
    reuse_leaves_min: int = 1
    """Fewer untouched leaves in a row than this are written anew."""
    leaf_fullness_min: float = 0.5
    """A leaf or parent filled less than this beside one that is written anew is written anew with it."""
    log_extent_bytes: int = 1 << 20
    """Size of a log extent, once the log has grown to need whole ones."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("durability", DURABILITIES),
            ("verify", ("first-read", "always", "never")),
            ("allocation", ("earliest", "best")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")
        leaf = self.leaf_bytes
        if leaf % limits.PAGE_BYTES or not limits.LEAF_BYTES_MIN <= leaf <= limits.LEAF_BYTES_MAX:
            raise ValueError(
                f"leaf_bytes={leaf}: must be a multiple of {limits.PAGE_BYTES} "
                f"from {limits.LEAF_BYTES_MIN} to {limits.LEAF_BYTES_MAX}"
            )
        if self.memtable_bytes < limits.MEMTABLE_BYTES_MIN:
            raise ValueError(f"memtable_bytes={self.memtable_bytes}: must be at least {limits.MEMTABLE_BYTES_MIN}")
        if not self.group_interval > 0:
            raise ValueError(f"group_interval={self.group_interval}: must be more than 0 seconds")
        if self.fan_out < 2 or self.bottom_ratio < 1 or self.slice_bytes < 1 or self.reuse_leaves_min < 1:
            raise ValueError("fan_out must be at least 2; bottom_ratio, slice_bytes and reuse_leaves_min at least 1")
        if not 0 <= self.leaf_fullness_min <= 1:
            raise ValueError(f"leaf_fullness_min={self.leaf_fullness_min}: must be from 0 to 1")
        if not 2 <= self.node_entries_max <= limits.NODE_ENTRIES_MAX:
            raise ValueError(f"node_entries_max={self.node_entries_max}: must be from 2 to {limits.NODE_ENTRIES_MAX}")
