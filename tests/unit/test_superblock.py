"""The superblock's bytes, its damage, and which slot wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlsm import limits
from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.format.superblock import MAGIC, LogPosition, Superblock, decode, newest, order_of, write_order

BLOCK = Superblock(
    uuid=bytes(range(16)),
    generation=0x0102030405060708,
    incarnation=2,
    application_id=0xA1B2C3D4,
    install=77,
    seq_ceiling=1 << 40,
    seq=4711,
    clean=True,
    manifest=Reference(5000, 40, 2, 0x1122334455667788),
    log=LogPosition(50, 16, 50 * 4096 + 100, 0xDEADBEEF, 0xCAFE),
    file_pages=1000,
    features_compatible=1,
    features_readonly_compatible=2,
)

GOLDEN = bytes.fromhex(
    "6d6d6c736d00010a"  # magic
    "01000000"  # format version
    "00100000"  # page bytes
    "0100000000000000"  # compatible
    "0200000000000000"  # read-only compatible
    "0000000000000000"  # incompatible
    "000102030405060708090a0b0c0d0e0f"  # uuid
    "0200000000000000"  # incarnation
    "0807060504030201"  # generation
    "4d00000000000000"  # install
    "0000000000010000"  # seq ceiling
    "6712000000000000"  # seq
    "d4c3b2a1"  # application id
    "08"  # sum bytes
    "01"  # flags: clean
    "0000"
    "e803000000000000"  # file pages
    "28000000"  # manifest page
    "02000000"  # manifest pages
    "32000000"  # log page
    "10000000"  # log pages
    "0000000000000000"
    "8813000000000000"  # manifest length
    "8877665544332211"  # manifest sum
    "6420030000000000"  # log offset
    "efbeadde00000000"  # log epoch
    "feca000000000000"  # log predecessor
)


def resealed(data: bytes, at: int, new: bytes) -> bytes:
    """The slot with bytes changed and its sum made right again."""
    content = data[:at] + new + data[at + len(new) : 504]
    return content + checksum(content).to_bytes(8, "little") + data[512:]


def test_its_bytes_are_those_of_the_specification() -> None:
    data = BLOCK.encode()
    assert data[: len(GOLDEN)] == GOLDEN
    assert data[len(GOLDEN) : 504] == bytes(504 - len(GOLDEN))
    assert data[504:512].hex() == "d58c362781a7bc94"
    assert data[512:] == bytes(4096 - 512)


def test_decode_gives_back_what_was_encoded() -> None:
    assert decode(BLOCK.encode(), 0) == BLOCK
    fresh = Superblock(uuid=bytes(16), generation=1)
    assert decode(fresh.encode(), 1) == fresh


@given(
    st.builds(
        Superblock,
        uuid=st.binary(min_size=16, max_size=16),
        generation=st.integers(0, limits.NUMBER_MAX),
        incarnation=st.integers(0, limits.NUMBER_MAX),
        application_id=st.integers(0, 2**32 - 1),
        install=st.integers(0, limits.NUMBER_MAX),
        seq_ceiling=st.integers(2**61, limits.NUMBER_MAX),
        seq=st.integers(0, 2**61),
        clean=st.booleans(),
        file_pages=st.integers(limits.HEADER_PAGES, limits.FILE_PAGES_MAX),
    )
)
def test_any_block_survives_the_round_trip(block: Superblock) -> None:
    assert decode(block.encode(), 0) == block


def test_damage_of_any_byte_is_a_typed_error() -> None:
    data = BLOCK.encode()
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= flip
            with pytest.raises(FormatError if at < 12 else CorruptionError):
                decode(bytes(damaged), 0)


def test_any_length_is_a_typed_error() -> None:
    data = BLOCK.encode()
    for length in range(len(data)):
        with pytest.raises((FormatError, CorruptionError)):
            decode(data[:length], 0)


def test_any_bytes_with_a_right_sum_decode_or_are_a_typed_error() -> None:
    data = BLOCK.encode()
    for at in range(12, 504):
        for value in (0, 0x7F, 0xFF):
            try:
                block = decode(resealed(data, at, bytes([value])), 0)
            except (FormatError, CorruptionError):
                continue
            assert decode(block.encode(), 0) == block


def test_an_unknown_version_is_refused_whatever_the_sum() -> None:
    data = bytearray(BLOCK.encode())
    data[8] = 2
    with pytest.raises(FormatError, match=r"format version 2.*nothing was changed"):
        decode(bytes(data), 0)


def test_unknown_incompatible_features_are_refused_by_name() -> None:
    data = replace(BLOCK, features_incompatible=1 | 1 << 40).encode()
    with pytest.raises(FormatError, match=r"0 \(trailer copy of a streamed backup\), 40"):
        decode(data, 0)
    with pytest.raises(FormatError, match="trailer copy"):
        newest(data, BLOCK.encode())


def test_unknown_readonly_compatible_features_allow_reading_only() -> None:
    with pytest.raises(FormatError, match=r"features 1 .*readonly=True"):
        decode(BLOCK.encode(), 0).require_writable()
    replace(BLOCK, features_readonly_compatible=0).require_writable()


@pytest.mark.parametrize(("at", "new"), [(12, b"\x00\x20"), (100, b"\x18")])
def test_other_page_and_sum_sizes_are_a_format_error(at: int, new: bytes) -> None:
    with pytest.raises(FormatError, match=r"pages of .* bytes and sums of"):
        decode(resealed(BLOCK.encode(), at, new), 0)


def test_the_newest_valid_slot_wins() -> None:
    old, new = BLOCK.encode(), replace(BLOCK, generation=BLOCK.generation + 1).encode()
    assert newest(old, new) == (decode(new, 1), False)
    assert newest(new, old) == (decode(new, 0), False)
    assert newest(new, new) == (decode(new, 0), True)
    torn = new[:200] + old[200:]
    for short in (torn, b"", new[:512], bytes(4096), b"\xff" * 4096):
        assert newest(old, short) == (BLOCK, False)
        assert newest(short, old) == (BLOCK, False)


def test_two_contents_of_one_generation_are_corruption() -> None:
    with pytest.raises(CorruptionError, match="differ"):
        newest(BLOCK.encode(), replace(BLOCK, seq=4712).encode())


def test_no_magic_at_all_is_not_a_database() -> None:
    for data in (b"", b"SQLite format 3\0".ljust(4096, b"x"), bytes(4096)):
        with pytest.raises(FormatError, match="not an mmlsm database: nothing was changed"):
            newest(data, data)


def test_two_damaged_slots_are_corruption() -> None:
    damaged = BLOCK.encode()[:100].ljust(4096, b"\0")
    for other in (damaged, b"", bytes(4096), MAGIC):
        with pytest.raises(CorruptionError, match="both superblock slots"):
            newest(damaged, other)


def test_a_newer_version_is_refused_even_beside_a_slot_of_this_one() -> None:
    newer = resealed(BLOCK.encode(), 8, b"\x02")
    with pytest.raises(FormatError, match="version 2"):
        newest(BLOCK.encode(), newer)
    damaged = newer[:504] + b"12345678" + newer[512:]
    assert newest(BLOCK.encode(), damaged)[0] == BLOCK, "a damaged version byte is damage where the other slot is sound"
    with pytest.raises(FormatError, match="version 2"):
        newest(damaged, damaged)


def test_the_stale_or_damaged_slot_is_written_first() -> None:
    old, new = BLOCK.encode(), replace(BLOCK, generation=BLOCK.generation + 1).encode()
    assert write_order(old, new) == (0, 1)
    assert write_order(new, old) == (1, 0)
    assert write_order(new, b"damaged") == (1, 0)
    assert write_order(b"damaged", new) == (0, 1)
    assert write_order(new, new) == write_order(old, old)[::-1] == order_of(BLOCK.generation)
    assert write_order(b"damaged", b"damaged")


@pytest.mark.parametrize(
    "wrong",
    [
        {"manifest": Reference(5000, 1, 2, 0)},
        {"manifest": Reference(8193, 40, 2, 0)},
        {"manifest": Reference(1, 0, 0, 0)},
        {"log": LogPosition(50, 16, 50 * 4096 - 1, 0, 0)},
        {"log": LogPosition(50, 16, 66 * 4096 + 1, 0, 0)},
        {"log": LogPosition(0, 1, 0, 0, 0)},
        {"log": LogPosition(2, 1, 2 * 4096, 0, 0)},
        {"file_pages": limits.FILE_PAGES_MAX + 1},
        {"seq": 2**40 + 1},
    ],
)
def test_what_cannot_be_is_not_encoded(wrong: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        replace(BLOCK, **wrong).encode()  # type: ignore[arg-type]
