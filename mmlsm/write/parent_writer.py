"""Builds parents from children in key order: the counterpart of format/parent.py.

One thread owns a ParentWriter. Cost: about a microsecond a child, once for each leaf written.

I1. `tail_bytes` is exact for the current prefix, so a parent is cut exactly when the next child does not fit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mmlsm import limits
from mmlsm.format import page


@dataclass(frozen=True, slots=True)
class Child:
    """A finished leaf or parent, as the parent above it will name it.

    `separator` is not above any key below and above every key before; its first 128 bytes when `reference` (24 bytes)
    names an extent that begins with all `separator_bytes` of it.
    """

    separator: bytes
    reference: bytes
    separator_bytes: int
    page: int
    pages: int
    sum: int
    entries: int
    overflow: bool


def tail_length(child: Child, prefix: int) -> int:
    """Bytes that the child's separator needs beyond prefix and head."""
    return max(0, len(child.separator) - prefix - 4) + (26 if child.reference else 0)


def shared(prefix: bytes, separator: bytes, has_reference: bool) -> bytes:
    """The prefix that is left when `separator` joins; an overflow separator keeps 4 bytes of suffix inline."""
    if has_reference:
        separator = separator[: limits.KEY_PART_BYTES - 4]
    if separator.startswith(prefix):
        return prefix
    low, high = 0, min(len(prefix), len(separator))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prefix[:middle] == separator[:middle] else (low, middle - 1)
    return prefix[:low]


class ParentWriter:
    """The open parent of one height."""

    def __init__(self, height: int, node_bytes: int, children_max: int) -> None:
        self.height = height
        self.node_bytes = node_bytes
        self.children_max = children_max
        self.start()

    def start(self) -> None:
        """Begin an empty parent."""
        self.children: list[Child] = []
        self.prefix: bytes | None = None
        self.tail_bytes = 0

    def add(self, child: Child) -> bool:
        """Take the child, or answer False: the parent is full and must be encoded first."""
        if not self.children:
            self.children.append(child)
            return True
        prefix = shared(child.separator if self.prefix is None else self.prefix, child.separator, bool(child.reference))
        tails = self.tail_bytes
        if self.prefix is not None and len(prefix) != len(self.prefix):
            tails = sum(tail_length(known, len(prefix)) for known in self.children[1:])
        tails += tail_length(child, len(prefix))
        n = len(self.children) + 1
        if n > self.children_max or fixed_bytes(n, len(prefix)) + tails > self.node_bytes:
            return False
        self.prefix = prefix
        self.tail_bytes = tails
        self.children.append(child)
        return True

    def encode(self, birth: int) -> tuple[bytes, int, bool]:
        """The finished page bytes, the entries below it, and whether overflow extents are below it."""
        children, prefix = self.children, self.prefix or b""
        n, skip = len(children), len(self.prefix or b"")
        heads, codes, tails = [0], [0], [b""]
        for child in children[1:]:
            suffix = child.separator[skip:]
            heads.append(int.from_bytes(suffix[:4].ljust(4, b"\0"), "big"))
            tail = suffix[4:]
            code = min(len(suffix), 5)
            if child.reference:
                tail += child.reference + struct.pack("<H", child.separator_bytes)
                code = 5 | 16
            codes.append(code)
            tails.append(tail)
        out = bytearray(32) + prefix
        out += bytes(-len(out) % 8)
        out += struct.pack(f"<{n}I", *heads) + struct.pack(f"<{n}I", *(child.page for child in children))
        out += bytes(-len(out) % 8)
        out += struct.pack(f"<{n}Q", *(child.sum for child in children))
        out += struct.pack(f"<{n}Q", *(child.entries for child in children))
        pages = bytes(child.pages for child in children)
        out += pages + pages
        out += bytes(code | (8 if child.overflow else 0) for code, child in zip(codes, children, strict=True))
        out += bytes(-len(out) % 2)
        at = len(out) + 2 * (n + 1)
        offsets = [at]
        for tail in tails:
            at += len(tail)
            offsets.append(at)
        out += struct.pack(f"<{n + 1}H", *offsets)
        out += b"".join(tails)
        used = len(out)
        out += bytes(-used % limits.PAGE_BYTES)
        overflow = any(child.overflow for child in children)
        struct.pack_into(
            "<BBBBHHQIHBBQ", out, 0,
            page.KIND_PARENT, page.CODEC_RAW, len(out) // limits.PAGE_BYTES, self.height, n, skip, birth,
            used, 8, page.FLAG_OVERFLOW if overflow else 0, 0, 0,
        )  # fmt: skip
        assert used <= self.node_bytes, (used, n)
        return bytes(out), sum(child.entries for child in children), overflow


def fixed_bytes(n: int, prefix: int) -> int:
    """Bytes of a parent of n children without its tails."""
    sums = (32 + (prefix + 7) // 8 * 8 + 8 * n + 7) // 8 * 8
    return (sums + 19 * n + 1) // 2 * 2 + 2 * (n + 1)
