"""Commands over single keys and ranges: get, put, delete, scan, keys."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import mmlsm
from mmlsm.cli import arguments, complaints, streams
from mmlsm.cli.arguments import EXIT_NO, EXIT_OK, Commands, UsageError, bytes_of, maybe_bytes_of
from mmlsm.cli.output import Output, json_of

if TYPE_CHECKING:
    from mmlsm.read.cursor import Range
    from mmlsm.read.reader import Reader

WIDTH_LEAST = 20


def add(commands: Commands) -> None:
    """Put the commands into the grammar."""
    get = arguments.command(
        commands,
        "get",
        "print the value of a key",
        "The value's bytes as they are and a newline. Exit code 1 where the key is absent.",
    )
    get.add_argument("key", metavar="KEY")
    where = get.add_mutually_exclusive_group()
    where.add_argument("--raw", action="store_true", help="no newline after the value")
    where.add_argument("--to", metavar="PATH", type=Path, help="write the value to this file")
    arguments.add_hex(get, "KEY and what is printed are hexadecimal")
    get.set_defaults(run=run_get)

    put = arguments.command(commands, "put", "set a key to a value", "Makes the database if there is none.")
    put.add_argument("key", metavar="KEY")
    put.add_argument("value", metavar="VALUE", nargs="?", help="the value; - for standard input")
    put.add_argument("--from", metavar="PATH", dest="source", type=Path, help="the value is what this file holds")
    arguments.add_hex(put, "KEY and VALUE are hexadecimal")
    put.set_defaults(run=run_put)

    delete = arguments.command(commands, "delete", "delete keys", "All at once. Exit code 1 where one was absent.")
    delete.add_argument("keys", metavar="KEY", nargs="+")
    arguments.add_hex(delete, "KEY is hexadecimal")
    delete.set_defaults(run=run_delete)

    scan = arguments.command(
        commands,
        "scan",
        "print the entries of a range, for reading",
        "KEY<TAB>VALUE lines; what is not printable is escaped, and on a terminal long lines are cut. With --json one "
        "object a line. See also dump.",
    )
    arguments.add_range(scan)
    arguments.add_hex(scan)
    scan.add_argument("--full", action="store_true", help="cut no line")
    scan.set_defaults(run=run_scan)

    keys = arguments.command(
        commands,
        "keys",
        "print the keys of a range, or count them",
        "One a line; what is not printable is escaped. With --json one string a line.",
    )
    arguments.add_range(keys)
    keys.add_argument("--count", action="store_true", help="print only how many there are")
    arguments.add_hex(keys, "keys are hexadecimal")
    keys.set_defaults(run=run_keys)


def run_get(args: argparse.Namespace) -> int:
    """`mmlsm get`."""
    key = bytes_of(args.key, args.hex)
    output = Output(as_json=args.json, as_hex=args.hex)
    with mmlsm.open(args.file, readonly=True) as database:
        stream = database.open_value(key)
        if stream is None:
            if args.json:
                output.json({"key": json_of(key, args.hex), "found": False})
            else:
                complaints.say(f"mmlsm: there is no key {output.text(key)}")
            return EXIT_NO
        with stream:
            if args.to is not None:
                streams.refuse_database(args.to, args.file)
                with streams.written_whole(args.to) as target:
                    shutil.copyfileobj(stream, target, 1 << 20)
                output.line(output_of_copy(args, key, stream.tell()))
            elif args.json:
                output.json({"key": json_of(key, args.hex), "found": True, "value": json_of(stream.read(), args.hex)})
            elif args.hex:
                print(stream.read().hex(), end="" if args.raw else "\n")
            else:
                shutil.copyfileobj(stream, sys.stdout.buffer, 1 << 20)
                if not args.raw:
                    sys.stdout.buffer.write(b"\n")
                sys.stdout.buffer.flush()
    return EXIT_OK


def output_of_copy(args: argparse.Namespace, key: bytes, length: int) -> str:
    """What `get --to` says."""
    if args.json:
        import json

        return json.dumps({"key": json_of(key, args.hex), "found": True, "bytes": length})
    return f"{length:,} bytes to {args.to}"


def run_put(args: argparse.Namespace) -> int:
    """`mmlsm put`."""
    if (args.value is None) == (args.source is None):
        raise UsageError("put: give one of VALUE, - or --from PATH")
    key = bytes_of(args.key, args.hex)
    with contextlib.ExitStack() as stack:
        value: bytes | BinaryIO
        if args.source is not None:
            value = stack.enter_context(args.source.open("rb"))
        elif args.value == "-":
            value = streams.standard_input()
        else:
            value = bytes_of(args.value, args.hex)
        if not isinstance(value, bytes):
            streams.refuse_own_input(value, args.file)
        if args.hex and not isinstance(value, bytes):
            digits = value.read(streams.LINE_BYTES_MOST + 1)
            if len(digits) > streams.LINE_BYTES_MOST:
                most = f"{streams.LINE_BYTES_MOST:,}"
                raise UsageError(f"put --hex: more than {most} digits; without --hex a value of any length goes in")
            value = bytes_of(digits.decode("ascii", "replace"), True)
        with mmlsm.open(args.file) as database:
            database.put(key, value)
            length = database.value_length(key)
    if args.json:
        Output(as_json=True).json({"key": json_of(key, args.hex), "bytes": length})
    return EXIT_OK


def run_delete(args: argparse.Namespace) -> int:
    """`mmlsm delete`."""
    output = Output(as_json=args.json, as_hex=args.hex)
    keys = [bytes_of(key, args.hex) for key in args.keys]
    absent = []
    with mmlsm.open(args.file, create=False) as database, database.begin(write=True) as transaction:
        for key in keys:
            if key in transaction:
                transaction.delete(key)
            else:
                absent.append(key)
    if args.json:
        output.json({"deleted": len(keys) - len(absent), "absent": [json_of(key, args.hex) for key in absent]})
    for key in () if args.json else absent:
        complaints.say(f"mmlsm: there is no key {output.text(key)}")
    return EXIT_NO if absent else EXIT_OK


def chosen(reader: Reader, args: argparse.Namespace, *, keys: bool) -> Range:
    """The range that the arguments choose."""
    start, stop, prefix = (maybe_bytes_of(text, args.hex) for text in (args.start, args.stop, args.prefix))
    if prefix is not None and (start is not None or stop is not None):
        raise UsageError("give --prefix, or --start and --stop, not both")
    ask = reader.keys if keys else reader.items
    return ask(start, stop, prefix=prefix, reverse=args.reverse, limit=args.limit)


def run_scan(args: argparse.Namespace) -> int:
    """`mmlsm scan`."""
    output = Output(as_json=args.json, as_hex=args.hex)
    width = None if args.full or not output.terminal else max(WIDTH_LEAST, shutil.get_terminal_size().columns)
    with mmlsm.open(args.file, readonly=True) as database:
        for key, value in chosen(database, args, keys=False):
            if args.json:
                output.json({"key": json_of(key, args.hex), "value": json_of(value, args.hex)})
                continue
            line = f"{output.text(key)}\t{output.text(value if width is None else value[:width])}"
            if width is not None and len(expanded := line.expandtabs()) > width:
                line = output.cut(expanded, width)
            output.line(line)
    return EXIT_OK


def run_keys(args: argparse.Namespace) -> int:
    """`mmlsm keys`."""
    output = Output(as_json=args.json, as_hex=args.hex)
    with mmlsm.open(args.file, readonly=True) as database:
        keys = chosen(database, args, keys=True)
        if args.count:
            count = sum(1 for _ in keys)
            if args.json:
                output.json(count)
            else:
                output.line(str(count))
            return EXIT_OK
        for key in keys:
            if args.json:
                output.json(json_of(key, args.hex))
            else:
                output.line(output.text(key))
    return EXIT_OK
