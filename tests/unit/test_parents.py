"""Parents: golden bytes, the shortest separators, and separators that tie with what is sought."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import xxhash

from mmlsm.errors import CorruptionError
from mmlsm.format import parent
from mmlsm.read.pages import Pages
from mmlsm.read.segment import Segment
from mmlsm.write.parent_writer import Child, ParentWriter, fixed_bytes
from segment_rig import SegmentRig, check_segment


def test_golden_bytes_of_a_parent() -> None:
    writer = ParentWriter(1, 4096, 8192)
    assert writer.add(Child(b"", b"", 0, 10, 1, 0x1111, 5, False))
    assert writer.add(Child(b"pre\0", b"", 4, 11, 2, 0x2222, 6, True))
    assert writer.add(Child(b"preabcdef", b"", 9, 13, 1, 0x3333, 7, False))
    expected = (
        bytes([2, 0, 1, 1])  # a parent, raw, of one page, of height 1
        + struct.pack("<HHQ", 3, 3, 7)  # children, prefix bytes, birth
        + struct.pack("<IHBBQ", 132, 8, 1, 0, 0)  # bytes used, bytes per sum, overflow below, reserved
        + b"pre\0\0\0\0\0"  # the prefix, padded to 8
        + struct.pack("<III", 0, 0, 0x61626364)  # heads; the first child has none, the second's is a zero byte
        + struct.pack("<III", 10, 11, 13)
        + struct.pack("<QQQ", 0x1111, 0x2222, 0x3333)
        + struct.pack("<QQQ", 5, 6, 7)
        + bytes([1, 2, 1]) + bytes([1, 2, 1])  # pages, and physical pages
        + bytes([0, 1 | 8, 5]) + b"\0"  # bytes in the head; 8: overflow below; 5: more in the tail
        + struct.pack("<HHHH", 130, 130, 130, 132)
        + b"ef"
    )  # fmt: skip
    data, entries, overflow = writer.encode(writer.children, 7)
    assert data == expected.ljust(4096, b"\0")
    assert (entries, overflow) == (18, True)
    assert len(expected) == fixed_bytes(3, 3) + 2


def test_golden_bytes_of_an_overflow_separator() -> None:
    reference = struct.pack("<QIIQ", 600, 9, 1, 0xABCD)
    writer = ParentWriter(2, 4096, 8192)
    assert writer.add(Child(b"", b"", 0, 10, 1, 1, 5, False))
    assert writer.add(Child(b"s" * 128, reference, 599, 11, 1, 2, 6, True))
    data, _, _ = writer.encode(writer.children, 7)
    expected = (
        bytes([2, 0, 1, 2]) + struct.pack("<HHQ", 2, 124, 7) + struct.pack("<IHBBQ", 246, 8, 1, 0, 0)
        + b"s" * 124 + bytes(4)  # 124 padded to 8
        + struct.pack("<II", 0, 0x73737373)
        + struct.pack("<II", 10, 11)
        + struct.pack("<QQ", 1, 2) + struct.pack("<QQ", 5, 6)
        + bytes([1, 1]) + bytes([1, 1]) + bytes([0, 5 | 16 | 8])
        + struct.pack("<HHH", 220, 220, 246)
        + reference + struct.pack("<H", 599)
    )  # fmt: skip
    assert data == expected.ljust(4096, b"\0")


def separators_of(rig: SegmentRig, root: int) -> list[bytes]:
    return [child[0] for child in parent.children_of(rig.file.window(rig.file.pages), root)]


def test_separators_are_the_shortest_that_separate() -> None:
    rig = SegmentRig(node_entries_max=2)
    keys = [b"apple", b"banana", b"bandit", b"bandit\0", b"cherry"]
    segment = rig.write(dict.fromkeys(keys, b""))
    assert segment.record.height == 2
    root = segment.record.root_page
    check_segment(rig.reader(segment), dict.fromkeys(keys, b""))
    assert separators_of(rig, root) == [b"", b"c"]
    first = parent.children_of(rig.file.window(rig.file.pages), root)[0][3]
    assert separators_of(rig, first) == [b"", b"band"]


SEPARATORS = {
    "zero padding is no part of a key": [b"\0" * i for i in range(12)],
    "four bytes and more": [b"abcd", b"abcd\0", b"abcd\0\0", b"abcde", b"abcdee", b"abce"],
    "a prefix shared by all": [b"common prefix " + bytes([i, j]) for i in range(4) for j in range(4)],
    "heads that tie": [b"tttt" + bytes([i]) * j for i in (0, 1, 9) for j in range(6)],
    "of every length": [b"s" * i for i in range(1, 40)],
    "at the inline bound": [b"s" * i + bytes([c]) for i in (510, 511, 512, 513, 514) for c in (1, 2, 3)],
    "in extents": [b"s" * 700 + bytes([i]) for i in range(20)],
    "in extents, ending where the head does": [b"s" * 127 + bytes([i]) + b"t" * 600 for i in range(20)],
    "in extents, the longest": [b"s" * 65533 + bytes([i, 0]) for i in range(6)],
    "long and short beside each other": [b"s", *(b"s" * 700 + bytes([i]) for i in range(4)), b"t", b"t" * 800, b"u"],
}


@pytest.mark.parametrize("name", SEPARATORS)
@pytest.mark.parametrize("children", [2, 3, 8])
def test_each_key_is_found_beside_its_separator(name: str, children: int) -> None:
    rig = SegmentRig(node_entries_max=children)
    pairs: dict[bytes, bytes | None] = {key: b"%d" % i for i, key in enumerate(SEPARATORS[name])}
    segment = rig.write({**pairs})
    assert segment.record.height >= (len(pairs) > children)
    reader = rig.reader(segment)
    check_segment(reader, pairs)
    order = sorted(pairs)
    for i, key in enumerate(order):
        assert abs(segment.rank(key) - i) <= children


def test_a_tree_of_two_children_each_is_deep_and_sound() -> None:
    rig = SegmentRig(node_entries_max=2)
    pairs: dict[bytes, bytes | None] = {b"%04d" % i: b"" for i in range(600)}
    segment = rig.write({**pairs})
    assert segment.record.height >= 8
    check_segment(rig.reader(segment), pairs)


def test_page_of_one_long_key_each() -> None:
    """Values just below the overflow bound and long keys: few entries a leaf, few separators a parent."""
    rig = SegmentRig(leaf_bytes=4096)
    pairs: dict[bytes, bytes | None] = {b"%03d" % i + b"k" * 505: b"v" * 1024 for i in range(60)}
    segment = rig.write({**pairs})
    check_segment(rig.reader(segment), pairs)
    assert segment.record.height >= 1


def test_damage_of_any_byte_of_a_parent_is_a_fault_or_harmless() -> None:
    rig = SegmentRig(node_entries_max=4)
    segment = rig.write({b"key %02d" % i * (1 + i % 3): b"v" for i in range(12)})
    page = segment.record.root_page
    height = segment.record.height
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
                pages.touch_anew((page, 1, 0), height)
            except CorruptionError as error:
                assert error.page == page  # noqa: PT017
                refused += 1
                continue
            for child in parent.children_of(pages.window, page):
                assert child[3] >= 3
                assert child[3] + child[4] <= pages.window.pages
    assert refused > used // 4


def test_a_child_of_another_height_is_refused() -> None:
    """Sound by itself, with the right sum, but at the wrong place: no search may follow it, none may loop."""
    rig = SegmentRig(node_entries_max=2)
    pairs = dict.fromkeys([b"%02d" % i for i in range(12)], b"")
    segment = rig.write({**pairs})
    root = segment.record.root_page
    window = rig.file.window(rig.file.pages)
    children = parent.children_of(window, root)
    writer = ParentWriter(segment.record.height, 4096, 8)
    for inline, reference, whole, *_ in children:
        own = rig.file.pread(root * 4096, 4096)
        writer.add(Child(inline, reference, whole, root, 1, xxhash.xxh3_64_intdigest(own), 6, False))
    data, _, _ = writer.encode(writer.children, 7)
    extent = rig.allocator.reserve(1)
    rig.channel.pwrite(extent.first * 4096, data)
    record = replace(segment.record, root_page=extent.first, root_sum=xxhash.xxh3_64_intdigest(data))
    bad = rig.reader(Segment(rig.file, record, "first-read"))
    for use in (lambda: bad.get(b"05"), lambda: list(bad), lambda: bad.last(), lambda: bad.cursor().seek(b"05", "<=")):
        with pytest.raises(CorruptionError):
            use()
