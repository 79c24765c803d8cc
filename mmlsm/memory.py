# cython: boundscheck=False, wraparound=False, binding=False
"""Byte primitives, in two spellings: interpreted here, C in memory.pxd. Nothing here knows a page format.

Any thread may call the functions. A page is read by index the same way in both modes: `m8[i]` a byte, `m16[i]` and
`m32[i]` aligned little-endian words; compiled these are C pointers, interpreted memoryviews cast once.

I1. Both modes give the same results for every function (tests/unit/test_memory.py).
I2. A `Window` is never remapped or resized; who holds it may read all pages that the file still has.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.cpython.buffer import PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING
    from cython.cimports.libc.stdlib import calloc, free, malloc

COMPILED: bool = cython.compiled
"""True where this module is the compiled one."""

PAGE_BYTES = 4096
U64 = (1 << 64) - 1


@cython.cclass
class Window:
    """A read-only map of one file from page 0 on, with one byte a page that remembers what was verified.

    `verified[page]` is 0 (not looked at), 1 (a sound leaf or parent begins here) or 2 (a sound overflow extent).
    Made by file.py only.
    """

    @staticmethod
    def reserve(fd: int, length_bytes: int) -> Window:
        """Compiled: map `length_bytes` of address space, past the end of the file if need be. OSError if refused."""
        window = Window()
        window._reserve(fd, length_bytes)
        return window

    @staticmethod
    def over(mapping: object) -> Window:
        """Wrap a read-only `mmap.mmap` of whole pages."""
        window = Window()
        window._over(mapping)
        return window

    def forget(self, first: cython.Py_ssize_t, count: cython.Py_ssize_t) -> None:
        """What these pages held is no longer known to be sound. Called when they are reserved."""
        if first < self.pages:
            fill(self.verified, first, 0, min(count, self.pages - first))

    if cython.compiled:

        def _reserve(self, fd: cython.int, length_bytes: cython.size_t):
            self.m8 = cython.cast("u8s", mm_map(fd, length_bytes))  # noqa: F821
            if self.m8 == cython.NULL:
                raise OSError(12, "the operating system refused the address space for the map")
            self._length = length_bytes
            self.pages = length_bytes // PAGE_BYTES
            self.m16 = cython.cast("u16s", self.m8)
            self.m32 = cython.cast("u32s", self.m8)
            # Not calloc, which may hand out used memory and fill it with zeros: for 64 GiB of file that is 16 MiB.
            self.verified = cython.cast("u8w", mm_zeros(self.pages + 1))  # noqa: F821
            if self.verified == cython.NULL:
                raise MemoryError

        def __dealloc__(self):
            if self.m8 != cython.NULL:
                mm_unmap(cython.cast("void *", self.m8), self._length)  # noqa: F821
            if self.verified != cython.NULL:
                mm_unmap(cython.cast("void *", self.verified), self.pages + 1)  # noqa: F821
    else:

        def _over(self, mapping):
            self.mapping = mapping
            self.m8 = memoryview(mapping)
            self.m16 = self.m8.cast("H")
            self.m32 = self.m8.cast("I")
            self.pages = len(self.m8) // PAGE_BYTES
            self.verified = bytearray(self.pages)


@cython.no_gc_clear
@cython.cclass
class Buffer:
    """A writable block of bytes of fixed size; `data` is its bytearray for callers that do I/O."""

    def __init__(self, size: cython.Py_ssize_t) -> None:
        self.data = bytearray(-(-size // 8) * 8)  # whole words, for m16 and m32
        self.size = size
        if cython.compiled:
            PyObject_GetBuffer(self.data, cython.address(self._buffer), PyBUF_WRITABLE)
            self.m8 = cython.cast("u8w", self._buffer.buf)
            self.m16 = cython.cast("u16w", self._buffer.buf)
            self.m32 = cython.cast("u32w", self._buffer.buf)
        else:
            self.m8 = memoryview(self.data)
            self.m16 = self.m8.cast("H")
            self.m32 = self.m8.cast("I")

    if cython.compiled:

        def __dealloc__(self):
            PyBuffer_Release(cython.address(self._buffer))


@cython.cclass
class Int64s:
    """A fixed array of integers, zero at first, read and written as `array.at[i]`."""

    def __init__(self, size: cython.Py_ssize_t) -> None:
        self.size = size
        if cython.compiled:
            self.at = cython.cast("i64w", calloc(size + 1, 8))
            if self.at == cython.NULL:
                raise MemoryError
        else:
            self.at = [0] * size

    if cython.compiled:

        def __dealloc__(self):
            free(self.at)


@cython.cclass
class Pointers:
    """A fixed array of byte strings that somebody else owns, read and written as `array.at[i]`."""

    def __init__(self, size: cython.Py_ssize_t) -> None:
        if cython.compiled:
            self.at = cython.cast("u8ps", calloc(size + 1, 8))
            if self.at == cython.NULL:
                raise MemoryError
        else:
            self.at = [b""] * size

    if cython.compiled:

        def __dealloc__(self):
            free(self.at)


if not cython.compiled:
    from bisect import bisect_left as lower_bound
    from bisect import bisect_right as upper_bound

    def compare(a, ao, an, b, bo, bn):
        """Less than, equal to or more than 0, as a[ao:ao + an] stands to b[bo:bo + bn] bytewise."""
        x = bytes(a[ao : ao + an])
        y = bytes(b[bo : bo + bn])
        return (x > y) - (x < y)

    def common(a, an, b, bn):
        """How many leading bytes a[:an] and b[:bn] share."""
        n = min(an, bn)
        x = bytes(a[:n])
        y = bytes(b[:n])
        if x == y:
            return n
        difference = int.from_bytes(x, "big") ^ int.from_bytes(y, "big")
        return n - (difference.bit_length() + 7) // 8

    def prefetch(v, i):
        """Ask for the cache line of v[i]; does nothing here."""

    def head(key, at, key_bytes):
        """The 4 key bytes from `at` on, zero-padded, as a big-endian number."""
        return int.from_bytes(bytes(key[at : min(at + 4, key_bytes)]).ljust(4, b"\0"), "big")

    def put_head(to, at, h, n):
        """Write the first `n` (at most 4) of the bytes of which `h` is the head."""
        n = min(n, 4)
        to[at : at + n] = h.to_bytes(4, "big")[:n]

    def load32(a, i):
        """The little-endian u32 at byte i, aligned or not."""
        return int.from_bytes(a[i : i + 4], "little")

    def load64(a, i):
        """The little-endian u64 at byte i, aligned or not."""
        return int.from_bytes(a[i : i + 8], "little")

    def store32(a, i, x):
        """Write x as a little-endian u32 at byte i."""
        a[i : i + 4] = x.to_bytes(4, "little")

    def store64(a, i, x):
        """Write x as a little-endian u64 at byte i."""
        a[i : i + 8] = x.to_bytes(8, "little")

    def copy(to, at, source, start, n):
        """to[at:at + n] = source[start:start + n]; the two do not overlap."""
        to[at : at + n] = source[start : start + n]

    def fill(to, at, value, n):
        """Set n bytes from `at` on to `value`."""
        to[at : at + n] = bytes([value]) * n

    def at(a, i):
        """`a` from byte i on, without a copy."""
        return memoryview(a)[i:]

    def part(a, i):
        """The writable `a` from byte i on, without a copy."""
        return a[i:]

    def cut(v, lo, hi):
        """v[lo:hi] as bytes."""
        return bytes(v[lo:hi])

    def key_hash(key, key_bytes):
        """A 64-bit hash of key[:key_bytes] for filters: multiply and shift by words. Part of the file format."""
        m = 0x9E3779B97F4A7C15
        h = (key_bytes + 1) * m & U64
        whole = key_bytes & ~7
        for i in range(0, whole, 8):
            h = (h ^ int.from_bytes(key[i : i + 8], "little")) * m & U64
            h ^= h >> 29
        h = (h ^ int.from_bytes(key[whole:key_bytes], "little")) * m & U64
        h ^= h >> 32
        h = h * 0xD6E8FEB86659FD93 & U64
        return h ^ h >> 32

    def filter_add(bits, at, blocks, h):
        """Set the six bits of hash `h` in one 64-byte block of a blocked Bloom filter.

        Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters (2007).
        """
        block = at + 64 * ((h >> 32) * blocks >> 32)
        g = h * 0xA0761D6478BD642F & U64
        for _ in range(6):
            bits[block + (g >> 3 & 63)] |= 1 << (g & 7)
            g >>= 9

    def filter_holds(bits, at, blocks, h):
        """False when no key of hash `h` was added."""
        block = at + 64 * ((h >> 32) * blocks >> 32)
        g = h * 0xA0761D6478BD642F & U64
        for _ in range(6):
            if not bits[block + (g >> 3 & 63)] >> (g & 7) & 1:
                return False
            g >>= 9
        return True
