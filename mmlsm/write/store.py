"""Store: the current version and memtables, and the one way to change them durably: `install`.

Shared by the committing threads, the writer thread and the merge thread. A change of the version is serialised by the
install lock, a change of the memtables by the order lock; readers take `state`, one reference, and no lock.

I1. The current version's manifest is durable in both superblock slots before readers see the version (R1, R8).
I2. `state` is replaced under the order lock only, so no seal is lost to an install and none the other way round.
I3. An install that fails before its first superblock write changes nothing and gives back what it reserved; one that
    fails later makes the file read-only, for which of the two generations holds is unknown until reopen (R10).
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from mmlsm import limits
from mmlsm.errors import Error
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import BITMAP_PAGE_BITS, Level, Manifest, Reference, Retirement
from mmlsm.format.superblock import LogPosition, Superblock, order_of
from mmlsm.headroom import TRIES_MOST, Headroom
from mmlsm.locks import INSTALL, ORDER, ordered_lock
from mmlsm.read.reader import ReadState
from mmlsm.read.segment import Segment
from mmlsm.read.version import Version
from mmlsm.register import Entry, entry_of
from mmlsm.space.extents import Extent, joined
from mmlsm.write.merge_policy import age_fault

if TYPE_CHECKING:
    from mmlsm.file import Channel, File
    from mmlsm.settings import Settings
    from mmlsm.space.allocator import Allocator
    from mmlsm.space.bitmap import Bitmap
    from mmlsm.space.reclaim import Reclaimer
    from mmlsm.write.log import LogWriter


SYNC_EARLY_BYTES = 1 << 20


@dataclass(slots=True)
class Edit:
    """What an install changes. `levels` gives the new levels from the present ones.

    `commit`: reserved extents that become live. `retire`: (extents, born) that no later version sees; extents that are
    in both were never part of a version. `log` and `seq`: where recovery is to begin, where memtables were flushed.
    """

    levels: Callable[[tuple[Level, ...], int], tuple[Level, ...]]
    commit: list[Extent] = field(default_factory=list)
    retire: list[tuple[list[Extent], int]] = field(default_factory=list)
    overflow: tuple[int, ...] = ()
    """First pages of overflow extents among `commit` that no version could see before."""
    place: bytes | None = None
    """The key from which the next slice is merged into the bottom, where that changes."""
    log: LogPosition | None = None
    seq: int | None = None
    clean: bool = False
    without_tables: tuple[Any, ...] = ()


class Following(NamedTuple):
    """The next generation of the superblock, with all that its writing takes, so that it fails before if at all."""

    block: Superblock
    image: bytes
    slots: list[int]
    """Into which it is still to be written, in this order."""
    order: tuple[int, int]
    """That of the generation after it."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A manifest written to fresh pages, not yet named by a superblock; `outdated` is what it takes the place of."""

    manifest: Manifest
    bits: Bitmap
    outdated: list[Extent]
    following: Following


class Store:
    """See the module's text. `superblock` and `manifest` are what is durable now."""

    def __init__(
        self,
        file: File,
        allocator: Allocator,
        reclaimer: Reclaimer,
        settings: Settings,
        superblock: Superblock,
        manifest: Manifest,
        bits: Bitmap,
        slot_order: tuple[int, int],
    ) -> None:
        # constant after construction
        self.file = file
        self.allocator = allocator
        self.reclaimer = reclaimer
        self.settings = settings
        self.slot_order = slot_order
        self.install_lock = ordered_lock("install", INSTALL, settings.debug)
        self.order_lock = ordered_lock("order", ORDER, settings.debug)
        self.released: SimpleQueue[Any] = SimpleQueue()
        """To the merge thread: the entry of a version or owner that is gone, something to call, or None to wake it."""
        self.opener: Entry[Callable[[], None]] | None = None
        """How the merge thread is told that nobody has the database any more."""
        self.segment_ids = itertools.count(manifest.next_segment_id)
        self.on_state: list[Callable[[ReadState], None]] = []
        self.on_install: list[Callable[[], None]] = []
        # guarded by install_lock
        self.superblock = superblock
        self.manifest = manifest
        self.bits = bits
        self.segments: dict[int, Segment] = {}
        self.versions: dict[int, Entry[tuple[int, list[Segment]]]] = {}
        """How the merge thread is told that a version is gone, by the entry's `id`; its own to clear.

        Not by the install's number: what a failed install made of it may still be held when it is tried again.
        """
        self.made_at: dict[int, float] = {}
        """When each version that is still held was made (`time.monotonic`), for `stats()`."""
        self.installs = 0
        self.bytes_installed = 0
        self.struck: BaseException | None = None
        """What waits to be let out (`raise_struck`)."""
        # guarded by order_lock
        self.log: LogWriter | None = None
        """Once there are commits."""
        self.state = ReadState((), self.version_of(manifest, superblock.seq), file, settings.verify)

    # -- versions

    def version_of(self, manifest: Manifest, seq: int) -> Version:
        """The manifest's version, pinned: segments that are open already are shared."""
        levels = tuple(
            tuple(tuple(self.segment_of(record) for record in run) for run in level) for level in manifest.levels
        )
        install = manifest.install
        version: Version | None = None
        self.reclaimer.pin(install)
        try:
            self.made_at[install] = time.monotonic()
            version = Version(install, seq, levels, self.file.pin)
            # Last, for from then on it is unpinned when it goes.
            entry = entry_of(version, self.released.put, (install, list(version.segments)))
            self.versions[id(entry)] = entry
        except BaseException:
            for segment in () if version is None else version.segments:
                segment.lock.release_shared()
            self.reclaimer.unpin(install)
            raise
        return version

    def segment_of(self, record: Any) -> Segment:
        """The open segment of a record."""
        segment = self.segments.get(record.id)
        if segment is None:
            segment = self.segments[record.id] = Segment(self.file, record, self.settings.verify)
        return segment

    def set_state(self, tables: tuple[Any, ...], version: Version) -> None:
        """Let readers see these memtables (newest first) and this version. REQUIRES order_lock."""
        self.state = ReadState(tables, version, self.file, self.settings.verify)
        for tell in self.on_state:
            tell(self.state)

    def end(self) -> None:
        """The database is closed: let the version go, so that only who still reads it pins the file (R13)."""
        with self.order_lock:
            self.state = self.state.ended()

    @property
    def place(self) -> bytes:
        """The key from which the next slice is merged into the bottom."""
        rotation = self.manifest.rotation
        return rotation[-1] if rotation else b""

    def next_segment_id(self) -> int:
        """A segment id that was never given. Takes no lock."""
        return next(self.segment_ids)

    # -- superblock

    def following(self, **changes: Any) -> Following:
        """The next generation, with these changes. REQUIRES install_lock until it is written."""
        block = replace(self.superblock, generation=self.superblock.generation + 1, **changes)
        return Following(block, block.encode(), list(self.slot_order), order_of(block.generation + 1))

    def write_superblock(self, channel: Channel, following: Following | None = None, **changes: Any) -> None:
        """Make the next generation, that given or one with these changes, durable in both slots (R1).

        REQUIRES install_lock. Into that slot first which was older, or damaged, at open, and from then on in turn
        (`order_of`). Ctrl-C and the like wait until all is done that hangs on it: `raise_struck` lets them out.
        """
        block, image, left, order = following or self.following(**changes)
        tries = 0
        struck: BaseException | None = None
        try:
            while True:
                try:
                    while left:
                        with Headroom(struck):
                            channel.pwrite_durably(left[0] * limits.PAGE_BYTES, image)
                        del left[0]
                    self.superblock, self.slot_order, self.struck = block, order, struck or self.struck
                    return
                except (Error, MemoryError):
                    raise
                except BaseException as error:
                    tries += 1
                    if tries > TRIES_MOST:
                        raise
                    struck = error
        except BaseException as error:  # struck twice in a row, too: which of the two generations holds is unknown
            self.file.failure = self.file.failure or self.file.cut_off
            self.file.sync_failed(OSError(getattr(error, "errno", None) or errno.EIO, str(error) or repr(error)))
            raise

    def raise_struck(self) -> None:
        """Raise what came while a superblock was written and had to wait."""
        struck, self.struck = self.struck, None
        if struck is not None:
            raise struck

    def begin_log(self, channel: Channel, position: LogPosition, last_seq: int) -> None:
        """Name a new epoch's log durably before its first record (R6), and raise the seq ceiling."""
        with self.install_lock:
            self.write_superblock(
                channel,
                clean=False,
                log=position,
                seq_ceiling=last_seq + limits.SEQ_CEILING_STEP,
                file_pages=self.allocator.total,
            )

    # -- install

    def install(self, channel: Channel, edit: Edit) -> int:
        """Make the edit durable and let readers see it; the new install number.

        REQUIRES install_lock not held. What `edit.commit` names stays reserved if this raises.
        """
        with self.install_lock:
            self.file.check_writable()
            number = self.manifest.install + 1
            own: list[Extent] = []
            try:
                draft = self._write_manifest(channel, edit, number, own)
                channel.sync()
                version = self.version_of(draft.manifest, self.superblock.seq if edit.seq is None else edit.seq)
            except BaseException:
                for extent in own:
                    self.allocator.give_back(extent)
                raise
            self._switch(channel, edit, draft, own, version)
        try:  # the install stands, so nothing may come out of here
            for tell in self.on_install:
                tell()
        except MemoryError:
            pass
        return number

    def _switch(self, channel: Channel, edit: Edit, draft: Draft, own: list[Extent], version: Version) -> None:
        """Write the superblock, and go by it. REQUIRES install_lock."""
        self.write_superblock(channel, draft.following)
        try:
            self._adopt(edit, draft, own, version)
        except BaseException as error:  # no memory, Ctrl-C: what is free is no longer known (I3)
            self.file.failure = self.file.failure or self.file.cut_off
            self.file.sync_failed(OSError(errno.EIO, f"an install was cut off: {error!r}"))
            raise

    def _adopt(self, edit: Edit, draft: Draft, own: list[Extent], version: Version) -> None:
        """What is durable becomes what is known and seen. REQUIRES install_lock."""
        number = draft.manifest.install
        for extent in [*edit.commit, *own]:
            self.allocator.commit(extent)
        for page in edit.overflow:
            self.reclaimer.note_birth(page, number)
        for extents, born in edit.retire:
            self.reclaimer.retire(extents, born, number)
        self.reclaimer.retire(draft.outdated, number, number)
        self.manifest, self.bits = draft.manifest, draft.bits
        self.installs += 1
        with self.order_lock:
            if self.log is not None and edit.log is not None and edit.log.page:
                self.log.release_before(edit.log)
            tables = tuple(t for t in self.state.tables if not any(t is gone for gone in edit.without_tables))
            self.set_state(tables, version)

    def _write_manifest(self, channel: Channel, edit: Edit, number: int, own: list[Extent]) -> Draft:
        """Write manifest and changed bitmap pages to fresh pages, noting in `own` what is reserved for them."""
        present = self.manifest
        levels = edit.levels(present.levels, number)
        assert age_fault(levels) is None, age_fault(levels)
        retired = [
            *self.reclaimer.pending(),
            *(Retirement(born, number, joined(extents)) for extents, born in edit.retire if extents),
        ]
        records = [record for level in levels for run in level for record in run]
        manifest = replace(
            present,
            install=number,
            levels=levels,
            bitmap=(),
            retired=tuple(retired),
            live_bytes=sum(record.data_bytes for record in records),
            rotation=rotation_of(levels, self.place if edit.place is None else edit.place),
            next_segment_id=max([present.next_segment_id, *(record.id + 1 for record in records)]),
            file_pages=self.allocator.total,
        )
        place, bits, changed = self._reserve_for(manifest, edit, own)
        bitmap = list(present.bitmap[: bits.page_count])
        bitmap += [(0, 0)] * (bits.page_count - len(bitmap))
        for index, extent in changed:
            data = bits.page_bytes(index)
            channel.pwrite(extent.first * limits.PAGE_BYTES, data)
            bitmap[index] = (extent.first, checksum(data))
        kept = {page for page, _ in bitmap}
        outdated = [Extent(page, 1) for page, _ in present.bitmap if page not in kept]
        old = self.superblock.manifest
        if old.pages:
            outdated.append(Extent(old.page, old.pages))
        if outdated:
            retired.append(Retirement(number, number, joined(outdated)))
        manifest = replace(manifest, bitmap=tuple(bitmap), retired=tuple(retired), file_pages=bits.pages)
        data = manifest.encode()
        size = place.count * limits.PAGE_BYTES
        assert len(data) <= size, "the manifest outgrew its estimate"
        channel.pwrite(place.first * limits.PAGE_BYTES, data.ljust(size, b"\0"))
        self.bytes_installed += size + len(changed) * limits.PAGE_BYTES
        reference = Reference(len(data), place.first, place.count, checksum(data))
        return Draft(manifest, bits, outdated, self._following(edit, reference, number))

    def _reserve_for(
        self, draft: Manifest, edit: Edit, own: list[Extent]
    ) -> tuple[Extent, Bitmap, list[tuple[int, Extent]]]:
        """Pages for a manifest, the bitmap that it is to name, and pages for those of its pages that change, by index.

        The bitmap marks its own pages, so pages are reserved until nothing more changes. Who writes a value reserves
        meanwhile too: where the file has grown so much that the manifest needs more, it gets a larger place. Each time
        that takes 512 MiB of growth at least, so it ends.
        """
        place = self.allocator.reserve(self._manifest_pages(draft, self.allocator.total), early=True)
        own.append(place)
        fresh: list[Extent] = []
        changed: set[int] = set()
        while True:
            bits = self.allocator.live_bits(extra_live=[*edit.commit, *own])
            changed.update(bits.changed_since(self.bits), range(len(self.manifest.bitmap), bits.page_count))
            if len(fresh) < len(changed):
                fresh.append(self.allocator.reserve(1, early=True))
                own.append(fresh[-1])
            elif self._manifest_pages(draft, bits.pages, spare=0) > place.count:
                outgrown, place = place, self.allocator.reserve(self._manifest_pages(draft, bits.pages), early=True)
                own.append(place)
                self.allocator.give_back(outgrown)
                own.remove(outgrown)
            else:
                return place, bits, list(zip(sorted(changed), fresh, strict=True))

    def _manifest_pages(self, draft: Manifest, total: int, spare: int = 3) -> int:
        """Pages that the manifest of a file of `total` pages will take at most, once its bitmap and what it replaces
        are entered; with room for so many more bitmap pages."""
        chunks = total // BITMAP_PAGE_BITS + 1 + spare
        return -(-(len(draft.encode()) + 24 * chunks + 8 * len(self.manifest.bitmap) + 128) // limits.PAGE_BYTES)

    def _following(self, edit: Edit, reference: Reference, number: int) -> Following:
        """The superblock of an install, which names its manifest."""
        changes: dict[str, Any] = {
            "manifest": reference,
            "install": number,
            "clean": edit.clean,
            "file_pages": self.allocator.total,
        }
        if edit.log is not None:
            changes["log"] = edit.log
        if edit.seq is not None:
            changes["seq"] = edit.seq
        last = edit.seq if edit.seq is not None else self.superblock.seq
        ceiling = max(self.superblock.seq_ceiling, last + limits.SEQ_CEILING_STEP)
        changes["seq_ceiling"] = last if edit.clean else ceiling
        return self.following(**changes)


def sync_early(channel: Channel, written: int) -> None:
    """Sync what a flush or merge wrote before its install, if it is much: not under the lock that others wait for.

    The install syncs again, but then little is left to sync.
    """
    if written > SYNC_EARLY_BYTES:
        channel.sync()


def rotation_of(levels: tuple[Level, ...], place: bytes) -> tuple[bytes, ...]:
    """A manifest's rotation keys: only the level that drains into the bottom has one."""
    return (*(b"" for _ in levels[:-2]), place) if place and len(levels) >= 3 else ()
