"""`mmlsm salvage`: what is undamaged in a damaged database, into a new one; and a list of what is not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mmlsm
from mmlsm.cli import arguments
from mmlsm.cli.arguments import EXIT_NO, EXIT_OK, Commands, UsageError
from mmlsm.cli.output import Output, json_of, size_of
from mmlsm.rescue.report import Damage

SHOWN_MOST = 40


def add(commands: Commands) -> None:
    """Put the command into the grammar."""
    parser = arguments.command(
        commands,
        "salvage",
        "bring all that is undamaged in a damaged database into a new one",
        "FILE is only read. Lists by ranges of keys what was lost, and where an older value may stand now or a deleted "
        "key may be back. Exit code 1 when there is any of these.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the new database; nothing may be there")
    parser.add_argument("--proved-only", action="store_true",
                        help="leave out leaves whose proof was lost with the page above them")  # fmt: skip
    arguments.add_hex(parser, "keys are printed as hexadecimal")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run it; its exit code."""
    output = Output(as_json=args.json, as_hex=args.hex)
    if args.out.is_symlink() or args.out.exists():
        raise UsageError(f"{args.out} is there already: salvage writes only a new file")
    with output.progress("salvaging") as tell:
        report = mmlsm.salvage(args.file, args.out, unproved=not args.proved_only, progress=tell)
    args.code = code = EXIT_OK if report.complete else EXIT_NO
    if args.json:
        output.json(facts_of(report, args.hex))
    else:
        show(report, output, args.out)
    return code


def facts_of(report: mmlsm.SalvageReport, as_hex: bool) -> dict[str, Any]:
    """The report as JSON has it."""

    def damage(one: Damage) -> dict[str, Any]:
        return {
            "from": json_of(one.low, as_hex),
            "to": None if one.high is None else json_of(one.high, as_hex),
            "page": one.page,
            "segment": one.segment,
            "entries": one.entries,
            "reason": one.reason,
        }

    return {
        "complete": report.complete,
        "entries": report.entries,
        "bytes": report.bytes,
        "lost": [damage(one) for one in report.lost],
        "uncertain": [damage(one) for one in report.uncertain],
        "notes": report.notes,
        "seq": report.seq,
        "closed": report.closed,
    }


def show(report: mmlsm.SalvageReport, output: Output, out: Path) -> None:
    """The report for a human."""
    output.line(f"{report.entries:,} entries, {size_of(report.bytes)}, are in {out}")
    for note in report.notes:
        output.line(f"  nothing was lost by this: {note}")
    for title, damages in (
        ("Lost: of these keys some are missing", report.lost),
        ("Uncertain: these keys may have an older value, or be back though they were deleted", report.uncertain),
    ):
        if damages:
            output.title(title)
            output.table(
                ("from", "to", "page", "segment", "entries", "reason"),
                [
                    (
                        shown(output, one.low),
                        "the end" if one.high is None else shown(output, one.high),
                        *("?" if value is None else value for value in (one.page, one.segment, one.entries)),
                        one.reason,
                    )
                    for one in damages
                ],
            )
    output.line()
    if report.seq and not report.closed:
        output.line(
            f"The file was not closed, and the last commit found in it is {report.seq:,}. Damage that takes the whole "
            "end of a log leaves no trace."
        )
    if report.complete:
        output.line("all came out")
    else:
        output.line(f"{len(report.lost):,} losses, {len(report.uncertain):,} ranges uncertain")


def shown(output: Output, key: bytes) -> str:
    """A bound, cut where it is long; --json gives all of it."""
    text = output.text(key)
    return text if len(text) <= SHOWN_MOST else text[: SHOWN_MOST - 3] + "..."
