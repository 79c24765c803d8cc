"""The superblock: the small root that names the manifest and the log (docs/format.md, "Superblock").

Pages 0 and 1 hold it twice (R1). All 512 bytes of content are one sector; the last 8 are the sum of those before.
Immutable values; any thread; no I/O.

I1. `decode` is total: any bytes give a Superblock, a FormatError or a CorruptionError.
I2. What `encode` accepts `decode` gives back equal: both hold the value to `Superblock.fault`.
I3. A format that this program does not know is refused by name, before a sum is looked at where only the version is
    unknown; nothing is guessed from the other slot then.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference

MAGIC: Final = b"mmlsm\x00\x01\n"
FORMAT_VERSION: Final = 1
SUM_BYTES: Final = 8
SLOTS: Final = 2

FIELDS: Final = struct.Struct("<8sII3Q16s5QIBBHQIIIIIIQQQQQ")
SUM_AT: Final = 504
CONTENT_BYTES: Final = 512
_PADDING: Final = bytes(limits.PAGE_BYTES - CONTENT_BYTES)
FLAG_CLEAN: Final = 1

KNOWN_INCOMPATIBLE: Final = 0
KNOWN_READONLY_COMPATIBLE: Final = 0
INCOMPATIBLE_NAMES: Final = {
    0: "trailer copy of a streamed backup",
    1: "authenticated references",
    2: "coded pages",
    3: "namespaces",
    4: "range tombstones",
    5: "merge operands",
    6: "expiry",
}
"""What the bits are kept for; this version knows none of them."""

assert FIELDS.size == 176 <= SUM_AT


class LogPosition(NamedTuple):
    """Where the next log record is expected: in the extent (page, pages) at byte `offset` of the file.

    `epoch` and `predecessor` (the sum of the record before) are what that record must carry (R6). `page` 0: no log.
    """

    page: int
    pages: int
    offset: int
    epoch: int
    predecessor: int


NO_LOG: Final = LogPosition(0, 0, 0, 0, 0)
NO_MANIFEST: Final = Reference(0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """One generation of the root."""

    uuid: bytes
    generation: int
    incarnation: int = 0
    application_id: int = 0
    install: int = 0
    seq_ceiling: int = 0
    """No commit of this life of the file has a seq above it."""
    seq: int = 0
    """The last commit that the manifest's segments cover."""
    clean: bool = False
    manifest: Reference = NO_MANIFEST
    log: LogPosition = NO_LOG
    file_pages: int = limits.HEADER_PAGES
    features_compatible: int = 0
    features_readonly_compatible: int = 0
    features_incompatible: int = 0
    format_version: int = FORMAT_VERSION
    page_bytes: int = limits.PAGE_BYTES
    sum_bytes: int = SUM_BYTES

    def fault(self) -> str | None:
        """What cannot be, or None."""
        log = self.log
        if self.manifest.pages:
            if not self.manifest.plausible():
                return "the manifest's reference is out of range"
        elif self.manifest != NO_MANIFEST:
            return "the manifest's reference has no pages"
        if log.page:
            if log.page < limits.HEADER_PAGES or not 0 < log.pages <= limits.FILE_PAGES_MAX - log.page:
                return "the log's extent is out of range"
            if not 0 <= log.offset - log.page * limits.PAGE_BYTES <= log.pages * limits.PAGE_BYTES:
                return "the log's offset is outside its extent"
        elif log.pages or log.offset:
            return "the log's extent has no first page"
        if not limits.HEADER_PAGES <= self.file_pages <= limits.FILE_PAGES_MAX:
            return "the file's size is out of range"
        if max(self.generation, self.install, self.seq_ceiling, self.incarnation) > limits.NUMBER_MAX:
            return "a number is out of range"
        if self.seq > self.seq_ceiling:
            return "a commit is above the seq ceiling"
        return None

    def encode(self) -> bytes:
        """The 4096 bytes of a slot."""
        assert len(self.uuid) == 16, "a UUID has 16 bytes"
        assert self.fault() is None, f"superblock: {self.fault()} (I2)"
        manifest, log = self.manifest, self.log
        content = FIELDS.pack(
            MAGIC,
            self.format_version,
            self.page_bytes,
            self.features_compatible,
            self.features_readonly_compatible,
            self.features_incompatible,
            self.uuid,
            self.incarnation,
            self.generation,
            self.install,
            self.seq_ceiling,
            self.seq,
            self.application_id,
            self.sum_bytes,
            FLAG_CLEAN if self.clean else 0,
            0,
            self.file_pages,
            manifest.page,
            manifest.pages,
            log.page,
            log.pages,
            0,
            0,
            manifest.length,
            manifest.sum,
            log.offset,
            log.epoch,
            log.predecessor,
        ).ljust(SUM_AT, b"\0")
        return (content + checksum(content).to_bytes(8, "little")).ljust(limits.PAGE_BYTES, b"\0")

    def require_writable(self) -> None:
        """FormatError when the file uses what this program can read around, but not write."""
        unknown = self.features_readonly_compatible & ~KNOWN_READONLY_COMPATIBLE
        if unknown:
            raise FormatError(
                f"the file uses read-only compatible features {bit_names(unknown, {})} that this mmlsm does not know: "
                "open it with readonly=True, or with a newer mmlsm"
            )


def bit_names(bits: int, names: dict[int, str]) -> str:
    """The set bits by number, and by name where they have one."""
    return ", ".join(f"{i} ({names[i]})" if i in names else str(i) for i in range(64) if bits >> i & 1)


def is_sealed(data: bytes) -> bool:
    """Whether the sum of a slot is right and what follows its content is zero."""
    return (
        len(data) == limits.PAGE_BYTES
        and checksum(data[:SUM_AT]) == int.from_bytes(data[SUM_AT:CONTENT_BYTES], "little")
        and data[CONTENT_BYTES:] == _PADDING
    )


def decode(data: bytes, slot: int) -> Superblock:
    """The superblock in the 4096 bytes of slot 0 or 1.

    FormatError: no magic, or a version or an incompatible feature that this program does not know. CorruptionError: all
    other damage.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"page {slot} does not begin as an mmlsm database does")
    version = int.from_bytes(data[8:12], "little")
    if len(data) >= 12 and version != FORMAT_VERSION:
        raise FormatError(
            f"the file has format version {version}, this mmlsm knows version {FORMAT_VERSION}: nothing was changed; "
            "use the mmlsm that wrote it"
        )
    if not is_sealed(data):
        raise CorruptionError(f"superblock slot {slot}: its sum is wrong", page=slot)
    block = _from_fields(FIELDS.unpack_from(data))
    unknown = block.features_incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        raise FormatError(
            f"the file uses features that this mmlsm does not know: {bit_names(unknown, INCOMPATIBLE_NAMES)}; "
            "nothing was changed; use a newer mmlsm"
        )
    if block.page_bytes != limits.PAGE_BYTES or block.sum_bytes != SUM_BYTES:
        raise FormatError(
            f"the file has pages of {block.page_bytes} bytes and sums of {block.sum_bytes}, this mmlsm knows "
            f"{limits.PAGE_BYTES} and {SUM_BYTES}: nothing was changed"
        )
    fault = block.fault()
    if fault is not None:
        raise CorruptionError(f"superblock slot {slot}: {fault}", page=slot)
    return block


def _from_fields(fields: tuple[Any, ...]) -> Superblock:
    _, version, page_bytes, compatible, readonly, incompatible, uuid, incarnation, generation, *rest = fields
    install, seq_ceiling, seq, application_id, sum_bytes, flags, _, file_pages, *rest = rest
    page, pages, log_page, log_pages, _, _, length, total, log_offset, log_epoch, log_predecessor = rest
    return Superblock(
        uuid=uuid,
        generation=generation,
        incarnation=incarnation,
        application_id=application_id,
        install=install,
        seq_ceiling=seq_ceiling,
        seq=seq,
        clean=bool(flags & FLAG_CLEAN),
        manifest=Reference(length, page, pages, total),
        log=LogPosition(log_page, log_pages, log_offset, log_epoch, log_predecessor),
        file_pages=file_pages,
        features_compatible=compatible,
        features_readonly_compatible=readonly,
        features_incompatible=incompatible,
        format_version=version,
        page_bytes=page_bytes,
        sum_bytes=sum_bytes,
    )


def newest(slot_a: bytes, slot_b: bytes) -> tuple[Superblock, bool]:
    """The valid superblock of the largest generation, and whether both slots hold it.

    FormatError when neither slot has the magic, or when one is sound but of a format that this program does not know;
    CorruptionError when no slot is valid otherwise.
    """
    blocks: list[Superblock] = []
    faults: list[CorruptionError | FormatError] = []
    for slot, data in enumerate((slot_a, slot_b)):
        try:
            blocks.append(decode(data, slot))
        except FormatError as error:
            if data[: len(MAGIC)] == MAGIC and is_sealed(data):
                raise
            faults.append(error)
        except CorruptionError as error:
            faults.append(error)
    if len(blocks) == 2:
        if blocks[0].generation == blocks[1].generation and blocks[0] != blocks[1]:
            raise CorruptionError(f"the superblock slots differ in generation {blocks[0].generation}", page=0)
        return max(blocks, key=lambda block: block.generation), blocks[0] == blocks[1]
    if blocks:
        return blocks[0], False
    if slot_a[: len(MAGIC)] != MAGIC != slot_b[: len(MAGIC)]:
        raise FormatError("the file is not an mmlsm database: nothing was changed")
    for fault, data in zip(faults, (slot_a, slot_b), strict=True):
        if isinstance(fault, FormatError) and data[: len(MAGIC)] == MAGIC:
            raise fault
    raise CorruptionError("both superblock slots are damaged; restore a backup", page=0)


def order_of(generation: int) -> tuple[int, int]:
    """The slots in the order in which a generation goes into them: that which the one before wrote last comes first.

    For that write's sync may have failed, and left in the page cache alone what reads like the other slot.
    """
    return (generation % 2, 1 - generation % 2)


def write_order(slot_a: bytes, slot_b: bytes) -> tuple[int, int]:
    """The slots in the order in which the next generation goes into them: the older, or the damaged one, first.

    So a write that is torn never hits the only copy of the newest generation.
    """
    ages: list[int] = []
    for slot, data in enumerate((slot_a, slot_b)):
        try:
            ages.append(decode(data, slot).generation)
        except (FormatError, CorruptionError):
            ages.append(-1)
    if ages[0] == ages[1]:
        return order_of(ages[0] + 1)
    return (0, 1) if ages[0] < ages[1] else (1, 0)
