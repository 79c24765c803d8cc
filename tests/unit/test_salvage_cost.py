"""What `salvage` costs: in proportion to the file, whatever is damaged, and whatever a file with right sums says."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmlsm
from mmlsm.format.checksum import checksum
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.log_record import COMMIT_RECORD, LINK_RECORD, encode_commit, encode_header, encode_link
from mmlsm.write.log_scan import LogScan
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
