"""Memtable: what trimming may drop and what it must not, how long chains get, and commits applied twice."""

from __future__ import annotations

import linecache
import random
import sys

import pytest

from mmlsm.format.manifest import Reference
from mmlsm.memory import COMPILED
from mmlsm.read import entries
from mmlsm.write import memtable
from mmlsm.write.memtable import Memtable


def chain(table: Memtable, key: bytes) -> list[int]:
    entry, seqs = table.entries.get(key), []
    while entry is not None:
        seqs.append(entry.seq)
        entry = entry.older
    return seqs


def test_a_commit_is_applied_in_order_and_a_later_pair_of_the_same_key_wins():
    table = Memtable()
    table.apply([(b"a", b"1"), (b"b", None), (b"a", b"2")], 7, 0, ())
    assert [(key, value) for key, value in table.sorted_items()] == [(b"a", b"2"), (b"b", None)]
    assert (table.first_seq, table.last_seq, table.entry_count, table.versions) == (7, 7, 2, 2)
    table.check()


def test_an_overwritten_version_goes_once_the_one_above_it_is_published():
    table = Memtable()
    table.apply([(b"k", b"1")], 1, 0, ())
    table.apply([(b"k", b"2")], 2, 1, ())
    assert chain(table, b"k") == [2, 1], "1 is what readers see until 2 is published"
    table.apply([(b"k", b"3")], 3, 1, ())
    assert chain(table, b"k") == [3, 2, 1], "2 is not published"
    assert table.trimmed == 0
    table.apply([(b"k", b"4")], 4, 3, ())
    assert chain(table, b"k") == [4, 3], "3 is published; it hides 2 and 1"
    assert table.trimmed == 3
    table.check()


def test_a_pinned_version_stays_and_those_beside_it_go():
    table = Memtable()
    for seq in range(1, 9):
        table.apply([(b"k", b"%d" % seq)], seq, seq - 1, (3, 3, 5))
    assert chain(table, b"k") == [8, 7, 5, 3]
    table.apply([(b"k", b"9")], 9, 8, ())
    assert chain(table, b"k") == [9, 8]
    assert table.versions == 2
    table.check()


def test_a_pin_between_two_commits_of_a_key_keeps_the_earlier():
    table = Memtable()
    table.apply([(b"k", b"1")], 1, 0, ())
    table.apply([(b"other", b"2")], 2, 1, ())
    table.apply([(b"k", b"3")], 3, 2, (2,))
    table.apply([(b"k", b"4")], 4, 3, (2,))
    table.apply([(b"k", b"5")], 5, 4, (2,))
    assert table.lookup(b"k", 2).value == b"1"
    assert chain(table, b"k") == [5, 4, 1]


def test_trimming_against_a_model(seed, effort):
    # The model keeps everything; the table must agree for each pin and for what is published.
    rng = random.Random(seed)
    for _ in range(20 * effort):
        table, model, pins, published = Memtable(), {}, [], 0
        keys = [b"%d" % i for i in range(rng.choice((1, 2, 5)))]
        for seq in range(1, 120):
            items = [(rng.choice(keys), rng.choice((None, b"%d" % seq))) for _ in range(rng.choice((1, 1, 3)))]
            table.apply(items, seq, published, tuple(sorted(pins)))
            for key, value in items:
                model.setdefault(key, {})[seq] = value
            if rng.random() < 0.7:
                published = rng.randint(published, seq)
            if rng.random() < 0.3:
                pins.append(published)
            if pins and rng.random() < 0.25:
                pins.remove(rng.choice(pins))
            for s in {published, seq, *pins}:
                for key in keys:
                    visible = [at for at in model.get(key, ()) if at <= s]
                    entry = table.lookup(key, s)
                    assert (entry is None) == (not visible)
                    assert entry is None or entry.value == model[key][max(visible)]
        table.check()


def test_a_chain_stays_short_while_snapshots_come_and_go():
    # Each version is pinned when the next one comes, and let go later: only the doubling sweep finds those.
    table = Memtable()
    longest = 0
    for seq in range(1, 5000):
        table.apply([(b"k", b"v")], seq, seq - 1, (0, *range(max(1, seq - 5), seq)))
        longest = max(longest, len(chain(table, b"k")))
    assert longest <= 2 * 6 + 4 + 2
    table.check()


def test_many_pins_do_not_make_a_commit_slow():
    table, pins = Memtable(), tuple(range(3000))
    for seq in range(1, 3001):
        table.apply([(b"k", b"v")], seq, seq - 1, pins)
    assert len(chain(table, b"k")) == 3000
    for seq in range(3001, 6000):
        table.apply([(b"k", b"v")], seq, seq - 1, pins)
    assert len(chain(table, b"k")) == 3001
    table.check()


def test_byte_counts_follow_what_is_there():
    table = Memtable()
    table.apply([(b"key", b"v" * 100)], 1, 0, ())
    assert table.live_bytes == 103
    first = table.data_bytes
    assert first > 103
    table.apply([(b"key", b"v" * 50)], 2, 1, (1,))
    assert table.live_bytes == 53
    second = table.data_bytes
    assert second > first + 50
    table.apply([(b"key", None)], 3, 2, ())
    table.apply([(b"key", None)], 4, 3, ())
    assert table.live_bytes == 3
    assert table.data_bytes < second
    for seq in range(5, 1000):
        table.apply([(b"key", b"v" * 50)], seq, seq - 1, ())
    assert (table.live_bytes, table.versions) == (53, 2)
    assert table.data_bytes < second


def test_references_are_remembered_past_their_overwriting():
    table = Memtable()
    one, two = Reference(5000, 10, 2, 1), Reference(6000, 12, 2, 2)
    table.apply([(b"k", one)], 1, 0, ())
    table.apply([(b"k", two)], 2, 1, ())
    table.apply([(b"k", b"small")], 3, 2, ())
    table.apply([(b"k", b"small")], 4, 3, ())
    assert table.references == {one, two}


class Stop(Exception):
    pass


def test_a_commit_that_was_interrupted_is_applied_again_without_a_trace():
    items = [(b"%d" % i, b"v") for i in range(10)]
    for stop in range(11):
        table = Memtable()
        table.apply([(b"3", b"old"), (b"x", b"old")], 1, 0, ())

        def broken(stop=stop):
            yield from items[:stop]
            raise Stop

        with pytest.raises(Stop):
            table.apply(broken(), 2, 1, ())
        table.keys_from(None, True, 3)
        table.apply(items, 2, 1, ())
        assert table.sorted_keys() == sorted([*(key for key, _ in items), b"x"])
        assert chain(table, b"3") == [2, 1]
        table.apply([(b"new", b"v")], 3, 2, ())
        table.check()


@pytest.mark.skipif(COMPILED, reason="steps are told by a trace")
def test_ctrl_c_at_any_step_of_applying_is_mended_by_applying_again():
    step, reached = 0, True
    while reached:
        step += 1
        count, reached = 0, False
        table = Memtable()
        table.apply([(b"a", b"0"), (b"b", b"0")], 1, 0, ())
        table.apply([(b"a", b"1")], 2, 1, ())

        def trace(frame, event, argument, step=step):
            nonlocal count, reached
            if frame.f_code.co_filename not in (entries.__file__, memtable.__file__):
                return None
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if event == "line" and not line.startswith("try:"):
                count += 1
                if count == step:
                    reached = True
                    raise KeyboardInterrupt
            return trace

        items = [(b"a", b"2"), (b"c", None), (b"d", b"v")]
        sys.settrace(trace)
        try:
            table.apply(items, 3, 2, ())
        except KeyboardInterrupt:
            sys.settrace(None)
            assert table.keys_from(None, True, 1) == [b"a"], "a reader comes in between"
            table.apply(items, 3, 2, ())
        finally:
            sys.settrace(None)
        assert table.sorted_keys() == [b"a", b"b", b"c", b"d"], step
        assert (chain(table, b"a")[:2], table.lookup(b"a", 3).value) == ([3, 2], b"2")
        table.check()
    assert step > 30


def test_a_sealed_memtable_takes_nothing():
    table = Memtable()
    table.sealed = True
    with pytest.raises(AssertionError, match="sealed"):
        table.apply([(b"k", b"v")], 1, 0, ())




def test_a_reader_whose_seq_is_not_registered_is_told_when_what_it_finds_is_too_old():
    # 4 is pinned by somebody else; 5 goes while a reader that took 5 as its seq, unregistered, is on its way.
    table = Memtable()
    for seq in range(1, 7):
        table.apply([(b"k", b"%d" % seq)], seq, seq - 1, (4,))
    assert table.lookup(b"k", 5).value == b"5"
    assert table.trimmed <= 5
    table.apply([(b"k", b"7")], 7, 6, (4,))
    assert table.lookup(b"k", 5).value == b"4", "not None, and yet not what was published at 5"
    assert table.trimmed > 5, "so the reader reads again, whether it found something or not"
