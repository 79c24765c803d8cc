"""What `salvage` costs: in proportion to the file, whatever is damaged, and whatever a file with right sums says."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import sys
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mmlsm
from mmlsm.cli.pages_by_owner import nodes_of
from mmlsm.file import open_file
from mmlsm.format import superblock as superblocks
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import BITMAP_PAGE_BITS, Manifest, Reference
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.log_record import COMMIT_RECORD, LINK_RECORD, encode_commit, encode_header, encode_link
from mmlsm.write.log_scan import LogScan
from mmlsm.write.recovery import read_manifest, read_root
from rig.damage.salvaged import BringOut, everything_is_uncertain

pytestmark = pytest.mark.unproved


# -- logs without a superblock


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commits were asked of scans, one by one."""
    taken = [0]
    untold = LogScan.__next__

    def step(self: LogScan) -> object:
        taken[0] += 1
        return untold(self)

    monkeypatch.setattr(LogScan, "__next__", step)
    return taken


def test_a_log_each_of_whose_records_begins_a_page_is_scanned_twice_at_most(
    path: Path, bring_out: BringOut, steps: list[int]
) -> None:
    with mmlsm.Database(path, Settings(durability="off")) as database:
        for i in range(200):
            database[b"%021d" % i] = bytes(4000)
        database.sync()
        want = dict(database.items())
        image = path.read_bytes()
    path.write_bytes(bytes(2 * PAGE_BYTES) + image[2 * PAGE_BYTES :])
    steps[0] = 0
    report = mmlsm.salvage(path, path.with_name("counted.db"))
    assert report.entries == 200
    assert steps[0] < 3 * 200
    found, report = bring_out(path)
    assert found == want
    assert everything_is_uncertain(report)


def test_a_log_that_goes_backwards_through_the_file_is_scanned_a_few_times_at_most(
    path: Path, steps: list[int]
) -> None:
    """Each extent is a page, in front of the one before it."""
    count, epoch, sum_before = 100, 77, 0
    image = bytearray((3 + count) * PAGE_BYTES)
    for i in range(count):
        at = (3 + count - 1 - i) * PAGE_BYTES
        for kind, payload in (
            (COMMIT_RECORD, encode_commit([(b"%03d" % i, b"value")])),
            (LINK_RECORD, encode_link(3 + count - 2 - i, 1)),
        ):
            header, sum_before = encode_header(epoch, i + 1, sum_before, len(payload), kind, checksum(payload), 0)
            image[at : at + len(header) + len(payload)] = header + payload
            at += len(header) + len(payload)
    path.write_bytes(image)
    report = mmlsm.salvage(path, path.with_name("out.db"))
    assert (report.entries, report.seq) == (count, count)
    assert steps[0] < 5 * count


# -- damaged parents


def steps_of_salvage(path: Path, out: Path) -> int:
    """The instructions that a salvage executes in its own modules."""
    count = 0

    def within(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return within

    def entered(frame: FrameType, _: str, __: object) -> Any:
        if Path(frame.f_code.co_filename).parent.name != "rescue":
            return None
        frame.f_trace_opcodes = True
        return within

    before, here = sys.gettrace(), sys._getframe()
    here.f_trace_opcodes = True  # from Python 3.12 on some frame must ask for them before the trace is set
    sys.settrace(entered)
    try:
        mmlsm.salvage(path, out)
    finally:
        sys.settrace(before)
        here.f_trace_opcodes = False
    assert count
    return count


def parents_of(path: Path) -> list[tuple[int, int]]:
    """(page, height) of each parent, the root first."""
    with mmlsm.open(path, readonly=True) as reader:
        file = reader._engine.file
        found = []
        for record in read_root(file).manifest.segments():
            found += [(page, height) for page, _, height, _ in nodes_of(file, record, print) if height]
    return sorted(found, key=lambda one: -one[1])


@pytest.mark.parametrize("damage", ["the root is gone", "all above leaves are gone", "a bit of each is turned"])
def test_what_damaged_parents_cost_grows_as_the_file_does(path: Path, tmp_path: Path, damage: str) -> None:
    costs = []
    for leaves in (60, 240):
        path.unlink(missing_ok=True)
        with mmlsm.Database(path, Settings(durability="off", node_entries_max=8, leaf_bytes=4096)) as database:
            database.put_many({b"%08d" % i: b"v" for i in range(8 * leaves)})
            database.compact()
        parents = parents_of(path)
        assert len(parents) > leaves / 8
        image = bytearray(path.read_bytes())
        hit = parents[:1] if "root" in damage else [one for one in parents if one[1] == 1]
        for page, _ in hit:
            if "bit" in damage:
                image[page * PAGE_BYTES] ^= 0x40
            else:
                image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
        path.write_bytes(image)
        out = tmp_path / f"{leaves}.db"
        costs.append(steps_of_salvage(path, out))
        with mmlsm.open(out, readonly=True) as database:
            assert len(database) == 8 * leaves
    assert costs[1] < 5 * costs[0], costs


# -- what a manifest with right sums says


def with_manifest(image: bytearray, manifest: Manifest) -> None:
    """Put a manifest in, at the end of the file, and lead both superblocks to it."""
    block, _ = superblocks.newest(bytes(image[:PAGE_BYTES]), bytes(image[PAGE_BYTES : 2 * PAGE_BYTES]))
    data = manifest.encode()
    reference = Reference(len(data), len(image) // PAGE_BYTES, -(-len(data) // PAGE_BYTES), checksum(data))
    image += data.ljust(reference.pages * PAGE_BYTES, b"\0")
    slot = dataclasses.replace(block, manifest=reference, file_pages=len(image) // PAGE_BYTES).encode()
    image[: 2 * PAGE_BYTES] = slot + slot


@pytest.mark.parametrize("times", [0, 1 << 14])
def test_a_manifest_that_speaks_of_a_huge_file_takes_no_memory(path: Path, tmp_path: Path, times: int) -> None:
    """Without a bitmap, which the format allows, or with one that has the same page so many times."""
    with mmlsm.Database(path, Settings(durability="off", node_entries_max=8, leaf_bytes=4096)) as database:
        database.put_many({b"%08d" % i: b"v" for i in range(100)})
        database.compact()
    with contextlib.closing(open_file(path, readonly=True, create=False)) as file:
        manifest = read_root(file).manifest
    image = bytearray(path.read_bytes())
    root = next(manifest.segments()).root_page
    image[root * PAGE_BYTES : (root + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
    huge = times * BITMAP_PAGE_BITS or 1 << 32
    with_manifest(image, dataclasses.replace(manifest, bitmap=manifest.bitmap * times, file_pages=huge))
    path.write_bytes(image)
    tracemalloc.start()
    try:
        report = mmlsm.salvage(path, tmp_path / "out.db")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not report.complete
    assert peak < 32 << 20


def parent_page(height: int, child: tuple[int, int, int], entries: int, times: int) -> bytes:
    """A parent that names one child, (page, pages, sum), so many times."""
    children = 32 + 4 * times
    sums = (children + 4 * times + 7) & ~7
    offsets = (sums + 19 * times + 1) & ~1
    used = offsets + 2 * (times + 1)
    data = bytearray(PAGE_BYTES)
    struct.pack_into("<BBBBHHQIHBB", data, 0, 2, 0, 1, height, times, 0, 1, used, 8, 0, 0)
    for i in range(times):
        struct.pack_into("<I", data, 32 + 4 * i, i << 24)
        struct.pack_into("<I", data, children + 4 * i, child[0])
        struct.pack_into("<QQ", data, sums + 8 * i, child[2], 0)
        data[sums + 16 * times + i] = data[sums + 17 * times + i] = child[1]
        data[sums + 18 * times + i] = 1 if i else 0
    for i in range(times):
        struct.pack_into("<Q", data, sums + 8 * (times + i), min(entries, 1 << 47))
    struct.pack_into(f"<{times + 1}H", data, offsets, *[used] * (times + 1))
    return bytes(data)


def of_repeated_children(path: Path, height: int, times: int) -> dict[bytes, bytes]:
    """Make a file of one leaf, below parents each of which names the one below it many times. All sums are right."""
    with mmlsm.Database(path, Settings(durability="off")) as database:
        database.put_many({b"k%03d" % i: b"v" * 20 for i in range(20)})
        database.compact()
        want = dict(database.items())
    with contextlib.closing(open_file(path, readonly=True, create=False)) as file:
        manifest = read_root(file).manifest
    image = bytearray(path.read_bytes())
    (record,) = manifest.segments()
    node, entries = (record.root_page, record.root_pages, record.root_sum), record.entries
    for level in range(1, height + 1):
        data = parent_page(level, node, entries, times)
        node, entries = (len(image) // PAGE_BYTES, 1, checksum(data)), entries * times
        image += data
    root = dataclasses.replace(
        record, root_page=node[0], root_pages=1, root_sum=node[2], height=height, entries=min(entries, 1 << 60)
    )
    pages = len(image) // PAGE_BYTES
    with_manifest(image, dataclasses.replace(manifest, levels=(((root,),),), bitmap=(), file_pages=pages))
    path.write_bytes(image)
    return want


@pytest.mark.parametrize("damaged", [False, True], ids=["all is sound", "the lowest parent is damaged"])
@pytest.mark.parametrize(("height", "times"), [(2, 100), (24, 30)])
def test_a_node_that_parents_name_many_times_comes_out_once_and_is_told_once(
    path: Path, bring_out: BringOut, height: int, times: int, damaged: bool
) -> None:
    want = of_repeated_children(path, height, times)
    if damaged:
        image = bytearray(path.read_bytes())
        at = len(image) // PAGE_BYTES - 1 - height  # the manifest is behind the parents
        image[at * PAGE_BYTES] ^= 0x40
        path.write_bytes(image)
    found, report = bring_out(path)
    assert found == ({} if damaged else want)  # a damaged parent's children are sought where it was met first
    assert everything_is_uncertain(report)
    assert len([damage for damage in report.lost if "two places" in damage.reason]) == height - damaged
    assert len(report.lost) <= height + 1


def test_two_segments_that_have_a_node_in_common_are_told(path: Path, bring_out: BringOut) -> None:
    want = of_repeated_children(path, 1, 1)
    with contextlib.closing(open_file(path, readonly=True, create=False)) as file:
        manifest = read_manifest(file, superblocks.newest(file.pread(0, PAGE_BYTES), b"")[0])
    (record,) = manifest.segments()
    twin = dataclasses.replace(record, id=manifest.next_segment_id)
    levels = (((twin,), (record,)),)
    image = bytearray(path.read_bytes())
    with_manifest(image, dataclasses.replace(manifest, levels=levels, next_segment_id=twin.id + 1))
    path.write_bytes(image)
    found, report = bring_out(path)
    assert found == want
    assert [damage.page for damage in report.lost] == [record.root_page]
