"""An Allocator over a disk that is only a number, for tests of free space."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from mmlsm import limits
from mmlsm.errors import StorageError
from mmlsm.settings import Allocation
from mmlsm.space.allocator import Allocator
from mmlsm.space.extents import Extent

HEADER = limits.HEADER_PAGES


@dataclass
class Disk:
    """What an Allocator calls: remembers, and refuses to grow past `most`."""

    pages: int = HEADER
    most: int = 1 << 40
    broken: bool = False
    forgotten: list[tuple[int, int]] = field(default_factory=list)
    poisoned: list[Extent] = field(default_factory=list)

    def resize(self, pages: int) -> None:
        if self.broken or pages > self.most:
            raise StorageError(errno.ENOSPC, "the disk is full")
        self.pages = pages

    def forget(self, first: int, count: int) -> None:
        self.forgotten.append((first, count))


def make(disk: Disk, live: list[tuple[int, int]] | None = None, policy: Allocation = "earliest") -> Allocator:
    return Allocator(
        disk.pages,
        live or [],
        policy=policy,
        resize=disk.resize,
        forget=disk.forget,
        poison=disk.poisoned.append,
        debug=True,
    )


def holes(*free: tuple[int, int], pages: int = 100, policy: Allocation = "earliest") -> tuple[Allocator, Disk]:
    """A file of `pages` live pages with these free extents."""
    live, end = [], 0
    for first, count in (*free, (pages, 0)):
        if first > end:
            live.append((end, first - end))
        end = first + count
    disk = Disk(pages)
    return make(disk, live, policy), disk
