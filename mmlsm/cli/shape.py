"""`mmlsm levels`: the tree's shape, by level and run; or its segments one by one.

Opens the database read-only and reads the parents, no leaf.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, Final

import mmlsm
from mmlsm import limits
from mmlsm.cli import arguments
from mmlsm.cli.arguments import EXIT_NO, EXIT_OK, Commands
from mmlsm.cli.output import Output, json_of
from mmlsm.cli.pages_by_owner import nodes_of
from mmlsm.file import File
from mmlsm.format.manifest import Manifest, SegmentRecord
from mmlsm.write.merge_policy import level_name

PAGE: Final = limits.PAGE_BYTES
MIB: Final = 1 << 20
KEY_MOST: Final = 32
HEADS: Final = ("level", "run", "segments", "entries", "tombstones", "height", "leaves", "parents", "pages", "MiB",
                "share", "filters", "first key", "last key")  # fmt: skip

LEFT_OUT: Final = ("commits", "filters", "parents", "height", "leaves", "pages", "last key", "tombstones", "first key")
"""What a narrow terminal does not show, the first of them first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A segment, where it stands, and how many nodes it has as far as no damage hides them."""

    level: int
    name: str
    run: int
    record: SegmentRecord
    leaves: int
    parents: int


def add(commands: Commands) -> None:
    """Put the command into the grammar."""
    parser = arguments.command(
        commands, "levels", "show the tree's shape: levels and their runs, newest first",
        "JSON lists the segments. Exit code 1 where damage hides leaves.",
    )  # fmt: skip
    parser.add_argument("--segments", action="store_true", help="list the segments one by one")
    arguments.add_hex(parser, "keys are hexadecimal")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`mmlsm levels`."""
    output = Output(as_json=args.json, as_hex=args.hex)
    problems: list[str] = []
    with mmlsm.open(args.file, readonly=True) as database:
        engine = database._engine
        manifest = engine.root.manifest
        segments = list(segments_of(engine.file, manifest, problems))
        file_pages = engine.file.pages
        figures = database.stats().segments
    args.code = code = EXIT_NO if problems else EXIT_OK
    if args.json:
        output.json([
            {**dataclasses.asdict(figure), "level_name": segment.name, "leaves": segment.leaves,
             "parents": segment.parents, "first_key": json_of(figure.first_key, args.hex),
             "last_key": json_of(figure.last_key, args.hex)}
            for figure, segment in zip(figures, segments, strict=True)
        ])  # fmt: skip
        return code
    if not segments:
        output.line("no segments")
    else:
        heads = ("segment", *HEADS[:2], *HEADS[3:], "commits") if args.segments else HEADS
        rows = (
            segment_rows(segments, file_pages, output)
            if args.segments
            else run_rows(manifest, segments, file_pages, output)
        )
        width = shutil.get_terminal_size().columns if output.terminal else None
        output.table(*narrowed(heads, rows, width))
    for problem in problems:
        output.check(problem, False)
    return code


def segments_of(file: File, manifest: Manifest, problems: list[str]) -> Iterable[Segment]:
    """Every segment, newest level and run first."""
    for i, level in enumerate(manifest.levels):
        for j, run in enumerate(level):
            for record in run:
                heights = [height for _, _, height, _ in nodes_of(file, record, problems.append, extents=False)]
                leaves = heights.count(0)
                yield Segment(i, level_name(i, len(manifest.levels)), j, record, leaves, len(heights) - leaves)


def figures_of(segments: Sequence[Segment], file_pages: int) -> list[object]:
    """The columns from "entries" to "filters", of one run or several."""
    records = [segment.record for segment in segments]
    pages = sum(record.pages for record in records)
    return [
        sum(record.entries for record in records),
        sum(record.tombstones for record in records),
        max((record.height for record in records), default=0),
        sum(segment.leaves for segment in segments),
        sum(segment.parents for segment in segments),
        pages,
        f"{pages * PAGE / MIB:,.1f}",
        f"{100 * pages / file_pages:.1f} %",
        sum(record.filter is not None for record in records),
    ]


def run_rows(manifest: Manifest, segments: Sequence[Segment], file_pages: int, output: Output) -> list[list[object]]:
    """A row for each run, one for each level without any, and one for all."""
    rows: list[list[object]] = []
    for i, level in enumerate(manifest.levels):
        name = level_name(i, len(manifest.levels))
        if not level:
            rows.append([name, output.none, 0, *figures_of([], file_pages), "", ""])
        for j in range(len(level)):
            of_run = [segment for segment in segments if (segment.level, segment.run) == (i, j)]
            rows.append([name if j == 0 else "", str(j), len(of_run), *figures_of(of_run, file_pages),
                         *keys_of(of_run, output)])  # fmt: skip
    runs = sum(map(len, manifest.levels))
    rows.append(["all", str(runs), len(segments), *figures_of(segments, file_pages), "", ""])
    return to_the_right(rows, {1: "run", 9: "MiB", 10: "share"})


def segment_rows(segments: Sequence[Segment], file_pages: int, output: Output) -> list[list[object]]:
    """A row for each segment."""
    rows: list[list[object]] = [
        [segment.record.id, segment.name, str(segment.run), *figures_of([segment], file_pages),
         *keys_of([segment], output), f"{segment.record.seq_low:,} to {segment.record.seq_high:,}"]
        for segment in segments
    ]  # fmt: skip
    return to_the_right(rows, {2: "run", 9: "MiB", 10: "share"})


def keys_of(segments: Sequence[Segment], output: Output) -> tuple[str, str]:
    """The least and the last key of a run."""
    least = min(segment.record.first_key for segment in segments)
    most = max(segment.record.last_key for segment in segments)
    return short(output, least), short(output, most)


def short(output: Output, key: bytes) -> str:
    """A key in a table."""
    return output.cut(output.text(key[: KEY_MOST + 1]), KEY_MOST)


def to_the_right(rows: list[list[object]], columns: dict[int, str]) -> list[list[Any]]:
    """Columns of numbers that are text, each of one width."""
    for i, head in columns.items():
        width = max(len(head), *(len(str(row[i])) for row in rows))
        for row in rows:
            row[i] = f"{row[i]!s:>{width}}"
    return rows


def narrowed(
    heads: Sequence[str], rows: Sequence[Sequence[object]], width: int | None
) -> tuple[list[str], list[list[object]]]:
    """The table without the columns that do not fit into a terminal of this width (None: any)."""
    wide = [max([len(head), *(len(f"{row[i]:,}" if isinstance(row[i], int) else str(row[i])) for row in rows)]) + 3
            for i, head in enumerate(heads)]  # fmt: skip
    kept = list(range(len(heads)))
    for name in LEFT_OUT:
        if width is not None and sum(wide[i] for i in kept) > width:
            kept = [i for i in kept if heads[i] != name]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]
