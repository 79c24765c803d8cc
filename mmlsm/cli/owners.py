"""Whose page is it? The way from the superblock to whatever owns a given page.

For `mmlsm page`; on a database that is open read-only. Damage on the way is passed over: what cannot be reached has no
owner that we can name.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmlsm import limits
from mmlsm.engine import Engine
from mmlsm.errors import CorruptionError, StorageError
from mmlsm.format import leaf, page, parent
from mmlsm.format.manifest import Reference, SegmentRecord
from mmlsm.read.pages import Pages
from mmlsm.write.recovery import still_retired

Node = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Owner:
    """What a page belongs to: `kind` in one word, `text` in a sentence, and the extent that it is a part of."""

    kind: str
    text: str
    first: int
    pages: int
    sum: int | None = None
    height: int | None = None
    segment: int | None = None

    def holds(self, number: int) -> bool:
        """Whether a page is one of these."""
        return self.first <= number < self.first + self.pages


def owner_of(engine: Engine, number: int) -> Owner:
    """The owner of a page; kind "free" where nobody claims it. Cost: the parents, at worst all leaves with extents."""
    owner = _of_root(engine, number) or _of_segments(engine, number)
    if owner is None and number < engine.root.bits.pages and engine.root.bits.any_set(number, 1):
        return Owner("unknown", "what cannot be reached: it is in use, but what refers to it is damaged", number, 1)
    return owner or Owner("free", "nothing: it is free", number, 1)


def _of_root(engine: Engine, number: int) -> Owner | None:
    root = engine.root
    if number < limits.HEADER_PAGES:
        if number < limits.HEADER_PAGES - 1:
            return Owner("superblock", f"the header: superblock slot {number}", number, 1)
        return Owner("holder", "the header: the process id of the last writer", number, 1)
    found = [
        Owner("manifest", f"the manifest of install {root.superblock.install}", reference.page, reference.pages)
        for reference in (root.superblock.manifest,)
    ]
    found += [Owner("bitmap", f"the bitmap: page {i} of it", first, 1, total)
              for i, (first, total) in enumerate(root.manifest.bitmap)]  # fmt: skip
    log = root.superblock.log
    extents: list[tuple[int, int]] = [*engine.log_extents] or ([(log.page, log.pages)] if log.page else [])
    found += [Owner("log", "the log", first, count) for first, count in extents]
    found += [Owner("extent", "a value that so far only the log names", *extent) for extent in engine.value_extents]
    found += [
        Owner("retired", f"a version from install {retirement.born} to {retirement.died}: retired", first, count)
        for retirement in still_retired(root, engine.replay, engine.file.pages)
        for first, count in retirement.extents
    ]
    return next((owner for owner in found if owner.holds(number)), None)


def _of_segments(engine: Engine, number: int) -> Owner | None:
    for record in engine.root.manifest.segments():
        owner = _of_segment(engine, record, number)
        if owner is not None:
            return owner
    return None


def _of_segment(engine: Engine, record: SegmentRecord, number: int) -> Owner | None:
    """A breadth-first walk: parents before leaves, and of the leaves only those that refer to extents."""
    whose = f"segment {record.id}"
    if record.filter is not None and record.filter.page <= number < record.filter.page + record.filter.pages:
        return Owner("extent", f"{whose}: its filter", record.filter.page, record.filter.pages, record.filter.sum)
    pages = Pages(engine.file, engine.file.whole_window(), "first-read", record.id)
    nodes: list[Node] = [(record.root_page, record.root_pages, record.root_sum)]
    for height in range(record.height, -1, -1):
        below: list[Node] = []
        for node in nodes:
            if node[0] <= number < node[0] + node[1]:
                kind = "parent" if height else "leaf"
                return Owner(kind, f"{whose}: a {kind} of height {height}", *node, height, record.id)
            references, children = _referred(pages, node, height)
            for reference in references:
                if reference.page <= number < reference.page + reference.pages:
                    text = f"{whose}: a value or key of {reference.length:,} bytes, named by page {node[0]}"
                    return Owner("extent", text, reference.page, reference.pages, reference.sum)
            below += children
        nodes = list(dict.fromkeys(below))  # damaged parents may name one many times
    return None


def _referred(pages: Pages, node: Node, height: int) -> tuple[list[Reference], list[Node]]:
    """What a node refers to: extents, and the nodes below it that are worth a look."""
    try:
        if height == 0:
            flags = pages.file.pread(node[0] * limits.PAGE_BYTES + 22, 1)
            if not flags or not flags[0] & page.FLAG_OVERFLOW:
                return [], []
        pages.touch_anew(node, height)
    except (CorruptionError, StorageError):
        return [], []
    if height:
        children = parent.children_of(pages.window, node[0])
        separators = [Reference.unpack(packed) for _, packed, *_ in children if packed]
        return separators, [(first, count, total) for _, _, _, first, count, total, _, _ in children]
    references = []
    for _, kind, key, value in leaf.entries_of(pages.window, node[0]):
        if key:
            references.append(Reference.unpack(key))
        if kind & 15 == page.OVERFLOW:
            references.append(Reference.unpack(value))
    return references, []
