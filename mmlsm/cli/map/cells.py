"""From stretches of pages to the squares of a picture: how many pages a square is, and which neighbours look the same.

Pure functions. A square of several owners is split among those that matter, in eighths; neighbours in a row that are
split alike become one patch, so a picture of any file stays small.

I1. The patches are in file order and cover each page once; `Patch.content` counts every page, drawn or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mmlsm.cli.pages_by_owner import Owner, Stretch

CELLS_MOST: Final = 10_240
"""Squares of the largest picture; a larger file has more pages in each."""

EIGHTHS: Final = 8
PARTS_MOST: Final = 3
"""Owners that a square shows at most, beside those that always show."""

ALWAYS: Final = frozenset({"header", "manifest", "bitmap", "log", "log value", "unknown"})
"""Kinds that show however few pages they have: they are few and matter."""

Content = dict[Owner, int]
Parts = tuple[tuple[Owner, int], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture's squares: how many in a row, how many pages each, how large in the picture's units."""

    columns: int
    cell_pages: int
    pitch: int
    cells: int

    @property
    def rows(self) -> int:
        """Rows of squares, the last perhaps not full."""
        return -(-self.cells // self.columns)


@dataclass(slots=True)
class Patch:
    """Neighbouring squares of a row that look the same. `parts`: owners in file order with the eighths they take."""

    cell: int
    cells: int
    parts: Parts
    first: int
    pages: int
    content: Content


def grid_of(pages: int) -> Grid:
    """The squares for a file of so many pages: one page each where they are few, else a power of two."""
    cell_pages = 1
    while pages > CELLS_MOST * cell_pages:
        cell_pages *= 2
    cells = -(-pages // cell_pages)
    columns, pitch = next((pair for pair in ((32, 36), (64, 18)) if cells <= pair[0] ** 2 // 2), (128, 9))
    return Grid(columns, cell_pages, pitch, cells)


def patches_of(stretches: Sequence[Stretch], grid: Grid) -> list[Patch]:
    """The whole file as patches. Cost: about the number of stretches and of rows."""
    patches: list[Patch] = []
    for cell, cells, content in cells_of(stretches, grid.cell_pages):
        parts = parts_of(content)
        for at, count in by_row(cell, cells, grid.columns):
            pages = {owner: held * count // cells for owner, held in content.items()}
            last = patches[-1] if patches else None
            if last is not None and last.parts == parts and at % grid.columns:
                last.cells += count
                last.pages += sum(pages.values())
                for owner, held in pages.items():
                    last.content[owner] = last.content.get(owner, 0) + held
            else:
                patches.append(Patch(at, count, parts, at * grid.cell_pages, sum(pages.values()), pages))
    return patches


def cells_of(stretches: Iterable[Stretch], cell_pages: int) -> Iterator[tuple[int, int, Content]]:
    """(first square, squares, their pages by owner), in order: several squares only where one owner has them whole."""
    content: Content = {}
    for owner, first, pages in stretches:
        end = first + pages
        while first < end:
            whole = (end - first) // cell_pages
            if whole and first % cell_pages == 0:
                yield first // cell_pages, whole, {owner: whole * cell_pages}
                first += whole * cell_pages
                continue
            stop = min(end, (first // cell_pages + 1) * cell_pages)
            content[owner] = content.get(owner, 0) + stop - first
            if stop % cell_pages == 0:
                yield first // cell_pages, 1, content
                content = {}
            first = stop
    if content:
        yield (first - 1) // cell_pages, 1, content


def by_row(cell: int, cells: int, columns: int) -> Iterator[tuple[int, int]]:
    """Squares cut where a row ends."""
    while cells:
        count = min(cells, columns - cell % columns)
        yield cell, count
        cell += count
        cells -= count


def parts_of(content: Content) -> Parts:
    """Who shows in a square, in file order, and how many eighths of it each takes, together eight.

    Segments of one level show as one there, by the name of the largest.
    """
    if len(content) == 1:
        return ((next(iter(content)), EIGHTHS),)
    sums: dict[tuple[str, int], int] = {}
    largest: dict[tuple[str, int], Owner] = {}
    for owner, pages in content.items():
        look = owner.kind, -1 if owner.place is None else owner.place.level
        sums[look] = sums.get(look, 0) + pages
        if look not in largest or pages > content[largest[look]]:
            largest[look] = owner
    total = sum(sums.values())
    first, *others = sorted(sums, key=lambda look: -sums[look])[:PARTS_MOST]
    enough = {first, *(look for look in others if 2 * EIGHTHS * sums[look] >= total)}
    shown = [look for look in sums if look in enough or look[0] in ALWAYS][:EIGHTHS]
    eighths = [max(1, round(EIGHTHS * sums[look] / total)) for look in shown]
    while (more := sum(eighths) - EIGHTHS) != 0:
        widest = eighths.index(max(eighths))
        eighths[widest] -= 1 if more > 0 else more
    return tuple((largest[look], share) for look, share in zip(shown, eighths, strict=True))
