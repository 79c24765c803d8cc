"""Reads database files, written from docs/format.md alone: no line of mmlsm, so that the document is what is tested.

Plain and slow. One thread; the file must not be open for writing. Asserts where the document says what must hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

PAGE = 4096
U64 = (1 << 64) - 1
Value = bytes | None
"""None: a tombstone."""


def checksum(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def padded(at: int, to: int) -> int:
    return -(-at // to) * to


@dataclass(frozen=True)
class Reference:
    length: int
    page: int
    pages: int
    sum: int


@dataclass(frozen=True)
class Segment:
    id: int
    root: tuple[int, int, int]
    height: int
    entries: int
    tombstones: int
    pages: int
    filter: Reference | None
    first_key: bytes
    last_key: bytes


class Reader:
    """One file. `segments`, newest first; `owned`, pages by who has them; `seen`, which kinds of things were met."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.owned: dict[int, str] = {}
        self.seen: set[str] = set()
        self.own("header", 0, 3)
        slots = [self.slot(0), self.slot(1)]
        self.root = max(slots, key=lambda fields: fields[8])
        (_, _, _, _, _, _, self.uuid, _, self.generation, self.install, self.seq_ceiling, self.seq, _, _,
         self.flags, _, self.file_pages, page, pages, log_page, log_pages, _, _, length, total,
         *position) = self.root  # fmt: skip
        self.log_position = (log_page, log_pages, *position)
        self.segments: list[Segment] = []
        self.used: list[int] = []
        self.retired: list[tuple[int, int]] = []
        if pages:
            self.manifest(Reference(length, page, pages, total))

    # -- root

    def slot(self, number: int) -> tuple:
        data = self.data[number * PAGE : number * PAGE + PAGE]
        assert data[:8] == bytes.fromhex("6d6d6c736d00010a")
        assert int.from_bytes(data[504:512], "little") == checksum(data[:504])
        assert not data[512:].strip(b"\0")
        fields = struct.unpack_from("<8sII3Q16s5QIBBHQIIIIIIQQQQQ", data)
        assert fields[1:3] == (1, PAGE)
        assert fields[13] == 8
        return fields

    def own(self, who: str, page: int, pages: int) -> None:
        for number in range(page, page + pages):
            assert number not in self.owned, f"page {number}: {self.owned[number]} and {who}"
            self.owned[number] = who

    def extent(self, page: int, pages: int) -> bytes:
        assert (page + pages) * PAGE <= len(self.data)
        return self.data[page * PAGE : (page + pages) * PAGE]

    def manifest(self, reference: Reference) -> None:
        self.own("manifest", reference.page, reference.pages)
        data = self.extent(reference.page, reference.pages)[: reference.length]
        assert checksum(data) == reference.sum
        kind, codec, _, count, install, length, _ = struct.unpack_from("<BBHIQQQ", data)
        assert (kind, codec, install, length) == (3, 0, self.install, reference.length)
        at, sections = 32, {}
        for _ in range(count):
            tag, _, _, size = struct.unpack_from("<HHIQ", data, at)
            sections[tag] = data[at + 16 : at + 16 + size]
            at += 16 + padded(size, 8)
        assert at == length
        assert {1, 2, 3, 4} <= set(sections)
        assert sections[1][:16] == self.uuid
        self.levels(sections[2])
        for page, _, total in struct.iter_unpack("<IIQ", sections[3]):
            self.own("bitmap", page, 1)
            bits = self.extent(page, 1)
            assert checksum(bits) == total
            first = len(self.used)
            self.used += [bits[i // 8] >> i % 8 & 1 for i in range(8 * PAGE)]
            assert first % 32768 == 0
        at = 4
        for _ in range(struct.unpack_from("<I", sections[4])[0]):
            _, _, extents, _ = struct.unpack_from("<QQII", sections[4], at)
            at += 24
            self.retired += struct.iter_unpack("<II", sections[4][at : at + 8 * extents])
            at += 8 * extents

    def levels(self, data: bytes) -> None:
        at = 0

        def count() -> int:
            nonlocal at
            at += 4
            return int(struct.unpack_from("<I", data, at - 4)[0])

        for _ in range(count()):
            for _ in range(count()):
                for _ in range(count()):
                    fields = struct.unpack_from("<9QI6H", data, at)
                    at += 88
                    found = None
                    if fields[13] & 2:
                        found = self.reference(data, at)
                        at += 24
                    first, last = fields[14:16]
                    keys = data[at : at + first], data[at + first : at + first + last]
                    at += first + last
                    root = (fields[9], fields[10], fields[2])
                    self.segments.append(
                        Segment(fields[0], root, fields[11], fields[3], fields[4], fields[6], found, *keys)
                    )
        assert at == len(data)

    # -- segments

    @staticmethod
    def reference(data: bytes, at: int) -> Reference:
        return Reference(*struct.unpack_from("<QIIQ", data, at))

    def payload(self, reference: Reference, who: str) -> bytes:
        self.own(who, reference.page, reference.pages)
        return self.shared_payload(reference)

    def shared_payload(self, reference: Reference) -> bytes:
        length, data = reference.length, self.extent(reference.page, reference.pages)
        if length <= 65536:
            assert reference.pages == -(-length // PAGE)
            assert checksum(data[:length]) == reference.sum
            return data[:length]
        self.seen.add("several chunks")
        chunks = -(-length // 65536)
        assert reference.pages == -(-(padded(length, 8) + 8 * chunks) // PAGE)
        sums = data[padded(length, 8) : padded(length, 8) + 8 * chunks]
        assert checksum(sums) == reference.sum
        for i, (total,) in enumerate(struct.iter_unpack("<Q", sums)):
            assert checksum(data[65536 * i : min(65536 * i + 65536, length)]) == total
        return data[:length]

    def entries(self, segment: Segment) -> list[tuple[bytes, Value]]:
        found = list(self.below(segment.root, segment.height, segment.first_key, None))
        keys = [key for key, _ in found]
        assert keys == sorted(set(keys))
        assert (keys[0], keys[-1]) == (segment.first_key, segment.last_key)
        assert len(found) == segment.entries
        assert sum(value is None for _, value in found) == segment.tombstones
        if segment.filter is not None:
            self.seen.add("filter")
            blocks = self.payload(segment.filter, "filter")
            assert all(filter_holds(blocks, key) for key in keys)
        return found

    def below(
        self, node: tuple[int, int, int], height: int, low: bytes, high: bytes | None
    ) -> Iterator[tuple[bytes, Value]]:
        self.own("node", *node[:2])
        data = self.extent(*node[:2])
        assert checksum(data) == node[2]
        kind, codec, pages, own_height, n, prefix_bytes, _, used, a, flags, _, _ = struct.unpack_from(
            "<BBBBHHQIHBBQ", data
        )
        assert (kind, codec, pages, own_height) == (2 if height else 1, 0, node[1], height)
        assert not data[used:].strip(b"\0")
        prefix = data[32 : 32 + prefix_bytes]
        if height:
            assert a == 8
            yield from self.parent(data, n, prefix, height, low, high, flags)
            return
        found = list(self.leaf(data, n, prefix, used))
        assert a == sum(value is None for _, value in found)
        for key, value in found:
            assert low <= key
            assert high is None or key < high
            yield key, value

    def leaf(self, data: bytes, n: int, prefix: bytes, used: int) -> Iterator[tuple[bytes, Value]]:
        at = 32 + padded(len(prefix), 4)
        heads = struct.unpack_from(f"<{n}I", data, at)
        offsets = struct.unpack_from(f"<{n + 1}H", data, at + 4 * n)
        assert offsets[0] == at + 4 * n + 2 * (n + 1)
        assert offsets[n] == used
        for i, start in enumerate(offsets[:-1]):
            entry = data[start : offsets[i + 1]]
            kind, suffix, at = entry[0], entry[1], 2
            if suffix & 0x80:
                suffix, at = suffix & 0x7F | entry[2] << 7, 3
            rest = max(0, suffix - 4)
            key = prefix + heads[i].to_bytes(4, "big")[:suffix] + entry[at : at + rest]
            at += rest
            if kind & 0x10:
                self.seen.add("overflow key")
                assert len(key) == 128
                assert suffix >= 4
                whole = self.payload(self.reference(entry, at), "key")
                assert whole.startswith(key)
                assert len(whole) > 128
                key, at = whole, at + 24
            value: Value = entry[at:]
            if kind & 15 == 1:
                assert value == b""
                value = None
            elif kind & 15 == 2:
                self.seen.add("overflow value")
                value = self.payload(self.reference(entry, at), "value")
            else:
                assert kind & 15 == 0
            yield key, value

    def parent(
        self, data: bytes, n: int, prefix: bytes, height: int, low: bytes, high: bytes | None, flags: int
    ) -> Iterator[tuple[bytes, Value]]:
        self.seen.add("parent")
        at = 32 + padded(len(prefix), 8)
        heads = struct.unpack_from(f"<{n}I", data, at)
        children = struct.unpack_from(f"<{n}I", data, at + 4 * n)
        at = padded(at + 8 * n, 8)
        sums = struct.unpack_from(f"<{n}Q", data, at)
        entries = struct.unpack_from(f"<{n}Q", data, at + 8 * n)
        at += 16 * n
        pages, physical, codes = data[at : at + n], data[at + n : at + 2 * n], data[at + 2 * n : at + 3 * n]
        assert pages == physical
        offsets = struct.unpack_from(f"<{n + 1}H", data, padded(at + 3 * n, 2))
        bounds: list[bytes | None] = [low]
        for i in range(1, n):
            tail = data[offsets[i] : offsets[i + 1]]
            if codes[i] & 16:
                self.seen.add("overflow separator")
                (length,) = struct.unpack_from("<H", tail, len(tail) - 2)
                whole = self.shared_payload(self.reference(tail, len(tail) - 26))
                bound = whole[:length]
                assert bound.startswith(prefix + heads[i].to_bytes(4, "big") + tail[:-26])
            else:
                bound = prefix + heads[i].to_bytes(4, "big")[: min(codes[i] & 7, 4)] + tail
            bounds.append(bound)
        bounds.append(high)
        assert bool(flags & 1) == any(code & 8 for code in codes)
        for i in range(n):
            here = bounds[i]
            assert here is not None
            found = list(self.below((children[i], pages[i], sums[i]), height - 1, here, bounds[i + 1]))
            assert len(found) == entries[i]
            yield from found

    # -- log

    def commits(self) -> Iterator[tuple[int, list[tuple[bytes, Value]]]]:
        page, pages, at, epoch, predecessor = self.log_position
        if page:
            self.own("log", page, pages)
        seq = self.seq
        while page and at + 64 <= (page + pages) * PAGE:
            header = struct.unpack_from("<QQQQBBHIQQQ", self.data, at)
            payload = self.data[at + 64 : at + 64 + header[3]]
            if header[10] != checksum(self.data[at : at + 56]) or header[0] != epoch or header[2] != predecessor:
                return
            if at + 64 + header[3] > (page + pages) * PAGE or checksum(payload) != header[8]:
                return
            assert header[5:8] == (0, 0, 0)
            assert header[9] < header[1] + (header[4] == 2)
            at, predecessor = at + 64 + header[3], header[10]
            if header[4] == 2:
                self.seen.add("link")
                page, pages = struct.unpack("<II", payload)
                at = page * PAGE
                self.own("log", page, pages)
                continue
            assert header[4] == 1
            assert header[1] > seq
            seq = header[1]
            yield seq, self.commit(payload)

    def commit(self, payload: bytes) -> list[tuple[bytes, Value]]:
        (count,), at, items = struct.unpack_from("<I", payload), 4, []
        for _ in range(count):
            kind, key_bytes, value_bytes = struct.unpack_from("<BHI", payload, at)
            key = payload[at + 7 : at + 7 + key_bytes]
            at += 7 + key_bytes
            value: Value = payload[at : at + value_bytes]
            if kind == 1:
                value = None
            elif kind == 2:
                self.seen.add("overflow in the log")
                value = self.payload(self.reference(payload, at), "value of the log")
            else:
                assert kind == 0
            at += value_bytes
            items.append((key, value))
        assert at == len(payload)
        return items

    def everything(self) -> dict[bytes, bytes]:
        """The newest state."""
        state: dict[bytes, Value] = {}
        for segment in reversed(self.segments):
            state.update(self.entries(segment))
        in_bitmap = {number for number in self.owned if self.owned[number] != "log"}
        retired = {number for first, count in self.retired for number in range(first, first + count)}
        if self.used:
            assert {number for number, bit in enumerate(self.used) if bit} - retired == in_bitmap
        for _, items in self.commits():
            state.update(items)
        return {key: value for key, value in state.items() if value is not None}


def key_hash(key: bytes) -> int:
    h = (len(key) + 1) * 0x9E3779B97F4A7C15 & U64
    whole = len(key) // 8 * 8
    for at in range(0, whole, 8):
        h = (h ^ int.from_bytes(key[at : at + 8], "little")) * 0x9E3779B97F4A7C15 & U64
        h ^= h >> 29
    h = (h ^ int.from_bytes(key[whole:], "little")) * 0x9E3779B97F4A7C15 & U64
    h ^= h >> 32
    h = h * 0xD6E8FEB86659FD93 & U64
    return h ^ h >> 32


def filter_holds(blocks: bytes, key: bytes) -> bool:
    h = key_hash(key)
    assert len(blocks) % 64 == 0
    block = (h >> 32) * (len(blocks) // 64) >> 32
    g = h * 0xA0761D6478BD642F & U64
    for _ in range(6):
        bit = g % 512
        if not blocks[64 * block + bit // 8] >> bit % 8 & 1:
            return False
        g >>= 9
    return True
