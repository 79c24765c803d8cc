"""The log: written and read back, cut at any byte, in extents that lived before, interrupted, out of space."""

from __future__ import annotations

import errno
import linecache
import random
import sys

import pytest

from commit_rig import EPOCH, LogRig
from mmlsm.errors import FormatError, StorageError
from mmlsm.file import System
from mmlsm.format.checksum import checksum
from mmlsm.format.manifest import Reference
from mmlsm.format.superblock import NO_LOG
from mmlsm.settings import Settings
from mmlsm.write import log as log_module
from mmlsm.write.log import LogWriter, new_epoch
from mmlsm.write.log_record import (
    LINK_RECORD,
    decode_commit,
    decode_header,
    encode_commit,
    encode_header,
    encode_link,
)
from mmlsm.write.log_scan import scan_log

PAGE = 4096
SMALL = {"log_extent_bytes": 2 * PAGE}


def commits(rig: LogRig) -> list[tuple[int, list]]:
    return [(commit.seq, commit.items) for commit in rig.scan()]


def fill(rig: LogRig, count: int, size: int = 300) -> list[tuple[int, list]]:
    made = []
    for seq in range(1, count + 1):
        items = [(b"%d" % seq, b"v" * (seq * 37 % size)), (b"gone", None)]
        rig.append(seq, items)
        made.append((seq, items))
    return made


def test_an_empty_log_has_no_commits_and_ends_where_it_begins():
    rig = LogRig()
    scan = rig.scan()
    assert list(scan) == []
    assert scan.position == rig.log.position == rig.start
    assert tuple(scan.extents) == rig.log.extents
    scan = scan_log(rig.file, NO_LOG)
    assert (list(scan), scan.extents, scan.ended) == ([], [], "there is no log")


def test_what_was_appended_and_written_is_read_back_over_links():
    rig = LogRig(**SMALL)
    made = fill(rig, 300)
    assert commits(rig) == [], "nothing is written before the leader does it"
    rig.write()
    assert len(rig.log.extents) > 7
    scan = rig.scan()
    assert [(commit.seq, commit.items) for commit in scan] == made
    assert scan.position == rig.log.position
    assert tuple(scan.extents) == rig.log.extents
    assert scan.seq == 300


def test_each_position_after_a_commit_reads_what_is_left():
    rig = LogRig(**SMALL)
    made = fill(rig, 60)
    rig.write()
    for i, commit in enumerate(list(rig.scan())):
        assert [c.seq for c in scan_log(rig.file, commit.position, seq=commit.seq)] == [seq for seq, _ in made[i + 1 :]]


def test_a_record_says_what_was_durable_before_it_and_only_of_its_own_epoch():
    rig = LogRig()
    log = rig.log = LogWriter(rig.file, rig.allocator, rig.settings, EPOCH, seq=100)
    log.synced(100)
    for seq in (101, 102, 103):
        rig.append(seq, [(b"k", b"v")])
        if seq == 102:
            log.synced(101)
    log.restart()
    ((_, data), _) = (*log.take(), None)[:2]
    told, at = [], 0
    while at < len(data):
        header = decode_header(data, at)
        told.append(header.durable)
        at += 64 + header.length
    assert told == [0, 0, 101, 101]


def test_extents_double_up_to_the_setting_and_grow_for_a_large_commit():
    rig = LogRig(log_extent_bytes=64 * PAGE)
    for seq in range(1, 200):
        rig.append(seq, [(b"k", b"v" * 3000)])
    counts = [extent.count for extent in rig.log.extents]
    assert counts[:4] == [16, 32, 64, 64]
    rig.append(200, [(b"k", b"v" * (100 * PAGE))])
    assert rig.log.extents[-1].count == 101
    rig.append(201, [(b"k", b"v" * 3000)])
    rig.write()
    assert len(commits(rig)) == 201


@pytest.mark.parametrize("size", range(3900, 4110, 1))
def test_a_commit_of_any_size_leaves_room_for_the_link(size):
    rig = LogRig(log_extent_bytes=PAGE)
    for seq in range(1, 4):
        rig.append(seq, [(b"", b"v" * size)])
    rig.write()
    assert [seq for seq, _ in commits(rig)] == [1, 2, 3]


def test_the_file_cut_or_spoilt_at_any_byte_gives_a_prefix():
    rig = LogRig(**SMALL)
    made = fill(rig, 60)
    rig.write()
    positions = [commit.position for commit in rig.scan()]
    whole = {extent: rig.file.pread(extent.first * PAGE, extent.count * PAGE) for extent in rig.log.extents}
    assert len(whole) >= 2
    rng = random.Random(1)
    for extent, data in whole.items():
        used = max((p.offset for p in positions if p.page == extent.first), default=0) - extent.first * PAGE
        for at in [*range(0, used, 5), *range(max(0, used - 60), used)]:
            survivors = [
                seq
                for (seq, _), p in zip(made, positions, strict=True)
                if extent.first > p.page or (extent.first == p.page and extent.first * PAGE + at >= p.offset)
            ]
            for spoilt in (data[:at] + bytes(len(data) - at), flipped(data, at, rng)):
                rig.channel.pwrite(extent.first * PAGE, spoilt)
                assert [seq for seq, _ in commits(rig)] == survivors, (extent, at)
        rig.channel.pwrite(extent.first * PAGE, data)
    assert commits(rig) == made


def flipped(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def test_a_file_that_ends_early_ends_the_log():
    rig = LogRig()
    fill(rig, 200)
    rig.write()
    for pages in range(rig.file.pages, 2, -1):
        rig.file.resize(pages)
        seqs = [seq for seq, _ in commits(rig)]
        assert seqs == list(range(1, len(seqs) + 1))
    assert seqs == []


def test_records_of_an_earlier_epoch_in_the_same_place_are_not_replayed():
    rig = LogRig()
    fill(rig, 50)
    rig.write()
    old = rig.log.extents
    rig.allocator.give_back(old[0])
    rig.log = LogWriter(rig.file, rig.allocator, rig.settings, EPOCH + 1)
    rig.start = rig.log.position
    assert rig.log.extents == old, "the test wants the same pages"
    assert commits(rig) == []
    # The very same commits: each new record ends exactly where an old one begins.
    for seq in range(1, 51):
        rig.append(seq, [(b"%d" % seq, b"v" * (seq * 37 % 300)), (b"gone", None)])
        rig.write()
        assert len(commits(rig)) == seq


def test_records_of_the_same_epoch_in_the_same_place_are_not_replayed():
    rig = LogRig(log_extent_bytes=PAGE)
    for seq in range(1, 200):
        rig.append(seq, [(b"k", b"v" * 100)])  # all records are alike but for seq and chain
        rig.write()
        if seq % 30 == 0:
            rig.start = rig.log.position
            first = seq
            for extent in rig.log.release_before(rig.start):
                rig.allocator.give_back(extent)
        if seq > 30:
            assert [commit.seq for commit in rig.scan(seq=first)] == list(range(first + 1, seq + 1))
    assert rig.allocator.total < 20, "extents were reused"


def test_release_before_gives_up_whole_extents_only():
    rig = LogRig(log_extent_bytes=PAGE)
    assert rig.log.release_before(rig.log.position) == []
    fill(rig, 50)
    middle = rig.log.position
    fill_from = rig.log.extents
    for seq in range(51, 100):
        rig.append(seq, [(b"k", b"v" * 200)])
    released = rig.log.release_before(middle)
    assert tuple(released) == fill_from[:-1]
    assert rig.log.extents[0] == fill_from[-1]
    rig.write()
    assert [commit.seq for commit in scan_log(rig.file, middle)] == list(range(51, 100))
    assert rig.log.release_before(middle) == []


def test_a_failing_reference_ends_the_log_before_its_commit():
    rig = LogRig()
    sound, lost = Reference(10, 100, 1, 1), Reference(10, 101, 1, 2)
    rig.append(1, [(b"a", sound)])
    rig.append(2, [(b"b", b"v"), (b"c", lost)])
    rig.append(3, [(b"d", b"v")])
    rig.write()
    asked = []
    scan = rig.scan(check_reference=lambda reference: asked.append(reference) or reference == sound)
    assert [commit.seq for commit in scan] == [1]
    assert asked == [sound, lost]
    assert "commit 2" in scan.ended
    assert len(list(rig.scan(check_reference=lambda reference: True))) == 3


def put_record(rig: LogRig, seq: int, kind: int, payload: bytes) -> None:
    header, _ = encode_header(EPOCH, seq, 0, len(payload), kind, checksum(payload), 0)
    rig.channel.pwrite(rig.start.offset, header + payload)


def test_an_unknown_kind_with_right_sums_is_refused_and_a_torn_one_is_not():
    rig = LogRig()
    put_record(rig, 1, 9, b"news")
    with pytest.raises(FormatError, match="record kind 9"):
        list(rig.scan())
    rig.channel.pwrite(rig.start.offset + 64, b"newt")
    assert list(rig.scan()) == []


def test_impossible_links_and_lengths_end_the_log_at_little_cost():
    rig = LogRig()
    for payload in (b"", encode_link(0, 5), encode_link(5, 0), encode_link(1 << 31, 1 << 31), encode_link(900, 5)):
        put_record(rig, 0, LINK_RECORD, payload)
        assert list(rig.scan()) == []
    header, _ = encode_header(EPOCH, 1, 0, 1 << 60, 1, 0, 0)
    rig.channel.pwrite(rig.start.offset, header)
    assert list(rig.scan()) == []
    put_record(rig, 1, 1, encode_commit([])[:3])
    scan = rig.scan()
    assert list(scan) == []
    assert "damaged" in scan.ended


def test_a_commit_number_that_does_not_rise_ends_the_log():
    rig = LogRig()
    rig.append(5, [(b"k", b"v")])
    rig.write()
    assert len(list(rig.scan(seq=4))) == 1
    assert list(rig.scan(seq=5)) == []


class Full(System):
    """A disk that refuses to allocate, and whose refusals are counted."""

    def __init__(self) -> None:
        self.full = False

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().allocate(fd, offset, length)


def test_no_space_for_an_extent_changes_nothing_and_later_there_is_space():
    system = Full()
    rig = LogRig(system, **SMALL)
    system.full = True
    rig.append(1, [(b"k", b"v" * 3000)])
    rig.append(2, [(b"k", b"v" * 3000)])
    seq = 2
    with pytest.raises(StorageError) as caught:
        rig.append(3, [(b"k", b"v" * 3000)])
    assert caught.value.errno == errno.ENOSPC
    before = rig.log.position, rig.log.extents, rig.allocator.reserved_extents()
    with pytest.raises(StorageError):
        rig.log.room(5000)
    assert (rig.log.position, rig.log.extents, rig.allocator.reserved_extents()) == before
    rig.append(seq + 1, [(b"small", b"fits")])
    system.full = False
    rig.append(seq + 2, [(b"k", b"v" * 3000)])
    rig.write()
    assert [s for s, _ in commits(rig)] == list(range(1, seq + 3))


def test_a_prepared_extent_is_taken_by_the_next_commit_that_needs_one_and_given_back_at_close():
    rig = LogRig(**SMALL)
    assert not rig.log.prepare(), "the first extent is still empty"
    while not rig.log.prepare():
        rig.append(rig.log._state.seq + 1, [(b"k", b"v" * 300)])
    assert not rig.log.prepare()
    spare = rig.log._spare
    assert len(rig.log.extents) == 1
    while len(rig.log.extents) == 1:
        rig.append(rig.log._state.seq + 1, [(b"k", b"v" * 300)])
    assert rig.log.extents[1] == spare
    rig.append(rig.log._state.seq + 1, [(b"k", b"v" * 5000)])
    assert rig.log.prepare()
    rig.append(rig.log._state.seq + 1, [(b"k", b"v" * 50_000)])
    assert rig.log._spare is not None, "too small for that one; kept for the next"
    reserved = sum(extent.count for extent in rig.log.extents) + rig.log._spare.count
    assert sum(extent.count for extent in rig.allocator.reserved_extents()) == reserved
    rig.log.close()
    reserved = sum(extent.count for extent in rig.log.extents)
    assert sum(extent.count for extent in rig.allocator.reserved_extents()) == reserved


def test_what_was_taken_and_not_acknowledged_is_taken_again():
    rig = LogRig(**SMALL)
    made = fill(rig, 20)
    first = rig.log.take()
    assert rig.log.unwritten_bytes == rig.log.end
    rig.append(21, made[0][1])
    second = rig.log.take()
    assert second[: len(first)] == first
    assert sum(len(data) for _, data in second) == rig.log.end
    middle = rig.log.end
    rig.append(22, made[0][1])
    for offset, data in second:
        rig.channel.pwrite(offset, data)
    rig.log.written(middle)
    assert rig.log.unwritten_bytes == rig.log.end - middle
    rig.write()
    assert rig.log.unwritten_bytes == 0
    assert rig.log.take() == []
    assert [seq for seq, _ in commits(rig)] == list(range(1, 23))


def test_ctrl_c_at_any_step_leaves_a_log_that_goes_on(seed):
    # Each step that `room`, `append`, `take` and `written` make, in turn: the call is made again and all is as if not.
    names = {"room", "append", "_link", "_begin", "_clean", "take", "written", "_take_spare"}
    payloads = [encode_commit([(b"%d" % seq, b"v" * (seq * 331 % 3000))]) for seq in range(1, 12)]
    step, more = 0, True
    while more:
        step += 1
        count, more = 0, False
        rig = LogRig(log_extent_bytes=PAGE)

        def trace(frame, event, argument, step=step):
            nonlocal count, more
            if frame.f_code.co_filename != log_module.__file__ or frame.f_code.co_name not in names:
                return None
            line = linecache.getline(log_module.__file__, frame.f_lineno).strip()
            if event == "line" and not line.startswith(("raise", "try:")):
                count += 1
                if count == step:
                    more = True
                    raise KeyboardInterrupt
            return trace

        def again(work, *arguments, trace=trace):
            sys.settrace(trace)
            try:
                return work(*arguments)
            except KeyboardInterrupt:
                sys.settrace(None)
                return work(*arguments)
            finally:
                sys.settrace(None)

        for seq, payload in enumerate(payloads, 1):
            again(rig.log.room, len(payload))
            again(rig.log.append, payload, seq, checksum(payload))
            if seq % 3 == seed:
                end = rig.log.end
                for offset, data in again(rig.log.take):
                    rig.channel.pwrite(offset, data)
                again(rig.log.written, end)
        rig.write()
        scan = rig.scan()
        assert [(c.seq, c.items) for c in scan] == [(s, decode_commit(p)) for s, p in enumerate(payloads, 1)], step
        assert tuple(scan.extents) == rig.log.extents
        pages = sum(extent.count for extent in rig.log.extents)
        leaked = sum(extent.count for extent in rig.allocator.reserved_extents()) - pages
        assert leaked in (0, 1), "an extent taken just then may stay reserved until reopen, no more"
    assert step > 200


def test_epochs_are_random_and_never_zero():
    epochs = {new_epoch() for _ in range(100)}
    assert len(epochs) == 100
    assert all(0 < epoch < 1 << 64 for epoch in epochs)


def test_a_log_cannot_begin_where_there_is_no_space():
    system = Full()
    rig = LogRig(system)
    system.full = True
    before = rig.allocator.reserved_extents()
    with pytest.raises(StorageError):
        LogWriter(rig.file, rig.allocator, Settings(), 5)
    assert rig.allocator.reserved_extents() == before


def test_a_record_in_the_place_of_the_one_before_it_is_not_taken():
    # As when the sectors of one record did not reach the disk and the next one's stand there: the chain tells.
    rig = LogRig()
    for seq in (1, 2, 3):
        rig.append(seq, [(b"k", b"v" * 100)])
    rig.write()
    first, second, third = (commit.position.offset for commit in rig.scan())
    rig.channel.pwrite(first, rig.file.pread(second, third - second))
    scan = rig.scan()
    assert [commit.seq for commit in scan] == [1]
    assert "another life" in scan.ended
