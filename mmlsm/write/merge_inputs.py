"""What a source of a merge gives when it is its turn: a node taken over whole, entries of leaves, or nothing.

Used by the thread that merges. Each input has a Walk, and `serve` is called when it stands before a node and all keys
of the other sources are at or above its lower bound.

I1. A node is taken over where no other source has a key in its range, the key before it is none of its keys, and what
    was written before it is full enough to stand by itself; else a parent is opened and a leaf given to be merged.
I2. The separator before what follows a node that was taken over is the one behind that node. One that refers to an
    overflow extent belongs to the leaf behind it and dies with that leaf, so no node before such a one is taken over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mmlsm.write.merge_walk import Walk

if TYPE_CHECKING:
    from mmlsm.read.segment import Segment
    from mmlsm.settings import Settings
    from mmlsm.write.lookahead import Lookahead
    from mmlsm.write.merge import MergeCore
    from mmlsm.write.segment_writer import SegmentWriter

BATCH_MOST = 64
"""Leaves that are given at once at most."""


class Input(Protocol):
    """One source of a merge."""

    walk: Walk

    def serve(self, core: MergeCore, s: int, writer: SegmentWriter) -> None:
        """Give the core leaves, or a bound to move on to, having taken over what can be."""


class Merged:
    """All of a segment, which is gone after the merge. With `reuse`, nodes are taken over.

    `ahead` knows the keys of the other sources, and so which leaves can be given at once.
    `sharing`: the next leaf comes only because a neighbour of it is poor; the bytes that the two should share.
    """

    def __init__(self, segment: Segment, settings: Settings, *, reuse: bool, ahead: Lookahead | None = None) -> None:
        self.walk = Walk(segment)
        self.settings = settings
        self.reuse = reuse
        self.ahead = ahead
        self.sharing = 0
        self.following = False
        self.cut = 0
        self.fullness_min = 0.0
        self.most = 0

    def rework(self, cut: int, fullness_min: float, most: int) -> None:
        """Give leaves that stand at or above page `cut`, or are less full than that, up to about `most` pages."""
        self.cut, self.fullness_min, self.most = cut, fullness_min, most

    def serve(self, core: MergeCore, s: int, writer: SegmentWriter) -> None:
        walk = self.walk
        while walk.child is not None:
            low = walk.low()
            assert low is not None
            if not core.leads(s, low, False):
                core.move_on(s, low)
                return
            if self.may_take_over(core, s, low, writer):
                self.take_over(writer)
            elif walk.height:
                walk.open()
            else:
                count = 1 if self.sharing else self.batch()
                if self.sharing:
                    writer.share(self.sharing)
                leaves = walk.take(count)
                self.following = False
                core.give(s, leaves, 0, -1, walk.low())
                return
        core.move_on(s, None)

    def batch(self) -> int:
        """Leaves to give at once."""
        if self.most:
            return self.batch_behind_cut()
        if self.ahead is None:
            return BATCH_MOST
        walk, ahead = self.walk, self.ahead
        count, untouched = 1, 0
        while count < min(BATCH_MOST, len(walk.children) - walk.index):
            low, high = walk.separator_of(walk.index + count), walk.separator_of(walk.index + count + 1)
            assert low is not None
            if high is None or low[1] or high[1] or ahead.finds(low[0], high[0]):
                untouched = 0
            else:
                untouched += 1
                if untouched == self.settings.reuse_leaves_min:
                    break
            count += 1
        return max(1, count + (untouched == self.settings.reuse_leaves_min) - untouched)

    def batch_behind_cut(self) -> int:
        """The leaf, and those behind it that stand at or above the cut as well."""
        walk, count = self.walk, 1
        for leaf in walk.children[walk.index + 1 : walk.index + BATCH_MOST]:
            if not leaf.page + leaf.pages > self.cut > 0 or not self.most:
                break
            self.spend(leaf.pages)
            count += 1
        return count

    def take_over(self, writer: SegmentWriter) -> None:
        """Enter the node into the result as it is."""
        walk = self.walk
        take_over(walk, writer)
        self.following = True

    def may_take_over(self, core: MergeCore, s: int, low: bytes, writer: SegmentWriter) -> bool:
        """Whether the node can be taken over (I1, I2)."""
        walk = self.walk
        self.sharing = 0
        if not self.reuse or (walk.last and walk.height) or (walk.first and not writer.is_empty()):
            return False
        upper = walk.upper
        if upper is not None and upper[1]:
            return False
        if upper is None:
            alone = core.leads(s, walk.segment.last_key, True)
        else:
            alone = core.leads(s, upper[0], False)
        if not alone or core.has_written(low):
            return False
        if not writer.may_take_over(walk.height):
            if walk.height == 0 and writer.is_poor():
                self.sharing = walk.used()
            return False
        if self.is_wanted() or self.is_poor_neighbour(writer):
            return False
        return walk.height > 0 or self.following or self.begins_run(core, s)

    def begins_run(self, core: MergeCore, s: int) -> bool:
        """Whether no other source has keys in as many leaves from here on as are asked for, or in all to the end."""
        walk = self.walk
        for i in range(walk.index + 1, min(walk.index + self.settings.reuse_leaves_min, len(walk.children))):
            upper = walk.separator_of(i + 1)
            if upper is None:
                break
            if upper[1] or not core.leads(s, upper[0], False):
                return False
        return True

    def is_wanted(self) -> bool:
        """Whether the node is to be written anew, or may hold what is."""
        walk = self.walk
        child = walk.child
        if not self.most or child is None:
            return False
        if walk.height > 1:
            return True
        if child.page + child.pages > self.cut > 0 and walk.height == 0:
            return self.spend(child.pages)
        if walk.height == 1:
            return child.page + child.pages > self.cut > 0 or self.has_wanted_below()
        if self.fullness_min and walk.is_poor(child, self.fullness_min, self.settings.node_entries_max):
            return self.spend(child.pages)
        beyond = 0
        if self.cut and child.overflow:
            beyond = sum(pages for page, pages in walk.references() if page + pages > self.cut)
        return bool(beyond) and self.spend(beyond)

    def has_wanted_below(self) -> bool:
        """Whether a parent of leaves must be opened. Reads it."""
        walk = self.walk
        child = walk.prove()
        if self.fullness_min or (self.cut and child.overflow):
            return True
        leaves = walk.segment.children_of(child.page)
        return any(page + pages > self.cut for page, pages, _ in leaves)

    def spend(self, pages: int) -> bool:
        """Count pages that are written anew; False from the moment that the measure is full."""
        self.most = max(0, self.most - pages)
        return True

    def is_poor_neighbour(self, writer: SegmentWriter) -> bool:
        """Whether the node is too empty to be left beside one just written, or its last sibling is, on the right edge.

        Reads those nodes.
        """
        walk = self.walk
        child = walk.child
        assert child is not None
        fullness_min = self.settings.leaf_fullness_min
        children_max = self.settings.node_entries_max
        if writer.ends_fresh() and walk.is_poor(child, fullness_min, children_max):
            return True
        if walk.at_last and walk.index == len(walk.children) - 2:
            last = walk.children[-1]
            poor = walk.is_poor(last, fullness_min, children_max)
            if poor and walk.height == 0:
                self.sharing = walk.used() + walk.segment.used_of(last.page)
            return poor
        return False


class Kept:
    """The keys start <= k < stop of a segment, which is not changed by this."""

    def __init__(self, segment: Segment, start: bytes | None, stop: bytes | None) -> None:
        self.walk = Walk(segment)
        self.start = start
        self.stop = stop

    def serve(self, core: MergeCore, s: int, writer: SegmentWriter) -> None:
        walk, start, stop = self.walk, self.start, self.stop
        while walk.child is not None:
            low, high = walk.low(), walk.high()
            assert low is not None
            if stop is not None and low >= stop:
                break
            if start is not None and high is not None and high <= start:
                walk.skip()
                continue
            if walk.height:
                walk.open(unlink=False)
                continue
            inside = self.inside(low)
            first, last = (0, -1) if inside else leaf_bounds(walk, start, stop)
            leaves = walk.take(max(1, inside), unlink=False)
            after = walk.low()
            if stop is not None and after is not None and after >= stop:
                after = None
            if first < last or inside:
                core.give(s, leaves, first, last, after)
                return
            if after is None:
                break
        core.move_on(s, None)

    def inside(self, low: bytes) -> int:
        """How many leaves from here on are wholly between the bounds."""
        walk, count = self.walk, 0
        if self.start is not None and low < self.start:
            return 0
        while count < min(BATCH_MOST, len(walk.children) - walk.index):
            upper = walk.separator_of(walk.index + count + 1)
            if self.stop is not None and (upper is None or walk.key_of(upper) > self.stop):
                break
            count += 1
        return count


class Remainder:
    """All of a segment but the keys start <= k < stop; what is wholly between is unlinked unread."""

    def __init__(self, segment: Segment, settings: Settings, start: bytes | None, stop: bytes | None) -> None:
        self.walk = Walk(segment)
        self.settings = settings
        self.start = start
        self.stop = stop
        self.rest: tuple[list[int], int, int, bytes | None] | None = None

    def serve(self, core: MergeCore, s: int, writer: SegmentWriter) -> None:
        walk, start, stop = self.walk, self.start, self.stop
        if self.rest is not None:
            core.give(s, *self.rest)
            self.rest = None
            return
        while walk.child is not None:
            low, high = walk.low(), walk.high()
            assert low is not None
            after_start = start is None or low >= start
            before_stop = stop is None or (high is not None and high <= stop)
            if after_start and before_stop:
                walk.drop()
                continue
            outside = (start is not None and high is not None and high <= start) or (stop is not None and low >= stop)
            if outside and self.may_take_over(writer):
                take_over(walk, writer)
                continue
            if walk.height:
                walk.open()
                continue
            if self.give_outside(core, s, writer, outside):
                return
        core.move_on(s, None)

    def may_take_over(self, writer: SegmentWriter) -> bool:
        """Whether the node can stay as it is."""
        walk = self.walk
        upper = walk.upper
        return not (walk.last and walk.height) and not (upper and upper[1]) and writer.may_take_over(walk.height)

    def give_outside(self, core: MergeCore, s: int, writer: SegmentWriter, outside: bool) -> bool:
        """Give the entries of a leaf that are not cut out; False when there are none, and the leaf is passed by."""
        walk = self.walk
        count = walk.segment.count_of(walk.prove().page)
        if outside and writer.is_poor():
            writer.share(walk.used())
        first, last = (count, count) if outside else leaf_bounds(walk, self.start, self.stop)
        page = walk.take()
        after = walk.low()
        if first > 0 and last < count:
            self.rest = (page, last, count, after)
            after = self.stop
        if first:
            core.give(s, page, 0, first, after)
        elif last < count:
            core.give(s, page, last, count, after)
        else:
            return False
        return True


def take_over(walk: Walk, writer: SegmentWriter) -> None:
    """Enter the node before which a walk stands into the result as it is."""
    child, height = walk.child, walk.height
    assert child is not None
    writer.take_over(
        child,
        height,
        first_key=lambda: walk.edge_key(child, height, last=False),
        last_key=lambda: walk.edge_key(child, height, last=True),
        upper=walk.upper,
        opener=walk.children_of,
    )
    walk.skip()


def leaf_bounds(walk: Walk, start: bytes | None, stop: bytes | None) -> tuple[int, int]:
    """Of the leaf before which the walk stands: the first entry not below `start`, the first not below `stop`."""
    child = walk.prove()
    segment = walk.segment
    first = 0 if start is None else segment.first_at_or_above(child.page, start)
    last = segment.count_of(child.page) if stop is None else segment.first_at_or_above(child.page, stop)
    return first, max(first, last)
