"""The picture of a file as SVG: what it is, a bar of shares, the legend with totals, and the squares.

Pure functions from what a walk found to text. Nothing in it runs or is fetched; what can be pointed at has a title.

I1. Whatever came from outside (names, problems) is escaped, and has no character that XML does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from mmlsm import limits
from mmlsm.cli.map import cells, colours
from mmlsm.cli.map.cells import EIGHTHS, Grid, Patch
from mmlsm.cli.output import size_of, text_of
from mmlsm.cli.pages_by_owner import IN_SEGMENT, Owner, Pages, Place

PAGE: Final = limits.PAGE_BYTES
MIB: Final = 1 << 20
NAMESPACE: Final = "http://www.w3.org/2000/svg"

WIDTH: Final = 1264
LEFT: Final = 24
RIGHT: Final = WIDTH - 24
MAP_LEFT: Final = RIGHT - 1152
ROW: Final = 23
BAR_TOP: Final = 84
BAR_HEIGHT: Final = 26
LEGEND_TOP: Final = 146
OTHERS_LEFT: Final = 876
PROBLEMS_SHOWN: Final = 6
TITLE_LINES: Final = 8
AXIS: Final = (("GiB", 30), ("MiB", 20), ("KiB", 10))
TILE: Final = 9
UP: Final = "M-1 1L1 -1M-1 5.5L5.5 -1M-1 10L10 -1M3.5 10L10 3.5M8 10L10 8"
DOWN: Final = "M-1 8L1 10M-1 3.5L5.5 10M-1 -1L10 10M3.5 -1L10 5.5M8 -1L10 1"
"""Hatching, one tile: retired pages lie the other way."""

OTHERS: Final = ("log", "log value", "manifest", "bitmap", "header", "retired", "unknown", "free")
TEXTS: Final = {
    "header": "header",
    "manifest": "manifest",
    "bitmap": "bitmap",
    "log": "log",
    "log value": "values in the log",
    "retired": "retired",
    "free": "free",
    "unknown": "unknown",
}
PLURALS: Final = {"leaf": "leaves", "parent": "parents", "overflow": "overflow", "filter": "filters"}
FONT: Final = "font-family:system-ui,-apple-system,'Segoe UI','Liberation Sans',Arial,sans-serif"
STYLE: Final = f"""\
text{{{FONT};font-size:13px;font-variant-numeric:tabular-nums}}
.name{{font-size:23px;font-weight:600}}.fact{{font-size:14px}}.head{{font-size:11.5px;letter-spacing:.03em}}
.bold{{font-weight:600}}.axis{{font-size:11px}}.end{{text-anchor:end}}.middle{{text-anchor:middle}}
.key,.map{{cursor:default}}.hit{{fill:transparent}}.on{{font-size:12px;font-weight:600;pointer-events:none}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the totals: a level, or a kind of pages outside the tree. `group` is its class."""

    group: str
    name: str
    pages: int
    fill: str
    kinds: tuple[tuple[str, int], ...] = ()
    runs: int = 0
    segments: int = 0


def rows_of(pages: Pages) -> tuple[list[Row], list[Row]]:
    """The totals of the levels, newest first, and of all else."""
    counts: dict[tuple[str, str], int] = {}
    seen: dict[str, set[Place]] = {}
    for owner, _, held in pages.stretches:
        group = colours.group_of(owner)
        counts[group, owner.kind] = counts.get((group, owner.kind), 0) + held
        if owner.place is not None:
            seen.setdefault(group, set()).add(owner.place)
    levels = []
    for i, name in enumerate(pages.levels):
        group = f"L{i}"
        kinds = tuple((kind, counts.get((group, kind), 0)) for kind in IN_SEGMENT)
        there = seen.get(group, set())
        levels.append(
            Row(group, name, sum(held for _, held in kinds), f"f-{group}-leaf", kinds,
                len({place.run for place in there}), len(there))
        )  # fmt: skip
    others = []
    for kind in OTHERS:
        group = kind.replace(" ", "-")
        held = counts.get((group, kind), 0)
        if held or kind in ("free", "retired", "log"):
            others.append(Row(group, TEXTS[kind], held, f"f-{group}"))
    return levels, others


def svg(pages: Pages, name: str, *, alone: bool = True) -> str:
    """The picture; `alone` as a file of its own, otherwise as a part of a page of HTML."""
    levels, others = rows_of(pages)
    grid = cells.grid_of(pages.total)
    patches = cells.patches_of(pages.stretches, grid)
    parts = [*header(pages, name, levels), *bar([*levels, *others], pages.total)]
    parts += legend(pages, levels, others)
    bottom = LEGEND_TOP + (max(len(levels), len(others) + 1) + 1) * ROW + 14
    for text in problem_lines(pages.problems):
        parts.append(f'<text class="alarm" x="{LEFT}" y="{bottom}">{text}</text>')
        bottom += 18
    bottom += 16
    parts += [
        f'<text class="fact" x="{MAP_LEFT}" y="{bottom}">{scale_text(grid)}</text>',
        number("point at a row of the legend to see it alone", RIGHT, bottom, "dim"),
        *squares(patches, grid, bottom + 14, pages.total),
    ]
    height = bottom + 14 + grid.rows * grid.pitch + 24
    groups = [row.group for row in [*levels, *others]]
    namespace = f' xmlns="{NAMESPACE}"' if alone else ""
    label = escape(f"map of the pages of {shown(name)}")
    opening = f'<svg{namespace} viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" aria-label="{label}">'
    return "\n".join(
        [
            opening,
            f"<style>\n{STYLE}{colours.style(len(levels), groups)}\n</style>",
            f"<defs>{''.join(patterns(len(levels), grid.pitch))}</defs>",
            f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def shown(name: str) -> str:
    """A name for a human, with nothing unprintable in it, not yet escaped."""
    return text_of(name.encode("utf-8", "surrogateescape"))


def patterns(levels: int, pitch: int) -> Iterator[str]:
    """The hatchings, and the lines between squares."""
    for name in colours.hatchings(levels):
        slope = DOWN if name == "retired" else UP
        yield (
            f'<pattern id="h-{name}" width="{TILE}" height="{TILE}" patternUnits="userSpaceOnUse">'
            f'<rect width="{TILE}" height="{TILE}"/><path d="{slope}" fill="none" stroke-width="1.5"/></pattern>'
        )
    width = line_width(pitch)
    edge = f"{pitch - width / 2:g}"
    yield (
        f'<pattern id="grid" width="{pitch}" height="{pitch}" patternUnits="userSpaceOnUse">'
        f'<path class="grid" d="M0 {edge}H{pitch}M{edge} 0V{pitch}" stroke-width="{width}"/></pattern>'
    )


def line_width(pitch: int) -> float:
    """Of the lines between squares."""
    return 2 if pitch > 12 else 0.8


def header(pages: Pages, name: str, levels: Sequence[Row]) -> list[str]:
    """What file it is."""
    label = shown(name)
    if len(label) > 80:
        label = "…" + label[-79:]
    facts = [f"{size_of(pages.total * PAGE)}, {pages.total:,} pages of 4 KiB"]
    if levels:
        runs, segments = sum(row.runs for row in levels), sum(row.segments for row in levels)
        facts.append(f"{plural(segments, 'segment')} in {plural(runs, 'run')} of {plural(len(levels), 'level')}")
    if pages.install:
        facts.append(f"install {pages.install:,}")
    return [
        f'<text class="name" x="{LEFT}" y="42">{escape(label)}</text>',
        f'<text class="fact dim" x="{LEFT}" y="66">{escape(" · ".join(facts))}</text>',
    ]


def plural(count: int, noun: str) -> str:
    """A number and what is counted."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(pages: int, total: int) -> str:
    """A share: what is there is never 0 %."""
    share = 100 * pages / max(total, 1)
    if pages and share < 0.05:
        return "<0.1 %"
    return f"{share:.1f} %"


def mib(pages: int, total: int) -> str:
    """Pages in MiB, as fine as suits the whole file."""
    return f"{pages * PAGE / MIB:,.{1 if total * PAGE >= 64 * MIB else 2}f}"


def bar(rows: Sequence[Row], total: int) -> Iterator[str]:
    """All of the file in one bar, each group as wide as its share."""
    scale = (RIGHT - LEFT) / max(total, 1)
    at = 0
    yield '<g class="map bar">'
    for row in rows:
        if not row.pages:
            continue
        x, width = LEFT + at * scale, row.pages * scale
        at += row.pages
        text = f"{row.name}: {plural(row.pages, 'page')}, {size_of(row.pages * PAGE)}, {percent(row.pages, total)}"
        gap = 1 if width > 4 else 0
        yield (
            f'<rect class="{row.group} {row.fill}" x="{x:.2f}" y="{BAR_TOP}" width="{max(width - gap, 0.5):.2f}" '
            f'height="{BAR_HEIGHT}"><title>{escape(text)}</title></rect>'
        )
        label = row.name.split(",")[0]
        if width > 7.5 * len(label) + 58:
            label += f" {100 * row.pages / total:.0f} %"
        if width > 7.5 * len(label) + 10:
            classes = f"on middle on-{row.group} {row.group}"
            yield f'<text class="{classes}" x="{x + width / 2:.1f}" y="{BAR_TOP + 18}">{label}</text>'
    yield "</g>"


# -- the legend

COLUMNS: Final = (("runs", 172), ("segments", 236), ("leaves", 318), ("parents", 408), ("overflow", 500),
                  ("filters", 582))  # fmt: skip
TOTALS_LEVELS: Final = (664, 744, 812)
TOTALS_OTHERS: Final = (1082, 1164, RIGHT)


def legend(pages: Pages, levels: Sequence[Row], others: Sequence[Row]) -> Iterator[str]:
    """Both tables: the tree's levels by what their pages are for, and what is outside the tree."""
    top = LEGEND_TOP
    if levels:
        yield head("level", LEFT, top, start=True)
        for name, x in COLUMNS:
            yield head(name, x, top)
        yield from totals_head(TOTALS_LEVELS, top)
        yield line(LEFT, TOTALS_LEVELS[-1], top + 7)
    for i, row in enumerate(levels):
        yield from level_row(row, top + (i + 1) * ROW + 2, pages.total)
    if not levels:
        yield f'<text class="dim" x="{LEFT}" y="{top + ROW + 2}">no segments can be seen</text>'
    yield head("outside the tree", OTHERS_LEFT, top, start=True)
    yield from totals_head(TOTALS_OTHERS, top)
    yield line(OTHERS_LEFT, RIGHT, top + 7)
    for i, row in enumerate([*others, Row("all", "whole file", pages.total, "")]):
        yield from other_row(row, top + (i + 1) * ROW + 2, pages.total)


def head(text: str, x: int, y: int, *, start: bool = False) -> str:
    """A column's name."""
    return f'<text class="head dim{"" if start else " end"}" x="{x}" y="{y}">{text}</text>'


def totals_head(columns: Sequence[int], y: int) -> Iterator[str]:
    """The names of the columns of totals."""
    for name, x in zip(("pages", "MiB", "share"), columns, strict=True):
        yield head(name, x, y)


def line(x: int, end: int, y: int) -> str:
    """A thin line below a head."""
    return f'<path class="rule" d="M{x} {y}.5H{end}" stroke-width="1"/>'


def swatch(classes: str, x: float, y: float, size: int = 13) -> str:
    """A sample of a fill, its foot upon the text's line."""
    return f'<rect class="{classes}" x="{x}" y="{y - size + 2}" width="{size}" height="{size}" rx="2"/>'


def number(text: str, x: int, y: float, classes: str = "") -> str:
    """A number that ends at x."""
    return f'<text class="{(classes + " end").strip()}" x="{x}" y="{y}">{escape(text)}</text>'


def totals(row: Row, columns: Sequence[int], y: float, total: int) -> Iterator[str]:
    """Pages, MiB and share of a row."""
    dim = "" if row.pages else "dim"
    yield number(f"{row.pages:,}", columns[0], y, dim)
    yield number(mib(row.pages, total), columns[1], y, dim)
    yield number(percent(row.pages, total), columns[2], y, "bold" if row.pages else "dim")


def key(row: Row, x: int, end: int, y: float) -> str:
    """What begins a row, with an area that can be pointed at."""
    area = f'<rect class="hit" x="{x - 6}" y="{y - 16}" width="{end - x + 12}" height="{ROW}"/>'
    return f'<g class="key k-{row.group}">{area}'


def level_row(row: Row, y: float, total: int) -> Iterator[str]:
    """A level: what it has, and a sample of how each kind of its pages is drawn."""
    yield key(row, LEFT, TOTALS_LEVELS[-1], y)
    yield swatch(row.fill, LEFT, y)
    yield f'<text class="{"bold" if row.pages else "dim"}" x="{LEFT + 21}" y="{y}">{escape(row.name)}</text>'
    for (_, x), count in zip(COLUMNS, (row.runs, row.segments, *(held for _, held in row.kinds)), strict=True):
        yield number(f"{count:,}" if count else "–", x, y, "" if count else "dim")
    for (_, x), (kind, held) in zip(COLUMNS[2:], row.kinds, strict=True):
        if held and kind != "leaf":
            yield swatch(f"f-{row.group}-{kind}", x - 20 - 7.3 * len(f"{held:,}"), y, 10)
    yield from totals(row, TOTALS_LEVELS, y, total)
    yield "</g>"


def other_row(row: Row, y: float, total: int) -> Iterator[str]:
    """A kind of pages outside the tree."""
    yield key(row, OTHERS_LEFT, RIGHT, y)
    if row.fill:
        yield swatch(row.fill, OTHERS_LEFT, y)
    yield f'<text class="{"bold" if row.pages else "dim"}" x="{OTHERS_LEFT + 21}" y="{y}">{row.name}</text>'
    yield from totals(row, TOTALS_OTHERS, y, total)
    yield "</g>"


def problem_lines(problems: Sequence[str]) -> list[str]:
    """What was damaged, escaped; the first few."""
    lines = [f"✗ {escape(shown(problem))}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"and {len(problems) - PROBLEMS_SHOWN:,} more problems")
    return lines


# -- the squares


def scale_text(grid: Grid) -> str:
    """What a square is."""
    row = f"a row is {size_of(grid.columns * grid.cell_pages * PAGE)}"
    if grid.cell_pages == 1:
        return f"One square is one page, 4 KiB; {row}."
    size = size_of(grid.cell_pages * PAGE)
    return f"One square is {grid.cell_pages:,} pages, {size}, split among its owners by their share; {row}."


def squares(patches: Sequence[Patch], grid: Grid, top: int, total: int) -> Iterator[str]:
    """The map: rows with where they begin, patches, and the lines between squares."""
    every = next(step for step in (1, 2, 4, 8, 16) if step * grid.pitch >= 32 or step == 16)
    yield f'<g transform="translate({MAP_LEFT} {top})">'
    for row in range(0, grid.rows, every):
        offset = row * grid.columns * grid.cell_pages * PAGE
        yield f'<text class="axis dim end" x="-8" y="{row * grid.pitch + 9}">{offset_text(offset, total * PAGE)}</text>'
    yield '<g class="map">'
    for patch in patches:
        yield from shapes(patch, grid)
    yield "</g>"
    width, height = grid.columns * grid.pitch, grid.rows * grid.pitch
    yield f'<rect width="{width}" height="{height}" fill="url(#grid)" pointer-events="none"/></g>'


def offset_text(offset: int, size: int) -> str:
    """Where in the file a row begins, in a unit that suits all of it."""
    unit, shift = next(
        (unit, shift) for unit, shift in AXIS if size >= (64 if unit == "GiB" else 4) << shift or unit == "KiB"
    )
    return f"{offset / (1 << shift):,g} {unit}" if offset else "0"


def shapes(patch: Patch, grid: Grid) -> Iterator[str]:
    """One patch: a rectangle, or a path for each owner's part of its squares."""
    pitch = grid.pitch
    x, y = patch.cell % grid.columns * pitch, patch.cell // grid.columns * pitch
    title = f"<title>{escape(title_of(patch))}</title>"
    if len(patch.parts) == 1:
        classes = colours.class_of(patch.parts[0][0])
        yield f'<rect class="{classes}" x="{x}" y="{y}" width="{patch.cells * pitch}" height="{pitch}">{title}</rect>'
        return
    yield f"<g>{title}"
    inner = pitch - line_width(pitch)
    at = 0.0
    for owner, eighths in patch.parts:
        width = inner * eighths / EIGHTHS
        steps = "".join(f"M{x + i * pitch + at:g} {y}h{width:g}v{pitch}h{-width:g}z" for i in range(patch.cells))
        yield f'<path class="{colours.class_of(owner)}" d="{steps}"/>'
        at += width
    yield "</g>"


def title_of(patch: Patch) -> str:
    """What a patch is, in words: its pages, and whose they are."""
    last = patch.first + patch.pages - 1
    where = f"page {patch.first:,}" if patch.pages == 1 else f"pages {patch.first:,} to {last:,}"
    if len(patch.content) == 1:
        return f"{where}: {describe(next(iter(patch.content)))}"
    largest = sorted(patch.content.items(), key=lambda item: -item[1])
    lines = [f"{held:,} × {describe(owner)}" for owner, held in largest[:TITLE_LINES]]
    if len(largest) > TITLE_LINES:
        lines.append(f"and {sum(held for _, held in largest[TITLE_LINES:]):,} more")
    return "\n".join([where, *lines])


def describe(owner: Owner) -> str:
    """An owner in words."""
    if owner.place is None:
        return f"{owner.kind}, {owner.note}" if owner.note else owner.kind
    place = owner.place
    return f"{owner.kind} of segment {place.segment:,} ({place.name}, run {place.run})"
