"""The parents of a segment, bottom-up, over children of any height: leaves just written, subtrees taken over.

One thread owns a TreeWriter, for one segment. `place(data)` answers the page at which a finished parent will stand.

I1. Children come in key order. One of height h is added when nothing below h is open, so that the order holds.
I2. All leaves end at one depth. A parent that is finished because a subtree comes behind it is as full as the settings
    ask; one that is poor at the end shares with the subtree before it. So no parent has only one child.
"""

from __future__ import annotations

from collections.abc import Callable

from mmlsm import limits
from mmlsm.format.checksum import checksum
from mmlsm.write.parent_writer import Child, ParentWriter

Opener = Callable[[Child, int], list[Child]]
"""The children of a node of that height that was taken over, which is not used after all."""


class TreeWriter:
    """`levels[h]` collects children of height h."""

    def __init__(
        self, node_bytes: int, children_max: int, fullness_min: float, birth: int, place: Callable[[bytes], int]
    ) -> None:
        self.node_bytes = node_bytes
        self.children_max = children_max
        self.fullness_min = fullness_min
        self.birth = birth
        self.place = place
        self.levels: list[ParentWriter] = []
        self.openers: dict[int, Opener | None] = {}
        """For each level how to open its last child, where that was taken over."""

    def add(self, child: Child, height: int, opener: Opener | None = None) -> None:
        """Enter a finished node of that height. REQUIRES `close_below(height)` where it was not the last height."""
        while len(self.levels) <= height:
            self.levels.append(ParentWriter(len(self.levels) + 1, self.node_bytes, self.children_max))
        self.openers[height] = opener
        level = self.levels[height]
        if not level.add(child):
            self.finish_parent(level, level.rotate())
            level.add(child)

    def finish_parent(self, level: ParentWriter, children: list[Child]) -> None:
        """Write the parent of these children and enter it above."""
        if not children:
            return
        data, entries, overflow = level.encode(children, self.birth)
        lowest = children[0]
        self.add(
            Child(
                lowest.separator, lowest.reference, lowest.separator_bytes,
                self.place(data), len(data) // limits.PAGE_BYTES, checksum(data), entries, overflow,
            ),
            level.height,
        )  # fmt: skip

    def may_close_below(self, height: int, coming: int) -> bool:
        """Whether all that is open over children lower than that would make parents that are full enough.

        `coming` leaves are to be added first.
        """
        for level in self.levels[:height]:
            if level.ready:
                coming = 1 if level.fullness(coming) < 0.5 else 2  # the two may fit into one
            elif level.children or coming:
                if len(level.children) + coming < 2 or level.fullness(coming) < self.fullness_min:
                    return False
                coming = 1
        return not coming or height <= len(self.levels)

    def close_below(self, height: int) -> None:
        """Finish the open parents over children lower than that, for a subtree of that height comes next."""
        for at in range(height):
            if at < len(self.levels):
                self.close(self.levels[at])

    def close(self, level: ParentWriter) -> None:
        """Finish what is open at one height."""
        for children in level.close():
            self.finish_parent(level, children)

    def is_empty(self) -> bool:
        """Whether nothing was added yet."""
        return not self.levels

    def finish(self) -> tuple[Child, int]:
        """Close everything; the root and its height. REQUIRES that something was added."""
        height = 0
        while True:
            level = self.levels[height]
            alone = len(level.children) == 1 and not level.ready
            if alone and not any(above.children or above.ready for above in self.levels[height + 1 :]):
                return level.children[0], height
            if self.is_poor(level):
                self.share(height)
            self.close(level)
            height += 1

    def is_poor(self, level: ParentWriter) -> bool:
        """Whether what is open would make a parent that is too empty."""
        few = len(level.children) == 1 or level.fullness() < self.fullness_min
        return bool(level.children) and not level.ready and few

    def share(self, height: int) -> None:
        """Open the subtree before the last few children of that height, where one was taken over, and join them."""
        if height + 1 == len(self.levels):
            return
        above = self.levels[height + 1]
        if not above.children:
            self.share(height + 1)
        level, opener = self.levels[height], self.openers.get(height + 1)
        if level.ready or not above.children or opener is None:
            return
        last, before = level.children, above.children[-1]
        above.refill(above.children[:-1])
        self.openers[height + 1] = None  # it was of the child taken away
        level.start()
        for child in opener(before, height + 1):
            self.add(child, height, opener)
        for child in last:
            self.add(child, height)
