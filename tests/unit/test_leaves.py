"""Leaves: golden bytes, and the keys that break a leaf's search if anything does."""

from __future__ import annotations

import struct

import hypothesis
import pytest
import xxhash
from hypothesis import strategies as st

from mmlsm.errors import CorruptionError
from mmlsm.format import leaf
from mmlsm.read.pages import Pages
from mmlsm.write.leaf_writer import LeafWriter
from segment_rig import SegmentRig, check_segment


def leaf_of(pairs: list[tuple[bytes, bytes | None]], **settings: int) -> bytes:
    writer = LeafWriter(**{"leaf_bytes": 4096, "birth": 7, **settings})
    for key, value in pairs:
        assert writer.add_one(1 if value is None else 0, key, b"", value or b"") == 0
    assert writer.finish()
    assert writer.leaf(0) == (0, 4096)
    return bytes(writer.out.data[:4096])


def test_golden_bytes_of_a_leaf() -> None:
    expected = (
        bytes([1, 0, 1, 0])  # a leaf, raw, of one page, of height 0
        + struct.pack("<HHQ", 3, 2, 7)  # entries, prefix bytes, birth
        + struct.pack("<IHBBQ", 67, 1, 0, 0, 0)  # bytes used, tombstones, no overflow, reserved
        + b"ab\0\0"  # the prefix, padded to 4
        + struct.pack("<III", 0, 0x63000000, 0x63646566)  # heads: "", "c", "cdef"
        + struct.pack("<HHHH", 56, 59, 61, 67)
        + b"\x00\x00" + b"1"  # a value; no suffix
        + b"\x01\x01"  # a tombstone; the suffix is in the head
        + b"\x00\x05" + b"g" + b"xyz"  # a value; four bytes of its suffix are in the head
    )  # fmt: skip
    made = leaf_of([(b"ab", b"1"), (b"abc", None), (b"abcdefg", b"xyz")])
    assert made == expected.ljust(4096, b"\0")


def test_golden_bytes_of_a_long_suffix_and_no_prefix() -> None:
    expected = (
        bytes([1, 0, 1, 0]) + struct.pack("<HHQ", 2, 0, 7) + struct.pack("<IHBBQ", 46 + 2 + 3 + 196 + 1, 0, 0, 0, 0)
        + struct.pack("<II", 0, 0x71717171)
        + struct.pack("<HHH", 46, 48, 248)
        + b"\x00\x00"  # the empty key, an empty value
        + b"\x00" + bytes([0x80 | 200 & 127, 200 >> 7]) + b"q" * 196 + b"!"  # 200 as a varint
    )  # fmt: skip
    assert leaf_of([(b"", b""), (b"q" * 200, b"!")]) == expected.ljust(4096, b"\0")


def test_golden_bytes_of_overflow_entries_and_their_extents() -> None:
    """A long key and a value of two chunks: 24 bytes of reference in the leaf; sums stand behind the payload."""
    rig = SegmentRig()
    key = b"k" * 4 + bytes(range(1, 250)) * 3
    value = b"v" * 65536 + b"w" * 4465  # 70,001 bytes: 7 of padding before the sums
    segment = rig.write({key: value})
    sums = [xxhash.xxh3_64_intdigest(value[:65536]), xxhash.xxh3_64_intdigest(value[65536:])]
    packed = struct.pack("<QQ", *sums)
    extents = {extent.first: extent.count for extent in rig.allocator.reserved_extents()}
    value_page, value_pages, key_page, root = 3, 18, 21, segment.record.root_page
    assert sum(extents.values()) == 18 + 1 + 1 == segment.record.pages
    assert rig.file.pread(value_page * 4096, 18 * 4096) == (value + bytes(7) + packed).ljust(18 * 4096, b"\0")
    assert rig.file.pread(key_page * 4096, 4096) == key.ljust(4096, b"\0")
    reference_of_value = struct.pack("<QIIQ", 70_001, value_page, value_pages, xxhash.xxh3_64_intdigest(packed))
    reference_of_key = struct.pack("<QIIQ", len(key), key_page, 1, xxhash.xxh3_64_intdigest(key))
    expected = (
        bytes([1, 0, 1, 0]) + struct.pack("<HHQ", 1, 124, 7)  # an overflow key keeps 128 bytes here, 4 of them as head
        + struct.pack("<IHBBQ", 32 + 124 + 4 + 4 + 2 + 24 + 24, 0, 1, 0, 0)
        + key[:124] + struct.pack("<I", int.from_bytes(key[124:128], "big"))
        + struct.pack("<HH", 164, 214)
        + bytes([0x12, 4]) + reference_of_key + reference_of_value
    )  # fmt: skip
    assert rig.file.pread(root * 4096, 4096) == expected.ljust(4096, b"\0")


SETS = {
    "heads that tie": [b"pppp" + bytes([a, b]) for a in (0, 1, 255) for b in (0, 1, 255)] + [b"pppp", b"pppp\0"],
    "zeros": [bytes(i) for i in range(40)],
    "zeros and one": [bytes(i) + b"\1" + bytes(j) for i in range(8) for j in range(8)],
    "prefixes of each other": [b"a" * i for i in range(300)],
    "prefixes past a varint": [b"a" * i for i in range(120, 140)] + [b"a" * i for i in range(500, 520)],
    "one": [b""],
    "high": [b"\xff" * i for i in range(1, 30)],
    "inline and overflow beside each other": [b"x" * 508 + bytes([i]) * (i % 9) for i in range(40)],
    "overflow keys that part at every byte": [
        b"y" * i + b"z" * (600 - i) for i in (0, 1, 3, 4, 5, 123, 124, 125, 127, 128, 129, 300, 511, 599)
    ],
    "overflow keys that are prefixes": [b"y" * i for i in range(505, 700, 5)],
    "the longest": [
        *(b"L" * i + b"M" + b"L" * (65534 - i) for i in (0, 127, 128, 129, 4096, 65533, 65534)),
        b"L" * 65534,
        b"L" * 65535,
    ],
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("entries_max", [2, 3, 8192])
def test_keys_of_every_shape_are_found(name: str, entries_max: int) -> None:
    rig = SegmentRig(node_entries_max=entries_max)
    pairs = {key: b"%d" % i for i, key in enumerate(SETS[name])}
    segment = rig.write({**pairs})
    check_segment(rig.reader(segment), pairs)


@hypothesis.given(
    st.dictionaries(
        st.lists(st.sampled_from([b"\0", b"a", b"ab", b"\xff", b"z" * 130, b"z" * 400]), max_size=6).map(b"".join),
        st.one_of(st.none(), st.sampled_from([b"", b"1", b"v" * 1023, b"v" * 1024, b"v" * 1025, b"v" * 9000])),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([2, 3, 5, 8192]),
    st.sampled_from([4096, 8192]),
    st.booleans(),
)
def test_any_pairs(pairs: dict[bytes, bytes | None], entries_max: int, leaf_bytes: int, with_filter: bool) -> None:
    rig = SegmentRig(node_entries_max=entries_max, leaf_bytes=leaf_bytes)
    check_segment(rig.reader(rig.write({**pairs}, with_filter=with_filter)), pairs)


def test_damage_of_any_byte_of_a_header_is_a_fault_or_harmless() -> None:
    """Structure is looked at even where sums are not: each changed byte is refused, or every read stays in the page."""
    pairs = [(b"key %d" % i * (1 + i % 3), None if i % 4 == 0 else b"v" * i) for i in range(1, 12)]
    rig = SegmentRig()
    segment = rig.write(dict(pairs))
    page = segment.record.root_page
    whole = rig.file.pread(page * 4096, 4096)
    used = int.from_bytes(whole[16:20], "little")
    refused = 0
    for at in range(used):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= flip
            rig.channel.pwrite(page * 4096, damaged)
            pages = Pages(rig.file, rig.file.window(rig.file.pages), "never", 1)
            try:
                pages.touch_anew((page, 1, 0), 0)
            except CorruptionError as error:
                assert error.page == page  # noqa: PT017
                assert error.segment == 1  # noqa: PT017
                refused += 1
                continue
            for inline, _, _, value in leaf.entries_of(pages.window, page):
                assert len(inline) <= 8192
                assert len(value) <= 4096
    assert refused > used // 4
    rig.channel.pwrite(page * 4096, whole)
