"""The command line's grammar: one parser with a command each, and what the commands share.

I1. Wrong arguments are one line on stderr and exit code 2, never a page of usage or a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from mmlsm.cli import complaints

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

EXIT_OK: Final = 0
EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_DATABASE: Final = 3
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = """\
exit codes:
  0  done
  1  the key is not there; a check failed
  2  wrong arguments or input
  3  the database cannot be opened, read or written
"""


class UsageError(Exception):
    """Arguments or input that cannot be used; the text says why, in one line."""


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error."""

    def error(self, message: str) -> NoReturn:
        complaints.say(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)

    def _match_arguments_partial(self, actions: Sequence[argparse.Action], arg_strings_pattern: str) -> list[int]:
        """As argparse's since Python 3.12.7: a positional that may be left out waits for what stands behind options."""
        counts = super()._match_arguments_partial(actions, arg_strings_pattern)
        if arg_strings_pattern[sum(counts) :].startswith("O"):
            while counts and not counts[-1]:
                counts.pop()
        return counts

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """As argparse's, which says nothing where help cannot be written."""
        if message:
            (file or sys.stderr).write(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def command(commands: Commands, name: str, summary: str, more: str = "", *, database: bool = True) -> Parser:
    """A new command with the options that all have, and FILE."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {more}".strip(),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if database:
        parser.add_argument("file", metavar="FILE", help="the database")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def add_hex(parser: Parser, what: str = "keys and values are hexadecimal") -> None:
    """The option --hex."""
    parser.add_argument("--hex", action="store_true", help=what)


def add_range(parser: Parser) -> None:
    """What chooses a range of keys."""
    parser.add_argument("--start", metavar="KEY", help="the least key (included)")
    parser.add_argument("--stop", metavar="KEY", help="the end (not included)")
    parser.add_argument("--prefix", metavar="KEY", help="the keys that begin so, instead of --start and --stop")
    parser.add_argument("--reverse", action="store_true", help="from the last to the first")
    parser.add_argument("--limit", metavar="N", type=count, help="at most N entries")


def count(text: str) -> int:
    """A number that is not negative, as an argument type."""
    value = int(text.replace(",", "").replace("_", ""))
    if value < 0:
        raise ValueError(text)
    return value


count.__name__ = "number"


def positive(text: str) -> int:
    """A number above 0, as an argument type."""
    value = count(text)
    if not value:
        raise ValueError(text)
    return value


positive.__name__ = "positive number"


def bytes_of(text: str, as_hex: bool) -> bytes:
    """A key or value from the command line; UsageError for bad hexadecimal."""
    if not as_hex:
        return text.encode("utf-8", "surrogateescape")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{text!r} is not hexadecimal") from None


def maybe_bytes_of(text: str | None, as_hex: bool) -> bytes | None:
    """As `bytes_of`, where the argument may be missing."""
    return None if text is None else bytes_of(text, as_hex)
