# cython: boundscheck=False, wraparound=False, binding=False
"""Life: the one flag that tells every handle of a database that it has ended.

Any thread reads it; it is set once, at close or in a forked child.

I1. Once the interpreter is ending, its other threads stand still for ever wherever they were, maybe with a lock: no
    call begins any more, whether the database was closed or not.
"""

from __future__ import annotations

import cython

from mmlsm.errors import ClosedError, ForkError

if not cython.compiled:
    from sys import is_finalizing


@cython.final
@cython.cclass
class Life:
    """Whether a database's handles may still be used: `ended` is 0, 1 (closed) or 2 (this is a forked child)."""

    def __init__(self) -> None:
        self.ended = 0

    def check(self):
        """ClosedError or ForkError once the handles have ended."""
        if self.ended == 1:
            raise ClosedError("the database is closed: open it again")
        if self.ended == 2:
            raise ForkError("this process was forked from the one that opened the database: open it anew in the child")
        if is_finalizing():
            raise ClosedError("the interpreter is ending: use a database in atexit handlers at the latest")
        return 0

    def check_open(self) -> None:
        """`check` for Python callers."""
        self.check()

    def is_ended(self) -> bool:
        """Whether the handles have ended."""
        return self.ended != 0

    def end(self, why: int) -> None:
        """1: closed; 2: this is a forked child. The first word stands."""
        if self.ended == 0:
            self.ended = why
