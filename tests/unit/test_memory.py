"""Byte primitives: golden numbers of a filter, which both modes must meet, and the functions themselves."""

from __future__ import annotations

import random

import hypothesis
import pytest
from hypothesis import strategies as st

import mmlsm
from mmlsm import memory
from mmlsm.file import open_memory
from segment_rig import SegmentRig

interpreted = pytest.mark.skipif(mmlsm.COMPILED, reason="C functions have no Python name; golden bytes hold them")


def hash_of(key: bytes) -> int:
    """`key_hash` written anew from docs/format.md."""
    mask = (1 << 64) - 1
    h = (len(key) + 1) * 0x9E3779B97F4A7C15 & mask
    padded = key.ljust(len(key) // 8 * 8 + 8, b"\0")
    words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
    for word in words[:-1]:
        h = (h ^ word) * 0x9E3779B97F4A7C15 & mask
        h ^= h >> 29
    h = (h ^ words[-1]) * 0x9E3779B97F4A7C15 & mask
    h ^= h >> 32
    h = h * 0xD6E8FEB86659FD93 & mask
    return h ^ h >> 32


def bits_of(key: bytes, blocks: int) -> set[int]:
    """The six bits of a filter that a key sets, counted from the filter's first bit."""
    h = hash_of(key)
    block = (h >> 32) * blocks >> 32
    g = h * 0xA0761D6478BD642F & (1 << 64) - 1
    return {block * 512 + ((g >> 9 * i & 0x1FF) >> 3) * 8 + (g >> 9 * i & 7) for i in range(6)}


def test_golden_bytes_of_a_filter() -> None:
    rig = SegmentRig()
    keys = [b"", b"a", b"12345678", b"123456789", bytes(64), b"k" * 700, *(b"%05d" % i for i in range(200))]
    record = rig.write(dict.fromkeys(keys, b""), with_filter=True).record
    assert record.filter is not None
    blocks = record.filter.length // 64
    assert blocks == len(keys) * 10 // 512 + 1
    made = rig.file.pread(record.filter.page * 4096, record.filter.length)
    expected = bytearray(len(made))
    for key in keys:
        for bit in bits_of(key, blocks):
            expected[bit // 8] |= 1 << bit % 8
    assert made == bytes(expected)
    segment_reader = rig.reader(rig.write(dict.fromkeys(keys, b""), with_filter=True))
    assert all(key in segment_reader for key in keys)


def test_golden_hashes() -> None:
    """The numbers that the formula above gives, so that not both change at once."""
    assert [hash_of(key) for key in (b"", b"a", b"12345678", b"123456789")] == HASHES
    if not mmlsm.COMPILED:
        assert [memory.key_hash(key, len(key)) for key in (b"", b"a", b"12345678", b"123456789")] == HASHES


HASHES = [
    0xB381129BD6C6369A,
    0xE5419F1B2F2FB883,
    0x9F27D3952F407454,
    0x297BAAA95443C01E,
]


def test_a_filter_lets_few_strangers_through() -> None:
    blocks = 1000 * 10 // 512 + 1
    filled: set[int] = set()
    for i in range(1000):
        filled |= bits_of(b"in %d" % i, blocks)
    strangers = sum(bits_of(b"out %d" % i, blocks) <= filled for i in range(4000))
    assert strangers < 4000 * 0.03


@interpreted
@hypothesis.given(st.binary(max_size=12), st.binary(max_size=12), st.integers(0, 3), st.integers(0, 3))
def test_compare_and_common_are_those_of_bytes(a: bytes, b: bytes, ao: int, bo: int) -> None:
    ao, bo = min(ao, len(a)), min(bo, len(b))
    x, y = a[ao:], b[bo:]
    sign = memory.compare(a, ao, len(x), b, bo, len(y))
    assert (sign > 0) - (sign < 0) == (x > y) - (x < y)
    shared = memory.common(a, len(a), b, len(b))
    assert a[:shared] == b[:shared]
    assert shared == min(len(a), len(b)) or a[shared] != b[shared]


@interpreted
@hypothesis.given(st.binary(max_size=10), st.integers(0, 10))
def test_heads_keep_the_order_and_come_back(key: bytes, at: int) -> None:
    at = min(at, len(key))
    h = memory.head(key, at, len(key))
    assert h == int.from_bytes(key[at : at + 4].ljust(4, b"\0"), "big")
    out = bytearray(at + 4)
    memory.put_head(out, at, h, len(key) - at)
    assert out[at : at + min(4, len(key) - at)] == key[at : at + 4]


@interpreted
def test_words_at_any_byte() -> None:
    rng = random.Random(1)
    for _ in range(200):
        at, small, large = rng.randrange(9), rng.randrange(1 << 32), rng.randrange(1 << 64)
        buffer = bytearray(20)
        memory.store32(buffer, at, small)
        assert memory.load32(buffer, at) == small == int.from_bytes(buffer[at : at + 4], "little")
        memory.store64(buffer, at, large)
        assert memory.load64(buffer, at) == large == int.from_bytes(buffer[at : at + 8], "little")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1026, 4096])
def test_a_buffer_has_the_size_that_was_asked_for(size: int) -> None:
    assert len(memory.Buffer(size).data) >= size
    assert len(memory.Buffer(size).data) % 8 == 0


def test_a_window_is_no_larger_than_what_is_asked_may_be_forgotten() -> None:
    """Verified bytes past a window's end are no error: a larger window was made beside it."""
    file = open_memory()
    file.resize(4)
    window = file.window(4)
    window.forget(0, 4)
    window.forget(3, 100)
    window.forget(1 << 33, 5)
    assert window.pages >= 4
