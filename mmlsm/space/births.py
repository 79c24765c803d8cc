"""Births: since which install an overflow extent can be seen, for R11. Its pages are payload and cannot say so.

Any thread; a lock of its own, below which nothing is taken (rank 70). It refers to nothing, so that it makes no cycle.

I1. What is remembered of a page is of the life that it now has: at each reservation whatever is remembered of its pages
    goes, also when the life before came to nothing, so that no birth is ever too high for the next.
I2. No birth at or before `oldest`, the oldest pin, is kept for longer than until the next unpin: all pins, and those to
    come, are at least as new, so 0, which is what `of` answers without it, says the same.
"""

from __future__ import annotations

from mmlsm.locks import new_lock
from mmlsm.space.extents import Extent


class Births:
    """The births of extents, by their first page. Memory: for each extent that was written since the oldest pin."""

    def __init__(self) -> None:
        self._lock = new_lock()
        # guarded by _lock
        self._oldest = 0
        self._births: dict[int, int] = {}
        self._pages: dict[int, set[int]] = {}
        """The pages of `_births` by install, so that those of old ones are at hand."""

    def __len__(self) -> int:
        return len(self._births)

    def note(self, page: int, install: int) -> None:
        """The extent that begins at `page`, which is the caller's, is seen by no version before `install`."""
        with self._lock:
            self._forget(page)
            if install > self._oldest:
                self._births[page] = install
                self._pages.setdefault(install, set()).add(page)

    def of(self, page: int) -> int:
        """The birth of the extent that begins at `page`, 0 where it is not remembered."""
        return self._births.get(page, 0)

    def begin_life(self, extent: Extent) -> None:
        """The pages of `extent` have been reserved: what is remembered of them is of an earlier life (I1)."""
        births = self._births
        if births:
            first, end = extent.first, extent.end
            with self._lock:
                # Of the two the smaller; nobody but the caller has these pages, so what others note makes no matter.
                for page in range(first, end) if extent.count < len(births) else list(births):
                    if first <= page < end:
                        self._forget(page)

    def forget_until(self, oldest: int) -> None:
        """No pin is older than `oldest`, nor will one be (I2)."""
        with self._lock:
            self._oldest = max(self._oldest, oldest)
            for install in [install for install in self._pages if install <= oldest]:
                for page in self._pages.pop(install):
                    self._births.pop(page, None)

    def _forget(self, page: int) -> None:
        install = self._births.pop(page, None)
        if install is not None:
            pages = self._pages.get(install, set())
            pages.discard(page)
            if not pages:
                self._pages.pop(install, None)
