"""Version: the immutable list of segments that a reader sees; a reference to it is the pin (R11).

Made under the install lock; read by any thread. When the last reference goes, on whatever thread and in whatever
state, the merge thread is told (`Store.version_of`; R12).

I1. `levels` never changes. While the version lives, it holds the shared side of each of its segments' locks.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.read.segment import Segment


class Version:
    """Levels of runs of segments as of one install.

    `segments` is flat, newest run first; `seq` is the last commit in them.
    """

    __slots__ = ("__weakref__", "_maps", "install", "levels", "made_at", "pin", "segments", "seq")

    def __init__(
        self,
        install: int,
        seq: int,
        levels: tuple[tuple[tuple[Segment, ...], ...], ...],
        pin: object | None,
    ) -> None:
        self.install = install
        self.seq = seq
        self.levels = levels
        self.segments: tuple[Segment, ...] = tuple(s for level in levels for run in level for s in run)
        self.pin = pin
        self.made_at = time.monotonic()
        self._maps: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        taken: list[Segment] = []
        try:
            for segment in self.segments:
                segment.lock.acquire_shared()
                taken.append(segment)
        except BaseException:
            for segment in taken:
                segment.lock.release_shared()
            raise

    def pinned_map(self, file: File, pages: int) -> Any:
        """Interpreted mode: a map of at least `pages` pages whose slices keep this version alive."""
        for reference in self._maps.valuerefs():  # a copy: other threads may add to it
            mapping = reference()
            if mapping is not None and len(mapping) >= pages * 4096:
                return mapping
        mapping = file.pinned_map(pages, self)
        self._maps[len(mapping)] = mapping
        return mapping

    def ended(self) -> Version:
        """The same install with no segments and no pin; its end is told to nobody."""
        version = Version.__new__(Version)
        version.install, version.seq, version.levels, version.segments = self.install, self.seq, (), ()
        version.pin, version.made_at = None, self.made_at
        return version
