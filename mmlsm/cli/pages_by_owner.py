"""Whose is every page? A walk from the superblock that gives each page of the file exactly one owner.

For `mmlsm map` and `mmlsm levels`. It proves what it reads and reads little: all parents, and of the leaves those that
refer to extents. Damage never ends it: what lies behind a damaged page is "unknown", and `Pages.problems` names it.

I1. The stretches are in order, without gap or overlap, from page 0 to the file's last.
I2. A page that two claim goes to the first, as the walk comes by: root, log, segments (newest first), retirements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mmlsm import limits
from mmlsm.engine import Engine
from mmlsm.errors import CorruptionError, StorageError
from mmlsm.file import File
from mmlsm.format import leaf, page, parent
from mmlsm.format import manifest as manifests
from mmlsm.format.manifest import Manifest, Reference, Retirement, SegmentRecord
from mmlsm.format.superblock import Superblock, newest
from mmlsm.read import pages as reading
from mmlsm.space.bitmap import Bitmap
from mmlsm.write.merge_policy import level_name
from mmlsm.write.recovery import still_retired, used_pages

PAGE: Final = limits.PAGE_BYTES
KINDS: Final = (
    *("header", "manifest", "bitmap", "log", "log value"),
    *("leaf", "parent", "overflow", "filter"),
    *("retired", "free", "unknown"),
)
IN_SEGMENT: Final = ("leaf", "parent", "overflow", "filter")
PROBLEMS_MOST: Final = 100

Node = tuple[int, int, int]
Tell = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment stands in the tree; `order` among those of its level, newest run first."""

    segment: int
    level: int
    name: str
    run: int
    order: int


@dataclass(frozen=True, slots=True)
class Owner:
    """What pages are for: one of KINDS, and of a segment's pages whose; `note` is for who looks at them."""

    kind: str
    place: Place | None = None
    note: str = ""


class Stretch(NamedTuple):
    """Neighbouring pages of one owner."""

    owner: Owner
    first: int
    pages: int


@dataclass(slots=True)
class Layout:
    """What the walk goes by. `used` is None where the bitmap is lost: then nobody knows what is free."""

    file: File
    superblock: Superblock | None = None
    manifest: Manifest | None = None
    used: Bitmap | None = None
    retired: tuple[Retirement, ...] = ()
    log: list[tuple[int, int]] = field(default_factory=list)
    log_values: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Pages:
    """What a walk found: every page's owner, in file order, and what was damaged on the way."""

    total: int
    stretches: list[Stretch]
    problems: list[str]
    levels: list[str]
    """The levels' names, newest first."""
    install: int

    def count(self, kind: str, level: int | None = None) -> int:
        """Pages of one kind, of one level or of all."""
        return sum(
            pages
            for owner, _, pages in self.stretches
            if owner.kind == kind and (level is None or (owner.place is not None and owner.place.level == level))
        )


def layout_of(engine: Engine) -> Layout:
    """The layout of a database that is open read-only."""
    root, replay, pages = engine.root, engine.replay, engine.file.pages
    retired = still_retired(root, replay, pages)
    return Layout(
        engine.file, root.superblock, root.manifest, used_pages(root, retired), retired,
        list(engine.log_extents), list(engine.value_extents),
    )  # fmt: skip


def layout_of_damaged(file: File, why: Exception) -> Layout:
    """What can be told of a file whose root cannot be read whole: its manifest's segments, or nothing."""
    layout = Layout(file, problems=[str(why)])
    try:
        layout.superblock = newest(file.pread(0, PAGE), file.pread(PAGE, PAGE))[0]
        reference = layout.superblock.manifest
        if reference.pages:
            data = file.pread(reference.page * PAGE, reference.length)
            layout.manifest = manifests.decode(data, reference.sum, reference.page)
            layout.retired = layout.manifest.retired
    except CorruptionError as error:
        if str(error) != str(why):
            layout.problems.append(str(error))
    return layout


def walk(layout: Layout, progress: Tell | None = None) -> Pages:
    """The owner of every page. Cost: the parents, at worst all leaves with extents. `progress` is told pages."""
    return Walk(layout, progress).run()


def places(manifest: Manifest) -> Iterator[tuple[Place, SegmentRecord]]:
    """Every segment with its place, newest level and run first."""
    for i, level in enumerate(manifest.levels):
        order = 0
        for j, run in enumerate(level):
            for record in run:
                yield Place(record.id, i, level_name(i, len(manifest.levels)), j, order), record
                order += 1


class Walk:
    """One walk; see the module's text."""

    def __init__(self, layout: Layout, progress: Tell | None = None) -> None:
        self.layout = layout
        self.file = layout.file
        self.total = layout.file.pages
        self.progress = progress
        self.owned = Bitmap(self.total)
        self.done = 0
        self.found: list[Stretch] = []
        self.problems = list(layout.problems)
        self.missed = 0

    def run(self) -> Pages:
        """Walk everything."""
        layout, manifest = self.layout, self.layout.manifest
        self.claim(Owner("header"), 0, limits.HEADER_PAGES)
        if layout.superblock is not None and layout.superblock.manifest.pages:
            reference = layout.superblock.manifest
            note = f"install {layout.superblock.install:,}"
            self.claim(Owner("manifest", note=note), reference.page, reference.pages)
        for owner, extents in ((Owner("log"), layout.log), (Owner("log value"), layout.log_values)):
            for extent in extents:
                self.claim(owner, *extent)
        if manifest is not None:
            bitmap = Owner("bitmap")
            for number, _ in manifest.bitmap:
                self.claim(bitmap, number, 1)
            for place, record in places(manifest):
                self.segment(place, record)
        for retirement in layout.retired:
            owner = Owner("retired", note=f"versions {retirement.born:,} to {retirement.died - 1:,} can see it")
            for extent in retirement.extents:
                self.claim(owner, *extent)
        self.rest()
        if self.missed:
            self.problems.append(f"and {self.missed:,} more problems")
        names = [] if manifest is None else [level_name(i, len(manifest.levels)) for i in range(len(manifest.levels))]
        return Pages(self.total, in_order(self.found), self.problems, names, manifest.install if manifest else 0)

    def problem(self, text: str) -> None:
        """Note damage; of very much the first alone."""
        if len(self.problems) < PROBLEMS_MOST:
            self.problems.append(text)
        else:
            self.missed += 1

    def claim(self, owner: Owner, first: int, pages: int) -> None:
        """Give pages an owner, those of them that are in the file and have none yet (I2)."""
        end = min(first + pages, self.total)
        if first < 0 or end < first + pages:
            self.problem(f"pages {first:,} to {first + pages - 1:,} ({owner.kind}) are not all in the file")
        first = max(first, 0)
        if end <= first:
            return
        parts: Iterable[tuple[int, int]] = ((first, end - first),)
        if self.owned.any_set(first, end - first):
            self.problem(f"pages {first:,} to {end - 1:,} ({owner.kind}) have another owner as well")
            parts = [(number, 1) for number in range(first, end) if not self.owned.any_set(number, 1)]
        for at, count in parts:
            self.owned.set(at, count)
            self.done += count
            last = self.found[-1] if self.found else None
            if last is not None and last.owner is owner and last.first + last.pages == at:
                self.found[-1] = Stretch(owner, last.first, last.pages + count)
            else:
                self.found.append(Stretch(owner, at, count))
        if self.progress is not None:
            self.progress(self.done, self.total)

    def rest(self) -> None:
        """What nobody claims: free where the bitmap says so, and unknown where it does not, or is lost."""
        used = self.layout.used
        unmarked = Owner("free") if used is not None else Owner("unknown", note="nobody knows whether it is in use")
        hidden = Owner("unknown", note="in use, but what refers to it is damaged")
        at = 0
        ends = [*self.owned.extents(), (self.total, 0)]
        marks = iter(used.extents() if used is not None else ())
        mark = next(marks, None)
        for first, count in ends:
            while at < first:
                while mark is not None and mark[0] + mark[1] <= at:
                    mark = next(marks, None)
                if mark is None or mark[0] >= first:
                    owner, end = unmarked, first
                elif mark[0] > at:
                    owner, end = unmarked, mark[0]
                else:
                    owner, end = hidden, min(first, mark[0] + mark[1])
                self.found.append(Stretch(owner, at, end - at))
                at = end
            at = first + count

    # -- segments

    def segment(self, place: Place, record: SegmentRecord) -> None:
        """Claim what one segment owns."""
        if record.filter is not None:
            self.claim(Owner("filter", place), record.filter.page, record.filter.pages)
        owners = Owner("leaf", place), Owner("parent", place), Owner("overflow", place)
        for number, count, height, references in nodes_of(self.file, record, self.problem):
            self.claim(owners[1 if height else 0], number, count)
            for reference in references:
                self.claim(owners[2], reference.page, reference.pages)


def nodes_of(
    file: File, record: SegmentRecord, problem: Callable[[str], object], *, extents: bool = True
) -> Iterator[tuple[int, int, int, list[Reference]]]:
    """(page, pages, height, extents that it refers to) of each node of a segment, parents before what is below.

    Without `extents` no leaf is read. What hides nodes is told to `problem`; no node is met twice.
    """
    root = record.root_page, record.root_pages, record.root_sum
    pages = reading.Pages(file, file.whole_window(), "first-read", record.id)
    todo: list[tuple[Node, int, bool]] = [(root, record.height, record.overflow)]
    met: set[int] = set()
    while todo:
        node, height, overflow = todo.pop()
        if node[0] in met:
            problem(f"page {node[0]}: parents of segment {record.id} lead to it twice")
            continue
        met.add(node[0])
        below: list[tuple[Node, int, bool]] = []
        references: list[Reference] = []
        if height or (overflow and extents):
            try:
                if node[0] + node[1] > file.pages:
                    raise CorruptionError(f"page {node[0]}: past the end of the file")
                pages.touch_anew(node, height)
            except (CorruptionError, StorageError) as error:
                problem(str(error))
            else:
                if height:
                    below = children_of(pages, node[0], height)
                else:
                    references = references_of(pages, node[0])
        yield node[0], node[1], height, references
        todo += reversed(below)


def children_of(pages: reading.Pages, number: int, height: int) -> list[tuple[Node, int, bool]]:
    """The nodes below a proved parent: each with its height, and whether extents are below."""
    return [
        ((first, count, total), height - 1, bool(overflow))
        for _, _, _, first, count, total, _, overflow in parent.children_of(pages.window, number)
    ]


def references_of(pages: reading.Pages, number: int) -> list[Reference]:
    """The extents that a proved leaf refers to: of long keys and of long values."""
    found = []
    for _, kind, key, value in leaf.entries_of(pages.window, number):
        if key:
            found.append(Reference.unpack(key))
        if kind & 15 == page.OVERFLOW:
            found.append(Reference.unpack(value))
    return found


def in_order(stretches: list[Stretch]) -> list[Stretch]:
    """By page, and neighbours of one owner as one."""
    joined: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda stretch: stretch.first):
        last = joined[-1] if joined else None
        if last is not None and last.first + last.pages == stretch.first and last.owner == stretch.owner:
            joined[-1] = Stretch(last.owner, last.first, last.pages + stretch.pages)
        else:
            joined.append(stretch)
    return joined
