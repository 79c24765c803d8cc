"""The whole-file proof: every page has exactly one owner, every key its place, every sum and count is right.

`check_file` reads everything anew, whatever was verified before, and goes on after a fault, so that a report names all
of them. Used by `Database.verify()`, `mmlsm verify`, and after every test. Cost: one read of all data.

What a crash leaves as well as damage does, a torn slot or a torn end of the log, is a note and no problem: opening the
file for writing puts it right. While a file is open for writing it is a problem: nothing puts it right but a flush.

I1. header + log + manifest + bitmap + live + retired + reserved + free = the file's pages, each once (R16).
I2. Keys ascend strictly through all leaves of a run, and stand between the separators above them.
I3. Entries, tombstones, data bytes and overflow flags are what the parents, the page headers and the manifest say; no
    page was born after the last install, and no filter lacks a key.
I4. Damage is told once: what cannot be counted because of it is not told as well.
I5. It ends: no node is walked into twice, whoever else refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError, StorageError, without_advice
from mmlsm.format import leaf, page, parent
from mmlsm.format import superblock as superblocks
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Manifest, Reference, SegmentRecord
from mmlsm.format.superblock import Superblock
from mmlsm.read.pages import read_chunks, read_payload
from mmlsm.read.segment import Segment
from mmlsm.space.bitmap import Bitmap
from mmlsm.write.log_end import cut_off
from mmlsm.write.log_scan import scan_log
from mmlsm.write.recovery import Replay, Root, is_sound, log_has_ended, still_retired, used_pages

if TYPE_CHECKING:
    from mmlsm.file import File

Node = tuple[int, int, int]

LOOKS_MOST = 10
"""A log that is let go of again and again while it is read is looked at so often."""
PROBLEMS_MOST = 10_000
"""No report names more than this many."""


@dataclass(slots=True)
class Report:
    """What a proof found. Pages by owner; `problems` is empty for a sound file."""

    pages: int = 0
    header: int = limits.HEADER_PAGES
    manifest: int = 0
    bitmap: int = 0
    log: int = 0
    live: int = 0
    retired: int = 0
    reserved: int = 0
    free: int = 0
    segments: int = 0
    leaves: int = 0
    parents: int = 0
    overflow_extents: int = 0
    entries: int = 0
    tombstones: int = 0
    problems: list[str] = field(default_factory=list)
    """What is damaged, or not as it must be."""
    notes: list[str] = field(default_factory=list)
    """What may be damage, or may be what a crash has left."""

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Layout:
    """One moment of a file: what is to be proved. Extents are (first page, pages).

    `used` is the free-space bitmap: all that is live or retired, without `log` and `reserved`.
    """

    superblock: Superblock
    manifest: Manifest
    used: Bitmap
    retired: list[tuple[int, int]]
    log: list[tuple[int, int]]
    reserved: list[tuple[int, int]]
    pages: int
    problems: tuple[str, ...] = ()
    """What is wrong with the root: superblock, manifest, bitmap."""
    notes: tuple[str, ...] = ()
    in_memory: tuple[Reference, ...] = ()
    """Values that memtables refer to. Their pages are among the reserved."""


class Checker:
    """The walk. `progress(done, total)` is told entries; what it raises ends the proof."""

    def __init__(self, file: File, layout: Layout, progress: Callable[[int, int], object] | None) -> None:
        self.file = file
        self.layout = layout
        self.progress = progress
        self.report = Report(pages=layout.pages, problems=[*layout.problems], notes=[*layout.notes])
        self.owned = Bitmap(max(layout.pages, layout.used.pages))
        self.total = sum(record.entries for record in layout.manifest.segments())
        self.last_key: bytes | None = None
        self.data_bytes = 0
        self.filtered = False
        """Whether the segment that is proved has a sound filter."""
        self.file_pages = 0
        """When we last asked, which is a system call."""
        self.hidden = 0
        """Damaged nodes so far: what is below them nobody counts."""

    def run(self) -> Report:
        """Prove everything."""
        layout, report = self.layout, self.report
        report.header = self.claim([(0, limits.HEADER_PAGES)], "the header")
        reference = layout.superblock.manifest
        if reference.pages:
            report.manifest = self.claim([(reference.page, reference.pages)], "the manifest")
        report.bitmap = self.claim([(number, 1) for number, _ in layout.manifest.bitmap], "the bitmap")
        for level in layout.manifest.levels:
            for run in level:
                self.last_key = None
                for record in run:
                    report.live += self.segment(record)
        report.retired = self.claim(layout.retired, "a retirement")
        self.compare_bitmap()
        report.log = self.claim(layout.log, "the log")
        report.reserved = self.claim(layout.reserved, "a reservation")
        report.free = layout.pages - self.owned.used_pages()
        return report

    def problem(self, text: str) -> None:
        """Note a fault."""
        if len(self.report.problems) < PROBLEMS_MOST:
            self.report.problems.append(text)

    def claim(self, extents: Iterable[tuple[int, int]], owner: str) -> int:
        """Give pages an owner; those that have one already, or that do not exist, are faults."""
        count = 0
        for first, pages in extents:
            if first < 0 or pages < 1 or first + pages > self.owned.pages:
                self.problem(f"pages {first} to {first + pages - 1} of {owner} are outside the file")
                continue
            if self.owned.any_set(first, pages):
                self.problem(f"pages {first} to {first + pages - 1} of {owner} have another owner as well")
            self.owned.set(first, pages)
            count += pages
        return count

    def compare_bitmap(self) -> None:
        """What is owned so far must be what the bitmap marks; behind damage there may be more that it marks."""
        used = self.layout.used.copy()
        used.resize(self.owned.pages)
        used.set(0, limits.HEADER_PAGES)
        if self.hidden:
            both = {extent for extent in self.owned.extents() if not used.all_set(*extent)}
        else:
            both = set(used.extents()) ^ set(self.owned.extents())
        if both:
            self.problem(f"the bitmap and the owners of pages differ, at {sorted(both)[:4]}")

    # -- segments

    def segment(self, record: SegmentRecord) -> int:
        """Prove one segment; its pages."""
        pages = Segment(self.file, record, "first-read")
        owned, self.filtered = 0, False
        if record.filter is not None:
            self.claim([(record.filter.page, record.filter.pages)], f"the filter of segment {record.id}")
            self.filtered = self.value(record.filter, f"the filter of segment {record.id}")
            owned += record.filter.pages
        before = (self.report.entries, self.report.tombstones, self.data_bytes)
        hidden, extents = self.hidden, self.report.overflow_extents
        root = (record.root_page, record.root_pages, record.root_sum)
        self.report.segments += 1
        owned += self.node(pages, root, record.height, record.first_key, None)
        if self.hidden > hidden:
            return owned
        counted = (self.report.entries, self.report.tombstones, self.data_bytes)
        entries, tombstones, data_bytes = (now - then for now, then in zip(counted, before, strict=True))
        if (entries, tombstones, data_bytes) != (record.entries, record.tombstones, record.data_bytes):
            self.problem(
                f"segment {record.id} has {entries} entries, {tombstones} tombstones and {data_bytes} bytes of data, "
                f"its record says {record.entries}, {record.tombstones} and {record.data_bytes}"
            )
        self.flag(record.overflow, extents, f"segment {record.id}: its record")
        if self.last_key is not None and self.last_key != record.last_key:
            self.problem(f"segment {record.id} ends with another key than its record says")
        if owned != record.pages:
            self.problem(f"segment {record.id} owns {owned} pages, its record says {record.pages}")
        return owned

    def flag(self, says: bool, extents: int, whose: str) -> None:
        """What says whether there are overflow extents below must be right; there were `extents` before."""
        if says != (self.report.overflow_extents > extents):
            self.problem(f"{whose} is wrong about whether there are overflow extents below it")

    def node(self, pages: Segment, node: Node, height: int, low: bytes, high: bytes | None) -> int:
        """Prove a node and all below it, whose keys must be in low <= key < high; its pages and theirs."""
        number, count, _ = node
        most = pages.record.leaf_pages
        if count > most:
            self.problem(f"page {number}: a node of {count} pages, where its segment's have {most} at most")
        known = number + count <= self.owned.pages and self.owned.all_set(number, count)
        self.claim([(number, count)], f"segment {pages.segment_id}")
        if known:
            self.hidden += 1
            return count
        try:
            if number + count > self.file_pages:
                self.file_pages = self.file.pages
            if number + count > self.file_pages:
                raise CorruptionError(f"page {number}: past the end of the file")
            pages.touch_anew(node, height)
        except (CorruptionError, StorageError) as error:
            self.hidden += 1
            self.problem(f"{without_advice(error)}, in segment {pages.segment_id}")
            return count
        if pages.birth_of(number) > self.layout.manifest.install:
            self.problem(f"page {number}: born with an install that is still to come, {pages.birth_of(number)}")
        hidden, extents = self.hidden, self.report.overflow_extents
        if height:
            owned = self.parent(pages, node, height, low, high)
        else:
            owned = self.leaf(pages, node, low, high)
        if self.hidden == hidden:
            self.flag(pages.overflow_of(number), extents, f"page {number}: the header")
        return count + owned

    def parent(self, pages: Segment, node: Node, height: int, low: bytes, high: bytes | None) -> int:
        """Prove a parent's separators and children."""
        self.report.parents += 1
        children = parent.children_of(pages.window, node[0])
        bounds: list[bytes | None] = [low]
        for inline, reference, whole, *_ in children[1:]:
            bounds.append(self.whole_key(inline, reference, pages)[:whole])
        bounds.append(high)
        owned = 0
        for i, (_, _, _, first, count, total, entries, overflow) in enumerate(children):
            below, above = bounds[i], bounds[i + 1]
            assert below is not None
            if above is not None and not below < above:
                self.problem(f"page {node[0]}: separators {i} and {i + 1} are out of order")
            before, hidden, extents = self.report.entries, self.hidden, self.report.overflow_extents
            owned += self.node(pages, (first, count, total), height - 1, below, above)
            if self.hidden > hidden:
                continue
            if self.report.entries - before != entries:
                self.problem(f"page {node[0]}: child {i} has {self.report.entries - before} entries, not {entries}")
            self.flag(overflow, extents, f"page {node[0]}: the flag of child {i}")
        return owned

    def leaf(self, pages: Segment, node: Node, low: bytes, high: bytes | None) -> int:
        """Prove a leaf's keys and the extents that it refers to."""
        entries = leaf.entries_of(pages.window, node[0])
        report = self.report
        whose = f"page {node[0]}, segment {pages.segment_id}"
        report.leaves += 1
        report.entries += len(entries)
        owned, tombstones = 0, report.tombstones
        for inline, kind, reference, value in entries:
            key, key_bytes, filtered = inline, len(inline), self.filtered
            if kind & page.KEY_OVERFLOW:
                whole = Reference.unpack(reference)
                sound = self.extent(whole, f"a key of {whose}")
                owned += whole.pages
                key, key_bytes, filtered = self.whole_key(inline, reference, pages), whole.length, filtered and sound
            if filtered and pages.filter_lacks(key):
                self.problem(f"page {node[0]}: the filter of segment {pages.segment_id} lacks key {key[:40]!r}")
            self.data_bytes += key_bytes + len(value)
            if self.last_key is not None and key <= self.last_key:
                self.problem(f"page {node[0]}: key {key[:40]!r} is not above the one before")
            if key < low or (high is not None and key >= high):
                self.problem(f"page {node[0]}: key {key[:40]!r} is outside its separators")
            self.last_key = key
            if kind & 15 == page.TOMBSTONE:
                report.tombstones += 1
            elif kind & 15 == page.OVERFLOW:
                extent = Reference.unpack(value)
                self.extent(extent, f"a value of {whose}")
                owned += extent.pages
        if report.tombstones - tombstones != pages.tombstones_of(node[0]):
            self.problem(f"page {node[0]}: {report.tombstones - tombstones} tombstones, not as many as the header says")
        if self.progress is not None:
            self.progress(report.entries, max(self.total, report.entries))
        return owned

    def whole_key(self, inline: bytes, reference: bytes, pages: Segment) -> bytes:
        """A key or separator with what an extent holds of it; the inline part where that is damaged (noted there)."""
        if not reference:
            return inline
        try:
            key = read_payload(self.file, Reference.unpack(reference), segment_id=pages.segment_id)
        except (CorruptionError, StorageError):
            return inline
        if not key.startswith(inline):
            self.problem(f"page {Reference.unpack(reference).page}: the key there is not the one that refers to it")
        return key

    def extent(self, reference: Reference, whose: str) -> bool:
        """Prove an overflow extent, and that it has no other owner; whether what it holds is sound."""
        self.report.overflow_extents += 1
        self.claim([(reference.page, reference.pages)], whose)
        return self.value(reference, whose)

    def value(self, reference: Reference, whose: str) -> bool:
        """Prove what an overflow extent holds; whether it is sound."""
        try:
            for _ in read_chunks(self.file, reference, 0, reference.length):
                pass
        except (CorruptionError, StorageError) as error:
            self.problem(f"{without_advice(error)}, {whose}")
            return False
        return True


def check_file(file: File, layout: Layout, progress: Callable[[int, int], object] | None = None) -> Report:
    """Prove one moment of a file; see the module's text."""
    checker = Checker(file, layout, progress)
    report = checker.run()
    for reference in layout.in_memory:
        checker.value(reference, "a value that no segment has yet")
    return report


def prove_log(file: File, report: Report, look: Callable[[], tuple[Superblock, int]]) -> None:
    """Scan the log of a file that is open for writing; `look` gives the superblock that has its beginning, and the last
    commit that is written. A flush may let go of it meanwhile: then it is begun anew."""
    for _ in range(LOOKS_MOST):
        block, written = look()
        if not block.log.page or written <= block.seq or not (problem := _log_problem(file, block, written)):
            return
        if look()[0].log == block.log:
            report.problems.append(problem)
            return
    report.notes.append("the log went on faster than it could be read: it was not proved")


def _log_problem(file: File, block: Superblock, written: int) -> str | None:
    scan = scan_log(file, block.log, None, block.seq)
    try:
        for commit in scan:
            if commit.seq >= written:
                return None
    except (CorruptionError, FormatError, StorageError) as error:
        scan.ended = without_advice(error)
    if scan.seq >= written:
        return None
    page = scan.position.offset // limits.PAGE_BYTES
    return f"page {page}: the log ends behind commit {scan.seq} ({scan.ended}), and commit {written} was written"


def layout_at_rest(file: File, root: Root, replay: Replay) -> Layout:
    """The layout of a file that is open read-only, with what is wrong with its root and its log."""
    pages = file.pages
    retired = still_retired(root, replay, pages)
    notes = slot_notes(file, root.superblock)
    if not log_has_ended(file, root):
        notes += log_notes(file, root.superblock, replay)
    return Layout(
        root.superblock,
        root.manifest,
        used_pages(root, retired),
        [extent for retirement in retired for extent in retirement.extents],
        [*replay.log_extents],
        [*replay.value_extents],
        pages,
        tuple(root_problems(file, root.superblock, root.manifest)),
        tuple(notes),
    )


def root_problems(file: File, superblock: Superblock, manifest: Manifest, *, slots: bool = False) -> list[str]:
    """What is wrong with the manifest and the bitmap, read anew. REQUIRES that no install comes in between.

    `slots`: the superblock too, of which a file that is open for writing has two sound copies.
    """
    reference = superblock.manifest
    named = [(reference.page, reference.length, reference.sum, f"the manifest of install {superblock.install}")]
    named += [(page, limits.PAGE_BYTES, total, "the free-space bitmap") for page, total in manifest.bitmap]
    problems = slot_notes(file, superblock) if slots else []
    for number, length, total, whose in named:
        try:
            if length and checksum(file.pread(number * limits.PAGE_BYTES, length)) != total:
                problems.append(f"page {number}: {whose} is damaged")
        except StorageError as error:
            problems.append(f"page {number}: {whose} cannot be read: {error}")
    return problems


def slot_notes(file: File, superblock: Superblock) -> list[str]:
    """What is wrong with superblock slots, of which at least one was sound when the file was opened."""
    notes = []
    for slot in range(superblocks.SLOTS):
        try:
            block = superblocks.decode(file.pread(slot * limits.PAGE_BYTES, limits.PAGE_BYTES), slot)
        except (CorruptionError, FormatError, StorageError) as error:
            fault = without_advice(error)
            notes.append(f"page {slot}: {fault}: the other slot has all of it, opening for writing writes both")
        else:
            if block.generation < superblock.generation:
                notes.append(f"page {slot}: superblock slot {slot} holds an older generation than the other")
    return notes


def log_notes(file: File, superblock: Superblock, replay: Replay) -> list[str]:
    """Whether the log ends before its end."""
    scan = scan_log(file, superblock.log, lambda reference: is_sound(file, reference), superblock.seq)
    try:
        for _ in scan:
            pass
        rest = cut_off(file, scan)
        if scan.seq < replay.seq:
            rest = f"the log ends with commit {scan.seq}, when it was opened it had commit {replay.seq}"
    except (CorruptionError, FormatError, StorageError) as error:
        rest = f"the log ends with commit {scan.seq}: {error}"
    return [f"{rest}: damage, or what a crash has cut off before it was durable"] if rest else []
