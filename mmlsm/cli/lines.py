"""Whole databases as text: load and dump, one `key<TAB>value` line an entry.

I1. `load` of what `dump` wrote gives the same entries. What cannot stand in a line is refused by `dump`, not changed.
I2. `load` holds one batch in memory: a line has a bound, and is given up earlier where it has no tab.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import mmlsm
from mmlsm.cli import arguments, streams
from mmlsm.cli.arguments import EXIT_OK, Commands, UsageError, bytes_of
from mmlsm.cli.entries import chosen
from mmlsm.cli.output import Output, Tell, text_of

FORMAT = "The first tab of a line ends the key. A file whose name ends in .xz is packed."
KEY_BYTES_MOST = 65535
HEAD_BYTES_MOST = 2 * KEY_BYTES_MOST + 2
"""A key, in hexadecimal, and its tab."""
BATCH_BYTES = 64 << 20
"""A commit has no more lines once they have so many bytes."""


def add(commands: Commands) -> None:
    """Put the commands into the grammar."""
    load = arguments.command(commands, "load", "put the key<TAB>value lines of a file",
                             f"Makes the database if there is none. {FORMAT}")  # fmt: skip
    load.add_argument("source", metavar="LINES", nargs="?", default="-", help="the file (default: standard input)")
    load.add_argument("--batch", metavar="N", type=arguments.positive, default=1000,
                      help="lines in a commit, fewer where they are long (default: 1000)")  # fmt: skip
    load.add_argument("--durability", choices=("full", "group", "off"), default="group",
                      help="when a commit returns (default: group); all is durable when the command ends")  # fmt: skip
    arguments.add_hex(load)
    load.set_defaults(run=run_load)

    dump = arguments.command(commands, "dump", "write the entries as key<TAB>value lines", FORMAT)
    dump.add_argument("target", metavar="LINES", nargs="?", default="-", help="a new file (default: standard output)")
    arguments.add_range(dump)
    arguments.add_hex(dump)
    dump.set_defaults(run=run_dump)


@contextlib.contextmanager
def lines_of(name: str, database: str, tell: Tell) -> Iterator[Iterator[bytes]]:
    """The lines of a file or of standard input, for a database; `tell` hears how far into the file they are."""
    if name == "-":
        given = streams.standard_input()
        streams.refuse_own_input(given, database)
        yield read_lines(given, name)
        return
    path = Path(name)
    size = path.stat().st_size
    with path.open("rb") as raw, lzma.open(raw) if path.suffix == ".xz" else raw as file:

        streams.refuse_own_input(raw, database)
        has_places = raw.seekable()  # a pipe has none

        def lines() -> Iterator[bytes]:
            try:
                for number, line in enumerate(read_lines(file, name)):
                    if number & 1023 == 0 and has_places:
                        tell(raw.tell(), size)
                    yield line
            except (EOFError, lzma.LZMAError) as error:
                raise UsageError(f"{name}: the .xz file is damaged or cut off: {error}") from None
            if has_places:
                tell(size, size)

        yield lines()


def place_of(name: str, number: int) -> str:
    """Where a line stands, for errors."""
    return f"{'standard input' if name == '-' else name}, line {number}"


def read_lines(file: BinaryIO | lzma.LZMAFile, name: str) -> Iterator[bytes]:
    """The lines of a file; UsageError for one without an end (I2)."""
    number = 0
    while line := file.readline(HEAD_BYTES_MOST):
        number += 1
        if len(line) == HEAD_BYTES_MOST and not line.endswith(b"\n"):
            if b"\t" not in line:
                first = f"in its first {HEAD_BYTES_MOST:,} bytes"
                raise UsageError(f"{place_of(name, number)}: no tab between a key and a value {first}")
            line += file.readline(streams.LINE_BYTES_MOST + 1 - len(line))
        if len(line) > streams.LINE_BYTES_MOST and not line.endswith(b"\n"):
            most = f"{streams.LINE_BYTES_MOST:,}"
            raise UsageError(f"{place_of(name, number)}: a line of more than {most} bytes; put --from takes any value")
        yield line


def batches_of(pairs: Iterator[tuple[bytes, bytes]], most: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The pairs of each commit."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for pair in pairs:
        batch.append(pair)
        size += len(pair[0]) + len(pair[1])
        if len(batch) == most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pairs_of(lines: Iterator[bytes], name: str, as_hex: bool) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each line; UsageError that names the first line that has none."""
    for number, line in enumerate(lines, 1):
        key, tab, value = line.removesuffix(b"\n").partition(b"\t")
        where = place_of(name, number)
        if not tab:
            raise UsageError(f"{where}: no tab between a key and a value")
        if as_hex:
            try:
                key, value = bytes_of(key.decode(), True), bytes_of(value.decode(), True)
            except (UsageError, UnicodeDecodeError):
                raise UsageError(f"{where}: not hexadecimal") from None
        if len(key) > KEY_BYTES_MOST:
            raise UsageError(f"{where}: a key of {len(key):,} bytes, at most {KEY_BYTES_MOST:,} are possible")
        yield key, value


def run_load(args: argparse.Namespace) -> int:
    """`mmlsm load`."""
    output = Output(as_json=args.json)
    loaded = 0
    with output.progress("loading") as tell, lines_of(args.source, args.file, tell) as lines:
        pairs = pairs_of(lines, args.source, args.hex)
        with mmlsm.open(args.file, durability=args.durability) as database:
            try:
                for batch in batches_of(pairs, args.batch):
                    database.put_many(batch)
                    loaded += len(batch)
            except UsageError as error:
                raise UsageError(f"{error}; the {loaded:,} lines of the batches before it are loaded") from None
    if args.json:
        output.json({"loaded": loaded})
    else:
        output.line(f"{loaded:,} lines loaded")
    return EXIT_OK


def line_of(key: bytes, value: bytes, as_hex: bool) -> bytes:
    """An entry as a line; UsageError where its bytes do not go into one."""
    if as_hex:
        line = b"%s\t%s\n" % (key.hex().encode(), value.hex().encode())
    elif b"\t" in key or b"\n" in key or b"\n" in value:
        raise UsageError(f"the entry of key {text_of(key)[:80]} has a tab or newline in it: dump with --hex")
    else:
        line = b"%s\t%s\n" % (key, value)
    if len(line) - 1 > streams.LINE_BYTES_MOST:
        raise UsageError(f"the entry of key {text_of(key)[:80]} is too long for a line: get --to writes its value")
    return line


@contextlib.contextmanager
def target_of(name: str) -> Iterator[IO[bytes]]:
    """Where the lines go: standard output, or a new file, packed where its name says so."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    try:
        file: IO[bytes] = lzma.open(path, "xb") if path.suffix == ".xz" else path.open("xb")  # noqa: SIM115
    except FileExistsError:
        raise UsageError(f"{path} is there already: dump writes only a new file") from None
    try:
        with file:
            yield file
    except BaseException:
        path.unlink()
        raise


def run_dump(args: argparse.Namespace) -> int:
    """`mmlsm dump`."""
    to_stdout = args.target == "-"
    output = Output(as_json=args.json)
    if args.json and to_stdout:
        raise UsageError("dump --json: name a file for the lines, JSON goes to standard output; or take scan --json")
    dumped = 0
    with (
        mmlsm.open(args.file, readonly=True) as database,
        output.progress("dumping") as tell,
        target_of(args.target) as target,
    ):
        about = database.count(exact=False)
        for key, value in chosen(database, args, keys=False):
            target.write(line_of(key, value, args.hex))
            dumped += 1
            if dumped & 1023 == 0:
                tell(dumped, max(about, dumped))
    if args.json:
        output.json({"dumped": dumped})
    elif not to_stdout:
        output.line(f"{dumped:,} lines to {args.target}")
    return EXIT_OK
