"""The theory of the crime: page P of segment A is recycled into B; A retires but is still read; B retires without P; P
is freed under A's reader. The interval rule (R11) forbids it; here such versions are built by hand on a real file.

Freed pages are poisoned (debug), so a reader whose pages were freed too early reads garbage or a wrong sum, at once.
"""

from __future__ import annotations

import gc
import io
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.format.manifest import Level, SegmentRecord
from mmlsm.space.extents import Extent
from mmlsm.write.overflow import write_extent
from mmlsm.write.segment_writer import SegmentWriter
from mmlsm.write.store import Edit


class Versions:
    """Versions made by hand, whose segments share the extents of overflow values."""

    def __init__(self, db: mmlsm.Database) -> None:
        self.store = db._engine.store
        assert self.store is not None
        self.channel = self.store.file.channel()
        self.values: dict[bytes, tuple[bytes, Any]] = {}

    def value(self, key: bytes, content: bytes) -> None:
        """Write a value to an extent of its own, that segments may then share."""
        self.values[key] = (content, write_extent(self.channel, self.store.allocator, content))

    def extent(self, key: bytes) -> Extent:
        reference = self.values[key][1]
        return Extent(reference.page, reference.pages)

    def segment(self, keys: list[bytes]) -> tuple[SegmentRecord, list[Extent]]:
        """A segment of these keys, and the extents that it alone owns."""
        writer = SegmentWriter(
            self.channel, self.store.allocator, self.store.settings,
            birth=self.store.manifest.install + 1, leaf_bytes=4096, expected_entries=0,
        )  # fmt: skip
        writer.add_items([(key, bytearray(self.values[key][1].pack())) for key in sorted(keys)])
        record = writer.finish(self.store.next_segment_id(), seq_low=1, seq_high=1)
        assert record is not None
        shared = sum(self.extent(key).count for key in keys)
        return replace(record, pages=record.pages + shared), list(writer.reserved)

    def install(
        self, keys: list[bytes], commit: list[bytes], retire: list[tuple[list[bytes], int]], nodes: Any = None
    ) -> tuple[int, list[Extent]]:
        """A version of one segment with `keys`; values in `commit` are new, those in `retire` are no longer named."""
        record, own = self.segment(keys) if keys else (None, [])

        def levels(present: tuple[Level, ...], number: int) -> tuple[Level, ...]:
            return (((replace(record, installed=number),),),) if record else ()

        retired = [([self.extent(key) for key in gone], born) for gone, born in retire]
        if nodes is not None:
            retired.append(nodes)
        edit = Edit(levels=levels, commit=[*own, *map(self.extent, commit)], retire=retired)
        return self.store.install(self.channel, edit), own

    def is_freed(self, key: bytes) -> bool:
        return not self.store.allocator.is_live(self.extent(key))

    def settle(self, db: mmlsm.Database) -> None:
        """Give the merge thread its chance to free what it may."""
        gc.collect()
        merger = db._engine.merger
        for _ in range(3):  # the merge thread may have a message in its hand
            merger.drain(block=False)
            merger.reclaim()
            time.sleep(0.005)


@pytest.fixture
def crime(open_db: Callable[..., Any]) -> tuple[Any, Versions]:
    db = open_db(auto_merge=False)
    versions = Versions(db)
    for i, key in enumerate((b"p", b"q", b"r")):
        versions.value(key, bytes([65 + i]) * 70_000)
    return db, versions


def same(reader: Any, versions: Versions, keys: list[bytes]) -> None:
    assert list(reader.items()) == [(key, versions.values[key][0]) for key in keys]


def test_the_crime(crime: tuple[Any, Versions]) -> None:
    db, v = crime
    first, a_nodes = v.install([b"p", b"q"], [b"p", b"q"], [])
    reader = db.snapshot()  # reads segment A
    second, b_nodes = v.install([b"p", b"r"], [b"r"], [([b"q"], first)], (a_nodes, first))  # B shares P; A retires
    third, _ = v.install([b"r"], [], [([b"p"], first)], (b_nodes, second))  # B retires, P with it: born with A
    assert (first, second, third) == (first, first + 1, first + 2)
    for _ in range(3):
        v.settle(db)
        same(reader, v, [b"p", b"q"])
        same(db, v, [b"r"])
    assert not v.is_freed(b"p")
    assert not v.is_freed(b"q")
    proof.prove(db)
    assert db.stats().space.retired > 0
    reader.close()
    v.settle(db)
    assert v.is_freed(b"p")
    assert v.is_freed(b"q")
    same(db, v, [b"r"])


def test_a_small_old_pin_holds_only_what_it_can_see(crime: tuple[Any, Versions]) -> None:
    db, v = crime
    first, a = v.install([b"p"], [b"p"], [])
    old = db.snapshot()
    second, b = v.install([b"p", b"q"], [b"q"], [], (a, first))
    v.install([b"p", b"r"], [b"r"], [([b"q"], second)], (b, second))
    v.settle(db)
    assert v.is_freed(b"q"), "the old pin never saw it"
    same(old, v, [b"p"])
    same(db, v, [b"p", b"r"])
    view = old.get_view(b"p")
    old.close()
    v.settle(db)
    assert view == v.values[b"p"][0]
    same(db, v, [b"p", b"r"])


def test_pins_of_every_version_at_once(open_db: Callable[..., Any], seed: int) -> None:
    """Random versions that share values at random, pinned and let go in any order: each reads its own, to the byte."""
    rng = random.Random(seed)
    db = open_db(auto_merge=False)
    v = Versions(db)
    born: dict[bytes, int] = {}
    nodes: Any = None
    present: list[bytes] = []
    readers: list[tuple[Any, list[bytes]]] = []
    for number in range(40):
        for i in range(rng.randrange(3)):
            v.value(b"%03d %d" % (number, i), rng.randbytes(rng.choice([5000, 20_000, 70_000])))
        fresh = [key for key in v.values if key.startswith(b"%03d " % number)]
        kept = [key for key in present if rng.random() < 0.7]
        gone = [([key], born[key]) for key in present if key not in kept]
        install, own = v.install(sorted(kept + fresh), fresh, gone, nodes)
        nodes = (own, install) if own else None
        born |= dict.fromkeys(fresh, install)
        present = sorted(kept + fresh)
        readers.append((db.snapshot(), present))
        if rng.random() < 0.6:
            readers.pop(rng.randrange(len(readers)))[0].close()
        if number % 5 == 0:
            v.settle(db)
            for reader, keys in readers:
                same(reader, v, keys)
            proof.prove(db)
    while readers:
        reader, keys = readers.pop(rng.randrange(len(readers)))
        same(reader, v, keys)
        reader.close()
    del reader
    v.settle(db)
    same(db, v, present)
    assert db.stats().space.retired <= 4, "all but what the last install replaced came back"


def test_reuse_waits_for_both_superblocks(open_db: Callable[..., Any]) -> None:
    """What an install retires is reused only after it is durable; a failed one retires nothing."""
    db = open_db(auto_merge=False)
    v = Versions(db)
    v.value(b"p", b"P" * 70_000)
    first, nodes = v.install([b"p"], [b"p"], [])
    write = v.store.write_superblock
    seen: list[bool] = []

    def noting(channel: Any, *following: Any, **changes: Any) -> None:
        seen.append(v.is_freed(b"p"))
        write(channel, *following, **changes)
        seen.append(v.is_freed(b"p"))

    v.store.write_superblock = noting
    v.install([], [], [([b"p"], first)], (nodes, first))
    del v.store.write_superblock
    assert seen == [False, False]
    v.settle(db)
    assert v.is_freed(b"p")
    assert list(db) == []


def test_merges_share_overflow_extents_and_readers_keep_them(open_db: Callable[..., Any], seed: int) -> None:
    """The same by the engine's own merges, which move overflow extents by reference."""
    rng = random.Random(seed)
    db = open_db(memtable_bytes=1 << 16, node_entries_max=4, leaf_bytes=4096)
    model: dict[bytes, bytes] = {}
    readers: list[tuple[Any, dict[bytes, bytes]]] = []
    for round_ in range(40):
        for _ in range(12):
            key = b"%02d" % rng.randrange(30)
            if rng.random() < 0.3:
                db.delete(key)
                model.pop(key, None)
            else:
                model[key] = rng.randbytes(rng.choice([10, 3000, 30_000, 70_000]))
                db.put(key, io.BytesIO(model[key]))  # a large one is in its extent while it is in the memtable
        readers.append((db.snapshot(), dict(model)))
        if len(readers) > 5:
            reader, _ = readers.pop(rng.randrange(len(readers)))
            reader.close()
        if round_ % 4 == 0:
            db.compact()
        reader, want = rng.choice(readers)
        assert dict(reader.items()) == want
    for reader, want in readers:
        assert dict(reader.items()) == want


def test_a_snapshot_from_before_the_flush_keeps_what_its_memtable_refers_to(open_db: Callable[..., Any]) -> None:
    db = open_db(auto_merge=False)
    value = random.Random(1).randbytes(70_000)
    db.put(b"k", io.BytesIO(value))
    before = db.snapshot()
    db._engine.flush()
    db.put(b"k", b"new")
    for _ in range(3):
        db.compact()
        db.put(b"other", b"fills what is free" * 5000)
    assert before[b"k"] == value
    view = before.get_view(b"k")
    before.close()
    db.compact()
    assert view == value
