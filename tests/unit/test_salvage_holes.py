"""`salvage` where commits are missing between two superblocks' logs, and where a newer version wrote the file."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

import mmlsm
from mmlsm.file import open_file
from mmlsm.format import superblock as superblocks
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.format.superblock import LogPosition, Superblock
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.log_scan import scan_log
from rig.damage.salvaged import BringOut, everything_is_uncertain

pytestmark = pytest.mark.unproved


def newest_of(image: bytes) -> Superblock:
    """The superblock that counts."""
    return superblocks.newest(image[:PAGE_BYTES], image[PAGE_BYTES : 2 * PAGE_BYTES])[0]


def test_a_hole_between_two_logs_is_told_though_later_commits_are_there(path: Path, bring_out: BringOut) -> None:
    """As after a crash between the slots of a flush's install, whose manifest rots, as a page of the log does.

    Each record takes a page, so that the log seems to end where the page is gone.
    """
    with mmlsm.Database(path, Settings(durability="full", auto_merge=False)) as database:
        for i in range(30):
            database[b"%021d" % i] = bytes([i + 1]) * 4000
        image = bytearray(path.read_bytes())
    path.write_bytes(image)
    with contextlib.closing(open_file(path, readonly=True, create=False)) as file:
        block = newest_of(image)
        scan = scan_log(file, block.log)
        ends: list[tuple[int, LogPosition]] = [(commit.seq, commit.position) for commit in scan]
        extent = scan.extents[0]
    covered = ends[19]
    newer = dataclasses.replace(
        block,
        generation=block.generation + 1,
        install=block.install + 1,
        seq=covered[0],
        log=covered[1],
        manifest=Reference(200, len(image) // PAGE_BYTES - 1, 1, 1234),
    )
    slot = superblocks.order_of(newer.generation)[0] * PAGE_BYTES
    image[slot : slot + PAGE_BYTES] = newer.encode()
    last = (extent.first + extent.count - 1) * PAGE_BYTES
    image[last : last + PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(image)
    found, report = bring_out(path)
    gone = {i for i in range(30) if b"%021d" % i not in found}
    assert gone
    assert gone < set(range(20))
    assert everything_is_uncertain(report)
    assert f"commits {ends[min(gone)][0]} to {covered[0]} are not all there" in report.uncertain[0].reason
    assert report.seq == ends[-1][0]


def of_a_newer_version(image: bytearray, at: int, value: int) -> None:
    """Turn one byte of the manifest that counts, and put its sum and both superblocks right."""
    block = newest_of(image)
    start, length = block.manifest.page * PAGE_BYTES, block.manifest.length
    image[start + at] = value
    total = checksum(bytes(image[start : start + length]))
    slot = dataclasses.replace(block, manifest=block.manifest._replace(sum=total)).encode()
    image[: 2 * PAGE_BYTES] = slot + slot


@pytest.mark.parametrize(("at", "value", "name"), [(32, 7, "section 7"), (1, 3, "codec 3")])
@pytest.mark.parametrize("older", [True, False], ids=["an older manifest is left", "no other is left"])
def test_a_manifest_of_a_newer_version_is_refused_by_name(
    path: Path, tmp_path: Path, at: int, value: int, name: str, older: bool
) -> None:
    with mmlsm.Database(path, Settings(auto_merge=False)) as database:
        database[b"a"] = b"1"
        database._engine.flush()
        before = path.read_bytes()
        database[b"b"] = b"2"
        database._engine.flush()
        image = bytearray(path.read_bytes())
    of_a_newer_version(image, at, value)
    if older:
        kept = superblocks.order_of(newest_of(before).generation)[0] * PAGE_BYTES
        image[kept : kept + PAGE_BYTES] = before[kept : kept + PAGE_BYTES]
    path.write_bytes(image)
    with pytest.raises(mmlsm.FormatError, match=name):
        mmlsm.open(path, readonly=True)
    with pytest.raises(mmlsm.FormatError, match=name):
        mmlsm.salvage(path, tmp_path / "out.db")
    assert not (tmp_path / "out.db").exists()


def test_a_log_record_of_a_newer_version_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    with mmlsm.Database(path, Settings(durability="full")) as database:
        database[b"a"] = b"1"
        image = bytearray(path.read_bytes())
    at = newest_of(image).log.offset
    image[at + 33] = 9  # its codec
    image[at + 56 : at + 64] = checksum(bytes(image[at : at + 56])).to_bytes(8, "little")
    path.write_bytes(image)
    with pytest.raises(mmlsm.FormatError, match="codec 9"):
        mmlsm.open(path, readonly=True)
    with pytest.raises(mmlsm.FormatError, match="codec 9"):
        mmlsm.salvage(path, tmp_path / "out.db")
    image[: 2 * PAGE_BYTES] = bytes(2 * PAGE_BYTES)  # and where nothing proved leads to it, it is passed by
    path.write_bytes(image)
    with pytest.raises(mmlsm.FormatError, match="not an mmlsm database"):
        mmlsm.salvage(path, tmp_path / "out.db")
