"""Commands over the whole file: info, free, verify, compact.

All but `compact` open it read-only, so they work on a database that was not closed cleanly, is open elsewhere, or lies
on a read-only medium.
"""

from __future__ import annotations

import argparse
import dataclasses
import uuid
from typing import Any

import mmlsm
from mmlsm import limits
from mmlsm.cli import arguments
from mmlsm.cli.arguments import EXIT_DATABASE, EXIT_NO, EXIT_OK, Commands
from mmlsm.cli.output import Output, size_of
from mmlsm.engine import Engine
from mmlsm.errors import without_advice
from mmlsm.write.recovery import extents_in_use, still_retired

PAGE = limits.PAGE_BYTES


def add(commands: Commands) -> None:
    """Put the commands into the grammar."""
    info = arguments.command(commands, "info", "show what a database is: its root, size, levels and log")
    info.set_defaults(run=run_info)
    free = arguments.command(commands, "free", "list the extents of pages that are free")
    free.set_defaults(run=run_free)
    verify = arguments.command(
        commands,
        "verify",
        "prove every page, key and sum",
        "Reads the whole file, and goes on behind damage. Exit code 1 when something is wrong, or may be: a torn "
        "superblock or end of the log can be damage or what a crash has left. Exit code 3 when the file is too damaged "
        "to be opened. See also salvage.",
    )
    verify.set_defaults(run=run_verify)
    compact = arguments.command(commands, "compact", "merge all into one run, and give space back")
    compact.set_defaults(run=run_compact)


def free_extents(engine: Engine) -> list[tuple[int, int]]:
    """(first page, pages) of each free extent of a database that is open read-only."""
    root, replay, pages = engine.root, engine.replay, engine.file.pages
    used = extents_in_use(root, replay, still_retired(root, replay, pages))
    used.set(0, limits.HEADER_PAGES)
    return list(used.gaps(pages))


def facts_of(database: mmlsm.Database) -> dict[str, Any]:
    """What `info` shows, as JSON has it."""
    engine = database._engine
    superblock, manifest, stats = engine.root.superblock, engine.root.manifest, database.stats()
    tables = engine.readonly_state.tables
    free = sum(count for _, count in free_extents(engine))
    retirements = still_retired(engine.root, engine.replay, engine.file.pages)
    retired = sum(count for retirement in retirements for _, count in retirement.extents)
    return {
        "path": str(database.path),
        "format_version": superblock.format_version,
        "uuid": str(uuid.UUID(bytes=superblock.uuid)),
        "generation": superblock.generation,
        "install": superblock.install,
        "slots_agree": engine.root.slots_agree,
        "clean": superblock.clean,
        "seq": engine.replay.seq,
        "seq_in_segments": superblock.seq,
        "file_bytes": stats.file_bytes,
        "page_bytes": superblock.page_bytes,
        "pages": engine.file.pages,
        "free_pages": free,
        "retired_pages": retired,
        "segment_pages": sum(segment.pages for segment in stats.segments),
        "manifest_page": superblock.manifest.page,
        "manifest_pages": superblock.manifest.pages,
        "bitmap_pages": len(manifest.bitmap),
        "levels": [list(level) for level in stats.levels],
        "segments": len(stats.segments),
        "entries": sum(segment.entries for segment in stats.segments),
        "tombstones": sum(segment.tombstones for segment in stats.segments),
        "data_bytes": sum(segment.data_bytes for segment in stats.segments),
        "log": {
            "page": superblock.log.page,
            "offset": superblock.log.offset,
            "pages": sum(extent.count for extent in engine.log_extents),
            "commits": sum(table.last_seq - table.first_seq + 1 for table in tables),
            "entries": sum(table.entry_count for table in tables),
            "value_extents": len(engine.value_extents),
        },
    }


def run_info(args: argparse.Namespace) -> int:
    """`mmlsm info`."""
    output = Output(as_json=args.json)
    with mmlsm.open(args.file, readonly=True) as database:
        facts = facts_of(database)
    if args.json:
        output.json(facts)
        return EXIT_OK
    log = facts["log"]
    slots = "both slots agree" if facts["slots_agree"] else "the slots differ, the newer one counts"
    clean = "yes" if facts["clean"] else "no: open for writing, or not closed; opening recovers what the log holds"
    output.line(f"{facts['path']}: mmlsm database, format version {facts['format_version']}")
    output.title("Root")
    output.pairs(
        [
            ("uuid", facts["uuid"]),
            ("superblock", f"generation {facts['generation']:,}, install {facts['install']:,}; {slots}"),
            ("closed cleanly", clean),
            ("last commit", f"{facts['seq']:,}"),
            ("manifest", f"page {facts['manifest_page']:,}, {facts['manifest_pages']:,} pages"),
        ]
    )
    output.title("Space")
    output.pairs(
        [
            ("file", f"{facts['pages']:,} pages of {facts['page_bytes']} bytes, {size_of(facts['file_bytes'])}"),
            ("segments", f"{facts['segment_pages']:,} pages"),
            ("retired", f"{facts['retired_pages']:,} pages"),
            ("free", f"{facts['free_pages']:,} pages"),
        ]
    )
    output.title("Data")
    tombstones = f" (of them {facts['tombstones']:,} tombstones)" if facts["tombstones"] else ""
    output.pairs(
        [
            ("entries", f"{facts['entries']:,}{tombstones}, {size_of(facts['data_bytes'])} of keys and values"),
            ("segments", f"{facts['segments']:,}"),
            *((f"level {i}", f"{', '.join(f'{run:,}' for run in level) or 'no'} entries")
              for i, level in enumerate(facts["levels"])),
            ("log", f"{log['entries']:,} entries of {log['commits']:,} commits, {log['pages']:,} pages"
             if log["entries"] else "nothing that is not in a segment"),
        ]
    )  # fmt: skip
    return EXIT_OK


def run_free(args: argparse.Namespace) -> int:
    """`mmlsm free`."""
    output = Output(as_json=args.json)
    with mmlsm.open(args.file, readonly=True) as database:
        free = free_extents(database._engine)
        pages = database._engine.file.pages
    if args.json:
        output.json({"pages": pages, "free": [{"page": first, "pages": count} for first, count in free]})
        return EXIT_OK
    if free:
        output.table(("page", "pages", "bytes"), [(first, count, count * PAGE) for first, count in free])
    total = sum(count for _, count in free)
    output.line(f"{total:,} of {pages:,} pages are free, in {len(free):,} extents")
    return EXIT_OK


def run_verify(args: argparse.Namespace) -> int:
    """`mmlsm verify`."""
    output = Output(as_json=args.json)
    try:
        database = mmlsm.open(args.file, readonly=True)
    except mmlsm.CorruptionError as error:
        if args.json:
            output.json({"ok": False, "opened": False, "problems": [without_advice(error)], "notes": []})
            return EXIT_DATABASE
        raise mmlsm.CorruptionError(
            f"{without_advice(error)}; {args.file} is too damaged to be opened, mmlsm salvage {args.file} OUT brings "
            "out what is sound"
        ) from error
    with database, output.progress("verifying") as tell:
        report = database.verify(progress=tell)
    args.code = code = EXIT_OK if report.ok and not report.notes else EXIT_NO
    if args.json:
        output.json({"ok": report.ok, "opened": True, **dataclasses.asdict(report)})
        return code
    owners = ("header", "manifest", "bitmap", "log", "live", "retired", "reserved", "free")
    output.pairs([(name, f"{getattr(report, name):,} pages") for name in owners])
    output.line(
        f"{report.pages:,} pages, {report.segments:,} segments, {report.parents:,} parents, {report.leaves:,} leaves, "
        f"{report.entries:,} entries, {report.overflow_extents:,} overflow extents"
    )
    for problem in report.problems:
        output.check(problem, False)
    for note in report.notes:
        output.line(f"  note    {note}")
    if report.ok:
        output.line("sound, but for the notes" if report.notes else "sound")
    else:
        output.line(f"{len(report.problems):,} problems; mmlsm salvage {args.file} OUT brings out what is sound")
    return code


def run_compact(args: argparse.Namespace) -> int:
    """`mmlsm compact`."""
    output = Output(as_json=args.json)
    with mmlsm.open(args.file, create=False) as database:
        before = database.stats().file_bytes
        with output.progress("compacting") as tell:
            database.compact(progress=tell)
    with mmlsm.open(args.file, readonly=True) as database:
        after = database.stats().file_bytes
    if args.json:
        output.json({"bytes_before": before, "bytes_after": after})
    else:
        output.line(f"{size_of(before)} before, {size_of(after)} after")
    return EXIT_OK
