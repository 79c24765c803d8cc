"""Ctrl-C in a commit, at any step: wholly there or not at all, and nobody waits for ever (I4 of write/commit.py).

Without `debug`: the locks that check their order are not built to be interrupted.
"""

from __future__ import annotations

import gc
import linecache
import signal
import sys
import threading
import time

import pytest

from commit_rig import CommitRig, in_threads
from mmlsm.write import commit, log, ticket

DURABILITIES = ("off", "group", "full")
STEPS = {
    commit.__file__: {
        *("_order", "_enter", "_is_full", "switch_memtable", "_await", "_wait_or_lead", "_write_behind"),
        *("_lead_unless_led", "_or_leave", "_leave", "_lead", "_synced", "_publish", "_settle"),
    },
    ticket.__file__: {"wake"},
    log.__file__: {"room", "append", "_link", "_begin", "_clean", "take", "written"},
}


KINDS = (KeyboardInterrupt, TimeoutError, ValueError)
"""What a signal's handler may raise; a TimeoutError is an OSError, too."""


def raised_at(step: int, count: list[int], kind: type[BaseException] = KeyboardInterrupt):
    """A trace that raises at the n-th line of the steps; not at a `with` or `try`, where it can come in and Ctrl-C not.

    CPython lets signals in after calls, at backward jumps and at the entry of functions; a trace comes between the end
    of a `with` block and the release there, and at a `try` it is in no handler's range, not even the enclosing one's.
    """

    def trace(frame, event, argument):
        name = frame.f_code.co_filename
        if frame.f_code.co_name not in STEPS.get(name, ()):
            return None
        if event == "line" and not linecache.getline(name, frame.f_lineno).strip().startswith(("with ", "try:")):
            count[0] += 1
            if count[0] == step:
                raise kind
        return trace

    return trace


def check(rig: CommitRig, interrupted: dict[int, list], committed: dict[int, list]) -> None:
    """Others can commit and sync, in bounded time; log and memory agree on one order of whole commits."""
    more: list[int] = []
    for durability in DURABILITIES:
        items = [(b"after", durability.encode()), (b"more", b"v")]
        in_threads(lambda d=durability, i=items: more.append(rig.committer.commit(i, d)), timeout=20)
        committed[more[-1]] = items
    in_threads(lambda: rig.committer.sync(), timeout=20)
    with rig.committer.order_lock:
        rig.seal()  # what older tables have let go of, the newest knows nothing of
    assert rig.write_lock.owner is None
    logged = {c.seq: c.items for c in rig.scan()}
    assert list(logged) == list(range(1, rig.committer.last_seq + 1))
    for seq, items in committed.items():
        assert logged[seq] == items
    assert all(items in interrupted.values() for seq, items in logged.items() if seq not in committed)
    assert sorted(set(rig.published)) == list(logged)
    assert rig.published == sorted(rig.published)
    state: dict[bytes, object] = {}
    for seq, items in logged.items():
        state.update(items)
        (table,) = (one for one in rig.tables if one.first_seq <= seq <= one.last_seq)
        for key, value in items:
            assert seq < table.trimmed or rig.at(key, seq) == value
    assert {key: rig.at(key, rig.pins.published) for key in state} == state
    for table in rig.tables:
        table.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("durability", DURABILITIES)
def test_ctrl_c_at_any_step(durability, kind):
    step, reached = 0, True
    while reached:
        step += 1
        rig = CommitRig(log_extent_bytes=4096, memtable_bytes=4096, debug=False)
        committed = {rig.committer.commit([(b"k", b"before")], "off"): [(b"k", b"before")]}
        committed[rig.committer.commit([(b"k", b"again")], "group")] = [(b"k", b"again")]
        items = [(b"k", b"v" * 2500), (b"other", None)]
        count = [0]
        sys.settrace(raised_at(step, count, kind))
        try:
            committed[rig.committer.commit(items, durability)] = items
            reached = False
        except kind:
            pass
        finally:
            sys.settrace(None)
        check(rig, {0: items}, committed)
    assert step > 40


@pytest.mark.parametrize("durability", DURABILITIES)
def test_ctrl_c_at_any_step_beside_a_leader_and_one_who_waits(durability):
    step, reached = 0, True
    while reached:
        step += 1
        rig = CommitRig(debug=False)
        ready, go = threading.Event(), threading.Event()

        def hold(name: str, ready=ready, go=go) -> None:
            if not ready.is_set():
                ready.set()
                assert go.wait(20)

        rig.note(hold)
        committed: dict[int, list] = {}

        def put(key: bytes, rig=rig, committed=committed) -> None:
            items = [(key, b"v")]
            committed[rig.committer.commit(items, "full")] = items

        leading = threading.Thread(target=put, args=(b"leads",), daemon=True)
        leading.start()
        assert ready.wait(20)
        waiting = threading.Thread(target=put, args=(b"waits",), daemon=True)
        waiting.start()
        while rig.committer.last_seq < 2:
            time.sleep(0.0001)
        # The leader is let go when the one to be interrupted waits, or when it has been.
        items, count, outcome = [(b"k", b"v")], [0], []

        def interrupted(rig=rig, items=items, count=count, outcome=outcome, step=step, committed=committed) -> None:
            sys.settrace(raised_at(step, count))
            try:
                committed[rig.committer.commit(items, durability)] = items
                outcome.append("committed")
            except KeyboardInterrupt:
                outcome.append("interrupted")
            finally:
                sys.settrace(None)

        thread = threading.Thread(target=interrupted, daemon=True)
        thread.start()
        while not outcome and (len(rig.committer._pending) < 3 or rig.committer._pending[2].gate is None):
            time.sleep(0.0001)
        go.set()
        for one in (leading, waiting, thread):
            one.join(20)
            assert not one.is_alive(), f"a thread waits for ever after Ctrl-C at step {step}"
        reached = outcome == ["interrupted"]
        check(rig, {0: items}, committed)
    assert step > 20


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals are the main thread's")
@pytest.mark.parametrize("kind", KINDS)
def test_real_signals_at_random_times_beside_other_committers(effort, kind):
    rig = CommitRig(memtable_bytes=1 << 12, log_extent_bytes=8192, debug=False)
    committed: dict[int, list] = {}
    interrupted: dict[int, list] = {}
    armed, done, hits = False, False, 0

    def handler(number, frame) -> None:
        nonlocal armed, hits
        if armed:
            armed = False
            hits += 1
            raise kind

    def disturb() -> None:
        main = threading.main_thread().ident
        while not done:
            time.sleep(0.0003)
            if armed:
                signal.pthread_kill(main, signal.SIGUSR1)

    def others(number: int) -> None:
        n = 0
        while not done:
            n += 1
            items = [(b"thread %d" % number, b"%d" % n)]
            committed[rig.committer.commit(items, DURABILITIES[(n + number) % 3])] = items
            time.sleep(0.001)

    before = signal.signal(signal.SIGUSR1, handler)
    gc.collect()
    gc.disable()  # or the exception would come in finalisers of what other tests left, and be swallowed there
    threads = [threading.Thread(target=others, args=(number,), daemon=True) for number in range(3)]
    threads.append(threading.Thread(target=disturb, daemon=True))
    try:
        for thread in threads:
            thread.start()
        n, until = 0, time.monotonic() + 0.8 * effort
        while time.monotonic() < until:
            n += 1
            items = [(b"main", b"%d" % n), (b"twin", b"%d" % n)]
            seq = None
            try:
                armed = True
                seq = rig.committer.commit(items, DURABILITIES[n % 3])
                armed = False
            except kind:
                pass
            if seq is None:
                interrupted[n] = items
            else:
                committed[seq] = items
    finally:
        armed, done = False, True
        gc.enable()
        for thread in threads:
            thread.join(20)
        signal.signal(signal.SIGUSR1, before)
    assert not any(thread.is_alive() for thread in threads)
    assert hits > 20
    check(rig, interrupted, committed)


