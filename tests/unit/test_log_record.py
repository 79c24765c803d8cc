"""Log records: golden bytes, what goes in comes out, damage is told, what is unknown is refused by name."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlsm.errors import CorruptionError, FormatError
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.write import log_record
from mmlsm.write.log_record import decode_commit, decode_header, decode_link, encode_commit, encode_header, encode_link

REFERENCES = st.builds(
    Reference, st.integers(0, 4096 * 3), st.integers(3, 1 << 31), st.integers(3, 1 << 30), st.integers(0, (1 << 64) - 1)
)
PAIRS = st.lists(st.tuples(st.binary(max_size=20), st.one_of(st.none(), st.binary(max_size=60), REFERENCES)))
EXAMPLE = [(b"apple", b"red"), (b"", None), (b"big", Reference(1 << 20, 77, 256, 0x0123456789ABCDEF))]

# docs/format.md, "Log". These bytes are in users' files: they do not change within format version 1.
GOLDEN_COMMIT = (
    "03000000 00 0500 03000000 6170706c65 726564 01 0000 00000000 "
    "02 0300 18000000 626967 0000100000000000 4d000000 00010000 efcdab8967452301"
)
GOLDEN_HEADER = (
    "8877665544332211 2a00000000000000 efbeadde00000000 3c00000000000000 01 00 0000 00000000 "
    "254526458ab747d2 2900000000000000 08b1beca35f7a688"
)
GOLDEN_LINK = "13000000 20000000"


def test_the_golden_bytes():
    payload = encode_commit(EXAMPLE)
    assert payload.hex() == GOLDEN_COMMIT.replace(" ", "")
    header, own = encode_header(0x1122334455667788, 42, 0xDEADBEEF, len(payload), 1, checksum(payload), 41)
    assert header.hex() == GOLDEN_HEADER.replace(" ", "")
    assert own == checksum(header[:56]) == int.from_bytes(header[56:], "little")
    assert encode_link(19, 32).hex() == GOLDEN_LINK.replace(" ", "")


def test_the_golden_bytes_are_read():
    assert decode_commit(bytes.fromhex(GOLDEN_COMMIT)) == EXAMPLE
    header = decode_header(bytes.fromhex(GOLDEN_HEADER), 0)
    assert header[:8] == (0x1122334455667788, 42, 0xDEADBEEF, 60, 1, 0, 0, 0)
    assert decode_link(bytes.fromhex(GOLDEN_LINK)) == (19, 32)


@given(PAIRS)
def test_a_commit_comes_back_equal(pairs):
    assert decode_commit(encode_commit(pairs)) == pairs


def test_the_largest_key_and_a_dict_of_pairs():
    pairs = {b"k" * 65535: b"", b"": b"v" * 70_000}
    assert dict(decode_commit(encode_commit(pairs.items()))) == pairs


@given(st.binary(max_size=200))
def test_any_bytes_are_pairs_or_an_error(data):
    try:
        pairs = decode_commit(data)
    except (CorruptionError, FormatError):
        return
    assert encode_commit(pairs) == data


def test_each_byte_damaged_and_each_length_cut_gives_pairs_or_an_error():
    payload = encode_commit(EXAMPLE)
    for cut in range(len(payload)):
        with pytest.raises(CorruptionError):
            decode_commit(payload[:cut])
    with pytest.raises(CorruptionError, match="1 bytes follow"):
        decode_commit(payload + b"\0")
    for at in range(len(payload)):
        for bit in range(8):
            damaged = bytearray(payload)
            damaged[at] ^= 1 << bit
            with contextlib.suppress(CorruptionError, FormatError):
                assert decode_commit(bytes(damaged)) != EXAMPLE


def test_a_count_that_no_commit_can_have_costs_nothing():
    with pytest.raises(CorruptionError):
        decode_commit(b"\xff\xff\xff\xff")
    with pytest.raises(CorruptionError):
        decode_commit(b"\xff\xff\xff\xff" + struct.pack("<BHI", 0, 0xFFFF, 0xFFFFFFFF))


@pytest.mark.parametrize("kind", [3, 0x10, 255])
def test_an_unknown_kind_of_entry_is_refused_by_name(kind):
    with pytest.raises(FormatError, match=f"entry kind {kind}"):
        decode_commit(struct.pack("<IBHI", 1, kind, 0, 0))


def test_a_tombstone_with_a_value_and_a_reference_that_cannot_be_one_are_damage():
    for payload in (
        struct.pack("<IBHI", 1, 1, 0, 1) + b"v",
        struct.pack("<IBHI", 1, 2, 0, 23) + bytes(23),
        struct.pack("<IBHI", 1, 2, 0, 24) + Reference(10, 0, 1, 0).pack(),
        struct.pack("<IBHI", 1, 2, 0, 24) + Reference(5000, 9, 1, 0).pack(),
    ):
        with pytest.raises(CorruptionError):
            decode_commit(payload)


def test_a_damaged_header_is_none():
    header, _ = encode_header(1, 2, 3, 4, 1, 5, 1)
    assert decode_header(b"xx" + header, 2).seq == 2
    assert decode_header(header, 1) is None
    assert decode_header(header, -1) is None
    assert decode_header(header[:63], 0) is None
    for at in range(64):
        damaged = bytearray(header)
        damaged[at] ^= 1 << random.Random(at).randrange(8)
        assert decode_header(bytes(damaged), 0) is None
    assert decode_header(bytes(64), 0) is None, "zeros are not a record"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kind": 3}, "record kind 3"),
        ({"codec": 1}, "record codec 1"),
        ({"namespace": 7}, "namespace 7"),
        ({"reserved_16": 1}, "record flags 1"),
    ],
)
def test_what_a_sound_header_has_and_we_do_not_know_is_refused_by_name(change, name):
    header = decode_header(encode_header(1, 2, 3, 4, 1, 5, 1)[0], 0)
    log_record.refuse_unknown(header)
    with pytest.raises(FormatError, match=name):
        log_record.refuse_unknown(header._replace(**change))


def test_a_link_that_cannot_be_one_is_none():
    assert decode_link(encode_link(3, 1)) == (3, 1)
    assert decode_link(encode_link((1 << 32) - 1, 1)) == ((1 << 32) - 1, 1)
    for payload in (b"", encode_link(3, 1)[:-1], encode_link(3, 0), encode_link(2, 1), encode_link((1 << 32) - 1, 2)):
        assert decode_link(payload) is None
