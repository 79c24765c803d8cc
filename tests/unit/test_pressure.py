"""Back-pressure: slowed smoothly before a limit, nobody starves, and all that was waited is counted."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmlsm
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.merger import Merger
from mmlsm.write.pressure import (
    OWED_MOST_S,
    PAUSE_LEAST_S,
    PAUSE_MOST_S,
    PLACE_MOST,
    RATE_FIRST,
    RATE_LEAST,
    SEALED_SLOW,
    SEALED_STOP,
    BackPressure,
    Drain,
    delay_s,
    place,
)
from pressure_rig import TABLE, Load, counts


@given(st.floats(0, 40), st.floats(0, 40), st.integers(1, 10), st.integers(1, 10))
def test_the_place_goes_from_the_slow_mark_to_the_stop_mark(a: float, b: float, slow: int, more: int) -> None:
    assert place(slow, slow, slow + more) == 0
    assert place(slow + more / 2, slow, slow + more) == 0.5
    low, high = sorted((a, b))
    assert 0 <= place(low, slow, slow + more) <= place(high, slow, slow + more) <= PLACE_MOST < 1


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.floats(RATE_LEAST, 1e10), st.floats(0, PLACE_MOST))
def test_the_delay_is_in_proportion_to_the_bytes(a: int, b: int, rate: float, p: float) -> None:
    assert delay_s(a, rate, 0) == 0
    assert delay_s(a + b, rate, p) == pytest.approx(delay_s(a, rate, p) + delay_s(b, rate, p))
    assert delay_s(a, rate, 0.5) == pytest.approx(a / rate), "half way bytes come in as fast as they go"


@pytest.mark.parametrize("size", [100, 5000, 30_000])
@pytest.mark.parametrize(("flush_s", "merge_s"), [(0.2, 0.0), (0.02, 0.8)])
def test_an_endless_load_is_slowed_before_the_stop_mark(size: int, flush_s: float, merge_s: float) -> None:
    """A loader that takes next to no time of its own; a memtable gets away in 0.2 s, by flushes or by merges."""
    load = Load(flush_s=flush_s, merge_s=merge_s)
    for _ in range(20 * TABLE // size):
        load.commit(size, size / 1e9)
    begun, written, before = load.now, load.written, counts(load)
    assert before["flush"] + before["merge"] <= 1, "until it is known how fast things go"
    for _ in range(50 * TABLE // size):
        load.commit(size, size / 1e9)
    found = counts(load)
    assert (found["flush"], found["merge"]) == (before["flush"], before["merge"]), "not again"
    assert found["slowed"] == len(load.sleeps) > 0
    assert load.pressure.stalls["slowed"].seconds == pytest.approx(sum(load.sleeps))
    assert PAUSE_LEAST_S <= min(load.sleeps) <= max(load.sleeps) <= PAUSE_MOST_S
    assert (load.written - written) / (load.now - begun) == pytest.approx(TABLE / 0.2, rel=0.15), "as fast as it drains"


def test_small_commits_are_slowed_gradually() -> None:
    """No cliff: the sleeps of each tenth of a memtable are little longer in all than those of the tenth before."""
    load = Load(flush_s=1e9)
    load.pressure.flushing.rate_at = lambda now, least: 1e6  # type: ignore[method-assign]
    tenths: list[float] = []
    while load.sealed < SEALED_STOP:
        slept = len(load.sleeps)
        for _ in range(256):
            if load.sealed < SEALED_STOP:
                load.commit(102)
        if load.sealed >= SEALED_SLOW:
            tenths.append(sum(load.sleeps[slept:]))
    assert counts(load)["flush"] == 0
    tenths.pop()  # cut short at the stop mark
    assert all(later >= earlier - 2 * PAUSE_LEAST_S for earlier, later in pairwise(tenths))
    middle = len(tenths) // 2
    assert tenths[0] < 0.1 * tenths[middle]
    assert tenths[middle] == pytest.approx(0.1 * TABLE / 1e6, rel=0.2)


def test_nothing_is_slowed_while_nothing_is_behind() -> None:
    load = Load(flush_s=0.001, merge_s=0.001)
    for _ in range(20_000):
        load.commit(1000, 0.0001)
    assert counts(load) == {"flush": 0, "merge": 0, "slowed": 0}
    assert not load.sleeps


def test_what_was_committed_before_is_not_charged() -> None:
    load = Load(flush_s=1e9)
    for _ in range(3):
        load.commit(TABLE - 1)
        load.commit(1)
    assert load.sealed == 3
    assert not load.sleeps or max(load.sleeps) < PAUSE_MOST_S
    load.sealed = 0
    load.commit(10 * TABLE)
    load.sealed = 3
    load.now += 10
    slept = len(load.sleeps)
    load.commit(10)
    load.commit(10)
    assert len(load.sleeps) == slept


def test_time_that_passes_anyway_pays() -> None:
    load = Load(flush_s=1e9, auto_merge=False)
    load.sealed = 3
    for _ in range(200):
        load.commit(100, 0.001)
    assert not load.sleeps


def test_one_large_commit_holds_up_each_after_it_only_a_little() -> None:
    load = Load(flush_s=1e9, auto_merge=False)
    load.sealed = 2
    load.pressure.flushing.rate = 1e6
    load.commit(10)
    load.committer.log.end += 100 * TABLE
    load.filled = TABLE - 10
    load.commit(1)
    assert load.sleeps == [PAUSE_MOST_S]
    assert load.pressure.free_at - load.now <= OWED_MOST_S


def test_what_waits_for_the_bottom_is_slowed_before_it_stops_while_it_drains() -> None:
    """A slice of 16 pages leaves each 10 ms: 6.5 MB/s. What may wait is 3/4 of the bottom."""
    load = Load(flush_s=1e-6, merge_s=1e-6)
    load.installed(bottom=4000, draining=1800)
    assert load.pressure.backlog == pytest.approx(0.6)
    load.drain_rate = 1600.0
    longest = 0.0
    for _ in range(40 * TABLE // 10_000):
        load.commit(10_000, 1e-5)
        longest = max(longest, load.pressure.backlog)
        if load.tier > 400:
            load.installed(tier=0, draining=load.draining + load.tier)
        load.runs = 0
    assert 2 / 3 < longest < 1
    assert load.pressure.draining.rate == pytest.approx(1600 * PAGE_BYTES, rel=0.3)
    assert counts(load)["slowed"] > 0
    assert counts(load)["flush"] + counts(load)["merge"] == 0


def test_at_the_stop_mark_of_the_bottom_commits_wait_until_a_memtables_worth_has_drained() -> None:
    load = Load(flush_s=1)
    load.installed(bottom=4000, draining=9000)
    load.drain_rate = 100.0
    load.commit(10)
    assert load.pressure.stalls["merge"].count == 1
    assert load.now == pytest.approx(TABLE / PAGE_BYTES / 100, abs=0.05), "though more is in the way than may be"
    load.installed(draining=0, tier=9000)
    load.commit(10)
    assert load.pressure.stalls["merge"].count == 1, "nothing drains, so nobody would wake it"


def test_a_backlog_from_the_life_before_is_no_rate_of_this_one() -> None:
    load = Load(flush_s=1)
    load.installed(bottom=4000, draining=2500)
    reopened = BackPressure(load, load, load, load.pressure.life)  # type: ignore[arg-type]
    assert reopened.backlog > 0.8
    assert reopened.added_bytes == 0


def test_time_in_which_nothing_drains_is_not_measured() -> None:
    load = Load(flush_s=1)
    load.installed(bottom=4000, tier=9000)
    load.now += 1000
    load.installed(tier=0, draining=4000)
    assert load.pressure.draining.rate == RATE_FIRST
    load.now += 1
    load.installed(draining=4000 - 2 * TABLE // PAGE_BYTES)
    assert load.pressure.draining.rate == pytest.approx(2 / (1 / RATE_FIRST + 1 / (2 * TABLE)))


def test_without_merges_only_flushes_count() -> None:
    load = Load(flush_s=0.0001, merge_s=1e9, auto_merge=False)
    for _ in range(100):
        load.commit(TABLE, 0.01)
    assert load.runs > 50
    assert not any(counts(load).values())


def test_at_the_stop_mark_commits_wait_for_a_flush_or_a_merge() -> None:
    load = Load(flush_s=5, auto_merge=False)
    load.flush_left = 5
    load.sealed = SEALED_STOP
    load.commit(10)
    assert counts(load) == {"flush": 1, "merge": 0, "slowed": 0}
    assert load.pressure.stalls["flush"].seconds == pytest.approx(5, abs=0.1)
    load = Load(flush_s=1, merge_s=7)
    load.merge_left = 7
    load.runs = 4 * load.settings.fan_out
    load.commit(10)
    assert counts(load) == {"flush": 0, "merge": 1, "slowed": 0}
    assert load.pressure.stalls["merge"].seconds == pytest.approx(7, abs=0.1)


def test_memtables_that_wait_for_a_flush_count_as_the_runs_that_they_will_be() -> None:
    """So the runs keep their bound, whatever is flushed while commits wait."""
    load = Load(flush_s=0.1, merge_s=3)
    load.merge_left = 3
    load.runs, load.sealed = 4 * load.settings.fan_out - 2, 2
    load.commit(10)
    assert counts(load)["merge"] == 1
    assert load.longest[1] <= 4 * load.settings.fan_out


def test_who_waits_goes_on_after_the_next_flush_whoever_was_faster() -> None:
    """Others fill the place at once; with no more than the mark itself to go by, it would wait for ever."""
    load = Load(flush_s=0.1, auto_merge=False)
    load.sealed = SEALED_STOP
    pass_time = load.pass_time

    def crowded(seconds: float) -> None:
        pass_time(seconds)
        load.sealed = SEALED_STOP
        assert load.now < 5, "starved"

    load.pass_time = crowded  # type: ignore[method-assign]
    load.commit(10)
    assert load.flushes >= 1


def test_who_waits_goes_on_after_the_next_merge_whoever_was_faster() -> None:
    load = Load(flush_s=0.1, merge_s=1)
    load.runs = 4 * load.settings.fan_out
    pass_time = load.pass_time

    def crowded(seconds: float) -> None:
        pass_time(seconds)
        load.flushes += 4 * load.settings.fan_out - load.runs
        load.runs = 4 * load.settings.fan_out
        assert load.now < 5, "starved"

    load.pass_time = crowded  # type: ignore[method-assign]
    load.commit(10)


def test_errors_of_the_threads_are_raised_and_not_waited_for() -> None:
    load = Load(flush_s=1e9)
    load.sealed = SEALED_STOP
    load.error = mmlsm.StorageError(28, "the disk is full")
    with pytest.raises(mmlsm.StorageError, match="full"):
        load.commit(1)
    assert counts(load)["flush"] == 1, "it waited all the same"
    load.error, load.ended = None, True
    with pytest.raises(mmlsm.ClosedError):
        load.commit(1)
    load.fault = RuntimeError("planted")
    with pytest.raises(mmlsm.Error, match="planted"):
        load.commit(1)
    failing = Load(flush_s=1, merge_s=1e9)
    failing.runs = 100
    failing.error = mmlsm.StorageError(28, "the disk is full")
    failing.commit(1)
    failing.error, failing.over = None, True
    failing.commit(1)
    assert counts(failing)["merge"] == 0, "a merge thread with an error, or that is gone, is not waited for"


def test_the_rate_is_what_went_lately() -> None:
    drain = Drain()
    drain.begin(7, 100.0)
    for i in range(1, 30):
        drain.note(7 + i, 1e6, 100 + i / 10)
        drain.note(6 + i, 1e6, 100 + i / 10)  # a flush is counted a moment after its run is there
    assert drain.rate == pytest.approx(1e7, rel=0.01)
    drain.note(40, 1e6, 102.9)
    assert drain.rate == pytest.approx(2e7, rel=0.01), "a departure at once halves the time, no more"
    assert drain.rate_at(103, 1e6) == pytest.approx(1e7), "an hour's flush is not as fast as the one before it"
    assert drain.rate_at(102.9 + 3600, 1e9) == pytest.approx(1e9 / 3600)
    drain.note(44, 1e6, 200, least=5)
    assert drain.rate == pytest.approx(2e7, rel=0.01), "a few bytes that a merge saved are no departure"
    drain.note(41, 1.0, 1e9)
    assert drain.rate == RATE_LEAST


def test_stalls_of_many_threads_are_all_counted() -> None:
    load = Load(flush_s=1e9, auto_merge=False)
    load.sealed = 3
    sleeps: list[float] = []
    load.pressure.sleep = sleeps.append
    load.pressure.owe = lambda state: 0.01  # type: ignore[method-assign]
    threads = [threading.Thread(target=lambda: [load.pressure.slow_down() for _ in range(2000)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(load)["slowed"] == len(sleeps) == 12_000


def test_a_loader_faster_than_flushes_is_slowed_and_told_so(open_db: Any) -> None:
    """The real thing, with flushes that wait for a word."""
    db = open_db(durability="off", memtable_bytes=1 << 16, auto_merge=False)
    engine, go = db._engine, threading.Event()
    flush_oldest = engine.writer.flush_oldest

    def slow_flush(*tables: Any) -> None:
        go.wait(20)
        flush_oldest(*tables)

    engine.writer.flush_oldest = slow_flush
    engine.pressure.flushing.rate = 1e6
    while len(db.state.tables) - 1 < SEALED_STOP:
        db.put(b"%d" % db.seq, b"x" * 1000)
    threading.Timer(0.05, go.set).start()
    db.put(b"last", b"x")
    stats = db.stats()
    stalled = {stall.cause: stall for stall in stats.stalled}
    assert stalled["slowed"].stalls > 0
    assert stalled["flush"].stalls == 1
    assert stalled["merge"].stalls == 0
    assert stats.stalls == sum(stall.stalls for stall in stats.stalled)
    assert stats.stall_s == sum(stall.seconds for stall in stats.stalled) > 0


def test_close_wakes_a_commit_that_waits(open_db: Any) -> None:
    db = open_db(durability="off", memtable_bytes=4096, auto_merge=False)
    engine = db._engine
    db.put(b"a", b"x")
    waiting = threading.Event()
    wait = engine.writer.wait_until_flushed

    def wait_until_flushed(ready: Any) -> float:
        waiting.set()
        return wait(lambda: ready() and False)  # whatever is flushed, as though others were faster

    engine.flush()
    engine.pressure.at_flush_stop = lambda: True
    engine.pressure.runs_slow = 0
    engine.writer.wait_until_flushed = wait_until_flushed
    errors: list[BaseException] = []

    def commit() -> None:
        try:
            db.put(b"b", b"x")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    assert waiting.wait(20)
    engine.writer.wait_until_flushed = wait
    db.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert isinstance(errors[0], mmlsm.ClosedError)


def test_a_commit_beside_the_first_one_is_not_slowed_by_what_is_not_there_yet(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread finds the committer made, and its memtable not shown yet; runs are many."""
    with mmlsm.Database(path, Settings(durability="off", auto_merge=False)) as db:
        for i in range(14):
            db[b"%d" % i] = b"x"
            db._engine.flush()
    monkeypatch.setattr(Merger, "choose", lambda *of: None)
    with mmlsm.Database(path, Settings(durability="off")) as db:
        store = db._engine.store
        assert store is not None
        show, made, go = store.set_state, threading.Event(), threading.Event()

        def late(tables: Any, version: Any) -> None:
            made.set()
            go.wait(20)
            show(tables, version)

        monkeypatch.setattr(store, "set_state", late)
        pool = ThreadPoolExecutor(2)
        first = pool.submit(db.put, b"a", b"1")
        assert made.wait(20)
        second = pool.submit(db.put, b"b", b"2")
        with contextlib.suppress(TimeoutError):
            second.result(0.2)  # it waits for the first, or has failed
        go.set()
        first.result(20)
        second.result(20)
        assert (db[b"a"], db[b"b"]) == (b"1", b"2")
