"""The locks: fairness, nothing lost, the order of taking."""

from __future__ import annotations

import contextlib
import linecache
import signal
import sys
import threading

import pytest

from commit_rig import eventually, in_threads
from mmlsm import locks
from mmlsm.errors import ClosedError
from mmlsm.locks import FairLock, OrderedLock, RWLock, ordered_lock
from rig.lifetime.interrupts import points


def test_a_free_lock_is_given_at_once_and_names_its_owner():
    lock = FairLock()
    assert lock.owner is None
    assert lock.acquire()
    assert lock.owner == threading.get_ident()
    lock.release()
    assert lock.owner is None


def test_the_lock_is_given_in_the_order_of_asking():
    lock = FairLock()
    order: list[int] = []

    def ask(number: int) -> None:
        with lock:
            order.append(number)

    lock.acquire()
    threads = []
    for number in range(8):
        thread = threading.Thread(target=ask, args=(number,))
        thread.start()
        threads.append(thread)
        assert eventually(lambda number=number: lock.waiting == number + 1)
    lock.release()
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    assert lock.owner is None


def test_a_releaser_that_asks_again_stands_behind_those_who_wait():
    lock = FairLock()
    order: list[str] = []
    lock.acquire()
    thread = threading.Thread(target=lambda: (lock.acquire(), order.append("waiter"), lock.release()))
    thread.start()
    assert eventually(lambda: lock.waiting == 1)
    lock.release()
    assert lock.owner not in (None, threading.get_ident()) or order == ["waiter"], "handed over, not put up for grabs"
    with lock:
        order.append("releaser")
    thread.join()
    assert order == ["waiter", "releaser"]


def test_a_try_does_not_wait_and_leaves_no_trace():
    lock = FairLock()
    with lock:
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(lock.acquire(0)))
        thread.start()
        thread.join()
        assert results == [False]
        assert lock.waiting == 0
    assert lock.acquire(0)
    lock.release()


def test_a_waiter_that_times_out_leaves_the_queue_and_the_next_one_is_served():
    lock = FairLock()
    results: list[object] = []
    lock.acquire()
    impatient = threading.Thread(target=lambda: results.append(lock.acquire(0.01)))
    impatient.start()
    impatient.join()
    assert results == [False]
    assert lock.waiting == 0
    patient = threading.Thread(target=lambda: results.append(lock.acquire()))
    patient.start()
    assert eventually(lambda: lock.waiting == 1)
    lock.release()
    patient.join()
    assert results == [False, True]


def test_a_lock_given_just_when_the_time_is_out_is_not_lost():
    lock = FairLock()
    lock.acquire()

    class LateGate:
        """A gate whose wait times out, but only after the lock has been handed over."""

        def __init__(self) -> None:
            self.waits = -1

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            self.waits += 1
            if self.waits:
                lock.release()
            return not self.waits

        def release(self) -> None: ...

    results: list[bool] = []

    def ask() -> None:
        results.append(lock.acquire(1))
        assert lock.owner == threading.get_ident()
        lock.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "_new_gate", LateGate)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert results == [True]
    assert lock.acquire(0)


def test_taking_the_lock_twice_in_one_thread_is_an_error_and_not_a_hang():
    lock = FairLock()
    with lock:
        with pytest.raises(RuntimeError, match="already"):
            lock.acquire()
        assert lock.owner == threading.get_ident()
    assert lock.owner is None


def test_any_thread_may_release():
    lock = FairLock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert lock.acquire(0)


def test_releasing_a_free_lock_is_our_bug():
    with pytest.raises(AssertionError, match="twice"):
        FairLock().release()


def test_an_endless_timeout_is_not_an_overflow():
    lock = FairLock()
    lock.acquire()
    threading.Timer(0.01, lock.release).start()
    thread = threading.Thread(target=lambda: (lock.acquire(float("inf")), lock.release()))
    thread.start()
    thread.join()
    assert lock.owner is None


def test_ctrl_c_while_waiting_leaves_the_queue():
    lock = FairLock()
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            assert eventually(lambda: lock.waiting == 1)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            done.wait()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    taken.wait()
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert lock.waiting == 0
    done.set()
    thread.join()
    assert lock.acquire(0), "the interrupted waiter must not have been given the lock"


@pytest.mark.parametrize("step", range(1, 20))
def test_ctrl_c_at_any_step_of_taking_leaves_the_lock_to_others(step):
    # A trace function raises at the n-th line executed inside acquire: before, in and after the queue. Not at a `with`:
    # a trace comes between the end of its block and the release there, which a signal in CPython cannot.
    lock = FairLock()
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != locks.__file__ or frame.f_code.co_name not in ("acquire", "_left"):
            return None
        if event == "line" and not linecache.getline(locks.__file__, frame.f_lineno).strip().startswith("with "):
            count += 1
            if count == step:
                raise KeyboardInterrupt
        return trace

    outcome: list[object] = []

    def ask() -> None:
        sys.settrace(trace)
        try:
            outcome.append(lock.acquire(0.02))
        except KeyboardInterrupt:
            outcome.append(None)
        finally:
            sys.settrace(None)
        if outcome == [True]:
            lock.release()

    lock.acquire()
    thread = threading.Thread(target=ask)
    thread.start()
    assert eventually(lambda: lock.waiting == 1 or outcome)
    lock.release()
    thread.join()
    assert outcome
    assert lock.waiting == 0
    assert lock.acquire(0), f"lost after an interruption at line {count}"


@pytest.mark.parametrize("timeout", [None, 60])
def test_who_waits_for_a_lock_that_ends_is_told_and_its_holder_keeps_it(timeout: float | None) -> None:
    lock = FairLock()
    told: list[object] = []

    def ask() -> None:
        try:
            told.append(lock.acquire(timeout))
        except ClosedError as error:
            told.append(type(error))

    lock.acquire()
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: lock.waiting == 3)
    lock.end()
    for thread in threads:
        thread.join(20)
    assert told == [ClosedError] * 3
    assert lock.owner == threading.get_ident()
    assert lock.waiting == 0
    lock.release()
    for late in (None, 0):
        with pytest.raises(ClosedError):
            lock.acquire(late)
    assert lock.owner is None


def test_a_lock_that_ends_just_when_the_time_is_out_is_told_of() -> None:
    lock = FairLock()
    lock.acquire()

    class LateGate:
        """A gate whose wait times out, but only after the lock has ended."""

        def __init__(self) -> None:
            self.waits = -1

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            self.waits += 1
            if self.waits:
                lock.end()
            return not self.waits

        def release(self) -> None: ...

    def ask() -> None:
        with pytest.raises(ClosedError):
            lock.acquire(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "_new_gate", LateGate)
        in_threads(ask, timeout=20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # strikes in finalisers are only told
def test_an_end_that_is_struck_anywhere_and_done_again_leaves_nobody_waiting() -> None:
    lock = FairLock()
    told: list[bool] = []

    def ask(lock: FairLock) -> None:
        with contextlib.suppress(ClosedError):
            lock.acquire()
        told.append(True)

    threads: list[threading.Thread] = []

    def renew() -> None:
        nonlocal lock
        lock = FairLock()
        lock.acquire()
        for _ in range(3):
            threads.append(threading.Thread(target=ask, args=(lock,), daemon=True))
            threads[-1].start()
        assert eventually(lambda: lock.waiting == 3, 20)

    renew()
    for strike in points(lambda: lock.end()):
        lock.end()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), f"struck at step {strike.at}: {strike.where}"
        threads.clear()
        renew()
    lock.end()


def test_many_threads_with_time_outs_keep_it_exclusive_and_lose_nothing():
    lock = FairLock()
    inside = 0
    counted = 0
    given = [0] * 8

    def work(number: int) -> None:
        nonlocal inside, counted
        for turn in range(300):
            if lock.acquire(None if turn % 3 else 0.0002):
                inside += 1
                assert inside == 1
                counted += 1
                given[number] += 1
                inside -= 1
                lock.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == sum(given) >= 8 * 200
    assert lock.owner is None
    assert lock.waiting == 0


def test_shared_holders_keep_the_exclusive_side_away_and_it_never_waits():
    lock = RWLock()
    lock.acquire_shared()
    lock.acquire_shared()
    assert lock.shared_count == 2
    assert not lock.try_acquire_exclusive()
    lock.release_shared()
    assert not lock.try_acquire_exclusive()
    lock.release_shared()
    assert not lock.torn_down
    assert lock.try_acquire_exclusive()
    assert not lock.try_acquire_exclusive()


def test_a_torn_down_segment_takes_no_reader_any_more():
    lock = RWLock()
    assert lock.try_acquire_exclusive()
    with pytest.raises(AssertionError, match="torn down"):
        lock.acquire_shared()
    lock.release_exclusive()
    with pytest.raises(AssertionError, match="torn down"):
        lock.acquire_shared()
    assert lock.try_acquire_exclusive(), "a teardown that failed may be tried again"


def test_releasing_what_is_not_held_is_our_bug():
    lock = RWLock()
    with pytest.raises(AssertionError, match="more often"):
        lock.release_shared()
    with pytest.raises(AssertionError, match="not taken"):
        lock.release_exclusive()


def test_without_debug_an_ordered_lock_is_a_plain_one():
    assert isinstance(ordered_lock("order", locks.ORDER, False), type(locks.new_lock()))
    assert isinstance(ordered_lock("order", locks.ORDER, True), OrderedLock)


def test_locks_taken_in_rank_order_are_fine():
    install = ordered_lock("install", locks.INSTALL, True)
    order = ordered_lock("order", locks.ORDER, True)
    for _ in range(2):
        with install, order:
            assert install.locked()
            assert order.locked()
    assert not order.locked()


def test_a_lock_of_a_smaller_or_equal_rank_taken_inside_is_named():
    install = ordered_lock("install", locks.INSTALL, True)
    order = ordered_lock("order", locks.ORDER, True)
    with order:
        with pytest.raises(AssertionError, match=r"install \(rank 20\) waited for while holding order \(rank 40\)"):
            install.acquire()
        with pytest.raises(AssertionError, match="order"):
            ordered_lock("order of another database", locks.ORDER, True).acquire()
        assert install.acquire(False), "a try cannot deadlock"
        install.release()


def test_each_thread_has_an_order_of_its_own():
    install = ordered_lock("install", locks.INSTALL, True)
    order = ordered_lock("order", locks.ORDER, True)
    failures: list[BaseException] = []

    def take() -> None:
        try:
            with install:
                pass
        except AssertionError as failure:
            failures.append(failure)

    with order:
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert not failures


def test_the_write_lock_is_not_waited_for_under_another_lock_in_debug():
    lock = FairLock(debug=True)
    with ordered_lock("pins", locks.PINS, True), pytest.raises(AssertionError, match="write"):
        lock.acquire()
    assert lock.acquire()


def test_a_condition_stands_on_an_ordered_lock():
    condition = threading.Condition(ordered_lock("flush", locks.FLUSH, True))
    seen: list[int] = []

    def wait() -> None:
        with condition:
            condition.wait_for(lambda: seen)

    thread = threading.Thread(target=wait)
    thread.start()
    with condition:
        seen.append(1)
        condition.notify_all()
    thread.join()


def test_an_ordered_lock_is_released_only_by_its_holder():
    lock = ordered_lock("order", locks.ORDER, True)
    with pytest.raises(AssertionError, match="does not hold"):
        lock.release()
