"""`mmlsm page`: one page, decoded as what it is. Works on damaged files too, as far as there is something to decode."""

from __future__ import annotations

import argparse
import dataclasses
import uuid
from typing import Any

import mmlsm
from mmlsm import limits
from mmlsm.cli import arguments
from mmlsm.cli.arguments import EXIT_NO, EXIT_OK, Commands, UsageError
from mmlsm.cli.output import Output
from mmlsm.cli.owners import Owner, owner_of
from mmlsm.database import Database
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.file import File, open_file
from mmlsm.format import leaf, manifest, page, parent, superblock
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.read.pages import Pages
from mmlsm.space.bitmap import Bitmap
from mmlsm.write.log_scan import scan_log

PAGE = limits.PAGE_BYTES
NODES = {page.KIND_LEAF: "leaf", page.KIND_PARENT: "parent"}
KINDS = {page.VALUE: "value", page.TOMBSTONE: "tombstone", page.OVERFLOW: "overflow"}
SHOWN_BYTES = 60
ROW = 16


def add(commands: Commands) -> None:
    """Put the command into the grammar."""
    parser = arguments.command(
        commands, "page", "decode one page: superblock, leaf, parent, manifest, bitmap, log or raw bytes",
        "Says whose page it is, and shows what it holds. Exit code 1 when the page is damaged.",
    )  # fmt: skip
    parser.add_argument("number", metavar="N", type=arguments.count, help="the page's number, from 0")
    parser.add_argument("--raw", action="store_true", help="show the bytes, whatever the page is")
    arguments.add_hex(parser, "keys and values are hexadecimal")
    parser.set_defaults(run=run)


@dataclasses.dataclass(slots=True)
class Shown:
    """What there is to show: facts by name, a table, raw bytes, and what is wrong."""

    owner: Owner
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    raw: bytes = b""
    problem: str | None = None


def run(args: argparse.Namespace) -> int:
    """`mmlsm page`."""
    output = Output(as_json=args.json, as_hex=args.hex)
    try:
        with mmlsm.open(args.file, readonly=True) as database:
            shown = look(database._engine.file, database, args.number, args)
    except (CorruptionError, FormatError) as error:
        file = open_file(args.file, readonly=True, create=False)
        try:
            shown = look(file, None, args.number, args)
        finally:
            file.close()
        shown.problem = shown.problem or f"the database cannot be opened: {error}"
    args.code = EXIT_NO if shown.problem else EXIT_OK
    show(args.number, shown, output)
    return int(args.code)


def look(file: File, database: Database | None, number: int, args: argparse.Namespace) -> Shown:
    """Decode a page of a database, or of a file that cannot be opened as one."""
    if number >= file.pages:
        raise UsageError(f"there is no page {number:,}: the file has {file.pages:,} pages")
    if database is not None:
        owner = owner_of(database._engine, number)
    elif number < limits.HEADER_PAGES - 1:
        owner = Owner("superblock", f"the header: superblock slot {number}", number, 1)
    else:
        owner = Owner("unknown", "unknown: the root is damaged", number, 1)
    shown = Shown(owner)
    try:
        if args.raw:
            shown.raw = file.pread(number * PAGE, PAGE)
        elif owner.kind == "superblock":
            decode_superblock(file, number, shown)
        elif owner.kind in ("leaf", "parent"):
            decode_node(file, owner, shown, args.hex, "first-read")
        elif owner.kind == "manifest" and number == owner.first:
            decode_manifest(file, owner, shown)
        elif owner.kind == "bitmap":
            decode_bitmap(file, owner, shown)
        elif owner.kind == "log" and database is not None:
            decode_log(database, number, shown)
        else:
            decode_unowned(file, number, shown, args.hex)
    except (CorruptionError, FormatError) as error:
        shown.problem = str(error)
        shown.raw = file.pread(number * PAGE, PAGE)
    return shown


def decode_superblock(file: File, number: int, shown: Shown) -> None:
    """A superblock slot, field by field."""
    block = superblock.decode(file.pread(number * PAGE, PAGE), number)
    shown.facts = {
        field.name: value._asdict() if hasattr(value := getattr(block, field.name), "_asdict") else value
        for field in dataclasses.fields(block)
    }
    shown.facts["uuid"] = str(uuid.UUID(bytes=block.uuid))


def decode_node(file: File, owner: Owner, shown: Shown, as_hex: bool, verify: str) -> None:
    """A leaf's entries, or a parent's separators and children."""
    output = Output(as_hex=as_hex)
    pages = Pages(file, file.whole_window(), verify, owner.segment)
    assert owner.height is not None
    pages.touch_anew((owner.first, owner.pages, owner.sum or 0), owner.height)
    header = file.pread(owner.first * PAGE, limits.NODE_HEADER_BYTES)
    shown.facts = {
        "height": header[3],
        "pages": header[2],
        "entries": int.from_bytes(header[4:6], "little"),
        "prefix_bytes": int.from_bytes(header[6:8], "little"),
        "birth": int.from_bytes(header[8:16], "little"),
        "used_bytes": int.from_bytes(header[16:20], "little"),
        "overflow": bool(header[22] & page.FLAG_OVERFLOW),
    }
    if owner.height:
        shown.columns = ("child", "separator", "page", "pages", "entries", "sum", "overflow below")
        shown.rows = [
            (i, key_text(output, inline, packed) if i else "", first, count, entries, f"{total:016x}",
             "yes" if overflow else "")
            for i, (inline, packed, _, first, count, total, entries, overflow) in enumerate(
                parent.children_of(pages.window, owner.first))
        ]  # fmt: skip
        return
    shown.facts["tombstones"] = int.from_bytes(header[20:22], "little")
    shown.columns = ("entry", "kind", "key", "bytes", "value")
    for i, (inline, kind, packed, value) in enumerate(leaf.entries_of(pages.window, owner.first)):
        what = KINDS[kind & 15]
        reference = Reference.unpack(value) if what == "overflow" else None
        head = output.cut(output.text(value[: SHOWN_BYTES + 1]), SHOWN_BYTES)
        text = f"at page {reference.page}" if reference else head
        length = reference.length if reference else len(value)
        shown.rows.append((i, what, key_text(output, inline, packed), length, text))


def key_text(output: Output, inline: bytes, packed: bytes) -> str:
    """A key or separator; of one in an extent what stands in the node, and where the rest is."""
    if not packed:
        return output.text(inline)
    reference = Reference.unpack(packed)
    return f"{output.text(inline)}{output.more} ({reference.length:,} bytes at page {reference.page})"


def decode_manifest(file: File, owner: Owner, shown: Shown) -> None:
    """The manifest's figures; its segments are what `mmlsm levels` shows."""
    found = manifest.decode(file.pread(owner.first * PAGE, owner.pages * PAGE), None, owner.first)
    shown.facts = {
        "install": found.install,
        "uuid": str(uuid.UUID(bytes=found.uuid)),
        "file_pages": found.file_pages,
        "live_bytes": found.live_bytes,
        "next_segment_id": found.next_segment_id,
        "retirements": len(found.retired),
        "bitmap_pages": len(found.bitmap),
    }
    shown.columns = ("level", "run", "segment", "root page", "height", "entries", "pages")
    shown.rows = [
        (i, j, record.id, record.root_page, record.height, record.entries, record.pages)
        for i, level in enumerate(found.levels)
        for j, run in enumerate(level)
        for record in run
    ]


def decode_bitmap(file: File, owner: Owner, shown: Shown) -> None:
    """The runs of pages that are in use."""
    data = file.pread(owner.first * PAGE, PAGE)
    if checksum(data) != owner.sum:
        shown.problem = f"page {owner.first}: the sum differs from what the manifest says"
    base = int(owner.text.split("page ")[1].split()[0]) * PAGE * 8
    runs = [(base + first, count) for first, count in Bitmap.from_pages(PAGE * 8, [data]).extents()]
    shown.facts = {"bits_from_page": base, "used": sum(count for _, count in runs), "runs": len(runs)}
    shown.columns = ("used from page", "pages")
    shown.rows = list(runs)


def decode_log(database: Database, number: int, shown: Shown) -> None:
    """The commits whose records touch the page."""
    engine = database._engine
    scan = scan_log(engine.file, engine.root.superblock.log, None, engine.root.superblock.seq)
    extent, at = engine.root.superblock.log.page, engine.root.superblock.log.offset
    shown.columns = ("commit", "entries", "file offset", "bytes")
    for commit in scan:
        end = commit.position.offset
        if commit.position.page != extent:  # it is the first behind a link
            extent = commit.position.page
            at = extent * PAGE
        if at < (number + 1) * PAGE and end > number * PAGE:
            shown.rows.append((commit.seq, len(commit.items), at, end - at))
        at = end
    shown.facts = {"log_ends": scan.ended, "log_end_offset": scan.position.offset}
    if not shown.rows:
        shown.raw = engine.file.pread(number * PAGE, PAGE)


def decode_unowned(file: File, number: int, shown: Shown, as_hex: bool) -> None:
    """A page that nothing refers to, or that holds bytes of a value: as a node where it still is a whole one."""
    data = shown.raw = file.pread(number * PAGE, PAGE)
    if shown.owner.kind == "extent" or data[0] not in NODES or not 1 <= data[2] <= file.pages - number:
        return
    stale = Owner(NODES[data[0]], "", number, data[2], None, data[3])
    try:
        decode_node(file, stale, shown, as_hex, "never")
    except CorruptionError:
        return
    shown.raw = b""
    shown.facts["note"] = f"what it holds reads as a {stale.kind} of an earlier time"


def show(number: int, shown: Shown, output: Output) -> None:
    """Print it."""
    owner = shown.owner
    if output.as_json:
        table = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
        output.json({
            "page": number, "kind": owner.kind, "owner": owner.text, "first_page": owner.first, "pages": owner.pages,
            "problem": shown.problem, **shown.facts, "rows": table, "raw": shown.raw.hex() or None,
        })  # fmt: skip
        return
    where = "" if owner.pages == 1 else f" (pages {owner.first:,} to {owner.first + owner.pages - 1:,})"
    output.line(f"page {number:,} belongs to {owner.text}{where}")
    if shown.problem:
        output.check(shown.problem, False)
    output.pairs(list(shown.facts.items()))
    if shown.columns:
        output.table(shown.columns, shown.rows)
    for line in dump_of(shown.raw, number * PAGE):
        output.line(line)


def dump_of(data: bytes, base: int) -> list[str]:
    """Offset, hexadecimal and text of each 16 bytes; "*" for rows like the one before."""
    lines: list[str] = []
    before = None
    for at in range(0, len(data), ROW):
        row = data[at : at + ROW]
        if row == before:
            if lines[-1] != "*":
                lines.append("*")
            continue
        before = row
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{base + at:010x}  {row.hex(' ', 1):<{3 * ROW - 1}}  {text}")
    return lines


