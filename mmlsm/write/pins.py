"""Pins: the seqs of open snapshots, and up to which commit readers see.

Any thread. Who holds a seq lets it go by going (register.py), also in the collector (R12).

I1. `register` reads `published` and notes it in one step under the lock, and `view` reads both in one step: a snapshot
    that `view` does not show has a seq at or after the `published` that it shows.
I2. `published` never falls, and is set under the order lock alone.
I3. Who reads without registering goes by what `publish` tells. That is in one step with `published`, for `register`:
    a reader of either kind sees no less than one of the other kind that was opened before it (promise 5).
"""

from __future__ import annotations

from collections.abc import Callable

from mmlsm.locks import PINS, ordered_lock
from mmlsm.register import Register


class Pins:
    """Registered seqs, with repeats. `published`: the last commit that new readers see."""

    def __init__(self, published: int = 0, *, debug: bool = False) -> None:
        self.published = published
        self._lock = ordered_lock("pins", PINS, debug)
        self._register: Register[int] = Register()
        self._present: tuple[int, ...] = ()
        self._ascending: tuple[int, ...] = ()

    def publish(self, seq: int, tell: Callable[[int], object] | None) -> None:
        """Let readers see all commits up to `seq`; `tell(seq)` takes no lock. REQUIRES the order lock."""
        with self._lock:
            if tell is not None:
                tell(seq)
            self.published = seq

    def register(self, holder: object, ordered: int = 0) -> int:
        """Pin what is published now, for as long as `holder` lives; its seq.

        Or `ordered`, which may be yet to be published: who has the write lock sees all that is ordered.
        """
        with self._lock:
            seq = max(self.published, ordered)
            self._register.enter(holder, seq)
            return seq

    def view(self) -> tuple[int, tuple[int, ...]]:
        """`published` and the registered seqs, ascending, of one moment (I1)."""
        with self._lock:
            present = self._register.present()
            if present is not self._present:
                self._present, self._ascending = present, tuple(sorted(present))
            return self.published, self._ascending
