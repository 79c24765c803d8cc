"""EntryTable: versions, order made late, and what survives interruptions and interleavings."""

from __future__ import annotations

import linecache
import random
import sys
import threading

import pytest

from mmlsm.memory import COMPILED
from mmlsm.read import entries
from mmlsm.read.entries import EntryTable


def test_a_lookup_gives_the_newest_version_at_or_before_a_seq():
    table = EntryTable()
    for seq in (3, 5, 9):
        table.put(b"k", b"%d" % seq, seq)
    found = [table.lookup(b"k", seq) for seq in range(2, 11)]
    assert [entry and entry.value for entry in found] == [None, b"3", b"3", *[b"5"] * 4, b"9", b"9"]
    assert table.lookup(b"other", 99) is None
    table.check()


def test_a_version_of_the_same_seq_replaces():
    table = EntryTable()
    table.put(b"k", b"old", 1)
    table.put(b"k", b"first", 2)
    table.put(b"k", None, 2)
    entry = table.lookup(b"k", 2)
    assert (entry.value, entry.older.value, entry.older.older) == (None, b"old", None)
    assert table.sorted_keys() == [b"k"]
    table.check()


def test_keys_come_in_chunks_in_both_directions():
    table = EntryTable()
    assert table.keys_from(None, True, 10) == table.keys_before(None, True, 10) == []
    for key in (b"d", b"", b"b", b"a\0", b"a"):
        table.put(key, b"v", 1)
    assert table.keys_from(None, True, 3) == [b"", b"a", b"a\0"]
    assert table.keys_from(b"a", True, 9) == [b"a", b"a\0", b"b", b"d"]
    assert table.keys_from(b"a", False, 2) == [b"a\0", b"b"]
    assert table.keys_from(b"c", False, 9) == [b"d"]
    assert table.keys_from(b"d", False, 9) == []
    assert table.keys_before(None, True, 2) == [b"d", b"b"]
    assert table.keys_before(b"b", True, 9) == [b"b", b"a\0", b"a", b""]
    assert table.keys_before(b"b", False, 1) == [b"a\0"]
    assert table.keys_before(b"", False, 9) == []


def test_order_equals_an_always_sorted_model(seed, effort):
    rng = random.Random(seed)
    table, model = EntryTable(), {}
    for step in range(3000 * effort):
        key = rng.randbytes(rng.choice((1, 2, 4)))
        if rng.random() < 0.8:
            table.put(key, b"v", step)
            model[key] = True
        else:
            inclusive, limit = rng.random() < 0.5, rng.choice((1, 7, 1000))
            after = sorted(k for k in model if k > key or (inclusive and k == key))[:limit]
            before = sorted((k for k in model if k < key or (inclusive and k == key)), reverse=True)[:limit]
            assert table.keys_from(key, inclusive, limit) == after
            assert table.keys_before(key, inclusive, limit) == before
    table.check()


def test_a_chain_of_any_length_is_dropped_without_recursion():
    table = EntryTable()
    for seq in range(300_000):
        table.put(b"k", b"v", seq)
    held = table.lookup(b"k", 100_000)
    del table
    assert (held.seq, held.older.seq) == (100_000, 99_999)


def test_readers_of_order_beside_a_writer_miss_no_key(effort):
    # A key that was put before a chunk is asked for is in it, however the switches fall.
    table, done, count = EntryTable(), 0, 8000 * effort
    keys = [b"%08d" % i for i in range(count)]
    random.Random(1).shuffle(keys)
    errors: list[object] = []

    def read(backward: bool) -> None:
        while done < count and not errors:
            known = done
            fetch = table.keys_before if backward else table.keys_from
            seen: list[bytes] = []
            start, inclusive = None, True
            while chunk := fetch(start, inclusive, 500):
                seen += chunk
                start, inclusive = chunk[-1], False
            if missing := set(keys[:known]) - set(seen):
                errors.append(("missing", len(missing)))
            if sorted(set(seen), reverse=backward) != seen:
                errors.append("not in order, or twice")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read, args=(backward,)) for backward in (False, True, False)]
        for thread in threads:
            thread.start()
        for i, key in enumerate(keys):
            table.put(key, b"v", i)
            done = i + 1
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    table.check()


@pytest.mark.skipif(COMPILED, reason="steps are told by a trace")
def test_ctrl_c_at_any_step_of_making_order_loses_no_key_and_doubles_none():
    for step in range(1, 200):
        table = EntryTable()
        table.put(b"m", b"v", 1)
        table.keys_from(None, True, 1)
        for key in (b"a", b"z"):
            table.put(key, b"v", 1)
        if not interrupted(lambda table=table: table.keys_from(None, True, 9), step):
            assert step > 10
            return
        for key in (b"b", b"y"):
            table.put(key, b"v", 2)
        assert table.keys_from(None, True, 9) == [b"a", b"b", b"m", b"y", b"z"], step
        table.put(b"c", b"v", 3)
        assert table.keys_before(None, True, 9) == [b"z", b"y", b"m", b"c", b"b", b"a"], step
    raise AssertionError("there are more steps")


def interrupted(work, step: int) -> bool:
    """Run `work` with Ctrl-C at the n-th line in the module or in sortedcontainers; False when there are fewer.

    Not at a `with`: a trace comes between the end of its block and the release there, which a signal in CPython cannot.
    """
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        name = frame.f_code.co_filename
        if name != entries.__file__ and "sortedcontainers" not in name:
            return None
        if event == "line" and not linecache.getline(name, frame.f_lineno).strip().startswith("with "):
            count += 1
            if count == step:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False
