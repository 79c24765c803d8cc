# cython: boundscheck=False, wraparound=False, binding=False
"""Log records as bytes: a 64-byte header and a payload (docs/format.md, "Log"). No I/O; any thread.

    header   u64 epoch | u64 seq | u64 predecessor's sum | u64 payload bytes | u8 kind | u8 codec | u16 0
             u32 namespace | u64 payload sum | u64 last durable commit | u64 sum of the 56 bytes before, its own
    commit   u32 entries, then for each: u8 kind | u16 key bytes | u32 value bytes | key | value
    link     u32 first page | u32 pages of the extent where the log goes on

I1. Decoding is total: any bytes give a result, a CorruptionError or, where sums are right, a FormatError that names
    what this version does not know (R5). Its cost stays within the length of what it is given.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import cython

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference

if TYPE_CHECKING:
    from collections.abc import Iterable

    Value = bytes | Reference | None

HEADER = struct.Struct("<QQQQBBHIQQQ")
SUMMED = struct.Struct("<QQQQBBHIQQ")
LINK = struct.Struct("<II")
ENTRY = struct.Struct("<BHI")

HEADER_BYTES = 64
SUMMED_BYTES = 56
LINK_BYTES = HEADER_BYTES + 8
"""A whole link record: what each log extent keeps free for its end."""

COMMIT_RECORD = 1
LINK_RECORD = 2
CODEC_RAW = 0

VALUE = 0
TOMBSTONE = 1
OVERFLOW = 2

ENTRY_BYTES = 7
"""What an entry takes in a commit beside key and value."""

pack_summed = SUMMED.pack
pack_entry = ENTRY.pack


class Header(NamedTuple):
    """A record's header. `sum` is the record's own, the `predecessor` of the next.

    `durable`: a commit of this epoch that was durable, with all before it, when the record was made; 0: none.
    """

    epoch: int
    seq: int
    predecessor: int
    length: int
    kind: int
    codec: int
    reserved_16: int
    namespace: int
    payload_sum: int
    durable: int
    sum: int


def encode_commit(items: Iterable[tuple[bytes, Value]]) -> bytes:
    """The payload of a commit of these pairs, in their order."""
    parts: list = [b""]
    count: cython.Py_ssize_t = 0
    key: bytes
    for key, value in items:
        count += 1
        if isinstance(value, bytes):
            parts += (pack_entry(VALUE, len(key), len(value)), key, value)
        elif value is None:
            parts += (pack_entry(TOMBSTONE, len(key), 0), key)
        else:
            parts += (pack_entry(OVERFLOW, len(key), limits.REFERENCE_BYTES), key, value.pack())
    parts[0] = count.to_bytes(4, "little")
    return b"".join(parts)


def encode_header(
    epoch: int, seq: int, predecessor: int, length: int, kind: int, payload_sum: int, durable: int
) -> tuple[bytes, int]:
    """The 64 bytes before a payload of `length` bytes, and the record's sum."""
    summed: bytes = pack_summed(epoch, seq, predecessor, length, kind, CODEC_RAW, 0, 0, payload_sum, durable)
    own = checksum(summed)
    return summed + own.to_bytes(8, "little"), own


def decode_header(data: Any, offset: cython.Py_ssize_t) -> Header | None:
    """The header at `offset`, or None when there are no 64 bytes there or their sum is wrong."""
    if offset < 0 or len(data) - offset < HEADER_BYTES:
        return None
    header = Header._make(HEADER.unpack_from(data, offset))
    if checksum(data[offset : offset + SUMMED_BYTES]) != header.sum:
        return None
    return header


def refuse_unknown(header: Header) -> None:
    """FormatError that names what this version does not know in a header whose sum is right (R5)."""
    for name, value, known in (
        ("record kind", header.kind, (COMMIT_RECORD, LINK_RECORD)),
        ("record codec", header.codec, (CODEC_RAW,)),
        ("namespace", header.namespace, (0,)),
        ("record flags", header.reserved_16, (0,)),
    ):
        if value not in known:
            raise FormatError(
                f"the log has {name} {value}, which this version of mmlsm does not know: open it with a newer one"
            )


def decode_commit(payload: bytes) -> list[tuple[bytes, Value]]:
    """The pairs of a commit. CorruptionError on any damage, FormatError for an unknown kind of entry."""
    end: cython.Py_ssize_t = len(payload)
    at: cython.Py_ssize_t = 4
    key_bytes: cython.Py_ssize_t
    value_bytes: cython.Py_ssize_t
    count: cython.Py_ssize_t
    i: cython.Py_ssize_t
    kind: cython.int
    items: list = []
    if end < 4:
        raise CorruptionError("a commit in the log is damaged: it has no count of entries")
    count = int.from_bytes(payload[:4], "little")
    for i in range(count):
        if end - at < ENTRY_BYTES:
            raise CorruptionError(f"a commit in the log is damaged: it ends in entry {i} of {count}")
        kind, key_bytes, value_bytes = ENTRY.unpack_from(payload, at)
        at += ENTRY_BYTES
        if key_bytes + value_bytes > end - at:
            raise CorruptionError(f"a commit in the log is damaged: entry {i} of {count} is longer than the commit")
        key = payload[at : at + key_bytes]
        at += key_bytes
        if kind == VALUE:
            items.append((key, payload[at : at + value_bytes]))
        elif kind == TOMBSTONE:
            if value_bytes:
                raise CorruptionError(f"a commit in the log is damaged: entry {i} is a tombstone with a value")
            items.append((key, None))
        elif kind == OVERFLOW:
            items.append((key, decode_reference(payload, at, value_bytes)))
        else:
            raise FormatError(
                f"the log has entry kind {kind}, which this version of mmlsm does not know: open it with a newer one"
            )
        at += value_bytes
    if at != end:
        raise CorruptionError(f"a commit in the log is damaged: {end - at} bytes follow its last entry")
    return items


def decode_reference(payload: bytes, at: int, value_bytes: int) -> Reference:
    """The reference in `value_bytes` bytes at `at`. CorruptionError when it cannot be one."""
    if value_bytes == limits.REFERENCE_BYTES:
        reference: Reference = Reference.unpack(payload, at)
        if reference.plausible():
            return reference
    raise CorruptionError("a commit in the log is damaged: an overflow reference cannot be one")


def encode_link(first: int, pages: int) -> bytes:
    """The payload of a link."""
    return LINK.pack(first, pages)


def decode_link(payload: bytes) -> tuple[int, int] | None:
    """First page and pages of the next extent; None when the payload cannot be a link's."""
    if len(payload) != LINK.size:
        return None
    first, pages = LINK.unpack(payload)
    if first < limits.HEADER_PAGES or not 0 < pages <= limits.FILE_PAGES_MAX - first:
        return None
    return first, pages
