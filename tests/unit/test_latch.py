"""Locks where memory fails: `with` lets go of them, which CPython's own do not."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest

from mmlsm.descriptor import no_fork
from mmlsm.latch import latched
from mmlsm.locks import new_lock

hooks = pytest.importorskip("_testcapi", reason="this Python has no _testcapi, which makes allocations fail")


def kept(lock: threading.Lock) -> list[int]:
    """The n-th allocation of a `with` fails: for which n another thread cannot take the lock afterwards."""
    told: list[int] = []
    for failing in range(10):
        gc.collect()  # it forgets the tuples that CPython keeps to use again
        tuples = [(number, number, number) for number in range(10)]
        try:
            try:
                hooks.set_nomemory(failing, failing + 1)
                with lock:
                    pass
            finally:
                hooks.remove_mem_hooks()
        except MemoryError:
            pass
        del tuples
        taken: list[bool] = []
        other = threading.Thread(target=lambda taken=taken: taken.append(lock.acquire(False) and not lock.release()))
        other.start()
        other.join()
        if taken != [True]:
            told.append(failing)
            lock.release()
    return told


@pytest.mark.parametrize("make", [new_lock, lambda: no_fork, lambda: latched(threading.RLock())])
def test_a_lock_is_let_go_of_whatever_allocation_fails(mode: str, make: Callable[[], threading.Lock]) -> None:
    if mode == "interpreted":
        pytest.skip("CPython's own locks, see docs/reliability.md")
    assert kept(make()) == []


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_cpython_keeps_its_own_locks_where_one_allocation_fails(make: Callable[[], threading.Lock]) -> None:
    """What docs/reliability.md says of interpreted mode. Red: CPython was mended, and Latch is not needed there."""
    assert len(kept(make())) == 1


def test_a_latch_is_a_lock_in_all_else() -> None:
    lock = new_lock()
    assert not lock.locked()
    with lock as taken:
        assert taken
        assert lock.locked()
        assert not lock.acquire(False)
        assert not lock.acquire(timeout=0.01)
    assert not lock.locked()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()
    with pytest.raises(RuntimeError):
        lock.release()
