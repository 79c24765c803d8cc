"""Opening: from the superblock to a version, and the replay of the log to a prefix of the commits.

One thread, before anything else knows the file. Reading changes nothing; `protect` comes before any allocation.

I1. Open takes the newest valid slot; where the slots differ the caller writes both before anything is reused (R1).
I2. The log's tail is scanned whatever the clean flag says (R6).
I3. Pages of the bitmap that are not retired, extents of the log, and extents that its commits name are in use; all
    else is free, whatever an unfinished flush or merge had written there.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Manifest, Reference, Retirement
from mmlsm.format.manifest import decode as decode_manifest
from mmlsm.format.superblock import Superblock, newest, write_order
from mmlsm.read.pages import read_chunks
from mmlsm.space.bitmap import Bitmap
from mmlsm.space.extents import Extent, joined
from mmlsm.write.log_end import whole_log
from mmlsm.write.log_scan import scan_log
from mmlsm.write.memtable import Memtable
from mmlsm.write.merge_policy import age_fault

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.format.superblock import LogPosition

PAGE = limits.PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Root:
    """What the superblock's chain says: the durable state without the log."""

    superblock: Superblock
    slots_agree: bool
    slot_order: tuple[int, int]
    """Into which slot the next generation goes first."""
    manifest: Manifest
    bits: Bitmap


@dataclass(frozen=True, slots=True)
class Replay:
    """What the log adds: a memtable with its commits (None without any), and the pages that they need."""

    table: Memtable | None
    seq: int
    position: LogPosition
    log_extents: list[Extent]
    value_extents: list[Extent]


def first_image() -> bytes:
    """The first pages of a new database: two superblock slots and the holder page."""
    block = Superblock(uuid=uuid.uuid4().bytes, generation=1, clean=True).encode()
    return block + block + bytes(PAGE)


def accept(header: bytes) -> None:
    """Refuse, before anything is written to it, a file that is not ours or of a format that we do not know."""
    if len(header) < 2 * PAGE:
        raise FormatError(f"not an mmlsm database, for it has only {len(header)} bytes: nothing was changed")
    newest(header[:PAGE], header[PAGE : 2 * PAGE])


def read_all(file: File) -> tuple[Root, Replay]:
    """The durable state, and what the log adds.

    A reader may come beside a writer that closes, after which the log's pages are anybody's, and the next one writes
    into them. Once what was the log has ended while it was read, all is read again.
    """
    while True:
        root = read_root(file)
        try:
            replay = replay_log(file, root)
        except CorruptionError:
            if not log_has_ended(file, root):
                raise
        else:
            if not log_has_ended(file, root):
                return root, replay


def log_has_ended(file: File, root: Root) -> bool:
    """Whether the log that a reader found is no more. While its writer lives it only loses its beginning, and while
    there is a reader nobody writes there (R13). Where both superblocks are damaged by now, nobody says so."""
    if not (file.readonly and root.superblock.log.page):
        return False
    try:
        now, _ = newest(file.pread(0, PAGE), file.pread(PAGE, PAGE))
    except (CorruptionError, FormatError):
        return False
    return now.log.epoch != root.superblock.log.epoch


def read_root(file: File) -> Root:
    """Superblock, manifest and bitmap, each proved by its sum. Cost: independent of the amount of data but for the
    bitmap, one page for 128 MiB."""
    slots = file.pread(0, PAGE), file.pread(PAGE, PAGE)
    superblock, agree = newest(*slots)
    order = write_order(*slots)
    if not superblock.manifest.pages:
        bits = Bitmap(limits.HEADER_PAGES)
        bits.set(0, limits.HEADER_PAGES)
        return Root(superblock, agree, order, Manifest(install=0, uuid=superblock.uuid), bits)
    manifest = read_manifest(file, superblock)
    return Root(superblock, agree, order, manifest, read_bitmap(file, manifest))


def read_manifest(file: File, superblock: Superblock) -> Manifest:
    """The manifest that a superblock names, proved by its sum."""
    reference = superblock.manifest
    data = file.pread(reference.page * PAGE, reference.length)
    if len(data) != reference.length:
        raise CorruptionError(
            f"page {reference.page}: the file ends before its manifest does; it was cut, restore a backup",
            page=reference.page,
        )
    manifest = decode_manifest(data, reference.sum, reference.page)
    if manifest.uuid != superblock.uuid or manifest.install != superblock.install:
        raise CorruptionError("the manifest belongs to another superblock; restore a backup", page=reference.page)
    return manifest


def read_bitmap(file: File, manifest: Manifest) -> Bitmap:
    """The free-space bitmap that a manifest names, each page proved by its sum."""
    pages = []
    for page, expected in manifest.bitmap:
        bits_of_page = file.pread(page * PAGE, PAGE)
        if len(bits_of_page) != PAGE or checksum(bits_of_page) != expected:
            raise CorruptionError(f"page {page}: the free-space bitmap is damaged; restore a backup", page=page)
        pages.append(bits_of_page)
    return Bitmap.from_pages(manifest.file_pages, pages, manifest.bitmap[-1][0] if manifest.bitmap else None)


def replay_log(file: File, root: Root) -> Replay:
    """Every commit of the log that survived whole, in order, up to the first that did not.

    CorruptionError where one did not that was durable (`whole_log`).
    """
    log = root.superblock.log
    scan = scan_log(file, log, lambda reference: is_sound(file, reference), root.superblock.seq)
    table: Memtable | None = None
    extents: set[Extent] = set()
    for commit in whole_log(file, scan, root.bits):
        if table is None:
            table = Memtable(log)
        table.apply(commit.items, commit.seq, commit.seq, ())
        extents.update(Extent(v.page, v.pages) for _, v in commit.items if isinstance(v, Reference))
    seq = max(scan.seq, root.superblock.seq)
    return Replay(table, seq, scan.position, scan.extents if table is not None else [], sorted(extents))


def is_sound(file: File, reference: Reference) -> bool:
    """Whether an extent that a log record names reached the disk (R2)."""
    if not reference.plausible() or (reference.page + reference.pages) * PAGE > file.pages * PAGE:
        return False
    file.drop_cached(reference.page * PAGE, reference.pages * PAGE)
    try:
        for _ in read_chunks(file, reference, 0, reference.length):
            pass
    except CorruptionError:
        return False
    return True


def still_retired(root: Root, replay: Replay, pages: int) -> tuple[Retirement, ...]:
    """The manifest's retirements in a file of `pages` pages, without what was reclaimed after the manifest was written.

    Those pages have been cut off, or belong to the log now; of others it cannot be told, and they stay retired.
    """
    claimed = [*replay.log_extents, *replay.value_extents]
    gone = Bitmap(max([pages, root.bits.pages, *(extent.end for extent in claimed)]))
    if pages < gone.pages:
        gone.set(pages, gone.pages - pages)
    for extent in claimed:
        gone.set(*extent)
    found = []
    for retirement in root.manifest.retired:
        left: list[tuple[int, int]] = []
        for first, count in retirement.extents:
            if first + count > gone.pages:
                raise outside_bitmap(first)
            if gone.any_set(first, count):
                left += [(page, 1) for page in range(first, first + count) if not gone.any_set(page, 1)]
            else:
                left.append((first, count))
        if left:
            found.append(replace(retirement, extents=joined(left)))
    return tuple(found)


def maybe_seen(
    root: Root, replay: Replay, retired: tuple[Retirement, ...], pages: int
) -> tuple[Retirement, ...]:
    """The pages that nothing durable names, as a retirement, where the last life was cut off: views of it may show what
    was in its memory alone, and where that was, nobody knows (R13)."""
    if root.superblock.clean:
        return ()
    found, end = [], 0
    for first, count in (*extents_in_use(root, replay, retired).extents(), Extent(pages, 0)):
        if min(first, pages) > end:
            found.append((end, min(first, pages) - end))
        end = first + count
    return (Retirement(0, root.manifest.install, tuple(found)),) if found else ()


def require_writable(root: Root) -> None:
    """FormatError where the file uses what this program cannot write; CorruptionError where its root cannot be.

    What it names must be marked in the bitmap, each page once, or installs would retire what is not theirs.
    """
    root.superblock.require_writable()
    manifest, reference = root.manifest, root.superblock.manifest
    if (fault := age_fault(manifest.levels)) is not None:
        raise CorruptionError(f"the manifest's levels are out of order: {fault}; restore a backup", page=reference.page)
    newest = max(manifest.segments(), key=lambda record: record.seq_high, default=None)
    if newest is not None and newest.seq_high > root.superblock.seq:
        raise CorruptionError(
            f"segment {newest.id} has commit {newest.seq_high}, which is still to come; restore a backup",
            page=reference.page,
            segment=newest.id,
        )
    named = [(page, 1) for page, _ in manifest.bitmap]
    named += [(reference.page, reference.pages)] if reference.pages else []
    for record in manifest.segments():
        named.append((record.root_page, record.root_pages))
        if record.filter is not None:
            named.append((record.filter.page, record.filter.pages))
    named += [extent for retirement in manifest.retired for extent in retirement.extents]
    unclaimed = root.bits.copy()
    for first, count in named:
        if first + count > unclaimed.pages or not unclaimed.all_set(first, count):
            raise CorruptionError(
                f"page {first}: the manifest names it twice, or the free-space bitmap has it free; restore a backup",
                page=first,
            )
        unclaimed.clear(first, count)


def outside_bitmap(page: int) -> CorruptionError:
    """The error for a retirement of pages that the bitmap does not know."""
    return CorruptionError(f"page {page}: a retirement lies outside the bitmap; restore a backup", page=page)


def used_pages(root: Root, retired: Iterable[Retirement]) -> Bitmap:
    """The header, all that the durable manifest holds, and of what it has retired only `retired`."""
    used = root.bits.copy()
    for retirement in root.manifest.retired:
        for first, count in retirement.extents:
            if first + count > used.pages:
                raise outside_bitmap(first)
            used.clear(first, count)
    held = [extent for retirement in retired for extent in retirement.extents]
    used.resize(max([used.pages, *(first + count for first, count in held)]))
    for first, count in held:
        used.set(first, count)
    return used


def check_numbers(root: Root, replay: Replay) -> None:
    """CorruptionError where a writer would soon have no next number; no real file comes near that."""
    block, manifest = root.superblock, root.manifest
    counted = sum(record.data_bytes + record.entries for record in manifest.segments())
    numbers = (block.generation, block.install, block.seq_ceiling, block.incarnation, replay.seq)
    if max(*numbers, manifest.next_segment_id, manifest.live_bytes, counted) > limits.NUMBER_MAX // 2:
        raise CorruptionError(
            "a counter of the file is next to its end, so it was damaged; open it read-only, salvage it, or restore a "
            "backup",
            page=0,
        )


def extents_in_use(root: Root, replay: Replay, retired: Iterable[Retirement]) -> Bitmap:
    """What an allocator must not give away (I3). CorruptionError when two owners claim a page.

    `retired`: what stays in use because views of an earlier life still pin the file (R13); nothing where none do.
    """
    used = used_pages(root, retired)
    claimed = [*replay.log_extents, *replay.value_extents]
    end = max([used.pages, *(extent.end for extent in claimed)])
    used.resize(end)
    for extent in claimed:
        if used.any_set(*extent):
            raise CorruptionError(
                f"page {extent.first}: the log and a segment both claim it; restore a backup", page=extent.first
            )
        used.set(*extent)
    return used
