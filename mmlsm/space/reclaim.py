"""When a retired extent may be used again: R11, the interval rule.

Any thread may pin and retire. Finalisers may not (R12): they post, and a thread of the engine unpins. One lock of rank
60, which is not held while the allocator works.

Leaves and parents carry their birth in their headers. An overflow extent is nothing but payload, so who writes one
notes here since which install it can be seen.

I1. An extent born at b and unlinked at d is freed only when no pinned version v has b <= v < d, and both copies of a
    superblock >= d are durable (R11).
I2. A version is pinned by whoever installs it, before readers can find it, and unpinned once nobody can; so no pin ever
    comes too late for a `reclaim` that runs beside it.
I3. `pending` and the allocator's live pages agree for whoever holds the install lock: `retire`, `reclaim` and the
    encoding of a manifest happen under it.
I4. A birth that is too low holds longer; one that is too high would free under a reader. What is remembered of births
    is forgotten, which reads as 0, once no pin is older: all pins to come are newer, so 0 says the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from mmlsm.format.manifest import Retirement
from mmlsm.locks import PINS, ordered_lock
from mmlsm.space.allocator import Allocator
from mmlsm.space.births import Births
from mmlsm.space.extents import Extent, joined


def reclaimable(
    retirements: Iterable[Retirement], pinned: Sequence[int], durable: int
) -> tuple[list[Retirement], list[Retirement]]:
    """Those that may be freed, and those to keep, in their order (I1).

    `pinned` are the install numbers of pinned versions, ascending; `durable` is the newest install of which both
    superblock copies are durable. Pure; O(retirements * log pins).
    """
    free: list[Retirement] = []
    keep: list[Retirement] = []
    for retirement in retirements:
        at = bisect_left(pinned, retirement.born)
        seen = at < len(pinned) and pinned[at] < retirement.died
        (keep if seen or retirement.died > durable else free).append(retirement)
    return free, keep


def held_pages(retirements: Iterable[Retirement], pinned: Sequence[int]) -> list[int]:
    """How many retired pages each of the pinned versions, ascending, still sees, alone or with others.

    Pure; O(retirements * log pins + pins).
    """
    steps = [0] * (len(pinned) + 1)
    for retirement in retirements:
        steps[bisect_left(pinned, retirement.born)] += retirement.pages
        steps[bisect_left(pinned, retirement.died)] -= retirement.pages
    return list(accumulate(steps[:-1]))


class Reclaimer:
    """The pins of one database and what waits for them. `retired` is what its manifest had pending at open."""

    def __init__(self, allocator: Allocator, retired: Iterable[Retirement] = (), *, debug: bool = False) -> None:
        self._allocator = allocator
        self._lock = ordered_lock("pins", PINS, debug)
        # guarded by _lock
        self._pins: dict[int, int] = {}
        self._pending = list(retired)
        # constant; has a lock of its own
        self._births = Births()
        allocator.on_reserve = self._births.begin_life

    def pin(self, install: int) -> None:
        """Keep what version `install` can see, until as many `unpin`."""
        with self._lock:
            if not self._pins:
                self._births.forget_until(install)
            self._pins[install] = self._pins.get(install, 0) + 1

    def unpin(self, install: int) -> None:
        """Take one pin of version `install` away; the last step is the one that does it, and takes no memory."""
        with self._lock:
            left = self._pins.get(install, 0) - 1
            assert left >= 0, f"version {install} is not pinned"
            if left:
                self._pins[install] = left
                return
            oldest = min((pinned for pinned in self._pins if pinned != install), default=None)
            if oldest is not None:
                self._births.forget_until(oldest)
            del self._pins[install]

    def pinned(self) -> list[int]:
        """The pinned install numbers, ascending, each once."""
        with self._lock:
            return sorted(self._pins)

    def note_birth(self, page: int, install: int) -> None:
        """The extent that begins at `page`, reserved or live, is seen by no version before `install` (I4)."""
        self._births.note(page, install)

    def birth_of(self, page: int) -> int:
        """Since which install the extent that begins at `page` can be seen; 0 where that is not remembered (I4)."""
        return self._births.of(page)

    def grouped_by_birth(self, extents: Iterable[tuple[int, int]]) -> list[tuple[list[Extent], int]]:
        """Extents, each as it was noted, with their births: an Edit's `retire`."""
        groups: dict[int, list[Extent]] = {}
        for first, count in extents:
            groups.setdefault(self._births.of(first), []).append(Extent(first, count))
        return [(group, birth) for birth, group in groups.items()]

    def retire(self, extents: Iterable[tuple[int, int]], born: int, died: int) -> None:
        """Live extents, in any order, that versions born <= v < died can see, and no later one."""
        assert born <= died, f"born at {born}, died at {died}"
        retirement = Retirement(born, died, joined(extents))
        assert all(self._allocator.is_live(extent) for extent in retirement.extents), "retired, but not live"
        if retirement.extents:
            with self._lock:
                self._pending.append(retirement)

    def pending(self) -> list[Retirement]:
        """What is retired and not yet freed, as a manifest records it."""
        with self._lock:
            return list(self._pending)

    def pending_pages(self) -> int:
        """Pages of what is retired and not yet freed."""
        return sum(retirement.pages for retirement in self.pending())

    def reclaim(self, durable: int) -> int:
        """Free what I1 allows, when both superblock copies of install `durable` are durable; pages freed.

        REQUIRES that nothing is retired meanwhile. An error of the allocator leaves the rest pending: there may be no
        memory, and debug poisoning does I/O.
        """
        with self._lock:
            free, keep = reclaimable(self._pending, sorted(self._pins), durable)
            rest = [Retirement(r.born, r.died, (extent,)) for r in reversed(free) for extent in reversed(r.extents)]
            pending = self._pending = [*keep, *rest]
        pages = 0
        while len(pending) > len(keep):
            retirement = pending[-1]
            del pending[-1]
            try:
                self._allocator.free(retirement.extents[0])
            except BaseException:
                pending.append(retirement)  # takes no memory: its place is still there
                raise
            pages += retirement.pages
        return pages
