"""The picture as a page of HTML: the drawing, and below it a table of the segments with their keys.

Pure functions; the page loads nothing and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from mmlsm.cli.map import colours, drawing
from mmlsm.cli.output import size_of
from mmlsm.cli.pages_by_owner import Pages, Place

SEGMENTS_MOST: Final = 2000


@dataclass(frozen=True, slots=True)
class Listed:
    """A segment in the table; keys as text."""

    place: Place
    entries: int
    tombstones: int
    pages: int
    first_key: str
    last_key: str


COLUMNS: Final = ("segment", "level", "run", "entries", "tombstones", "pages", "size", "first key", "last key")
NUMBERS: Final = frozenset({"segment", "run", "entries", "tombstones", "pages", "size"})


def html(pages: Pages, name: str, segments: Sequence[Listed]) -> str:
    """The whole page."""
    rows = "\n".join(row(segment) for segment in segments[:SEGMENTS_MOST])
    more = f"<p>and {len(segments) - SEGMENTS_MOST:,} more segments</p>" if len(segments) > SEGMENTS_MOST else ""
    heads = "".join(f'<th{number_class(column)} scope="col">{column}</th>' for column in COLUMNS)
    table = f"""\
<details><summary>{drawing.plural(len(segments), "segment")}, newest first</summary>
<table><thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody></table>{more}</details>
"""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(drawing.shown(name))}: map of its pages</title>
<style>
{style()}
</style>
</head>
<body>
<main>
{drawing.svg(pages, name, alone=False)}{table if segments else ""}</main>
</body>
</html>
"""


def style() -> str:
    """What is outside the drawing."""
    (ground, dark_ground), (ink, dark_ink) = colours.GROUND, colours.INK
    (dim, dark_dim), (rule, dark_rule) = colours.DIM, colours.RULE
    return f"""\
:root{{color-scheme:light dark}}
body{{margin:0;background:{ground};color:{ink};{drawing.FONT};font-size:13px}}
main{{max-width:1500px;margin:0 auto}}
svg{{display:block;width:100%;min-width:900px;height:auto}}
details{{margin:0 1.9% 40px}}
summary{{cursor:pointer;font-size:14px;padding:6px 0}}
table{{border-collapse:collapse;margin-top:6px;font-variant-numeric:tabular-nums}}
th{{font-weight:400;font-size:11.5px;text-align:left;color:{dim};border-bottom:1px solid {rule}}}
th,td{{padding:3px 18px 3px 0;white-space:nowrap}}
td:nth-last-child(-n+2){{white-space:normal;overflow-wrap:anywhere;max-width:420px}}
.n{{text-align:right}}
i{{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px;vertical-align:-1px}}
@media (prefers-color-scheme:dark){{
body{{background:{dark_ground};color:{dark_ink}}}
th{{color:{dark_dim};border-color:{dark_rule}}}
}}"""


def number_class(column: str) -> str:
    """Numbers stand to the right."""
    return ' class="n"' if column in NUMBERS else ""


def row(segment: Listed) -> str:
    """One segment."""
    place = segment.place
    cells: dict[str, str] = {
        "segment": f"{place.segment:,}",
        "level": escape(place.name),
        "run": f"{place.run:,}",
        "entries": f"{segment.entries:,}",
        "tombstones": f"{segment.tombstones:,}",
        "pages": f"{segment.pages:,}",
        "size": size_of(segment.pages * drawing.PAGE),
        "first key": escape(segment.first_key),
        "last key": escape(segment.last_key),
    }
    return "<tr>" + "".join(f"<td{number_class(name)}>{text}</td>" for name, text in cells.items()) + "</tr>"
