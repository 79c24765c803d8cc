"""`mmlsm demo`: its arguments. The demo itself is the package `mmlsm.demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmlsm import limits
from mmlsm.cli import arguments
from mmlsm.cli.arguments import Commands, UsageError
from mmlsm.cli.output import Output


def add(commands: Commands) -> None:
    """Put the command into the grammar."""
    parser = arguments.command(
        commands,
        "demo",
        "fill a database from many threads while others read it, then prove everything",
        "Indexes every file below the given folders, or loads a file of key<TAB>value lines in random order. Exit code "
        "1 when a check fails.",
        database=False,
    )
    parser.add_argument(
        "roots", metavar="FOLDER", nargs="*", type=Path, help="what to index (default: the interpreter's prefix, /usr)"
    )
    parser.add_argument("--max-files", metavar="N", type=arguments.positive, help="index at most N files")
    parser.add_argument("--data", metavar="LINES", type=Path, help="load these key<TAB>value lines (.xz is unpacked)")
    parser.add_argument("--max-lines", metavar="N", type=arguments.positive, help="load at most the first N lines")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which lines are loaded (default: 1)")
    parser.add_argument("--db", metavar="FILE", type=Path, help="a new database, kept (default: a temporary file)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary file")
    parser.add_argument("--threads", metavar="N", type=arguments.positive, default=4, help="writers (default: 4)")
    parser.add_argument("--readers", metavar="N", type=arguments.count, default=2, help="readers (default: 2)")
    parser.add_argument("--durability", choices=("full", "group", "off"), default="group", help="(default: group)")
    parser.add_argument("--batch", metavar="N", type=arguments.positive, default=1000,
                        help="entries in a commit (default: 1000)")  # fmt: skip
    parser.add_argument("--memtable-mib", metavar="N", type=arguments.positive,
                        help="size of a memtable (default: 64; for files 4, so that there are merges)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run it; its exit code."""
    from mmlsm import demo

    if args.data is not None and (args.roots or args.max_files):
        raise UsageError("give folders, or --data, not both")
    if (args.memtable_mib or 0) << 20 > limits.MEMTABLE_BYTES_MAX:
        raise UsageError(f"--memtable-mib {args.memtable_mib}: at most {limits.MEMTABLE_BYTES_MAX >> 20:,}")
    roots = tuple(args.roots) or tuple(path for path in (Path(sys.prefix), Path("/usr")) if path.is_dir())
    plan = demo.Plan(
        roots=roots,
        data=args.data,
        most=args.max_lines if args.data is not None else args.max_files,
        database=args.db,
        keep=args.keep,
        threads=args.threads,
        readers=args.readers,
        durability=args.durability,
        batch=args.batch,
        memtable_bytes=(args.memtable_mib or (64 if args.data is not None else 4)) << 20,
        seed=args.seed,
    )
    try:
        return demo.run(plan, Output(as_json=args.json))
    except demo.BadData as error:
        raise UsageError(str(error)) from error
