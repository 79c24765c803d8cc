"""The squares of a picture of a file, and its colours: every page is in one, and any eyes tell them apart."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest

from mmlsm.cli.map import cells, colours, drawing
from mmlsm.cli.map import page as html_page
from mmlsm.cli.pages_by_owner import IN_SEGMENT, KINDS, Owner, Pages, Place, Stretch


def some_stretches(chance: random.Random, total: int, about: int) -> list[Stretch]:
    """A file of many owners, made up."""
    places = [Place(i, i % 5, f"tier {i % 5}", i % 3, i // 5) for i in range(40)]
    owners = [Owner(kind, place) for place in places for kind in IN_SEGMENT]
    owners += [Owner(kind) for kind in KINDS if kind not in IN_SEGMENT]
    stretches = []
    at = 0
    while at < total:
        count = min(total - at, 1 + int(chance.expovariate(1 / about)))
        owner = owners[chance.randrange(len(owners))]
        while stretches and owner is stretches[-1].owner:
            owner = chance.choice(owners)
        stretches.append(Stretch(owner, at, count))
        at += count
    return stretches


def assert_all_is_in_patches(stretches: list[Stretch], grid: cells.Grid, patches: list[cells.Patch]) -> None:
    """I1 of the squares: every page once, under its owner, and each row for itself."""
    cell = page = 0
    owners = {first + i: owner for owner, first, count in stretches for i in range(count)}
    for patch in patches:
        assert (patch.cell, patch.first) == (cell, page)
        assert patch.cell // grid.columns == (patch.cell + patch.cells - 1) // grid.columns
        content: dict[Owner, int] = {}
        for number in range(page, page + patch.pages):
            content[owners[number]] = content.get(owners[number], 0) + 1
        assert content == patch.content
        assert sum(eighths for _, eighths in patch.parts) == cells.EIGHTHS
        assert all(eighths > 0 and owner in content for owner, eighths in patch.parts)
        shown = {owner.kind for owner, _ in patch.parts}
        assert {owner.kind for owner in content if owner.kind in cells.ALWAYS} <= shown
        cell += patch.cells
        page += patch.pages
    assert cell == grid.cells
    assert page == sum(count for _, _, count in stretches)


@pytest.mark.parametrize(
    ("total", "about"), [(1, 1), (7, 3), (600, 9), (5000, 1), (9999, 40), (45_001, 3), (45_000, 90)]
)
def test_the_squares_show_every_page(total: int, about: int, seed: int) -> None:
    stretches = some_stretches(random.Random(seed), total, about)
    grid = cells.grid_of(total)
    patches = cells.patches_of(stretches, grid)
    assert_all_is_in_patches(stretches, grid, patches)
    assert grid.cell_pages == (1 if total <= cells.CELLS_MOST else 8)


def test_a_square_goes_to_its_owners_by_share() -> None:
    leaf, other = Owner("leaf", Place(1, 0, "tier 0", 0, 0)), Owner("overflow", Place(1, 0, "tier 0", 0, 0))
    newer = Owner("leaf", Place(2, 0, "tier 0", 0, 1))
    assert cells.parts_of({leaf: 24, other: 8}) == ((leaf, 6), (other, 2))
    assert cells.parts_of({leaf: 31, other: 1}) == ((leaf, 8),)
    assert cells.parts_of({leaf: 31, Owner("log"): 1}) == ((leaf, 7), (Owner("log"), 1))
    assert cells.parts_of({leaf: 10, other: 10, newer: 12}) == ((newer, 6), (other, 2)), "one level shows as one"


@pytest.mark.parametrize("about", [1, 30, 100_000])
def test_the_picture_of_a_large_file_is_small(about: int) -> None:
    """Millions of pages, at the worst in pieces of one page."""
    total = {1: 200_000, 30: 2_000_000}.get(about, 8_000_000)
    stretches = some_stretches(random.Random(5), total, about)
    grid = cells.grid_of(total)
    assert grid.cells <= cells.CELLS_MOST
    text = drawing.svg(Pages(total, stretches, [], [f"tier {i}" for i in range(5)], 1), "large")
    assert text.count("<rect") + text.count("<path") <= (cells.PARTS_MOST + len(cells.ALWAYS)) * cells.CELLS_MOST
    assert len(text) < 12 << 20
    assert f"{grid.cell_pages:,} pages" in text


# ---- colours


def seen_by(colour: str, rows: tuple[tuple[float, float, float], ...]) -> list[float]:
    """A colour as eyes without one kind of cones have it (Machado and others, 2009), in linear light to the half."""
    channels = [(channel / 255) ** 2.2 for channel in colours.channels(colour)]
    seen = [sum(share * channel for share, channel in zip(row, channels, strict=True)) for row in rows]
    return [max(value, 0) ** 0.5 for value in seen]


EYES: dict[str, Any] = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_levels_can_be_told_apart_without_red_or_green(eyes: str, scheme: int) -> None:
    shades = [colours.level_colours(i, 8)[scheme] for i in range(8)]
    shades += [colours.PLAIN[kind][scheme] for kind in ("log", "free")]
    for one, other in combinations(shades, 2):
        apart = (
            sum((a - b) ** 2 for a, b in zip(seen_by(one, EYES[eyes]), seen_by(other, EYES[eyes]), strict=True)) ** 0.5
        )
        assert apart > 0.15, (one, other)


def test_text_can_be_read_upon_its_ground() -> None:
    for scheme in (0, 1):
        for text in (colours.INK, colours.DIM, colours.ALARM):
            assert colours.contrast(text[scheme], colours.GROUND[scheme]) >= 4.5
        for i in range(8):
            shade = colours.level_colours(i, 8)[scheme]
            assert colours.contrast(shade, colours.ink_on(shade)) >= 4.5


def test_a_long_list_of_segments_is_cut() -> None:
    place = Place(1, 0, "tier 0", 0, 0)
    many = [html_page.Listed(place, 1, 0, 1, "a", "b")] * (html_page.SEGMENTS_MOST + 5)
    pages = Pages(4, [Stretch(Owner("leaf", place), 0, 4)], [], ["tier 0"], 1)
    text = html_page.html(pages, "name", many)
    assert "and 5 more segments" in text
    assert text.count("<tr>") == html_page.SEGMENTS_MOST + 1
