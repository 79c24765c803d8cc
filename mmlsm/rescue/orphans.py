"""Children of a damaged parent: which of them can still be found, and which of those are proved.

A node's sum stands in its parent, so a lost parent takes the proof of its children with it, but rarely all: damage hits
some bytes, and any sum that still stands among the others proves the node that has it. So, for each damaged parent:

1. Look at all pages that the bitmap marks as in use and that nothing else reaches: the lost nodes are among them.
2. A node whose sum stands, as an aligned word, in the bytes of the damaged parent is its child: *proved*, for no other
   64 bits are there by accident. Its place among its sisters is that of the word. What is below it is proved as ever.
3. If the entries of these children are as many as the damaged parent had, by the word of whoever refers to it, nothing
   is lost. Else the ranges where a child is missing are lost ones.
4. A leaf in such a range that no sum proves, whose structure and order of keys are sound, and which fits one range
   only, is *unproved*: it is taken if asked for, and the ranges are called uncertain as well.
5. What stands in the place of the damaged parent may be another parent, or an older one, with sums of its own: after a
   write that went astray, or was lost. Then the true children stay behind. So only where no page in use is left over
   that nothing accounts for, guesses for another parent aside, are proved children *certain*, and else the whole range
   of the parent is uncertain.

Leaves by structure are taken from pages in use alone (with the bitmap lost, not at all): free pages hold old versions.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mmlsm import limits
from mmlsm.errors import CorruptionError, StorageError
from mmlsm.format import parent
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import NODE_PAGES_MAX
from mmlsm.format.page import CODEC_RAW, KIND_LEAF, KIND_PARENT
from mmlsm.read.pages import Pages
from mmlsm.rescue.report import after
from mmlsm.rescue.trees import Met, Place, Trees
from mmlsm.space.bitmap import Bitmap

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.format.manifest import Manifest

PAGE: Final = limits.PAGE_BYTES

Span = tuple[bytes, bytes | None]
"""low <= key < high."""


class Orphan(NamedTuple):
    """A node that is sound by itself, found without a reference to it."""

    page: int
    pages: int
    sum: int
    height: int
    entries: int
    birth: int


@dataclass(slots=True, eq=False)
class Gap:
    """A damaged parent, and what was found below it."""

    place: Place
    words: dict[int, int]
    """What 8-byte words its pages hold, and where."""
    proved: list[Place] = field(default_factory=list)
    unproved: list[Place] = field(default_factory=list)
    missing: list[Span] = field(default_factory=list)
    certain: bool = False
    """Whether the proved ones are surely its children."""
    lost: int = 0
    """Entries that are neither proved nor taken unproved."""

    def __post_init__(self) -> None:
        self.lost = self.place.entries

    def prove(self, places: list[Place]) -> None:
        """Take these for its children."""
        self.proved = places
        self.lost -= sum(place.entries for place in places)

    def guess(self, place: Place) -> None:
        """Take this for a child, unproved."""
        self.unproved.append(place)
        self.lost -= place.entries

    def drop_guesses(self) -> list[Place]:
        """Take none unproved; those that were."""
        places, self.unproved = self.unproved, []
        self.lost += sum(place.entries for place in places)
        return places


class Search:
    """The search for the children of all damaged parents of a version. `shared`: as `Met` has it."""

    def __init__(
        self,
        trees: Trees,
        manifest: Manifest,
        place: tuple[int, int],
        bits: Bitmap | None,
        *,
        unproved: bool,
        shared: bool,
    ) -> None:
        self.trees = trees
        self.manifest = manifest
        self.gaps: list[Gap] = []
        self._place_of_manifest = place
        self._bits = bits
        self._unproved = unproved
        self._shared = shared
        self._met = Met(shared=shared)
        self._claimed = Bitmap(max(trees.file.pages, 0 if bits is None else bits.pages))
        """For all that the file has or its bitmap tells of. What the manifest says beside that may be any number."""

    def run(self) -> list[Gap]:
        """Every damaged parent, with what was found; `trees.adopted` leads to it. Cost without one: the parents."""
        roots = [self.trees.root_of(record) for record in self.manifest.segments()]
        parents = self.trees.walk(roots, Met(shared=self._shared), leaves=False)
        if not any(place.fault and place.height for place in parents):
            return []
        self._claim([(0, limits.HEADER_PAGES), self._place_of_manifest])
        self._claim((number, 1) for number, _ in self.manifest.bitmap)
        for record in self.manifest.segments():
            if record.filter is not None:
                self._claim([(record.filter.page, record.filter.pages)])
        for retirement in self.manifest.retired:
            self._claim(retirement.extents)
        todo = self._descend(roots)
        hidden = self._hidden()
        found = list(orphans_in(self.trees.file, hidden))
        children = {(one.height, one.sum): one for one in found}
        while todo:
            gap = todo.pop()
            self.gaps.append(gap)
            todo += self._adopt(gap, children)
        for gap in self.gaps:
            gap.missing = self._missing(gap) if gap.lost else []
        if self._bits is not None:
            self._guess(found)
            certain = all(self._claimed.all_set(*extent) for extent in hidden)
            guessing = [gap for gap in self.gaps if gap.unproved]
            for gap in self.gaps:
                gap.certain = certain and all(other is gap for other in guessing)
            if not self._unproved:
                for gap in guessing:
                    gap.drop_guesses()
        return self.gaps

    # -- which pages are whose

    def _claim(self, extents: Iterable[tuple[int, int]]) -> None:
        """Note that these pages have an owner."""
        for first, count in extents:
            count = min(count, self._claimed.pages - first)
            if count > 0:
                self._claimed.set(first, count)

    def _is_claimed(self, child: tuple[Any, ...]) -> bool:
        """Whether a child, as `parent.children_of` has it, has an owner."""
        first, count = child[3], child[4]
        return first + count <= self._claimed.pages and self._claimed.all_set(first, count)

    def _descend(self, places: Iterable[Place]) -> list[Gap]:
        """Claim all that these places lead to; the damaged parents among them."""
        gaps = []
        for place in self.trees.walk(places, self._met):
            self._claim([place.node[:2]])
            if place.fault:
                if place.height:
                    gaps.append(Gap(place, words_of(self.trees.file, place)))
            elif not place.height:
                self._claim((extent.page, extent.pages) for extent in self.trees.extents_of(place))
        return gaps

    def _hidden(self) -> list[tuple[int, int]]:
        """The pages that are in use, as far as that is known, and that nothing reaches."""
        hidden = Bitmap(self._claimed.pages)
        for first, count in self._bits.extents() if self._bits is not None else [(0, hidden.pages)]:
            hidden.set(first, min(count, hidden.pages - first))
        for extent in self._claimed.extents():
            hidden.clear(*extent)
        return [*hidden.extents()]

    # -- children that a sum proves

    def _adopt(self, gap: Gap, children: dict[tuple[int, int], Orphan]) -> list[Gap]:
        """Give a damaged parent the children, by height and sum, whose sums it has; the damaged parents below them."""
        place = gap.place
        known = [one for word in gap.words if (one := children.get((place.height - 1, word))) is not None]
        places = [self._place(gap, one) for one in sorted(known, key=lambda one: gap.words[one.sum])]
        gap.prove([child for child in places if self._is_within(child)])
        self.trees.adopted[place.node[0]] = gap.proved
        return self._descend(gap.proved)

    def _is_within(self, place: Place) -> bool:
        """Whether the first and last key below a place are within its bounds, as far as they can be read."""
        edges = (self.trees.edge_key(place, last=False), self.trees.edge_key(place, last=True))
        return all(key is None or (place.low <= key and (place.high is None or key < place.high)) for key in edges)

    @staticmethod
    def _place(gap: Gap, orphan: Orphan) -> Place:
        """Where an orphan is taken to stand."""
        return Place(
            gap.place.record, (orphan.page, orphan.pages, orphan.sum), orphan.height, gap.place.low, gap.place.high,
            orphan.entries,
        )  # fmt: skip

    def _missing(self, gap: Gap) -> list[Span]:
        """Where a child may be missing: before, behind, and between two whose sums do not stand side by side."""
        spans: list[Span] = []
        low, high = gap.place.low, gap.place.high
        expected = -1
        for place in gap.proved:
            at = gap.words[place.node[2]]
            first = self.trees.edge_key(place, last=False)
            last = self.trees.edge_key(place, last=True)
            if at != expected:
                spans.append((low, high if first is None else first))
            if last is not None:
                low = after(last)
            expected = at + 8
        spans.append((low, high))
        return [(low, high) for low, high in spans if high is None or low < high]

    # -- leaves that nothing proves

    def _guess(self, found: list[Orphan]) -> None:
        """Give each gap the leaves that fit it alone, and that no other such leaf overlaps with."""
        leaves = sorted(self._loose_leaves(found), key=lambda leaf: leaf[:2])
        spans = [(low, high, gap) for gap in self.gaps for low, high in gap.missing]
        spans.sort(key=lambda span: span[0], reverse=True)
        around: list[tuple[bytes, bytes | None, Gap]] = []
        """The spans that begin before the leaf at hand, and do not end before it."""
        for first, last, orphan in leaves:
            while spans and spans[-1][0] <= first:
                around.append(spans.pop())
            around = [span for span in around if span[1] is None or first < span[1]]
            fitting = {gap for _, high, gap in around if (high is None or last < high) and is_room(gap, orphan)}
            if len(fitting) == 1:
                (gap,) = fitting
                gap.guess(self._place(gap, orphan)._replace(low=first, high=after(last)))
        for gap in self.gaps:
            for place in without_overlaps(gap.drop_guesses()):
                gap.guess(place)
            self._descend(gap.unproved)
        for orphan in sorted(found, key=lambda one: one.height):
            if orphan.height and all(map(self._is_claimed, parent.children_of(self.trees.window, orphan.page))):
                self._claim([(orphan.page, orphan.pages)])

    def _loose_leaves(self, found: list[Orphan]) -> Iterator[tuple[bytes, bytes, Orphan]]:
        """First key, last key: the leaves among these that nothing refers to, that are not too new, and in order."""
        for orphan in found:
            later = orphan.birth > self.manifest.install
            if orphan.height or later or self._claimed.any_set(orphan.page, orphan.pages):
                continue
            keys = self.trees.keys_of(orphan.page)
            if keys and all(a < b for a, b in itertools.pairwise(keys)):
                yield keys[0], keys[-1], orphan


def is_room(gap: Gap, orphan: Orphan) -> bool:
    """Whether a leaf may be a child of this gap, by its entries and its size."""
    return orphan.entries <= gap.lost and orphan.pages <= gap.place.record.leaf_pages


def without_overlaps(places: list[Place]) -> list[Place]:
    """Of these leaves, by first key, those whose keys do not lie among another's."""
    alone = []
    end = b""
    for i, place in enumerate(places):
        assert place.high is not None, "each has its own keys for bounds"
        if end <= place.low and (i + 1 == len(places) or place.high <= places[i + 1].low):
            alone.append(place)
        end = max(end, place.high)
    return alone


def words_of(file: File, place: Place) -> dict[int, int]:
    """The aligned 8-byte words in a node's pages, with the place of each; none where they cannot be read."""
    try:
        data = file.pread(place.node[0] * PAGE, place.node[1] * PAGE)
    except StorageError:
        return {}
    data = data[: len(data) // 8 * 8]
    return {word: 8 * i for i, (word,) in enumerate(struct.iter_unpack("<Q", data))}


def orphans_in(file: File, extents: Iterable[tuple[int, int]]) -> Iterator[Orphan]:
    """Every node in these pages that is sound by itself."""
    pages = Pages(file, file.whole_window(), "first-read", None)
    pages.allow_references_past_the_end()
    for first, count in extents:
        for number in range(first, min(first + count, file.pages)):
            orphan = orphan_at(file, pages, number)
            if orphan is not None:
                yield orphan


def orphan_at(file: File, pages: Pages, number: int) -> Orphan | None:
    """The node that begins in a page, if it looks sound."""
    try:
        kind, codec, count, height = file.pread(number * PAGE, 4).ljust(4, b"\0")
        if kind not in (KIND_LEAF, KIND_PARENT) or codec != CODEC_RAW:
            return None
        if not 1 <= count <= min(NODE_PAGES_MAX, file.pages - number):
            return None
        total = checksum(file.pread(number * PAGE, count * PAGE))
        pages.touch_anew((number, count, total), height)
    except (CorruptionError, StorageError):
        return None
    if kind == KIND_LEAF:
        entries = pages.count_of(number)
    else:
        entries = sum(child[6] for child in parent.children_of(pages.window, number))
    return Orphan(number, count, total, height, entries, pages.birth_of(number))
