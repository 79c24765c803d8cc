# cython: boundscheck=False, wraparound=False, binding=False, cdivision=True
"""Builds leaves from entries in key order, many to a buffer, without touching a Python object per entry.

One thread owns a LeafWriter; `add` and `finish_leaf` run without the GIL. The owner drains `out` (finished leaves one
after the other, each a whole number of pages) whenever `add` answers DRAIN, and calls `drained`.

I1. `heap_bytes` is exact for the current prefix, so a leaf is cut exactly when the next entry does not fit.
I2. Keys come strictly ascending (asserted by the owner's tests and by check.py, not per entry).
I3. `separators` holds for each finished leaf the shortest string above the leaf before and not above its first key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython

if cython.compiled:

    from cython.cimports.mmlsm.memory import (
        Buffer,
        Int64s,
        common,
        copy,
        fill,
        filter_add,
        head,
        key_hash,
        store32,
        store64,
        u8w,
    )
else:
    from mmlsm.memory import (
        Buffer,
        Int64s,
        common,
        copy,
        fill,
        filter_add,
        head,
        key_hash,
        store32,
        store64,
    )

    ADDED = 0
    DRAIN = 1
    LEAVES_A_BATCH = 256
    OUT_BYTES = 1048576
    STAGE_BYTES = 2097152
    SEPARATORS_BYTES = 524288

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = b""


@cython.final
@cython.cclass
class LeafWriter:
    """Collects entries into leaves of at most `leaf_bytes`; see the module's text for the protocol.

    `filter_bits`, when given, is a buffer of whole 64-byte blocks that receives each key's hash.
    """

    def __init__(
        self, leaf_bytes: int, birth: int, entries_max: int = 8192, filter_bits: Buffer | None = None
    ) -> None:
        self.leaf_bytes = self.limit = leaf_bytes
        self.key_max = leaf_bytes // 8
        self.value_max = leaf_bytes // 4
        self.entries_max = entries_max
        self.birth = birth
        self.out = Buffer(OUT_BYTES)
        self.stage = Buffer(STAGE_BYTES)
        self.key_at = Int64s(entries_max)
        self.key_bytes = Int64s(entries_max)
        self.value_at = Int64s(entries_max)
        self.value_bytes = Int64s(entries_max)
        self.kinds = Int64s(entries_max)
        self.first_key = Buffer(65536)
        self.last_key = Buffer(65536)
        self.previous_key = Buffer(65536)
        self.lowest = Buffer(65536)
        self.lowest_bytes = 0
        self.has_previous = False
        self.leaf_at = Int64s(LEAVES_A_BATCH + 1)
        self.separator_at = Int64s(LEAVES_A_BATCH)
        self.separator_bytes = Int64s(LEAVES_A_BATCH)
        self.separator_full = Int64s(LEAVES_A_BATCH)
        self.separators = Buffer(SEPARATORS_BYTES)
        self.filter_bits = filter_bits
        self.spilled_key = self.spilled_reference = NOTHING
        self.filter_blocks = filter_bits.size // 64 if filter_bits is not None else 0
        self.out_used = self.leaves = self.entries = self.tombstones = self.data_bytes = 0
        self.staged = self.count = self.prefix = self.heap_bytes = self.tombstones_here = self.separators_used = 0
        self.overflow_here = False
        self.first_key_bytes = self.last_key_bytes = self.previous_key_bytes = 0

    def heap_with_prefix(self, prefix):
        """Bytes that the entries collected so far take in the heap under this page prefix."""
        total: cython.Py_ssize_t = 0
        i: cython.Py_ssize_t
        suffix: cython.Py_ssize_t
        for i in range(self.count):
            suffix = self.key_bytes.at[i] - prefix
            total += 2 + (suffix >= 128) + (suffix - 4 if suffix > 4 else 0) + self.value_bytes.at[i]
            if self.kinds.at[i] & 0x10:
                total += 24
        return total

    def remember_key(self, key, key_bytes):
        """Keep whole what the separators need: the leaf's first key and its last so far."""
        if self.count == 0:
            copy(self.first_key.m8, 0, key, 0, key_bytes)
            self.first_key_bytes = key_bytes
            if not self.has_previous:
                copy(self.lowest.m8, 0, key, 0, key_bytes)
                self.lowest_bytes = key_bytes
        copy(self.last_key.m8, 0, key, 0, key_bytes)
        self.last_key_bytes = key_bytes

    def add(self, kind, key, key_bytes, reference, value, value_bytes):
        """Add one entry, or answer DRAIN and add nothing: the buffer is full.

        `key` is whole. `reference` is read (24 bytes) only where `kind` has KEY_OVERFLOW; then 128 bytes stay inline.
        """
        inline: cython.Py_ssize_t = 128 if kind & 0x10 else key_bytes
        prefix: cython.Py_ssize_t
        heap: cython.Py_ssize_t
        suffix: cython.Py_ssize_t
        n: cython.Py_ssize_t = self.count
        extra: cython.Py_ssize_t = 24 if kind & 0x10 else 0
        if n == 0:
            prefix = inline
        else:
            prefix = common(self.stage.m8, self.key_bytes.at[0], key, inline)
            if prefix > self.prefix:
                prefix = self.prefix
        if kind & 0x10 and prefix > 124:
            prefix = 124
        heap = self.heap_bytes if prefix == self.prefix else self.heap_with_prefix(prefix)
        suffix = inline - prefix
        heap += 2 + (suffix >= 128) + (suffix - 4 if suffix > 4 else 0) + extra + value_bytes
        if n and (
            n >= self.entries_max
            or 32 + ((prefix + 3) & ~3) + 6 * (n + 1) + 2 + heap > self.limit
            or self.staged + inline + extra + value_bytes > STAGE_BYTES
        ):
            if self.finish_leaf() == DRAIN:
                return DRAIN
            return self.add(kind, key, key_bytes, reference, value, value_bytes)
        self.remember_key(key, key_bytes)
        self.prefix = prefix
        self.heap_bytes = heap
        self.kinds.at[n] = kind
        self.key_at.at[n] = self.staged
        self.key_bytes.at[n] = inline
        copy(self.stage.m8, self.staged, key, 0, inline)
        self.staged += inline
        if extra:
            copy(self.stage.m8, self.staged, reference, 0, 24)
            self.staged += 24
        self.value_at.at[n] = self.staged
        self.value_bytes.at[n] = value_bytes
        if value_bytes:
            copy(self.stage.m8, self.staged, value, 0, value_bytes)
            self.staged += value_bytes
        if kind & 0x12:
            self.overflow_here = True
        if kind & 15 == 1:
            self.tombstones_here += 1
        if self.filter_blocks:
            filter_add(self.filter_bits.m8, 0, self.filter_blocks, key_hash(key, key_bytes))
        self.data_bytes += key_bytes + value_bytes
        self.count = n + 1
        return ADDED

    def note_separator(self, cut):
        """Keep the first `cut` bytes of the leaf's first key as its separator; the very first leaf needs none."""
        i: cython.Py_ssize_t = self.leaves
        self.separator_at.at[i] = self.separators_used
        self.separator_full.at[i] = 0
        if not self.has_previous:
            cut = 0
        if cut > self.key_max:
            self.separator_full.at[i] = cut
            cut = 128
            copy(self.separators.m8, self.separators_used + 128, self.stage.m8, 128, 24)
            self.separators_used += 24
        copy(self.separators.m8, self.separator_at.at[i], self.first_key.m8, 0, cut)
        self.separator_bytes.at[i] = cut
        self.separators_used += cut

    def finish_leaf(self):
        """Lay the collected entries out as a leaf in `out`; DRAIN, with nothing done, when there is no room for it."""
        n: cython.Py_ssize_t = self.count
        prefix: cython.Py_ssize_t = self.prefix
        heads: cython.Py_ssize_t
        offsets: cython.Py_ssize_t
        start: cython.Py_ssize_t
        used: cython.Py_ssize_t
        size: cython.Py_ssize_t
        i: cython.Py_ssize_t
        key: cython.Py_ssize_t
        suffix: cython.Py_ssize_t
        cut: cython.Py_ssize_t
        extra: cython.Py_ssize_t
        out: u8w = self.out.m8
        stage: u8w = self.stage.m8
        at: cython.Py_ssize_t = self.out_used
        h: cython.uint
        if n == 0:
            return ADDED
        cut = common(self.previous_key.m8, self.previous_key_bytes, self.first_key.m8, self.first_key_bytes) + 1
        if (
            self.leaves >= LEAVES_A_BATCH
            or at + ((self.open_bytes() + 4095) & ~4095) > OUT_BYTES
            or self.separators_used + cut + 24 > SEPARATORS_BYTES
        ):
            return DRAIN
        heads = 32 + ((prefix + 3) & ~3)
        offsets = heads + 4 * n
        start = offsets + 2 * (n + 1)
        used = start + self.heap_bytes
        size = (used + 4095) & ~4095
        fill(out, at, 0, heads)
        fill(out, at + used, 0, size - used)
        out[at] = 1
        out[at + 2] = size >> 12
        store32(out, at + 4, n | prefix << 16)
        store64(out, at + 8, self.birth)
        store32(out, at + 16, used)
        out[at + 20] = self.tombstones_here & 255
        out[at + 21] = self.tombstones_here >> 8
        out[at + 22] = 1 if self.overflow_here else 0
        copy(out, at + 32, stage, 0, prefix)
        for i in range(n):
            key = self.key_at.at[i]
            suffix = self.key_bytes.at[i] - prefix
            extra = 24 if self.kinds.at[i] & 0x10 else 0
            h = head(stage, key + prefix, key + prefix + suffix)
            store32(out, at + heads + 4 * i, h)
            out[at + offsets + 2 * i] = start & 255
            out[at + offsets + 2 * i + 1] = start >> 8
            out[at + start] = self.kinds.at[i]
            if suffix < 128:
                out[at + start + 1] = suffix
                start += 2
            else:
                out[at + start + 1] = (suffix & 127) | 128
                out[at + start + 2] = suffix >> 7
                start += 3
            if suffix > 4:
                copy(out, at + start, stage, key + prefix + 4, suffix - 4)
                start += suffix - 4
            copy(out, at + start, stage, self.value_at.at[i] - extra, extra + self.value_bytes.at[i])
            start += extra + self.value_bytes.at[i]
        out[at + offsets + 2 * n] = start & 255
        out[at + offsets + 2 * n + 1] = start >> 8
        self.leaf_at.at[self.leaves] = at
        self.leaf_at.at[self.leaves + 1] = at + size
        self.out_used = at + size
        self.note_separator(cut)
        self.leaves += 1
        self.entries += n
        self.tombstones += self.tombstones_here
        copy(self.previous_key.m8, 0, self.last_key.m8, 0, self.last_key_bytes)
        self.previous_key_bytes = self.last_key_bytes
        self.has_previous = True
        self.staged = self.count = self.prefix = self.heap_bytes = self.tombstones_here = 0
        self.overflow_here = False
        self.limit = self.leaf_bytes
        return ADDED

    def drained(self) -> None:
        """The owner has taken all finished leaves out of `out`."""
        self.out_used = self.leaves = self.separators_used = 0

    def finish(self) -> bool:
        """Finish the last leaf. False when `out` must be drained first."""
        return self.finish_leaf() == ADDED

    def follow(self, key: bytes) -> None:
        """What comes next comes after `key`, the last of a subtree that was taken over."""
        self.previous_key.data[: len(key)] = key
        self.previous_key_bytes = len(key)
        self.has_previous = True

    def share(self, coming_bytes: int) -> None:
        """So many bytes of leaves come next: what does not all fit into the open one, but into two, is halved."""
        total: cython.Py_ssize_t = self.open_bytes() + coming_bytes
        if self.leaf_bytes < total <= 2 * self.leaf_bytes:
            self.limit = total // 2

    def open_bytes(self):
        """Bytes that the open leaf would take; 0 when it is empty."""
        n: cython.Py_ssize_t = self.count
        return 32 + ((self.prefix + 3) & ~3) + 6 * n + 2 + self.heap_bytes if n else 0

    def fullness(self) -> float:
        """How full the open leaf is, from 0 to 1, in bytes or entries, whichever is more."""
        by_bytes: cython.double = 1.0 * self.open_bytes() / self.leaf_bytes  # C divides integers otherwise
        by_entries: cython.double = 1.0 * self.count / self.entries_max
        return max(by_bytes, by_entries)

    def first(self) -> bytes:
        """The first key added."""
        return bytes(self.lowest.data[: self.lowest_bytes])

    def last(self) -> bytes:
        """The last key added."""
        return bytes(self.last_key.data[: self.last_key_bytes])

    def separator(self, i: int) -> tuple[bytes, bytes, int]:
        """Of finished leaf i: the separator's inline bytes, its 24-byte reference or b"", its whole length."""
        start: cython.Py_ssize_t = self.separator_at.at[i]
        length: cython.Py_ssize_t = self.separator_bytes.at[i]
        whole: cython.Py_ssize_t = self.separator_full.at[i]
        inline = bytes(self.separators.data[start : start + length])
        if not whole:
            return inline, b"", length
        return inline, bytes(self.separators.data[start + 128 : start + 152]), whole

    def leaf(self, i: int) -> tuple[int, int]:
        """Where finished leaf i begins and ends in `out`."""
        return self.leaf_at.at[i], self.leaf_at.at[i + 1]

    def add_items(
        self,
        items: list[tuple[bytes, Any]],
        start: cython.Py_ssize_t,
        stop: cython.Py_ssize_t,
        spill: Callable[[bytes], bytes],
    ) -> int:
        """Add items[start:stop], pairs in key order; where to go on after a drain, or `stop` when all are in.

        A value is bytes, None for a tombstone, or a packed 24-byte reference as a bytearray. `spill(payload)` writes
        an overflow extent and returns its packed reference.
        """
        i: cython.Py_ssize_t
        key: bytes
        reference: bytes
        kind: cython.int
        for i in range(start, stop):
            key, value = items[i]
            kind = 0
            reference = NOTHING
            if value is None:
                kind = 1
                value = NOTHING
            elif type(value) is bytearray:
                kind = 2
                value = bytes(value)
            elif len(value) > self.value_max:
                kind = 2
                value = spill(value)
                items[i] = (key, bytearray(value))
            if len(key) > self.key_max:
                kind |= 0x10
                if key != self.spilled_key:  # it was when the leaf before it had to be drained first
                    self.spilled_reference = spill(key)
                    self.spilled_key = key
                reference = self.spilled_reference
            if self.add_one(kind, key, reference, value) == DRAIN:
                return i
        return stop

    def add_one(self, kind: cython.int, key: bytes, reference: bytes, value: bytes) -> int:
        """`add` for Python callers."""
        return self.add(kind, key, len(key), reference, value, len(value))
