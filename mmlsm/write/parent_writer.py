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
    """The open parent over children of one height, and before it a full one that waits, so that the last can share.

    `ready` are the children of the full one.
    """

    def __init__(self, height: int, node_bytes: int, children_max: int) -> None:
        self.height = height
        self.node_bytes = node_bytes
        self.children_max = children_max
        self.ready: list[Child] = []
        self.start()

    def start(self) -> None:
        """Begin an empty parent."""
        self.children: list[Child] = []
        self.prefix: bytes | None = None
        self.tail_bytes = 0

    def add(self, child: Child) -> bool:
        """Take the child, or answer False: the parent is full, see `rotate`."""
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

    def rotate(self) -> list[Child]:
        """Begin an empty parent after a full one, which waits from now on; the children of the one that waited."""
        done, self.ready = self.ready, self.children
        self.start()
        return done

    def refill(self, children: list[Child]) -> None:
        """Begin anew with these, which fit."""
        self.start()
        for child in children:
            self.add(child)

    def fullness(self, coming: int = 0) -> float:
        """How full the open parent is, from 0 to 1, in bytes or children, whichever is more; with `coming` children."""
        used = fixed_bytes(len(self.children), len(self.prefix or b"")) + self.tail_bytes
        return max(used / self.node_bytes, (len(self.children) + coming) / self.children_max)

    def close(self) -> list[list[Child]]:
        """The children of all parents that are left, in order; of two, the second is no fuller than the first."""
        before, last = self.ready, self.children
        self.ready = []
        if before and last and self.fullness() < 0.5:
            before, last = self.balanced(before + last)
        self.start()
        return [children for children in (before, last) if children]

    def balanced(self, children: list[Child]) -> tuple[list[Child], list[Child]]:
        """Two parents' children spread evenly, as far as they fit; all in the second when they fit in one."""
        if self.fits(children):
            return [], children
        for shift in range(len(children) // 2):
            for middle in (len(children) // 2 + shift, len(children) // 2 - shift):
                if 0 < middle < len(children) and self.fits(children[:middle]) and self.fits(children[middle:]):
                    return children[:middle], children[middle:]
        raise AssertionError("two parents' children do not fit in two parents")

    def fits(self, children: list[Child]) -> bool:
        """Whether these can be the children of one parent."""
        prefix = common_prefix(children)
        tails = sum(tail_length(child, len(prefix)) for child in children[1:])
        return len(children) <= self.children_max and fixed_bytes(len(children), len(prefix)) + tails <= self.node_bytes

    def encode(self, children: list[Child], birth: int) -> tuple[bytes, int, bool]:
        """The finished page bytes, the entries below it, and whether overflow extents are below it."""
        prefix = common_prefix(children)
        n, skip = len(children), len(prefix)
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


def common_prefix(children: list[Child]) -> bytes:
    """What the separators of all but the first share."""
    prefix: bytes | None = None
    for child in children[1:]:
        prefix = shared(child.separator if prefix is None else prefix, child.separator, bool(child.reference))
    return prefix or b""


def fixed_bytes(n: int, prefix: int) -> int:
    """Bytes of a parent of n children without its tails."""
    sums = (32 + (prefix + 7) // 8 * 8 + 8 * n + 7) // 8 * 8
    return (sums + 19 * n + 1) // 2 * 2 + 2 * (n + 1)
