"""The manifest's bytes, and that no bytes break its decoding."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Manifest, Reference, Retirement, SegmentRecord, decode

SMALL = SegmentRecord(
    id=7,
    installed=3,
    root_page=20,
    root_pages=2,
    root_sum=0x0102030405060708,
    height=1,
    entries=300,
    tombstones=5,
    data_bytes=9000,
    pages=9,
    leaf_pages=2,
    first_key=b"a",
    last_key=b"mz",
    seq_low=10,
    seq_high=20,
    filter=Reference(4096, 30, 1, 0x55),
    overflow=True,
)

MANIFEST = Manifest(
    install=5,
    uuid=bytes(range(16)),
    levels=(((SMALL,),), ()),
    bitmap=((40, 0x66),),
    retired=(Retirement(2, 4, ((50, 3), (60, 1))),),
    next_segment_id=8,
    file_pages=100,
    live_bytes=9000,
    rotation=(b"k",),
)

GOLDEN = bytes.fromhex(
    # header: kind, codec, 0, sections, install, length, 0
    "03 00 0000 05000000 0500000000000000 7801000000000000 0000000000000000"
    # general: uuid, next segment id, file pages, live bytes, 0
    "0100 0000 00000000 3000000000000000"
    "000102030405060708090a0b0c0d0e0f 0800000000000000 6400000000000000 2823000000000000 0000000000000000"
    # levels: 2 levels; 1 run; 1 segment; the second level has no runs
    "0200 0000 00000000 8300000000000000"
    "02000000 01000000 01000000"
    "0700000000000000 0300000000000000 0807060504030201 2c01000000000000 0500000000000000 2823000000000000"
    "0900000000000000 0a00000000000000 1400000000000000 14000000 0200 0100 0200 0300 0100 0200"
    "0010000000000000 1e000000 01000000 5500000000000000"
    "61 6d7a"
    "00000000 0000000000"
    # bitmap
    "0300 0000 00000000 1000000000000000"
    "28000000 00000000 6600000000000000"
    # retired
    "0400 0000 00000000 2c00000000000000"
    "01000000 0200000000000000 0400000000000000 02000000 00000000 32000000 03000000 3c000000 01000000"
    "00000000"
    # rotation
    "0180 0000 00000000 0900000000000000"
    "01000000 01000000 6b 00000000000000"
)


def test_its_bytes_are_those_of_the_specification() -> None:
    assert MANIFEST.encode().hex() == GOLDEN.hex()


def test_decode_gives_back_what_was_encoded() -> None:
    data = MANIFEST.encode()
    assert decode(data) == MANIFEST
    padded = data.ljust(4096, b"\0")
    assert decode(padded, checksum(padded)) == MANIFEST
    empty = Manifest(install=0, uuid=bytes(16))
    assert decode(empty.encode()) == empty
    assert list(MANIFEST.segments()) == [SMALL]


def test_damage_of_any_byte_is_caught_by_the_sum() -> None:
    data = MANIFEST.encode()
    total = checksum(data)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        with pytest.raises(CorruptionError, match="sum is wrong") as caught:
            decode(bytes(damaged), total, page=12)
        assert caught.value.page == 12


def test_any_bytes_with_a_right_sum_decode_or_are_a_typed_error() -> None:
    data, rng = MANIFEST.encode(), random.Random(1)
    for at in range(len(data)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)):
            damaged = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                manifest = decode(damaged)
            except (FormatError, CorruptionError):
                continue
            assert decode(manifest.encode()) == manifest


def test_every_shorter_length_is_corruption() -> None:
    data = MANIFEST.encode()
    for length in range(len(data)):
        with pytest.raises(CorruptionError):
            decode(data[:length])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_typed_error(data: bytes) -> None:
    with pytest.raises((FormatError, CorruptionError)):
        decode(data)


def test_crafted_counts_take_no_memory() -> None:
    data = MANIFEST.encode()
    tracemalloc.start()
    try:
        for at in range(len(data) - 8):
            for huge in (struct.pack("<I", 0xFFFFFFFF), struct.pack("<Q", 2**63)):
                try:
                    decode(data[:at] + huge + data[at + len(huge) :])
                except (FormatError, CorruptionError):
                    continue
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def with_section(tag: int, payload: bytes) -> bytes:
    """MANIFEST's bytes with one more section."""
    section = struct.pack("<HHIQ", tag, 0, 0, len(payload)) + payload + bytes(-len(payload) % 8)
    data = bytearray(MANIFEST.encode() + section)
    struct.pack_into("<I", data, 4, 6)
    struct.pack_into("<Q", data, 16, len(data))
    return bytes(data)


def test_unknown_optional_sections_are_skipped() -> None:
    assert decode(with_section(0x8123, b"what a later version wrote")) == MANIFEST


def test_unknown_required_sections_are_refused_by_name() -> None:
    with pytest.raises(FormatError, match=r"section 5 \(named snapshots\)"):
        decode(with_section(5, b""))
    with pytest.raises(FormatError, match="section 99"):
        decode(with_section(99, b"x"))


def test_sections_are_there_once() -> None:
    with pytest.raises(CorruptionError, match="twice"):
        decode(with_section(3, b""))


def test_a_section_with_more_in_it_is_corruption() -> None:
    data = bytearray(MANIFEST.encode())
    at = data.index(bytes.fromhex("04000000000000002c"))
    data[at + 8] += 4
    assert decode(bytes(data)) == MANIFEST, "zeros are padding"
    data[at + 16 + 0x2C] = 1
    with pytest.raises(CorruptionError, match="left over"):
        decode(bytes(data))


def test_an_unknown_codec_and_unknown_flags_are_refused_by_name() -> None:
    data = bytearray(MANIFEST.encode())
    data[1] = 9
    with pytest.raises(FormatError, match="codec 9"):
        decode(bytes(data))
    data = bytearray(MANIFEST.encode())
    flags = data.index(bytes.fromhex("0200010002000300")) + 6
    data[flags] = 0x83
    with pytest.raises(FormatError, match="flags 0x83"):
        decode(bytes(data))


OTHER = replace(SMALL, id=6, first_key=b"n", last_key=b"z", filter=None)

FAULTY: list[dict[str, Any]] = [
    {"levels": (((replace(SMALL, root_page=2),),),)},
    {"levels": (((replace(SMALL, root_page=99),),),)},
    {"levels": (((replace(SMALL, root_pages=0),),),)},
    {"levels": (((replace(SMALL, height=25),),),)},
    {"levels": (((replace(SMALL, tombstones=301),),),)},
    {"levels": (((replace(SMALL, first_key=b"zz"),),),)},
    {"levels": (((replace(SMALL, seq_low=21),),),)},
    {"levels": (((replace(SMALL, filter=Reference(4097, 30, 1, 0)),),),)},
    {"levels": (((replace(SMALL, filter=Reference(4096, 100, 1, 0)),),),)},
    {"levels": (((SMALL,),), ((SMALL,),)), "rotation": ()},
    {"levels": (((SMALL, replace(OTHER, first_key=b"mz")),),)},
    {"levels": (((replace(SMALL, id=8),),),)},
    {"levels": (((replace(SMALL, installed=6),),),)},
    {"levels": ()},
    {"bitmap": ((40, 0), (41, 0))},
    {"bitmap": ((2, 0),)},
    {"bitmap": ((100, 0),)},
    {"retired": (Retirement(2, 4, ((50, 3), (52, 1))),)},
    {"retired": (Retirement(2, 4, ((50, 3),)), Retirement(3, 4, ((51, 1),)))},
    {"retired": (Retirement(2, 4, ((2, 3),)),)},
    {"retired": (Retirement(2, 4, ((98, 3),)),)},
    {"retired": (Retirement(2, 4, ((50, 0),)),)},
    {"retired": (Retirement(5, 4, ()),)},
    {"retired": (Retirement(2, 6, ()),)},
    {"file_pages": 2},
    {"file_pages": 2**32 + 1},
]


@pytest.mark.parametrize("wrong", FAULTY)
def test_what_cannot_be_is_neither_encoded_nor_decoded(wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = replace(MANIFEST, **wrong)
    with pytest.raises(AssertionError):
        faulty.encode()
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "fault", lambda self: None)
        data = faulty.encode()
    with pytest.raises(CorruptionError):
        decode(data)


keys = st.binary(max_size=40)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest that can be."""
    install = draw(st.integers(0, limits.NUMBER_MAX))
    number, levels = 0, []
    for _ in range(draw(st.integers(0, 3))):
        runs = []
        for _ in range(draw(st.integers(0, 3))):
            fences = sorted(draw(st.lists(keys, max_size=6, unique=True)))
            run = []
            for first, last in zip(fences[::2], fences[1::2], strict=False):
                run.append(
                    replace(
                        SMALL,
                        id=number,
                        installed=draw(st.integers(0, install)),
                        first_key=first,
                        last_key=last,
                        filter=draw(st.none() | st.just(SMALL.filter)),
                        overflow=draw(st.booleans()),
                        root_sum=draw(st.integers(0, 2**64 - 1)),
                    )
                )
                number += 1
            runs.append(tuple(run))
        levels.append(tuple(runs))
    retired, page = [], 40
    for _ in range(draw(st.integers(0, 3))):
        extents = []
        for _ in range(draw(st.integers(0, 3))):
            count = draw(st.integers(1, 4))
            extents.append((page, count))
            page += count + draw(st.integers(0, 2))
        died = draw(st.integers(0, install))
        retired.append(Retirement(draw(st.integers(0, died)), died, tuple(extents)))
    return Manifest(
        install=install,
        uuid=draw(st.binary(min_size=16, max_size=16)),
        levels=tuple(levels),
        bitmap=((40, 1), (41, 2**64 - 1)),
        retired=tuple(retired),
        next_segment_id=number,
        file_pages=40_000,
        live_bytes=draw(st.integers(0, limits.NUMBER_MAX)),
        rotation=tuple(draw(st.lists(keys, max_size=len(levels)))),
    )


@settings(max_examples=60)
@given(manifests())
def test_any_manifest_survives_the_round_trip(manifest: Manifest) -> None:
    assert decode(manifest.encode()) == manifest


def test_a_reference_is_24_bytes() -> None:
    reference = Reference(1 << 40, 5, 1 << 28, 0xFFEEDDCCBBAA9988)
    packed = reference.pack()
    assert packed.hex() == "000000000001000005000000000000108899aabbccddeeff"
    assert Reference.unpack(b"xx" + packed, 2) == reference
    assert reference.plausible()
    assert not Reference((1 << 40) + 1, 5, 1 << 28, 0).plausible()
    assert not Reference(0, 2, 1, 0).plausible()
    assert not Reference(0, 3, 0, 0).plausible()
    assert not Reference(0, 3, 2**32 - 1, 0).plausible()
