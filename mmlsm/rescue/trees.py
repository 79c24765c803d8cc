"""The trees of a damaged file: every node that can be reached and proved, in key order, and what cannot.

One thread. The proof of a page is the reader's own (`read/pages`); nothing here decodes a format.

I1. A place's bounds hold all keys of its node: a separator whose extent is damaged makes them wider, never narrower.
I2. It ends, at a cost within the size of the file: no walk goes into a node twice, whoever else refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from mmlsm.errors import CorruptionError, StorageError, without_advice
from mmlsm.format import leaf, page, parent
from mmlsm.format.manifest import Reference, SegmentRecord
from mmlsm.read.pages import Pages, read_payload
from mmlsm.rescue.report import Damage, after, past

if TYPE_CHECKING:
    from mmlsm.file import File

PART_PAGES: Final = 4096

Node = tuple[int, int, int]
"""Page, pages, sum."""


class Place(NamedTuple):
    """A node where it stands in its segment: its keys are low <= key < high. `fault`: what is wrong with it, if so."""

    record: SegmentRecord
    node: Node
    height: int
    low: bytes
    high: bytes | None
    entries: int
    fault: str = ""

    def damage(self, reason: str = "") -> Damage:
        """That it is lost."""
        return Damage(reason or self.fault, self.low, self.high, self.node[0], self.record.id, self.entries)


class Entry(NamedTuple):
    """A key with its value; None is a tombstone."""

    key: bytes
    value: bytes | Reference | None
    segment: int | None


class Met:
    """Which nodes a walk, or several that are to be one, came to: two bits for each page, in parts made when needed.

    `shared`: different trees may have nodes in common, as those of older versions have, so each tree has its own bits.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._parts: dict[tuple[int, int], bytearray] = {}

    def is_sound(self, place: Place) -> bool:
        """Whether the node was met and is sound."""
        bits, at, mask = self._bit(place, 0)
        return bits[at] & mask != 0

    def again(self, place: Place) -> bool:
        """Note a node that was looked at; whether it was met before, as sound as now."""
        bits, at, mask = self._bit(place, 1 if place.fault else 0)
        before = bits[at] & mask
        bits[at] |= mask
        return before != 0

    def _bit(self, place: Place, which: int) -> tuple[bytearray, int, int]:
        """Where the first (sound) or second (damaged) bit of a node is: a part, a byte, and the bit in it."""
        part, at = divmod(place.node[0], PART_PAGES)
        key = place.record.id if self._shared else 0, part
        bits = self._parts.get(key)
        if bits is None:
            bits = self._parts[key] = bytearray(PART_PAGES // 4)
        return bits, at // 4, 1 << at % 4 * 2 + which


class Trees:
    """The segments of one file. `adopted`: what was found of the children of a damaged parent, by its page; `repeated`:
    the nodes that a walk came to again, by page."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.window = file.whole_window()
        self.adopted: dict[int, list[Place]] = {}
        self.repeated: dict[int, Place] = {}
        self._file_pages = file.pages
        self._pages: dict[int, Pages] = {}

    def root_of(self, record: SegmentRecord) -> Place:
        """A segment's root."""
        node = record.root_page, record.root_pages, record.root_sum
        return Place(record, node, record.height, record.first_key, after(record.last_key), record.entries)

    def walk(self, places: Iterable[Place], met: Met, *, leaves: bool = True) -> Iterator[Place]:
        """Each node at and below these, looked at, parents first. Below a damaged one: what was adopted.

        A node that was met before is passed by, and noted among the repeated ones (I2); but one whose sum was wrong at
        one place may be sound at another.
        """
        todo = [*places][::-1]
        while todo:
            place = todo.pop()
            if place.height == 0 and not leaves:
                continue
            sound = met.is_sound(place)
            if not sound:
                place = place._replace(fault=self.fault_of(place))
            if sound or met.again(place):
                self.repeated.setdefault(place.node[0], place)
                continue
            yield place
            if place.fault:
                todo += reversed(self.adopted.get(place.node[0], []))
            elif place.height:
                todo += reversed(self.children_of(place))

    def fault_of(self, place: Place) -> str:
        """What is wrong with a node: "" if its sum and structure are right."""
        number, count, _ = place.node
        segment = place.record.id
        pages = self._pages.get(segment)
        if pages is None:
            pages = self._pages[segment] = Pages(self.file, self.window, "first-read", segment)
            pages.allow_references_past_the_end()
        try:
            if number + count > self._file_pages:
                return f"page {number}: past the end of the file"
            pages.touch_anew(place.node, place.height)
        except (CorruptionError, StorageError) as error:
            return without_advice(error)
        return ""

    def children_of(self, place: Place) -> list[Place]:
        """The places below a sound parent."""
        children = parent.children_of(self.window, place.node[0])
        bounds: list[tuple[bytes, bytes | None]] = [(place.low, None)]
        for inline, reference, whole, *_ in children[1:]:
            key = self.whole_key(inline, reference)
            bounds.append((inline, past(inline)) if key is None else (key[:whole], key[:whole]))
        bounds.append((b"", place.high))
        return [
            Place(place.record, (first, count, total), place.height - 1, bounds[i][0], bounds[i + 1][1], entries)
            for i, (_, _, _, first, count, total, entries, _) in enumerate(children)
        ]

    def whole_key(self, inline: bytes, reference: bytes) -> bytes | None:
        """A key or separator with what an extent holds of it; None where that is damaged."""
        if not reference:
            return inline
        try:
            return read_payload(self.file, Reference.unpack(reference))
        except (CorruptionError, StorageError):
            return None

    def edge_key(self, place: Place, *, last: bool) -> bytes | None:
        """The first or last key below a node; None where damage hides it."""
        while not self.fault_of(place):
            if not place.height:
                inline, _, reference, _ = leaf.entries_of(self.window, place.node[0])[-1 if last else 0]
                return self.whole_key(inline, reference)
            place = self.children_of(place)[-1 if last else 0]
        return None

    def keys_of(self, number: int) -> list[bytes]:
        """The keys of the sound leaf in a page, but for those that damage hides."""
        keys = (self.whole_key(inline, more) for inline, _, more, _ in leaf.entries_of(self.window, number))
        return [key for key in keys if key is not None]

    def extents_of(self, place: Place) -> list[Reference]:
        """The extents that a sound leaf refers to: of long keys and of long values."""
        found = []
        for _, kind, key, value in leaf.entries_of(self.window, place.node[0]):
            if key:
                found.append(Reference.unpack(key))
            if kind & 15 == page.OVERFLOW:
                found.append(Reference.unpack(value))
        return found

    def entries_of(self, place: Place, lose: Callable[[Damage], object]) -> Iterator[Entry]:
        """The entries of a sound leaf; one whose key's extent is damaged is told to `lose`."""
        before = place.low
        for inline, kind, reference, value in leaf.entries_of(self.window, place.node[0]):
            key = self.whole_key(inline, reference)
            if key is None:
                extent = Reference.unpack(reference)
                reason = f"page {extent.page}: the extent of a key of {extent.length} bytes is damaged or cut short"
                lose(Damage(reason, max(inline, before), past(inline), extent.page, place.record.id, 1))
                continue
            before = key
            kind &= 15
            if kind == page.TOMBSTONE:
                yield Entry(key, None, place.record.id)
            elif kind == page.OVERFLOW:
                yield Entry(key, Reference.unpack(value), place.record.id)
            else:
                yield Entry(key, value, place.record.id)
