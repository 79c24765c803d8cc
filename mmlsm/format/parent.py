# cython: boundscheck=False, wraparound=False, binding=False, cdivision=True
"""Reading parents in place: separators and children (docs/format.md, "Parent").

    header 32 | prefix, padded to 8 | u32 head[n] | u32 child[n] | padded to 8 | u64 sum[n] | u64 entries[n]
    | u8 pages[n] | u8 physical[n] | u8 flags[n] | padded to 2 | u16 offset[n + 1] | tails

Child i holds the keys k with separator[i] <= k < separator[i + 1]; separator[0] is below every key and not stored.
The prefix is common to separators 1 to n - 1. `flags[i]` bits 0-2: how many bytes of separator i stand in its head
(0 to 4), 5 when more follow in its tail; bit 3: overflow extents below; bit 4: the tail ends with a reference to an
extent that holds the separator as its beginning, and its length. Any thread; the caller holds the version.

I1. Only pages that passed `fault_code` are read by the others, so no index leaves the page.
I2. A search that meets no tie reads heads and child numbers only.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t, uint32_t
    from cython.cimports.mmlsm.format.leaf import UNTOUCHED, reference_fault
    from cython.cimports.mmlsm.memory import (
        Window,
        compare,
        cut,
        head,
        load32,
        load64,
        lower_bound,
        u8s,
        u16s,
        u32s,
        upper_bound,
    )
else:
    from mmlsm.format.leaf import UNTOUCHED, reference_fault
    from mmlsm.memory import Window, compare, cut, head, load32, load64, lower_bound, upper_bound


def sums_at(w, base):
    """Byte offset in the file of sum[0]."""
    m16: u16s = w.m16
    n: int64_t = m16[(base >> 1) + 2]
    prefix: int64_t = m16[(base >> 1) + 3]
    return base + ((32 + ((prefix + 7) & ~7) + 8 * n + 7) & ~7)


def child_page(w, base, i):
    """Page number of child i."""
    m16: u16s = w.m16
    m32: u32s = w.m32
    return m32[((base + 32 + ((m16[(base >> 1) + 3] + 7) & ~7)) >> 2) + m16[(base >> 1) + 2] + i]


def child_sum(w, base, i):
    """Checksum of child i."""
    return load64(w.m8, sums_at(w, base) + 8 * i)


def child_entries(w, base, i):
    """Entries below child i."""
    m16: u16s = w.m16
    n: int64_t = m16[(base >> 1) + 2]
    return cython.cast("int64_t", load64(w.m8, sums_at(w, base) + 8 * (n + i)))


def child_pages(w, base, i):
    """Pages that child i takes."""
    m16: u16s = w.m16
    n: int64_t = m16[(base >> 1) + 2]
    return w.m8[sums_at(w, base) + 16 * n + i]


def child_overflow(w, base, i):
    """Whether overflow extents are referred to at or below child i."""
    m16: u16s = w.m16
    n: int64_t = m16[(base >> 1) + 2]
    return (w.m8[sums_at(w, base) + 18 * n + i] & 8) != 0


def separator_reference_at(w, base, i):
    """Byte offset of the reference of separator i, or 0 when it is inline; its u16 length follows the 24 bytes."""
    m8: u8s = w.m8
    m16: u16s = w.m16
    n: int64_t = m16[(base >> 1) + 2]
    flags: int64_t = sums_at(w, base) + 18 * n
    offsets: int64_t = (flags + n + 1) >> 1
    if not m8[flags + i] & 16:
        return 0
    return base + m16[offsets + i + 1] - 26


def compare_separator(w, base, i, key, key_bytes):
    """The sign of (separator i - key), given that they agree in prefix and head; UNTOUCHED as in `search`."""
    m8: u8s = w.m8
    m16: u16s = w.m16
    n: int64_t = m16[(base >> 1) + 2]
    prefix: cython.Py_ssize_t = m16[(base >> 1) + 3]
    flags: int64_t = sums_at(w, base) + 18 * n
    offsets: int64_t = (flags + n + 1) >> 1
    start: int64_t = base + m16[offsets + i]
    tail: cython.Py_ssize_t = base + m16[offsets + i + 1] - start
    sought: cython.Py_ssize_t = key_bytes - prefix
    code: cython.Py_ssize_t = m8[flags + i] & 7
    c: cython.int
    page: int64_t
    if code <= 4:
        return (code > sought) - (code < sought)
    if sought <= 4:
        return 1
    if not m8[flags + i] & 16:
        return compare(m8, start, tail, key, prefix + 4, sought - 4)
    tail -= 26
    if sought - 4 <= tail:
        c = compare(m8, start, sought - 4, key, prefix + 4, sought - 4)
        return c if c else 1
    c = compare(m8, start, tail, key, prefix + 4, tail)
    if c:
        return c
    page = load32(m8, start + tail + 8)
    if w.verified[page] != 2:
        return UNTOUCHED
    tail = m8[start + tail + 24] | m8[start + tail + 25] << 8
    return compare(m8, page << 12, tail, key, 0, key_bytes)


def search(w, base, key, key_bytes):
    """The child in whose range `key` lies; UNTOUCHED - i when separator i's extent must be verified first."""
    m8: u8s = w.m8
    m16: u16s = w.m16
    m32: u32s = w.m32
    n: cython.Py_ssize_t = m16[(base >> 1) + 2]
    prefix: cython.Py_ssize_t = m16[(base >> 1) + 3]
    heads: cython.Py_ssize_t = (base + 32 + ((prefix + 7) & ~7)) >> 2
    low: cython.Py_ssize_t
    high: cython.Py_ssize_t
    middle: cython.Py_ssize_t
    c: cython.int
    h: uint32_t
    if prefix:
        c = compare(m8, base + 32, prefix, key, 0, prefix if prefix < key_bytes else key_bytes)
        if c:
            return 0 if c > 0 else n - 1
    h = head(key, prefix, key_bytes)
    high = upper_bound(m32, h, heads + 1, heads + n) - heads
    if high == 1 or m32[heads + high - 1] != h:
        return high - 1
    low = high - 1
    if low > 1 and m32[heads + low - 1] == h:
        low = lower_bound(m32, h, heads + 1, heads + low) - heads
    while low < high:
        middle = (low + high) >> 1
        c = compare_separator(w, base, middle, key, key_bytes)
        if c == UNTOUCHED:
            return UNTOUCHED - middle
        if c <= 0:
            low = middle + 1
        else:
            high = middle
    return low - 1


def fault_code(m8, size, limit, key_max):
    """0, or what is wrong with the `size` bytes of a parent at m8 in a file of `limit` pages, with separators of up to
    `key_max` bytes inline."""
    n: cython.Py_ssize_t
    prefix: cython.Py_ssize_t
    children: cython.Py_ssize_t
    sums: cython.Py_ssize_t
    offsets: cython.Py_ssize_t
    used: cython.Py_ssize_t
    i: cython.Py_ssize_t
    start: cython.Py_ssize_t
    end: cython.Py_ssize_t
    length: cython.Py_ssize_t
    page: int64_t
    flag: cython.int
    if size < 4096:
        return 3
    if m8[0] != 2:
        return 1
    if m8[1] != 0:
        return 2
    if m8[2] * 4096 != size:
        return 3
    if m8[3] < 1 or m8[3] > 24:
        return 4
    n = m8[4] | m8[5] << 8
    prefix = m8[6] | m8[7] << 8
    used = load32(m8, 16)
    if m8[20] != 8 or m8[21] != 0:
        return 13
    if n < 1 or n > 8192:
        return 5
    children = 32 + ((prefix + 7) & ~7) + 4 * n
    sums = (children + 4 * n + 7) & ~7
    offsets = (sums + 19 * n + 1) & ~1
    if used > size or offsets + 2 * (n + 1) > used:
        return 6
    start = m8[offsets] | m8[offsets + 1] << 8
    if start != offsets + 2 * (n + 1):
        return 7
    for i in range(n):
        page = load32(m8, children + 4 * i)
        flag = m8[sums + 16 * n + i]
        if flag < 1 or flag > 8 or m8[sums + 17 * n + i] != flag or page < 3 or page + flag > limit:
            return 15
        if load64(m8, sums + 8 * (n + i)) >> 48:  # more entries than a file has room for
            return 15
        end = m8[offsets + 2 * i + 2] | m8[offsets + 2 * i + 3] << 8
        if end < start or end > used:
            return 7
        flag = m8[sums + 18 * n + i]
        if (flag & 7) > 5 or flag & 0xE0:
            return 14
        length = end - start
        if (flag & 7) < 5:
            if length or flag & 16 or (i and prefix + (flag & 7) > key_max):
                return 14
        elif flag & 16:
            if length < 26 or reference_fault(m8, end - 26, limit):
                return 14
            length = m8[end - 2] | m8[end - 1] << 8
            if load64(m8, end - 26) > 65535 or length > cython.cast(cython.Py_ssize_t, load64(m8, end - 26)):
                return 14
            if prefix + 4 + end - start - 26 != 128 or length <= 128:
                return 14
        elif length < 1 or prefix + 4 + length > key_max:
            return 14
        start = end
    return 0 if start == used else 7


def children_of(w: Window, page: int64_t) -> list:
    """(separator's inline part, packed reference or b"", its whole length, page, pages, sum, entries, overflow below).

    Of a proved parent; for check.py and the command line.
    """
    base: int64_t = page << 12
    m8: u8s = w.m8
    m16: u16s = w.m16
    m32: u32s = w.m32
    n: cython.Py_ssize_t = m16[(base >> 1) + 2]
    prefix: cython.Py_ssize_t = m16[(base >> 1) + 3]
    heads: cython.Py_ssize_t = (base + 32 + ((prefix + 7) & ~7)) >> 2
    flags: int64_t = sums_at(w, base) + 18 * n
    offsets: int64_t = (flags + n + 1) >> 1
    shared: bytes = cut(m8, base + 32, base + 32 + prefix)
    i: cython.Py_ssize_t
    code: cython.int
    found: list = []
    for i in range(n):
        code = m8[flags + i] & 7
        word: object = m32[heads + i]
        key = shared + word.to_bytes(4, "big")[: 4 if code > 4 else code] if i else b""
        tail: bytes = cut(m8, base + m16[offsets + i], base + m16[offsets + i + 1])
        reference = b""
        whole = len(key) + len(tail)
        if m8[flags + i] & 16:
            whole = int.from_bytes(tail[len(tail) - 2 :], "little")
            reference = tail[len(tail) - 26 : len(tail) - 2]
            tail = tail[: len(tail) - 26]
        found.append(
            (
                key + tail,
                reference,
                whole,
                child_page(w, base, i),
                child_pages(w, base, i),
                child_sum(w, base, i),
                child_entries(w, base, i),
                child_overflow(w, base, i),
            )
        )
    return found
