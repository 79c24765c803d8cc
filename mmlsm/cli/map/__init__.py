"""`mmlsm map`: a picture of the file, page by page.

The walk is `pages_by_owner`; what becomes a square `cells`, its colour `colours`, the text of the picture `drawing`
and `page`. Here are the arguments, the totals and the writing.

I1. The database is opened read-only, and no database is ever overwritten by a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mmlsm
from mmlsm import limits
from mmlsm.cli import arguments, streams
from mmlsm.cli.arguments import EXIT_NO, EXIT_OK, Commands, UsageError
from mmlsm.cli.map import cells, drawing, page
from mmlsm.cli.output import Output
from mmlsm.cli.pages_by_owner import Layout, Pages, layout_of, layout_of_damaged, places, walk
from mmlsm.errors import CorruptionError
from mmlsm.file import open_file

PAGE = limits.PAGE_BYTES
FORMS = (".html", ".svg")
KEY_MOST = 80


def add(commands: Commands) -> None:
    """Put the command into the grammar."""
    parser = arguments.command(
        commands, "map", "draw the file page by page, and print what its pages are for",
        "The picture needs nothing else, and suits light and dark. Works on damaged files too, as far as there is "
        "something to see. Exit code 1 where it met damage.",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="PICTURE", type=Path, help="where it goes: NAME.html or NAME.svg")
    arguments.add_hex(parser, "keys are hexadecimal")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`mmlsm map`."""
    output = Output(as_json=args.json, as_hex=args.hex)
    if args.output is not None:
        refuse(args.output, args.file)
    with output.progress("walking") as tell:
        try:
            with mmlsm.open(args.file, readonly=True) as database:
                pages, segments = look(layout_of(database._engine), tell, output)
        except CorruptionError as error:
            file = open_file(args.file, readonly=True, create=False)
            try:
                pages, segments = look(layout_of_damaged(file, error), tell, output)
            finally:
                file.close()
    if args.output is not None:
        name = str(args.file)
        picture = drawing.svg(pages, name) if form_of(args.output) == ".svg" else page.html(pages, name, segments)
        with streams.written_whole(args.output) as target:
            target.write(picture.encode())
    args.code = EXIT_NO if pages.problems else EXIT_OK
    show(pages, args, output)
    return int(args.code)


def form_of(target: Path) -> str:
    """Which picture a name asks for."""
    return target.suffix.lower()


def refuse(target: Path, database: str) -> None:
    """UsageError where no picture can go to this name."""
    if form_of(target) not in FORMS:
        raise UsageError(f"{target}: the picture's name must end with .html or .svg")
    streams.refuse_database(target, database)


def look(layout: Layout, tell: Any, output: Output) -> tuple[Pages, list[page.Listed]]:
    """Walk the file; what owns its pages, and its segments."""
    segments = [] if layout.manifest is None else [
        page.Listed(place, record.entries, record.tombstones, record.pages,
                    short(output, record.first_key), short(output, record.last_key))
        for place, record in places(layout.manifest)
    ]  # fmt: skip
    return walk(layout, tell), segments


def short(output: Output, key: bytes) -> str:
    """A key in the table of segments."""
    return output.cut(output.text(key[: KEY_MOST + 1]), KEY_MOST)


def show(pages: Pages, args: argparse.Namespace, output: Output) -> None:
    """Print the totals."""
    levels, others = drawing.rows_of(pages)
    rows = [(row.name, kind, held) for row in levels for kind, held in row.kinds if held]
    rows += [("", row.group.replace("-", " "), row.pages) for row in others if row.pages]
    if args.json:
        output.json({
            "path": str(args.file),
            "picture": None if args.output is None else str(args.output),
            "pages": pages.total,
            "page_bytes": PAGE,
            "pages_in_a_square": cells.grid_of(pages.total).cell_pages,
            "owners": [
                {"kind": kind, "level": level or None, "pages": held, "bytes": held * PAGE,
                 "share": round(held / max(pages.total, 1), 6)}
                for level, kind, held in rows
            ],
            "problems": pages.problems,
        })  # fmt: skip
        return
    sizes = column("MiB", [drawing.mib(held, pages.total) for *_, held in rows])
    shares = column("share", [drawing.percent(held, pages.total) for *_, held in rows])
    output.table(
        ("level", "pages for", "pages", "MiB", "share"),
        [(level or output.none, kind, held, size, share)
         for (level, kind, held), size, share in zip(rows, sizes, shares, strict=True)],
    )  # fmt: skip
    for problem in pages.problems:
        output.check(problem, False)
    if args.output is not None:
        output.line(f"drawn into {args.output}")


def column(head: str, texts: list[str]) -> list[str]:
    """Numbers that are text, of one width, so that they stand to the right in a table."""
    width = max([len(head), *map(len, texts)])
    return [f"{text:>{width}}" for text in texts]
