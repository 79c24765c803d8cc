"""Where everything stands in a database file, by docs/format.md: what each sum covers, every field, and how to re-seal.

A `Region` is bytes under one sum. A `Field` is a number in one. After fields were changed `Anatomy.seal` makes the sums
right again, from the changed regions up to the superblock, so that what is behind the sums is what meets the change.
Nothing of mmlsm is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from format_reader import PAGE, Reference, checksum, padded

CHUNK = 65536


@dataclass(eq=False, slots=True)
class Region:
    """`length` bytes from `start` on. `sums`: where their sum stands, and in which region that is, None in none.

    `end`: up to where damage must be found out, which for a superblock is past its sum. `level`: a region is sealed
    before all of a lower one. `owner`: "log" for all that only the log leads to, else the segment's id or None.
    """

    kind: str
    start: int
    length: int
    level: int
    end: int
    owner: int | str | None = None
    sums: list[tuple[int, Region | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A reference in the file: where its parts stand. `pages` and `length` may be missing; widths in bytes."""

    page: int
    pages: tuple[int, int] | None
    length: int | None
    sum: int
    region: Region
    physical: int | None = None
    """Of a child: where its pages stand once more."""


@dataclass(frozen=True, slots=True)
class Field:
    """A number of `width` bytes at each of `places`: a superblock's stand in both slots."""

    name: str
    places: tuple[tuple[int, Region], ...]
    width: int
    pointers: tuple[Pointer, ...] = ()
    """The reference that it is a part of, at each place."""


class Anatomy:
    """Of a sound file. `fields`, `pointers` and `regions` in the order in which they are met."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.regions: list[Region] = []
        self.fields: list[Field] = []
        self.pointers: list[Pointer] = []
        self.extents: dict[tuple[int, int], Region] = {}
        self.log_fields = 0
        self.superblock()

    # -- making

    def number(self, at: int, width: int) -> int:
        return int.from_bytes(self.data[at : at + width], "little")

    def region(self, kind: str, start: int, length: int, level: int, owner: int | str | None = None) -> Region:
        made = Region(kind, start, length, level, start + length, owner)
        self.regions.append(made)
        return made

    def note(self, name: str, region: Region, at: int, width: int, pointer: Pointer | None = None) -> None:
        self.fields.append(Field(name, ((at, region),), width, () if pointer is None else (pointer,)))

    def layout(self, prefix: str, region: Region, at: int, names: str) -> None:
        """Fields one after the other: `name:width`, "-" for bytes that are not looked at."""
        for part in names.split():
            name, width = part.split(":")
            if name != "-":
                self.note(f"{prefix}.{name}", region, at, int(width))
            at += int(width)

    def superblock(self) -> None:
        slots = [self.region("superblock", slot * PAGE, 504, 0) for slot in (0, 1)]
        for slot in slots:
            slot.sums = [(slot.start + 504, None)]
            slot.end = slot.start + PAGE
        both = "version:4:8 page_bytes:4:12 compatible:8:16 readonly:8:24 incompatible:8:32 incarnation:8:56 " \
            "generation:8:64 install:8:72 seq_ceiling:8:80 seq:8:88 sum_bytes:1:100 flags:1:101 file_pages:8:104 " \
            "log_page:4:120 log_pages:4:124 log_offset:8:152 log_epoch:8:160 log_predecessor:8:168"  # fmt: skip
        for part in both.split():
            name, width, at = part.split(":")
            self.fields.append(
                Field(f"superblock.{name}", tuple((slot.start + int(at), slot) for slot in slots), int(width))
            )
        newest = max(slots, key=lambda slot: self.number(slot.start + 64, 8))
        pointers = [
            Pointer(slot.start + 112, (slot.start + 116, 4), slot.start + 136, slot.start + 144, slot) for slot in slots
        ]
        for name, at, width in (("page", 112, 4), ("pages", 116, 4), ("length", 136, 8)):
            places = tuple((slot.start + at, slot) for slot in slots)
            self.fields.append(Field(f"superblock.manifest_{name}", places, width, tuple(pointers)))
        at = newest.start
        if self.number(at + 116, 4):
            self.manifest(Reference(*(self.number(at + o, w) for o, w in ((136, 8), (112, 4), (116, 4), (144, 8)))),
                          pointers)  # fmt: skip
        if self.number(at + 120, 4):
            self.log(self.number(at + 152, 8), self.number(at + 120, 4), self.number(at + 124, 4),
                     self.number(at + 160, 8))  # fmt: skip

    def manifest(self, reference: Reference, pointers: list[Pointer]) -> None:
        start = reference.page * PAGE
        manifest = self.region("manifest", start, reference.length, 1)
        manifest.sums = [(pointer.sum, pointer.region) for pointer in pointers]
        self.layout("manifest", manifest, start, "kind:1 codec:1 -:2 sections:4 install:8 length:8")
        at = start + 32
        while at < start + reference.length:
            tag, _, _, size = struct.unpack_from("<HHIQ", self.data, at)
            self.layout("section", manifest, at, "tag:2 -:6 length:8")
            at += 16
            if tag == 1:
                self.layout("general", manifest, at, "uuid:8 uuid2:8 next_segment:8 file_pages:8 live_bytes:8")
            elif tag == 2:
                self.levels(manifest, at)
            elif tag == 3:
                for place in range(at, at + size, 16):
                    self.pointer("bitmap", manifest, Pointer(place, None, None, place + 8, manifest))
                    self.below("bitmap", self.number(place, 4), 1, PAGE, 900, [(place + 8, manifest)])
            elif tag == 4:
                self.retired(manifest, at)
            else:
                self.layout("rotation", manifest, at, "count:4 bytes:4")
            at += padded(size, 8)

    def levels(self, region: Region, at: int) -> None:
        def count(name: str) -> int:
            nonlocal at
            self.note(f"levels.{name}", region, at, 4)
            at += 4
            return self.number(at - 4, 4)

        for _ in range(count("levels")):
            for _ in range(count("runs")):
                for _ in range(count("segments")):
                    at = self.segment(region, at)

    def segment(self, region: Region, at: int) -> int:
        owner = self.number(at, 8)
        self.layout("segment", region, at, "id:8 installed:8 -:8 entries:8 tombstones:8 data_bytes:8 pages:8 "
                    "seq_low:8 seq_high:8 -:6 height:2 leaf_pages:2 flags:2 first_bytes:2 last_bytes:2")  # fmt: skip
        root = Pointer(at + 72, (at + 76, 2), None, at + 16, region)
        self.pointer("root", region, root, 2)
        flags, first, last = (self.number(at + o, 2) for o in (82, 84, 86))
        height = self.number(at + 78, 2)
        self.node((self.number(at + 72, 4), self.number(at + 76, 2)), height, 2, (at + 16, region), owner)
        at += 88
        if flags & 2:
            self.reference("filter", region, at, owner)
            at += 24
        return at + first + last

    def retired(self, region: Region, at: int) -> None:
        self.note("retired.count", region, at, 4)
        count, at = self.number(at, 4), at + 4
        for _ in range(count):
            self.layout("retired", region, at, "born:8 died:8 extents:4")
            extents, at = self.number(at + 16, 4), at + 24
            for _ in range(extents):
                self.layout("retired", region, at, "first:4 pages:4")
                at += 8

    def pointer(self, name: str, region: Region, pointer: Pointer, pages_width: int = 4) -> None:
        self.pointers.append(pointer)
        self.note(f"{name}.page", region, pointer.page, 4, pointer)
        if pointer.pages is not None:
            self.note(f"{name}.pages", region, *pointer.pages, pointer)
        if pointer.length is not None:
            self.note(f"{name}.length", region, pointer.length, 8, pointer)

    def below(self, kind: str, page: int, pages: int, length: int, level: int,
              sums: list[tuple[int, Region | None]], owner: int | str | None = None) -> Region:  # fmt: skip
        """The region that a reference leads to: the same one for a key and a separator that refer to one extent."""
        known = self.extents.get((page, level))
        if known is None:
            known = self.extents[page, level] = self.region(kind, page * PAGE, length, level, owner)
        known.sums += sums
        return known

    def reference(self, name: str, region: Region, at: int, owner: int | str | None) -> None:
        """A 24-byte reference to an overflow extent, and the extent."""
        length, page, pages, _ = struct.unpack_from("<QIIQ", self.data, at)
        self.pointer(name, region, Pointer(at + 8, (at + 12, 4), at, at + 16, region))
        if length <= CHUNK:
            self.below(name, page, pages, length, 900, [(at + 16, region)], owner)
            return
        known = (page, 899) in self.extents
        start = page * PAGE
        sums_at = start + padded(length, 8)
        count = -(-length // CHUNK)
        sums = self.below("chunk sums", page, pages, 8 * count, 899, [(at + 16, region)], owner)
        if not known:
            sums.start, sums.end = sums_at, sums_at + 8 * count
            for i in range(count):
                chunk = self.region(name, start + CHUNK * i, min(CHUNK, length - CHUNK * i), 900, owner)
                chunk.sums = [(sums_at + 8 * i, sums)]

    def node(self, place: tuple[int, int], height: int, level: int, total: tuple[int, Region], owner: int) -> None:
        start, size = place[0] * PAGE, place[1] * PAGE
        region = self.region("parent" if height else "leaf", start, size, level, owner)
        region.sums = [total]
        self.layout(region.kind, region, start, "kind:1 codec:1 pages:1 height:1 count:2 prefix:2 birth:8 used:4 a:2 "
                    "flags:1")  # fmt: skip
        n, prefix = self.number(start + 4, 2), self.number(start + 6, 2)
        if height:
            self.parent(region, n, prefix, height, owner)
        else:
            self.leaf(region, n, prefix, owner)

    def leaf(self, region: Region, n: int, prefix: int, owner: int) -> None:
        base = region.start
        offsets = base + 32 + padded(prefix, 4) + 4 * n
        for i in range(n):
            self.note("leaf.head", region, offsets - 4 * (n - i), 4)
            self.note("leaf.offset", region, offsets + 2 * i, 2)
            at = base + self.number(offsets + 2 * i, 2)
            self.layout("entry", region, at, "kind:1 suffix:1 second:1")
            kind, suffix, at = self.data[at], self.data[at + 1], at + 2
            if suffix & 0x80:
                suffix, at = suffix & 0x7F | self.data[at] << 7, at + 1
            at += max(0, suffix - 4)
            if kind & 0x10:
                self.reference("key", region, at, owner)
                at += 24
            if kind & 15 == 2:
                self.reference("value", region, at, owner)
        self.note("leaf.offset", region, offsets + 2 * n, 2)

    def parent(self, region: Region, n: int, prefix: int, height: int, owner: int) -> None:
        base = region.start
        children = base + 32 + padded(prefix, 8) + 4 * n
        sums = padded(children + 4 * n, 8)
        offsets = padded(sums + 19 * n, 2)
        for i in range(n):
            self.note("parent.head", region, children - 4 * (n - i), 4)
            self.note("parent.entries", region, sums + 8 * (n + i), 8)
            self.layout("parent", region, sums + 17 * n + i, "physical:1")
            self.layout("parent", region, sums + 18 * n + i, "flags:1")
            self.note("parent.offset", region, offsets + 2 * i, 2)
            pointer = Pointer(children + 4 * i, (sums + 16 * n + i, 1), None, sums + 8 * i, region,
                              sums + 17 * n + i)  # fmt: skip
            self.pointer("child", region, pointer)
            if self.data[sums + 18 * n + i] & 16:
                end = base + self.number(offsets + 2 * i + 2, 2)
                self.reference("separator", region, end - 26, owner)
                self.note("separator.cut", region, end - 2, 2)
            place = (self.number(children + 4 * i, 4), self.data[sums + 16 * n + i])
            self.node(place, height - 1, region.level + 1, (sums + 8 * i, region), owner)
        self.note("parent.offset", region, offsets + 2 * n, 2)

    def log(self, at: int, page: int, pages: int, epoch: int) -> None:
        """Records as far as the chain goes."""
        level, predecessor, before = 800, 0, None
        while at + 64 <= min((page + pages) * PAGE, len(self.data)):
            header = struct.unpack_from("<QQQQBBHIQQQ", self.data, at)
            payload = self.data[at + 64 : at + 64 + header[3]]
            summed = self.data[at : at + 56]
            if header[0] != epoch or (before and header[2] != predecessor) or checksum(summed) != header[10]:
                return
            if len(payload) != header[3] or checksum(payload) != header[8]:
                return
            record = self.region("record", at, 56, level, "log")
            record.sums = [(at + 56, None)]
            record.end = at + 64
            if before is not None:
                before.sums.append((at + 16, record))
            body = self.region("payload", at + 64, header[3], level + 1, "log")
            body.sums = [(at + 40, record)]
            fields = "epoch:8 seq:8 -:8 length:8 kind:1 codec:1 flags:2 namespace:4 -:8 durable:8"
            self.layout("record", record, at, fields)
            level, predecessor, before = level - 2, header[10], record
            if header[4] == 2:
                self.layout("link", body, at + 64, "page:4 pages:4")
                page, pages = struct.unpack("<II", payload)
                at = page * PAGE
                continue
            self.commit(body, at + 64)
            at += 64 + header[3]

    def commit(self, body: Region, at: int) -> None:
        self.note("commit.entries", body, at, 4)
        count, at = self.number(at, 4), at + 4
        for _ in range(count):
            kind, key_bytes, value_bytes = struct.unpack_from("<BHI", self.data, at)
            self.layout("commit", body, at, "kind:1 key_bytes:2 value_bytes:4")
            at += 7 + key_bytes
            if kind == 2:
                self.reference("logged", body, at, "log")
            at += value_bytes

    # -- using

    def seal(self, data: bytearray, changed: Iterable[Region]) -> None:
        """Make the sums of the changed regions right, and those of the regions that these sums stand in."""
        todo = set(changed)
        while todo:
            region = max(todo, key=lambda one: one.level)
            todo.remove(region)
            total = checksum(bytes(data[region.start : region.start + region.length])).to_bytes(8, "little")
            for at, inside in region.sums:
                if at + 8 <= len(data):
                    data[at : at + 8] = total
                    if inside is not None:
                        todo.add(inside)

    def aim(self, data: bytearray, pointer: Pointer) -> None:
        """Make a reference's sum that of what it refers to now, where the file has that."""
        page = int.from_bytes(data[pointer.page : pointer.page + 4], "little")
        pages = 1
        if pointer.pages is not None:
            at, width = pointer.pages
            pages = int.from_bytes(data[at : at + width], "little")
        start, length = page * PAGE, pages * PAGE
        if pointer.length is not None:
            length = int.from_bytes(data[pointer.length : pointer.length + 8], "little")
            if length > CHUNK:
                start += padded(length, 8)
                length = 8 * -(-length // CHUNK)
        if length > 0 and start + length <= len(data):
            data[pointer.sum : pointer.sum + 8] = checksum(bytes(data[start : start + length])).to_bytes(8, "little")

    def summed(self) -> list[tuple[int, int, Region]]:
        """(start, end, region) of all bytes whose damage must show."""
        return sorted(((one.start, one.end, one) for one in self.regions), key=lambda one: one[:2])
