"""A walk over one segment, node by node in key order, for what merges: open a parent, take a leaf, or pass by.

Used by one thread; the caller holds the segment.

I1. What is opened or taken has been proved. What is passed by has not been read.
I2. `unlinked` has each node that was opened, taken or dropped, once, by its birth (R11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.errors import CorruptionError
from mmlsm.format.leaf import entries_of
from mmlsm.format.manifest import Reference
from mmlsm.format.page import KEY_OVERFLOW, OVERFLOW
from mmlsm.format.parent import children_of
from mmlsm.read.pages import read_payload
from mmlsm.space.extents import Extent, joined
from mmlsm.write.parent_writer import Child

if TYPE_CHECKING:
    from mmlsm.read.segment import Segment
    from mmlsm.space.bitmap import Bitmap
    from mmlsm.write.segment_writer import Separator


def take_away(own: Bitmap | None, first: int, pages: int) -> None:
    """Take pages out of what may be unlinked; CorruptionError where they are not in it: somebody else has them too."""
    if own is None:
        return
    if first + pages > own.pages or not own.all_set(first, pages):
        raise CorruptionError(
            f"page {first}: it is referred to twice, or is free by the bitmap; restore a backup, or salvage", page=first
        )
    own.clear(first, pages)


class Unlinked:
    """Extents by birth, neighbours joined as they come. `own`: what may be; `newest`: no birth is above it."""

    def __init__(self) -> None:
        self.by_birth: dict[int, list[list[int]]] = {}
        self.pages = 0
        self.own: Bitmap | None = None
        self.newest: int | None = None

    def add(self, first: int, pages: int, born: int) -> None:
        """Note one extent. CorruptionError where that cannot be."""
        if self.newest is not None and born > self.newest:
            raise CorruptionError(f"page {first}: it was born at install {born}, which is still to come", page=first)
        take_away(self.own, first, pages)
        known = self.by_birth.setdefault(born, [])
        self.pages += pages
        if known and known[-1][0] + known[-1][1] == first:
            known[-1][1] += pages
        else:
            known.append([first, pages])

    def reaches(self, page: int) -> bool:
        """Whether some page of them is at or above `page`."""
        return any(first + count > page for extents in self.by_birth.values() for first, count in extents)

    def grouped(self) -> list[tuple[list[Extent], int]]:
        """(extents, born) for each birth."""
        return [
            ([Extent(*extent) for extent in joined([(first, pages) for first, pages in extents])], born)
            for born, extents in self.by_birth.items()
        ]


class Walk:
    """A place before a node of `segment`: `child`, of that `height`; None at the end.

    `first` and `last`: the node is on the tree's left or right edge. `upper` is the separator behind it, None at the
    right edge. `on_open` is called for each parent that is opened, so that no walk is long without a word.
    """

    def __init__(self, segment: Segment, on_open: Callable[[], object] | None = None) -> None:
        self.segment = segment
        self.on_open = on_open
        record = segment.record
        self.unlinked = Unlinked()
        self.path: list[tuple[list[Child], int, Separator | None, bool, bool]] = []
        self.height = record.height
        root = Child(
            b"", b"", 0, record.root_page, record.root_pages, record.root_sum, record.entries, record.overflow
        )
        self.children: list[Child] = [root]
        self.index = 0
        self.edge_upper: Separator | None = None
        self.at_first = self.at_last = True

    @property
    def child(self) -> Child | None:
        """The node before which the walk stands."""
        return self.children[self.index] if self.index < len(self.children) else None

    @property
    def first(self) -> bool:
        """Whether the node is on the left edge."""
        return self.at_first and self.index == 0

    @property
    def last(self) -> bool:
        """Whether the node is on the right edge."""
        return self.at_last and self.index == len(self.children) - 1

    @property
    def upper(self) -> Separator | None:
        """The separator behind the node."""
        return self.separator_of(self.index + 1)

    def separator_of(self, i: int) -> Separator | None:
        """The separator before sibling i, or behind the last."""
        if i >= len(self.children):
            return self.edge_upper
        child = self.children[i]
        return child.separator, child.reference, child.separator_bytes

    def key_of(self, separator: Separator) -> bytes:
        """All of a separator."""
        inline, reference, length = separator
        if not reference:
            return inline
        return read_payload(self.segment.file, Reference.unpack(reference), segment_id=self.segment.segment_id)[:length]

    def low(self) -> bytes | None:
        """A key that is not above any key of the node, and above all before it; None at the end."""
        child = self.child
        if child is None:
            return None
        if self.first:
            return self.segment.first_key
        return self.key_of((child.separator, child.reference, child.separator_bytes))

    def high(self) -> bytes | None:
        """A key above all of the node, at or below all behind it; None at the right edge."""
        upper = self.upper
        return None if upper is None else self.key_of(upper)

    def prove(self) -> Child:
        """Prove the node."""
        child = self.child
        assert child is not None
        self.segment.touch_nodes([(child.page, child.pages, child.sum)], self.height)
        return child

    def skip(self) -> None:
        """Pass the node by."""
        self.index += 1
        while self.index == len(self.children) and self.path:
            self.children, self.index, self.edge_upper, self.at_first, self.at_last = self.path.pop()
            self.index += 1
            self.height += 1

    def open(self, *, unlink: bool = True) -> None:
        """Go down to the first child of the node, a parent."""
        if self.on_open is not None:
            self.on_open()
        parent = self.prove()
        if unlink:
            self.unlink(parent)
        upper, first, last = self.upper, self.first, self.last
        self.path.append((self.children, self.index, self.edge_upper, self.at_first, self.at_last))
        below = self._below(parent)
        self.children, self.index, self.edge_upper, self.at_first, self.at_last = below, 0, upper, first, last
        self.height -= 1

    def take(self, most: int = 1, *, unlink: bool = True) -> list[int]:
        """Prove and pass by up to `most` leaves under one parent, from the node on; their page numbers."""
        leaves = self.children[self.index : self.index + most]
        self.segment.touch_nodes([(leaf.page, leaf.pages, leaf.sum) for leaf in leaves], 0)
        if unlink:
            for leaf in leaves:
                self.unlink(leaf)
        self.index += len(leaves) - 1
        self.skip()
        return [leaf.page for leaf in leaves]

    def drop(self) -> None:
        """Unlink the node with all below it, and pass it by."""
        depth = len(self.path)
        if self.height == 0:
            self.take()
            return
        self.open()
        while len(self.path) > depth:
            if self.height:
                self.open()
            else:
                self.take(len(self.children))

    def unlink(self, child: Child) -> None:
        """Note a proved node that the result does not use."""
        self.unlinked.add(child.page, child.pages, self.segment.birth_of(child.page))

    def unlink_filter(self) -> None:
        """Note the segment's filter, which goes with it."""
        record = self.segment.record
        if record.filter is not None:
            self.unlinked.add(record.filter.page, record.filter.pages, record.installed)

    def used(self) -> int:
        """Bytes in use of the node. Reads it."""
        return self.segment.used_of(self.prove().page)

    def is_poor(self, child: Child, fullness_min: float, entries_max: int) -> bool:
        """Whether a node of the walk's height is less full than that, in bytes and in entries. Reads it."""
        segment = self.segment
        segment.touch_nodes([(child.page, child.pages, child.sum)], self.height)
        if segment.count_of(child.page) >= fullness_min * entries_max:
            return False
        return segment.used_of(child.page) < fullness_min * segment.record.leaf_pages * limits.PAGE_BYTES

    def children_of(self, child: Child, height: int) -> list[Child]:
        """The children of a node of that height that is not used after all: prove it, unlink it."""
        self.segment.touch_nodes([(child.page, child.pages, child.sum)], height)
        self.unlink(child)
        return self._below(child)

    def _below(self, parent: Child) -> list[Child]:
        """The children of a proved parent; the first has the parent's own separator."""
        below = [Child(*fields) for fields in children_of(self.segment.window, parent.page)]
        below[0] = replace(
            below[0], separator=parent.separator, reference=parent.reference, separator_bytes=parent.separator_bytes
        )
        return below

    def references(self) -> list[tuple[int, int]]:
        """The overflow extents that the leaf refers to. Reads it."""
        found = []
        for _, kind, reference, value in entries_of(self.segment.window, self.prove().page):
            if kind & KEY_OVERFLOW:
                found.append(Reference.unpack(reference))
            if kind & 15 == OVERFLOW:
                found.append(Reference.unpack(value))
        return [(reference.page, reference.pages) for reference in found]

    def edge_key(self, child: Child, height: int, *, last: bool) -> bytes:
        """The first or last key below a node. Reads the nodes on that edge of it."""
        node = (child.page, child.pages, child.sum)
        while True:
            self.segment.touch_nodes([node], height)
            if height == 0:
                inline, _, reference, _ = entries_of(self.segment.window, node[0])[-1 if last else 0]
                return self.key_of((inline, reference, limits.KEY_BYTES_MAX))
            node = self.segment.children_of(node[0])[-1 if last else 0]
            height -= 1
