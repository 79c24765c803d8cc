"""What `open()` was asked for, checked once, and the few inner knobs that only tests turn."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, SupportsFloat

from mmlsm import limits

Durability = Literal["full", "group", "off"]
DURABILITIES = ("full", "group", "off")
Verify = Literal["first-read", "always", "never"]
VERIFIES = ("first-read", "always", "never")
Allocation = Literal["earliest", "best"]
ALLOCATIONS = ("earliest", "best")


def switch(name: str, value: Any) -> bool:
    """A bool, and nothing that is only taken for one: "no" is true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be True or False")
    return value


def whole(name: str, value: Any) -> int:
    """An int of anything that is one, as NumPy's are; a bool is not meant as one."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name}={value!r}: must be a whole number, not {type(value).__name__}")
    return operator.index(value)


def real(name: str, value: Any) -> float:
    """A float of any real number."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name}={value!r}: must be a number of seconds or a share, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}={value!r}: too large") from None


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """One of `allowed`, as plain str."""
    plain = str.__str__(value) if isinstance(value, str) else None
    if plain not in allowed:
        kind = TypeError if plain is None else ValueError
        raise kind(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")
    return plain


def durability_of(value: Any) -> Durability:
    """What a commit is asked for."""
    chosen: Durability = choice("durability", value, DURABILITIES)
    return chosen


KINDS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "bool": switch,
    "int": whole,
    "float": real,
    "Durability": lambda name, value: choice(name, value, DURABILITIES),
    "Verify": lambda name, value: choice(name, value, VERIFIES),
    "Allocation": lambda name, value: choice(name, value, ALLOCATIONS),
}
"""By a field's annotation: what makes a value of that type of what was given, or a TypeError."""


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
        for field in fields(self):
            value = KINDS[str(field.type)](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        leaf = self.leaf_bytes
        if leaf % limits.PAGE_BYTES or not limits.LEAF_BYTES_MIN <= leaf <= limits.LEAF_BYTES_MAX:
            raise ValueError(
                f"leaf_bytes={leaf}: must be a multiple of {limits.PAGE_BYTES} "
                f"from {limits.LEAF_BYTES_MIN} to {limits.LEAF_BYTES_MAX}"
            )
        if not limits.MEMTABLE_BYTES_MIN <= self.memtable_bytes <= limits.MEMTABLE_BYTES_MAX:
            raise ValueError(
                f"memtable_bytes={self.memtable_bytes}: must be "
                f"from {limits.MEMTABLE_BYTES_MIN} to {limits.MEMTABLE_BYTES_MAX}"
            )
        if not 0 < self.group_interval <= limits.GROUP_INTERVAL_S_MAX:  # nor is nan
            raise ValueError(
                f"group_interval={self.group_interval}: must be more than 0 seconds and at most "
                f"{limits.GROUP_INTERVAL_S_MAX}, a day"
            )
        if self.fan_out < 2 or self.bottom_ratio < 1 or self.slice_bytes < 1 or self.reuse_leaves_min < 1:
            raise ValueError("fan_out must be at least 2; bottom_ratio, slice_bytes and reuse_leaves_min at least 1")
        if not 0 <= self.leaf_fullness_min <= 1:
            raise ValueError(f"leaf_fullness_min={self.leaf_fullness_min}: must be from 0 to 1")
        if not 2 <= self.node_entries_max <= limits.NODE_ENTRIES_MAX:
            raise ValueError(f"node_entries_max={self.node_entries_max}: must be from 2 to {limits.NODE_ENTRIES_MAX}")
