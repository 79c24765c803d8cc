# cython: binding=False
"""Latch: a lock that `with` lets go of also where there is no memory left.

CPython (3.11 to 3.13 were tried) makes a tuple to call `__exit__` of its own locks; where that fails, the lock stays
taken for ever. Compiled code is called without one, and Ctrl-C does not come in there; interpreted, it would, so there
CPython's locks are used as they are.
"""

from __future__ import annotations

import threading

import cython


@cython.final
@cython.no_gc
@cython.cclass
class Latch:
    """A `threading.Lock` or RLock in all that is used of it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.acquire = lock.acquire
        self.release = lock.release

    def locked(self) -> bool:
        return self.lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind, error, trace) -> None:
        self.release()


def latched(lock):
    """The lock as a Latch, or interpreted as it is."""
    return Latch(lock) if cython.compiled else lock
