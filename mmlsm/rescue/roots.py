"""Where a salvage begins: the version that the file's root leads to, or the best that is left of it, and the log.

One thread; nothing is written. In this order:

1. The newest superblock whose manifest is proved by its sum: exact. Where that is the older slot, its log has what the
   lost manifest had (docs/format.md, "Superblock", invariant 1), and the log's numbers show whether it does.
2. Of all pages that hold what may be a manifest the newest whose references some sum proves. Its segments are proved,
   as ever, by the sums in it; but whether they are the last that there were nobody knows, so all is uncertain.
3. No manifest: nodes by their structure alone (`relics`); all is uncertain.

I1. A format that this program does not know is refused by name, as at opening, where a sum proves that it is one: in a
    superblock, in the manifest that one names, in a record of the log that one leads to. Elsewhere it may be damage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mmlsm import limits
from mmlsm.errors import CorruptionError, Error, FormatError, StorageError, without_advice
from mmlsm.format import manifest as manifests
from mmlsm.format import superblock as superblocks
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Manifest, Reference
from mmlsm.format.page import CODEC_RAW, KIND_MANIFEST
from mmlsm.format.superblock import LogPosition, Superblock
from mmlsm.rescue import relics
from mmlsm.rescue.report import SalvageReport
from mmlsm.space.bitmap import Bitmap
from mmlsm.write.log_end import cut_off, extents_elsewhere, later_records
from mmlsm.write.log_record import COMMIT_RECORD, HEADER_BYTES, decode_header
from mmlsm.write.log_scan import scan_log
from mmlsm.write.merge_policy import age_fault
from mmlsm.write.recovery import is_sound, read_bitmap, read_manifest

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.write.log_scan import LogScan

PAGE: Final = limits.PAGE_BYTES
BLOCK_PAGES: Final = 256


@dataclass(slots=True)
class Basis:
    """What to bring out: the segments of `manifest`, and over them the log's commits (None: deleted)."""

    manifest: Manifest
    bits: Bitmap | None = None
    """The free-space bitmap; None where it is lost."""
    table: dict[bytes, bytes | Reference | None] = field(default_factory=dict)
    seq: int = 0
    """The last commit that is known to be covered."""
    place: tuple[int, int] = (0, limits.HEADER_PAGES)
    """The manifest's own pages, where a superblock says which they are."""
    relics: bool = False
    """Whether the segments are guesses, which may have nodes in common."""


def find_basis(file: File, report: SalvageReport) -> Basis:
    """The best that the file's roots lead to. FormatError: not a database, or of a format that we do not know."""
    blocks = valid_blocks(file, report)
    newer, basis = of_superblocks(file, blocks, report)
    if basis is None:
        basis = of_pages(file, blocks, report)
    if basis is None:
        report.doubt("there is no manifest left: all that was found is nodes that look sound, the youngest first")
        basis = Basis(relics.manifest_of(file), relics=True)
    if basis.manifest.bitmap:
        basis.bits = bitmap_of(file, basis.manifest, report)
    if blocks:
        replay_logs(file, newer, basis, report)
    else:
        replay_found_logs(file, basis)
    marked = blocks or any(head.startswith(superblocks.MAGIC) for head in slots_of(file))
    if not marked and not basis.table and not any(basis.manifest.segments()):
        raise FormatError(f"{file.path} is not an mmlsm database, nor is anything of one in it")
    report.seq = basis.seq
    report.closed = any(block.clean for block in blocks[:1])
    return basis


def bitmap_of(file: File, manifest: Manifest, report: SalvageReport) -> Bitmap | None:
    """The free-space bitmap, if it is sound: so it is no larger than the file, each of whose pages it has once."""
    if len({number for number, _ in manifest.bitmap}) < len(manifest.bitmap):
        report.note("the manifest names a page of the free-space bitmap twice")
        return None
    try:
        return read_bitmap(file, manifest)
    except (CorruptionError, StorageError) as error:
        report.note(without_advice(error))
        return None


def slots_of(file: File) -> list[bytes]:
    """The bytes of both superblock slots, as far as they can be read."""
    found = []
    for slot in range(superblocks.SLOTS):
        try:
            found.append(file.pread(slot * PAGE, PAGE))
        except StorageError:
            found.append(b"")
    return found


def valid_blocks(file: File, report: SalvageReport) -> list[Superblock]:
    """The superblocks that are sound, newest first, each once."""
    blocks: list[Superblock] = []
    strange: list[FormatError] = []
    for slot, data in enumerate(slots_of(file)):
        try:
            block = superblocks.decode(data.ljust(PAGE, b"\0"), slot)
        except FormatError as error:
            if data.startswith(superblocks.MAGIC):
                if superblocks.is_sealed(data):
                    raise
                strange.append(error)
            report.note(f"superblock slot {slot} is damaged: {error}")
        except CorruptionError as error:
            report.note(without_advice(error))
        else:
            if block not in blocks:
                blocks.append(block)
    if len(strange) == superblocks.SLOTS and str(strange[0]) == str(strange[1]):
        raise strange[0]
    if len({block.generation for block in blocks}) < len(blocks):
        report.doubt(f"the superblock slots differ in generation {blocks[0].generation}")
    return sorted(blocks, key=lambda block: -block.generation)


def of_superblocks(
    file: File, blocks: list[Superblock], report: SalvageReport
) -> tuple[list[Superblock], Basis | None]:
    """The version of the newest superblock whose manifest is proved, and the superblocks up to that one (I1)."""
    for i, block in enumerate(blocks):
        try:
            if block.manifest.pages:
                manifest = read_manifest(file, block)
            else:
                manifest = Manifest(install=0, uuid=block.uuid)
        except (CorruptionError, StorageError) as error:
            report.note(f"generation {block.generation}: {without_advice(error)}")
            continue
        if block.generation < blocks[0].generation - 1:
            report.doubt(f"what counts is generation {block.generation}, which is older than the lost one before last")
        basis = Basis(manifest, seq=block.seq)
        if block.manifest.pages:
            basis.place = block.manifest.page, block.manifest.pages
        return blocks[: i + 1], basis
    return blocks, None


def of_pages(file: File, blocks: list[Superblock], report: SalvageReport) -> Basis | None:
    """The newest manifest in any page of which something is proved."""
    uuids = {block.uuid for block in blocks}
    best: tuple[int, Manifest] | None = None
    for number, manifest in manifests_in(file):
        if uuids and manifest.uuid not in uuids:
            continue
        if (best is None or manifest.install > best[1].install) and is_backed(file, manifest):
            best = number, manifest
    if best is None:
        return None
    number, manifest = best
    report.doubt(
        f"no superblock leads to a sound manifest: that of install {manifest.install} in page {number} counts, "
        "and there may have been newer ones"
    )
    return Basis(manifest, seq=max((record.seq_high for record in manifest.segments()), default=0))


def manifests_in(file: File) -> Iterator[tuple[int, Manifest]]:
    """What decodes as a manifest, from any page on; its sum, which stands elsewhere, is not known."""
    for number, data in pages_of(file):
        if data[0] != KIND_MANIFEST or data[1] != CODEC_RAW:
            continue
        length = int.from_bytes(data[16:24], "little")
        if length > file.bytes - number * PAGE:
            continue
        try:
            manifest = manifests.decode(file.pread(number * PAGE, length))
        except Error:
            continue
        if age_fault(manifest.levels) is None:
            yield number, manifest


def pages_of(file: File) -> Iterator[tuple[int, bytes]]:
    """Each whole page after the header that can be read."""
    total = file.pages
    for first in range(limits.HEADER_PAGES, total, BLOCK_PAGES):
        count = min(BLOCK_PAGES, total - first)
        yield from read_pages(file, first, count)


def read_pages(file: File, first: int, count: int) -> Iterable[tuple[int, bytes]]:
    """These pages; where the medium refuses some of them, the others."""
    try:
        data = file.pread(first * PAGE, count * PAGE)
    except StorageError:
        if count == 1:
            return []
        half = count // 2
        return [*read_pages(file, first, half), *read_pages(file, first + half, count - half)]
    return [(first + i, data[i * PAGE : (i + 1) * PAGE]) for i in range(len(data) // PAGE)]


def is_backed(file: File, manifest: Manifest) -> bool:
    """Whether at least one page is what the manifest says: so it is no manifest of another file, kept as a value."""
    named = [(number, 1, total) for number, total in manifest.bitmap]
    named += [(record.root_page, record.root_pages, record.root_sum) for record in manifest.segments()]
    for number, count, total in named:
        try:
            if checksum(file.pread(number * PAGE, count * PAGE)) == total:
                return True
        except StorageError:
            continue
    return False


# -- the log


def replay_logs(file: File, blocks: list[Superblock], basis: Basis, report: SalvageReport) -> None:
    """Put the commits of these superblocks' logs over the segments, the oldest first.

    A hole between two is told before the commits behind it hide it: those come out too, over what may be older.
    """
    for block in reversed(blocks):
        if basis.seq < block.seq:
            report.doubt(f"commits {basis.seq + 1} to {block.seq} are not all there")
        replay(file, block.log, max(block.seq, basis.seq), basis, report)


def replay(file: File, position: LogPosition, seq: int, basis: Basis, report: SalvageReport | None) -> None:
    """Put the commits above `seq` of the log at `position` over what there is; those behind damage too, and tell.

    Without a `report`, where no superblock led here, it ends before what this program does not know (I1).
    """
    scan = scan_log(file, position, lambda reference: is_sound(file, reference))
    try:
        take(scan, seq, basis)
        rest = cut_off(file, scan)
        if rest and report is not None:
            report.doubt(f"{rest} ({scan.ended})")
            scan = scan_log(file, scan.position, None, scan.seq)  # a value that is damaged is told as that
            take(scan, seq, basis)
            for there in behind(file, scan, basis.bits or Bitmap()):
                report.doubt(f"the log has nothing whole between commit {scan.seq} and page {there.offset // PAGE}")
                scan.skip_to(there)
                take(scan, seq, basis)
    except FormatError:
        if report is not None:
            raise
    except (CorruptionError, StorageError) as error:
        if report is not None:
            report.doubt(f"the log breaks off after commit {scan.seq}: {without_advice(error)}; what follows is lost")


def take(scan: LogScan, seq: int, basis: Basis) -> None:
    """Put the commits above `seq` that the scan comes to over what there is."""
    for commit in scan:
        if commit.seq > seq:
            basis.table.update(commit.items)
            basis.seq = commit.seq


def behind(file: File, scan: LogScan, bits: Bitmap) -> Iterator[LogPosition]:
    """Where the scan can go on behind its end, again and again: at the next whole header of a later commit.

    First in the extent where it ended, then in those that a link led to. Each place comes once.
    """
    epoch, tried = scan.position.epoch, {scan.position.offset}

    def here() -> Iterator[LogPosition]:
        while (later := next((one for one in later_records(file, scan) if one[0] not in tried), None)) is not None:
            offset, header = later
            tried.add(offset)
            yield scan.position._replace(offset=offset, predecessor=header.predecessor)

    yield from here()
    starts = sorted(
        (one.seq, offset, one.predecessor) for offset, one in extents_elsewhere(file, bits) if one.epoch == epoch
    )
    for seq, offset, predecessor in starts:
        if seq > scan.seq and offset not in tried:
            tried.add(offset)
            yield LogPosition(offset // PAGE, file.pages - offset // PAGE, offset, epoch, predecessor)
            yield from here()


def replay_found_logs(file: File, basis: Basis) -> None:
    """Without a superblock: the commits above the segments' of the chain of records that leads to the last one.

    A chain begins with any record at the beginning of a page that no chain before it came to. What it has is right for
    all keys in it, wherever it begins; two chains with a hole between them would not be.
    """
    best: tuple[int, int] | None = None
    chain: LogPosition | None = None
    passed: dict[int, int] = {}
    for number, data in pages_of(file):
        header = decode_header(data[:HEADER_BYTES], 0)
        if header is None or header.kind != COMMIT_RECORD or not header.epoch or number in passed:
            continue
        position = LogPosition(number, file.pages - number, number * PAGE, header.epoch, header.predecessor)
        rank = last_commit(file, position, passed), -header.seq
        if best is None or rank > best:
            best, chain = rank, position
    if chain is not None:
        replay(file, chain, basis.seq, basis, None)


def last_commit(file: File, position: LogPosition, passed: dict[int, int]) -> int:
    """The last commit of the chain of records from `position` on.

    `passed`: by page, the last commit of the chain that goes on with the record which begins there. What this chain
    comes to is added, and where it joins one of those it ends, so that no record is read for two chains.
    """
    scan = scan_log(file, position)
    start, extents, last = position.offset, 1, 0
    found = []
    with contextlib.suppress(CorruptionError, FormatError, StorageError):
        for commit in scan:
            if len(scan.extents) > extents:  # it came by a link
                extents = len(scan.extents)
                start = scan.extents[-1].first * PAGE
            last = commit.seq
            if start % PAGE == 0:
                if start // PAGE in passed:
                    last = passed[start // PAGE]
                    break
                found.append(start // PAGE)
            start = commit.position.offset
    passed.update(dict.fromkeys(found, last))
    return last
