# cython: boundscheck=False, wraparound=False, binding=False, cdivision=True
"""Reading leaves in place: sorted entries of one 1-8 page node (docs/format.md, "Leaf").

    header 32 | prefix, padded to 4 | u32 head[n] | u16 offset[n + 1] | entries
    entry: u8 kind | varint suffix bytes | suffix after its first 4 bytes | [24-byte key reference] | value

`head[i]` is the key's next 4 bytes after the page's prefix. A page is named by `base`, its byte offset in the file.
Any thread, with or without the GIL; the caller holds the version that owns the page.

I1. Only pages that passed `fault_code` are read by the others, so no index leaves the page.
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.stdint import int64_t, uint32_t
    from cython.cimports.mmlsm.memory import (
        Buffer,
        Window,
        compare,
        copy,
        cut,
        head,
        load32,
        load64,
        lower_bound,
        put_head,
        u8s,
        u16s,
        u32s,
        upper_bound,
    )
else:
    from mmlsm.memory import (
        Buffer,
        Window,
        compare,
        copy,
        cut,
        head,
        load32,
        load64,
        lower_bound,
        put_head,
        upper_bound,
    )

    UNTOUCHED = -2
    """A search result: an overflow key must be verified first; `UNTOUCHED - i` names entry i."""


def heads_at(w, base):
    """Index into m32 of head[0]."""
    m16: u16s = w.m16
    return (base + 32 + ((m16[(base >> 1) + 3] + 3) & ~3)) >> 2


def entry_at(w, base, i):
    """Byte offset in the file of entry i."""
    m16: u16s = w.m16
    n: cython.Py_ssize_t = m16[(base >> 1) + 2]
    return base + m16[2 * (heads_at(w, base) + n) + i]


def entry_end(w, base, i):
    """Byte offset in the file of the end of entry i."""
    m16: u16s = w.m16
    n: cython.Py_ssize_t = m16[(base >> 1) + 2]
    return base + m16[2 * (heads_at(w, base) + n) + i + 1]


def key_reference_at(w, entry):
    """Byte offset of the key reference of an entry whose key overflows; of the value of any other."""
    m8: u8s = w.m8
    suffix: cython.Py_ssize_t = m8[entry + 1]
    entry += 2
    if suffix >= 0x80:
        suffix = (suffix & 0x7F) | (m8[entry] << 7)
        entry += 1
    return entry + (suffix - 4 if suffix > 4 else 0)


def value_at(w, entry):
    """Byte offset of the value (or of its 24-byte reference) of the entry at `entry`."""
    m8: u8s = w.m8
    start: int64_t = key_reference_at(w, entry)
    return start + 24 if m8[entry] & 0x10 else start


def load_key(w, base, i, out):
    """Write the inline part of entry i's key to `out`; its length."""
    m8: u8s = w.m8
    m16: u16s = w.m16
    m32: u32s = w.m32
    prefix: cython.Py_ssize_t = m16[(base >> 1) + 3]
    heads: cython.Py_ssize_t = heads_at(w, base)
    entry: int64_t = base + m16[2 * (heads + m16[(base >> 1) + 2]) + i]
    suffix: cython.Py_ssize_t = m8[entry + 1]
    entry += 2
    if suffix >= 0x80:
        suffix = (suffix & 0x7F) | (m8[entry] << 7)
        entry += 1
    if prefix:
        copy(out, 0, m8, base + 32, prefix)
    put_head(out, prefix, m32[heads + i], suffix)
    if suffix > 4:
        copy(out, prefix + 4, m8, entry, suffix - 4)
    return prefix + suffix


def compare_entry(w, base, i, key, key_bytes):
    """The sign of (entry i's key - key), given that they agree in prefix and head; UNTOUCHED as in `search`."""
    m8: u8s = w.m8
    m16: u16s = w.m16
    prefix: cython.Py_ssize_t = m16[(base >> 1) + 3]
    entry: int64_t = entry_at(w, base, i)
    kind: cython.Py_ssize_t = m8[entry]
    suffix: cython.Py_ssize_t = m8[entry + 1]
    sought: cython.Py_ssize_t = key_bytes - prefix
    c: cython.int
    page: int64_t
    entry += 2
    if suffix >= 0x80:
        suffix = (suffix & 0x7F) | (m8[entry] << 7)
        entry += 1
    if not kind & 0x10:
        if suffix <= 4 or sought <= 4:
            return (suffix > sought) - (suffix < sought)
        return compare(m8, entry, suffix - 4, key, prefix + 4, sought - 4)
    if sought <= suffix:
        c = compare(m8, entry, sought - 4, key, prefix + 4, sought - 4) if sought > 4 else 0
        return c if c else 1
    c = compare(m8, entry, suffix - 4, key, prefix + 4, suffix - 4)
    if c:
        return c
    entry += suffix - 4
    page = load32(m8, entry + 8)
    if w.verified[page] != 2:
        return UNTOUCHED
    return compare(m8, page << 12, cython.cast(cython.Py_ssize_t, load64(m8, entry)), key, 0, key_bytes)


def search(w, base, key, key_bytes):
    """2 * i + equal for the first entry i with a key >= `key`; at most UNTOUCHED for an unverified overflow key."""
    m8: u8s = w.m8
    m16: u16s = w.m16
    m32: u32s = w.m32
    n: cython.Py_ssize_t = m16[(base >> 1) + 2]
    prefix: cython.Py_ssize_t = m16[(base >> 1) + 3]
    heads: cython.Py_ssize_t = (base + 32 + ((prefix + 3) & ~3)) >> 2
    low: cython.Py_ssize_t
    high: cython.Py_ssize_t
    middle: cython.Py_ssize_t
    c: cython.int
    h: uint32_t
    if prefix:
        c = compare(m8, base + 32, prefix, key, 0, prefix if prefix < key_bytes else key_bytes)
        if c:
            return 0 if c > 0 else 2 * n
    h = head(key, prefix, key_bytes)
    low = lower_bound(m32, h, heads, heads + n) - heads
    if low == n or m32[heads + low] != h:
        return 2 * low
    high = low + 1
    if high < n and m32[heads + high] == h:
        high = upper_bound(m32, h, heads + high, heads + n) - heads
    while low < high:
        middle = (low + high) >> 1
        c = compare_entry(w, base, middle, key, key_bytes)
        if c == 0:
            return 2 * middle + 1
        if c == UNTOUCHED:
            return UNTOUCHED - middle
        if c < 0:
            low = middle + 1
        else:
            high = middle
    return 2 * low


def reference_fault(m8, at, limit):
    """0, or the fault code of the 24-byte overflow reference at m8[at] in a file of `limit` pages."""
    length: int64_t = cython.cast("int64_t", load64(m8, at))
    pages: int64_t = load32(m8, at + 12)
    aim: int64_t
    if length <= 0 or length > (cython.cast("int64_t", 1) << 44):
        return 12
    if length <= 65536:
        aim = (length + 4095) >> 12
    else:
        aim = (((length + 7) & ~7) + 8 * ((length + 65535) >> 16) + 4095) >> 12
    if pages != aim or load32(m8, at + 8) < 3 or load32(m8, at + 8) + pages > limit:
        return 12
    return 0


def fault_code(m8, size, limit, key_max):
    """0, or what is wrong with the `size` bytes of a leaf at m8, in a file of `limit` pages, with keys of up to
    `key_max` bytes inline.

    Afterwards every reader stays inside the page.
    """
    n: cython.Py_ssize_t
    prefix: cython.Py_ssize_t
    offsets: cython.Py_ssize_t
    used: cython.Py_ssize_t
    i: cython.Py_ssize_t
    start: cython.Py_ssize_t
    end: cython.Py_ssize_t
    suffix: cython.Py_ssize_t
    kind: cython.Py_ssize_t
    if size < 4096:
        return 3
    if m8[0] != 1:
        return 1
    if m8[1] != 0:
        return 2
    if m8[2] * 4096 != size:
        return 3
    if m8[3] != 0:
        return 4
    n = m8[4] | m8[5] << 8
    prefix = m8[6] | m8[7] << 8
    used = load32(m8, 16)
    if n < 1 or n > 8192:
        return 5
    offsets = 32 + ((prefix + 3) & ~3) + 4 * n
    if used > size or offsets + 2 * (n + 1) > used or prefix > 32768:
        return 6
    start = m8[offsets] | m8[offsets + 1] << 8
    if start != offsets + 2 * (n + 1):
        return 7
    for i in range(1, n + 1):
        end = m8[offsets + 2 * i] | m8[offsets + 2 * i + 1] << 8
        if end < start + 2 or end > used:
            return 7
        kind = m8[start]
        suffix = m8[start + 1]
        start += 2
        if suffix >= 0x80:
            if start >= end or m8[start] >= 0x80:
                return 10
            suffix = (suffix & 0x7F) | (m8[start] << 7)
            start += 1
        if prefix + suffix > key_max:
            return 10
        if suffix > 4:
            start += suffix - 4
        if kind & 0x10:
            kind ^= 0x10
            if prefix + suffix != 128 or suffix < 4 or start + 24 > end:
                return 10
            if reference_fault(m8, start, limit) or load64(m8, start) > 65535 or load64(m8, start) <= 128:
                return 12
            start += 24
        if start > end:
            return 9
        if kind == 1:
            if start != end:
                return 11
        elif kind == 2:
            if end - start != 24 or reference_fault(m8, start, limit):
                return 12
        elif kind != 0:
            return 8
        start = end
    return 0 if start == used else 7


def entries_of(w: Window, page: int64_t) -> list:
    """(inline key, kind with KEY_OVERFLOW, packed key reference or b"", value or packed reference) of a proved leaf.

    For check.py and the command line: a list of small objects, not for hot paths.
    """
    base: int64_t = page << 12
    m8: u8s = w.m8
    n: cython.Py_ssize_t = w.m16[(base >> 1) + 2]
    i: cython.Py_ssize_t
    entry: int64_t
    start: int64_t
    size: cython.Py_ssize_t
    scratch: Buffer = Buffer(8200)
    found: list = []
    for i in range(n):
        entry = entry_at(w, base, i)
        size = load_key(w, base, i, scratch.m8)
        start = key_reference_at(w, entry)
        found.append(
            (
                bytes(scratch.data[:size]),
                m8[entry],
                cut(m8, start, start + 24) if m8[entry] & 0x10 else b"",
                cut(m8, value_at(w, entry), entry_end(w, base, i)),
            )
        )
    return found
