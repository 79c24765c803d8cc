"""The command `mmlsm`: `main` is what the console script and `python -m mmlsm` call.

I1. What goes wrong is one line on stderr, `mmlsm: ...`, and an exit code (cli/arguments.py), never a traceback.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from collections.abc import Sequence

import mmlsm
from mmlsm.cli import complaints, demonstration, entries, lines, map, page, salvage, shape, streams, whole
from mmlsm.cli.arguments import EXIT_CODES, EXIT_DATABASE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Parser, UsageError

__all__ = ["main"]


def grammar() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="mmlsm",
        description="Look into, change and prove mmlsm databases: ordered key-value stores, one file each.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    mode = "compiled" if mmlsm.COMPILED else "interpreted"
    parser.add_argument("--version", action="version", version=f"mmlsm {mmlsm.__version__} ({mode})")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for part in (demonstration, entries, lines, whole, salvage, shape, page, map):
        part.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Prints, and raises SystemExit only for --help and wrong arguments."""
    streams.prepare()
    args = argparse.Namespace(code=EXIT_OK)
    try:
        try:
            args = grammar().parse_args(argv)
            args.code = EXIT_OK  # a command that knows better before it prints says so here
            args.code = int(args.run(args))
        except SystemExit:  # --help, which is to be printed too, or wrong arguments
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return int(args.code)
    except BrokenPipeError:  # who reads has enough; what was found stands all the same
        streams.forget_output()
        return int(args.code)
    except KeyboardInterrupt:
        return complain("interrupted", EXIT_INTERRUPTED)
    except (UsageError, mmlsm.KeySizeError) as error:
        return complain(str(error), EXIT_USAGE)
    except mmlsm.Error as error:
        return complain(reason_of(error), EXIT_DATABASE)
    except (EOFError, lzma.LZMAError) as error:
        return complain(f"the .xz file is damaged or cut off: {error}", EXIT_USAGE)
    except OSError as error:
        return complain(reason_of(error), EXIT_USAGE)
    except MemoryError:
        return complain("there is not enough memory", EXIT_DATABASE)


def complain(text: str, code: int) -> int:
    """One line on stderr; the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        streams.forget_output()  # else Python tries it again at exit, and tells of it in its own words
    complaints.say(f"mmlsm: {' '.join(text.split())}")
    return code


def reason_of(error: Exception) -> str:
    """What an error says, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
