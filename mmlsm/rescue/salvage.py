"""`salvage`: bring out of a damaged file what is undamaged, and list what is not.

One thread. The damaged file is opened read-only and never written to; what comes out is a new database.

I1. Of each key the newest entry that is left speaks, and a tombstone hides it: as for any reader (R9).
I2. Every loss is listed: with the range of keys that it may touch, and, where something older lies below it, as
    uncertain too, for the older value or a deleted key may have come back.
I3. The new file is there when `salvage` returns, and is not there when it raises. It is made before all else, and by
    who makes it alone, so that nothing that others put there meanwhile is ever written to or removed.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmlsm import limits
from mmlsm.channel import refused
from mmlsm.database import Database
from mmlsm.errors import CorruptionError, Error, FormatError, StorageError, without_advice
from mmlsm.file import SYSTEM, open_file, place_of
from mmlsm.format.manifest import Manifest, Reference, SegmentRecord
from mmlsm.read.pages import read_chunks, read_payload
from mmlsm.rescue.orphans import Gap, Search
from mmlsm.rescue.report import Damage, SalvageReport, after
from mmlsm.rescue.roots import Basis, find_basis
from mmlsm.rescue.trees import Entry, Met, Place, Trees
from mmlsm.settings import Settings

if TYPE_CHECKING:
    from mmlsm.file import File, System
    from mmlsm.write.batch import Batch

BATCH_ENTRIES: Final = 1000
BATCH_BYTES: Final = 1 << 20

Progress = Callable[[int, int], object]


def salvage(
    path: str | Path,
    out: str | Path,
    *,
    unproved: bool = True,
    progress: Progress | None = None,
    system: System = SYSTEM,
) -> SalvageReport:
    """Bring all that is undamaged in the file at `path` into a new database at `out`, and say what is not.

    `unproved`: take leaves too that look sound but whose proof is lost with their parent; their keys are listed as
    uncertain. `progress(done, total)` is told entries; what it raises ends the work, and `out` is gone.
    FormatError: no database, or of a format that this program does not know. StorageError: `path` is not there, `out`
    is there already, or cannot be written. Cost: in proportion to the file, each page is read a few times at most;
    constant memory for values of any size.
    """
    out = place_of(out)
    claim(out)
    try:
        with contextlib.closing(open_file(path, readonly=True, create=False, system=system)) as file:
            if not file.pages:
                raise FormatError(f"not an mmlsm database, for {path} has only {file.bytes} bytes")
            report = SalvageReport()
            salvager = Salvager(file, find_basis(file, report), report, unproved=unproved)
            bring_out(salvager, out, progress, system)
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return report


def claim(out: Path) -> None:
    """Make an empty file that is ours; StorageError where there is anything already."""
    try:
        out.touch(exist_ok=False)
    except FileExistsError as error:
        raise StorageError(errno.EEXIST, f"there is something at {out} already: salvage makes a new file") from error
    except OSError as error:
        raise refused(error, f"making {out}") from error


def bring_out(salvager: Salvager, out: Path, progress: Progress | None, system: System) -> None:
    """Make the empty file at `out` a database of what is left."""
    target = Database(out, Settings(durability="off"), system)
    try:
        salvager.write_to(target, progress)
        target.close()
    except BaseException:
        with contextlib.suppress(Error):
            target.close()
        raise


class LostValue(Exception):
    """A value of the damaged file cannot be read whole; the argument says why."""


class Payload:
    """A large value as a stream: each chunk is proved before it is given."""

    def __init__(self, file: File, reference: Reference, segment: int | None) -> None:
        self._chunks = read_chunks(file, reference, 0, reference.length, segment_id=segment)

    def read(self, size: int = -1) -> bytes:
        """The next chunk, of at most 64 KiB; LostValue where it is damaged."""
        try:
            chunk: bytes = next(self._chunks, b"")
        except (CorruptionError, StorageError) as error:
            raise LostValue(without_advice(error)) from error
        assert size < 0 or len(chunk) <= size, "a reader asks for whole chunks"
        return chunk


class Salvager:
    """One salvage: sources, newest first, merged into a database."""

    def __init__(self, file: File, basis: Basis, report: SalvageReport, *, unproved: bool) -> None:
        self.file = file
        self.basis = basis
        self.report = report
        self.trees = Trees(file)
        self.total = len(basis.table) + sum(record.entries for record in basis.manifest.segments())
        self._gaps: dict[int, list[Gap]] = {}
        self._runs = [run for level in basis.manifest.levels for run in level]
        self._met = Met(shared=basis.relics)
        self._prove_filters(basis.manifest)
        search = Search(
            self.trees, basis.manifest, basis.place, basis.bits, unproved=unproved, shared=basis.relics
        )  # fmt: skip
        for gap in search.run():
            self._gaps.setdefault(gap.place.record.id, []).append(gap)
            self._tell_gap(gap)

    def _prove_filters(self, manifest: Manifest) -> None:
        """Nothing is lost with a filter, but it is told."""
        for record in manifest.segments():
            if record.filter is None:
                continue
            try:
                for _ in read_chunks(self.file, record.filter, 0, record.filter.length, segment_id=record.id):
                    pass
            except (CorruptionError, StorageError) as error:
                self.report.note(f"the filter of segment {record.id}: {without_advice(error)}")

    # -- what is lost

    def _has_older(self, record: SegmentRecord, low: bytes, high: bytes | None) -> bool:
        """Whether a run that is older than the segment's has keys in a range."""
        below = False
        for run in self._runs:
            if below and any(one.last_key >= low and (high is None or one.first_key < high) for one in run):
                return True
            below = below or record in run
        return False

    def _tell_gap(self, gap: Gap) -> None:
        """List what a damaged parent has taken with it."""
        place = gap.place
        if gap.proved and not gap.certain:
            self.report.uncertain.append(place.damage(f"{place.fault}; its children are known by their sums alone"))
        elif not gap.lost and not gap.unproved:
            self.report.note(f"{place.fault} (segment {place.record.id}; all children were found by their sums)")
            return
        guessed = sum(one.entries for one in gap.unproved)
        reason = f"{place.fault}; {guessed} entries below it came out unproved" if guessed else place.fault
        for low, high in gap.missing:
            damage = Damage(reason, low, high, place.node[0], place.record.id, max(gap.lost, 0) or guessed)
            if gap.lost:
                self.report.lose(damage, older=bool(gap.unproved) or self._has_older(place.record, low, high))
            else:
                self.report.uncertain.append(damage)

    def _lose(self, damage: Damage, record: SegmentRecord) -> None:
        self.report.lose(damage, older=self._has_older(record, damage.low, damage.high))

    def _tell_repeated(self) -> None:
        """A node has one place. Which of several is not its own nobody knows, nor what should be there instead."""
        for number, place in sorted(self.trees.repeated.items()):
            damage = Damage(f"page {number}: two places have this node", b"", None, number, place.record.id)
            self.report.lose(damage, older=True)

    # -- what is left

    def sources(self) -> Iterator[Iterator[Entry]]:
        """What is left, each source in key order, newest first."""
        yield iter([Entry(key, value, None) for key, value in sorted(self.basis.table.items())])
        for run in self._runs:
            yield self.ascending(entry for record in run for entry in self.entries_of(record))
            for record in run:
                for gap in self._gaps.get(record.id, []):
                    yield self.ascending(self.entries_at(gap.unproved, record))

    def entries_of(self, record: SegmentRecord) -> Iterator[Entry]:
        """What is left of a segment, with what was found of damaged parents' children."""
        return self.entries_at([self.trees.root_of(record)], record)

    def entries_at(self, places: Iterable[Place], record: SegmentRecord) -> Iterator[Entry]:
        """The entries at and below these places. Damaged leaves are listed, damaged parents have been."""
        for place in self.trees.walk(places, self._met):
            if place.height:
                continue
            if place.fault:
                self._lose(place.damage(), record)
            else:
                yield from self.trees.entries_of(place, lambda damage: self._lose(damage, record))

    def ascending(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries; one that is out of order, as no writer makes it, is listed as lost."""
        before: bytes | None = None
        for entry in entries:
            if before is not None and entry.key <= before:
                damage = Damage("a key is out of order", entry.key, after(entry.key), None, entry.segment, 1)
                self.report.lose(damage, older=True)
                continue
            before = entry.key
            yield entry

    def newest(self) -> Iterator[Entry | None]:
        """The entry that speaks for each key (I1), and None for each tombstone and for each entry that does not."""
        ranked = [zip_rank(source, rank) for rank, source in enumerate(self.sources())]
        before: bytes | None = None
        for key, _, entry in heapq.merge(*ranked):
            yield entry if key != before and entry.value is not None else None
            before = key

    # -- into the new file

    def write_to(self, target: Database, progress: Progress | None) -> None:
        """Put everything that is left into `target`."""
        entries = enumerate(self.newest(), 1)
        more = True
        while more:
            with target.batch() as batch:
                more = self._fill(batch, entries, progress)
        self._tell_repeated()

    def _fill(self, batch: Batch, entries: Iterator[tuple[int, Entry | None]], progress: Progress | None) -> bool:
        """Fill a batch; whether there may be more. `progress` is told here, for a generator changes what it raises."""
        size = 0
        for done, entry in entries:
            if progress is not None:
                progress(done, max(self.total, done))
            if entry is None:
                continue
            try:
                size += self._put(batch, entry)
            except LostValue as lost:
                # The key is known, so nothing older comes back in its place.
                page = entry.value.page if isinstance(entry.value, Reference) else None
                self.report.lost.append(Damage(str(lost), entry.key, after(entry.key), page, entry.segment, 1))
            if len(batch) >= BATCH_ENTRIES or size >= BATCH_BYTES:
                return True
        return False

    def _put(self, batch: Batch, entry: Entry) -> int:
        """Put one entry; its bytes that are in memory now."""
        value = entry.value
        assert value is not None
        if isinstance(value, Reference):
            length = value.length
            if length > limits.CHUNK_BYTES:
                batch.put(entry.key, Payload(self.file, value, entry.segment))
                value = b""
            else:
                value = read_whole(self.file, value, entry.segment)
                batch.put(entry.key, value)
        else:
            length = len(value)
            batch.put(entry.key, value)
        self.report.entries += 1
        self.report.bytes += len(entry.key) + length
        return len(entry.key) + len(value)


def read_whole(file: File, reference: Reference, segment: int | None) -> bytes:
    """A value of one chunk; LostValue where it is damaged."""
    try:
        return read_payload(file, reference, segment_id=segment)
    except (CorruptionError, StorageError) as error:
        raise LostValue(without_advice(error)) from error


def zip_rank(source: Iterator[Entry], rank: int) -> Iterator[tuple[bytes, int, Entry]]:
    """Entries as the merge compares them: by key, then the newest source first."""
    for entry in source:
        yield entry.key, rank, entry
