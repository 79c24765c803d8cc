"""Pins: the seqs of open snapshots, and up to which commit readers see.

Any thread; `release` also from finalisers, which may run inside a locked region of the same thread (R12).

I1. `register` reads `published` and notes it in one step under the lock, and `view` reads both in one step: a snapshot
    that `view` does not show has a seq at or after the `published` that it shows.
I2. `published` never falls, so the seqs are registered in ascending order. It is set under the order lock alone.
I3. Who reads without registering goes by what `publish` tells. That is in one step with `published`, for `register`:
    a reader of either kind sees no less than one of the other kind that was opened before it (promise 5).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from queue import SimpleQueue

from mmlsm.locks import PINS, ordered_lock


class Pins:
    """Registered seqs, with repeats. `published`: the last commit that new readers see."""

    def __init__(self, published: int = 0, *, debug: bool = False) -> None:
        self.published = published
        self._lock = ordered_lock("pins", PINS, debug)
        self._seqs: list[int] = []
        self._view: tuple[int, ...] | None = ()
        self._released: SimpleQueue[int] = SimpleQueue()

    def publish(self, seq: int, tell: Callable[[int], object] | None) -> None:
        """Let readers see all commits up to `seq`; `tell(seq)` takes no lock. REQUIRES the order lock."""
        with self._lock:
            if tell is not None:
                tell(seq)
            self.published = seq

    def register(self) -> int:
        """Pin what is published now; its seq. Each needs one `release`."""
        with self._lock:
            self._drain()
            seq = self.published
            self._view = None
            self._seqs.append(seq)
            return seq

    def release(self, seq: int) -> None:
        """Give up one registration of `seq`. Takes no lock: the next `register` or `view` sees to it."""
        self._released.put(seq)

    def view(self) -> tuple[int, tuple[int, ...]]:
        """`published` and the registered seqs, ascending, of one moment (I1)."""
        with self._lock:
            if not self._released.empty():
                self._drain()
            view = self._view
            if view is None:
                view = self._view = tuple(self._seqs)
            return self.published, view

    def _drain(self) -> None:
        released, seqs = self._released, self._seqs
        while not released.empty():
            seq = released.get_nowait()
            at = bisect_left(seqs, seq)
            assert at < len(seqs) and seqs[at] == seq, f"seq {seq} is released but not registered"
            self._view = None
            del seqs[at]
