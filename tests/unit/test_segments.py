"""Segments: pages and sizes past 4 GiB, sums broken on disk, what is read before it is proved."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.errors import CorruptionError
from mmlsm.format import parent
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from segment_rig import SegmentRig, check_segment

FAR = (1 << 20) + 77
"""A page past 4 GiB."""


def test_a_segment_past_4_gib() -> None:
    rig = SegmentRig(node_entries_max=4, begin=FAR)
    pairs: dict[bytes, bytes | None] = {b"%03d" % i * (1 + 200 * (i % 5 == 0)): b"v" * (i * 37) for i in range(80)}
    segment = rig.write({**pairs}, with_filter=True)
    assert segment.record.root_page > FAR
    check_segment(rig.reader(segment), pairs)


def test_a_database_past_4_gib(path: Path) -> None:
    """Pages before are taken by a reservation, so the file is sparse and everything that is written lies beyond."""
    settings = Settings(debug=True, durability="off", memtable_bytes=1 << 14, leaf_bytes=4096, node_entries_max=8)
    db = mmlsm.Database(path, settings)
    taken = db._engine.allocator.reserve(FAR)
    want = {b"%04d" % i: b"%d" % i * (i % 50) for i in range(1500)}
    want |= {b"k" * 5000: b"long key", b"large": bytes(range(256)) * 8192, b"stream": b"s" * 300_000}
    for key, value in want.items():
        db.put(key, io.BytesIO(value) if key == b"stream" else value)
    db._engine.flush()
    assert dict(db.items()) == want
    db.compact()
    assert min(segment.pages for segment in db.stats().segments) > 500
    assert all(record.root_page > FAR for record in db._engine.store.manifest.segments())
    assert db._engine.store.superblock.manifest.page > FAR
    view = db.get_view(b"large")
    assert view == want[b"large"]
    proof.prove(db)
    db[b"in the log"] = b"past 4 GiB too"
    db.sync()
    with mmlsm.open(path, readonly=True) as reader:  # as after a kill
        assert dict(reader.items()) == want | {b"in the log": b"past 4 GiB too"}
        assert proof.prove(reader).pages > FAR
    db._engine.allocator.give_back(taken)
    db.close()
    assert view == want[b"large"]
    del view
    with mmlsm.Database(path, settings) as db:
        assert dict(db.items()) == want | {b"in the log": b"past 4 GiB too"}
        db.compact()
        proof.prove(db)


def broken(path: Path, page: int, at: int = 40) -> None:
    with open(path, "r+b") as file:
        file.seek(page * PAGE_BYTES + at)
        byte = file.read(1)
        file.seek(page * PAGE_BYTES + at)
        file.write(bytes([byte[0] ^ 0x5A]))


def viewed(db: mmlsm.Database, key: bytes) -> bytes:
    return bytes(db.get_view(key))


def streamed(db: mmlsm.Database, key: bytes) -> bytes:
    return db.open_value(key).read()


def made(path: Path) -> tuple[dict[bytes, bytes], Any]:
    want = {b"%03d" % i: b"%d" % i * 20 for i in range(400)}
    want |= {b"k" * 2000: b"long key", b"value": bytes(200_000)}
    with mmlsm.Database(path, Settings(node_entries_max=16, leaf_bytes=4096, durability="off")) as db:
        db.update(want)
        db.compact()
        record = next(db._engine.store.manifest.segments())
    return want, record


@pytest.mark.unproved
@pytest.mark.parametrize("verify", ["first-read", "always"])
def test_each_page_that_is_broken_is_named_or_the_answer_is_right(path: Path, verify: str) -> None:
    want, _ = made(path)
    sound = path.read_bytes()
    with mmlsm.open(path, readonly=True) as db:
        whole = db.verify()
    named = 0
    for page in range(3, len(sound) // PAGE_BYTES):
        path.write_bytes(sound)
        broken(path, page)
        try:
            db = mmlsm.Database(path, Settings(readonly=True, verify=verify))  # type: ignore[arg-type]
        except CorruptionError:
            named += 1
            continue
        faults = 0
        for key, value in want.items():
            for read in (db.get, partial(viewed, db), partial(streamed, db)):
                try:
                    assert read(key) == value
                except CorruptionError as error:
                    assert error.page is not None  # noqa: PT017
                    faults += 1
        for walk in (db.items, partial(db.items, reverse=True), partial(db.items, views=True)):
            found = {}
            try:
                for key, value in walk():
                    found[key] = bytes(value)
            except CorruptionError as error:
                assert error.page is not None  # noqa: PT017
                faults += 1
            assert found.items() <= want.items()
        report = db.verify()
        assert report.ok == (faults == 0), (page, report.problems, faults)
        named += faults > 0
        db.close()
    assert named == whole.live + whole.manifest + whole.bitmap


@pytest.mark.unproved
def test_a_damaged_leaf_keeps_no_other_from_being_read(path: Path) -> None:
    want, record = made(path)
    with mmlsm.open(path, readonly=True) as db:
        assert db.verify().ok
        first = first_leaf(db, record)
    broken(path, first)
    with mmlsm.open(path, auto_merge=False) as db:  # or a merge could give the leaf to another segment meanwhile
        wrong = []
        for key, value in want.items():
            try:
                assert db[key] == value
            except CorruptionError as error:
                assert (error.page, error.segment) == (first, record.id)  # noqa: PT017
                wrong.append(key)
        assert 1 <= len(wrong) <= 16
        with pytest.raises(CorruptionError):
            list(db.items())
        assert len(list(db.items(b"100"))) == len([key for key in want if key >= b"100"])
        report = db.verify()
        assert len(report.problems) >= 1
        assert f"page {first}" in report.problems[0]
        db[b"new"] = b"still takes writes"
        assert db[b"new"] == b"still takes writes"


def first_leaf(db: Any, record: Any) -> int:
    """Page number of a segment's first leaf."""
    page, window = record.root_page, db._engine.file.window(db._engine.file.pages)
    for _ in range(record.height):
        page = parent.children_of(window, page)[0][3]
    return int(page)


@pytest.mark.unproved
@pytest.mark.parametrize("cut", [1, 100, 4095, 4096, 8192])
def test_a_file_that_was_cut_is_refused_or_read_right(path: Path, cut: int) -> None:
    want, _ = made(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - cut)
    before = path.read_bytes()
    with pytest.raises(CorruptionError), mmlsm.open(path) as db:
        assert dict(db.items()) == want
    after = path.read_bytes()
    assert after[: 2 * PAGE_BYTES] == before[: 2 * PAGE_BYTES]
    assert after[3 * PAGE_BYTES :] == before[3 * PAGE_BYTES :]


def test_never_proving_reads_a_damaged_value_as_it_is(path: Path) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"x" * 1000
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"x" * 500, b"y" * 500))
    with mmlsm.open(path, verify="never") as db:
        assert db[b"a"] == b"y" * 1000
    with mmlsm.open(path) as db, pytest.raises(CorruptionError):
        db[b"a"]
    path.write_bytes(sound)


def test_what_was_proved_is_forgotten_when_its_pages_are_promised_anew() -> None:
    """R4: else a page that is written again, and badly, would pass for the sound one that was read there before."""
    rig = SegmentRig(node_entries_max=4)
    pairs: dict[bytes, bytes | None] = {b"%02d" % i: bytes(900) for i in range(20)}
    before = rig.write({**pairs})
    check_segment(rig.reader(before), pairs)
    for extent in rig.allocator.reserved_extents():
        rig.allocator.give_back(extent)
    after = rig.write(dict.fromkeys(pairs, b"1" * 900))
    assert after.record.root_page == before.record.root_page
    for page in range(3, rig.file.pages):
        rig.channel.pwrite(page * PAGE_BYTES + 300, b"damage")
    reader = rig.reader(after)
    for read in (reader.get, reader.get_view, reader.ceiling):
        with pytest.raises(CorruptionError):
            read(b"07")


@pytest.mark.unproved
def test_a_damaged_bitmap_is_named_before_its_pages_are_given_away(path: Path) -> None:
    with mmlsm.open(path) as db:
        db.update({b"%03d" % i: bytes(100) for i in range(400)})
    with mmlsm.open(path) as db:
        page = db._engine.store.manifest.bitmap[0][0]
    data = bytearray(path.read_bytes())
    data[page * PAGE_BYTES] &= 0b11000111  # pages in use count as free
    path.write_bytes(data)
    for readonly in (True, False):
        with pytest.raises(mmlsm.CorruptionError) as caught:
            mmlsm.open(path, readonly=readonly)
        assert caught.value.page == page
    assert path.read_bytes() == data
