"""Stack for steps that must be done to their end once they are begun.

Such a step is tried again when something strikes it: Ctrl-C, a signal's handler, another thread's asynchronous
exception. Where the program has nearly used up the interpreter's recursion limit, it would be struck each time.
Any thread.
"""

from __future__ import annotations

import sys
from typing import Final

FRAMES: Final = 200
"""Calls, one inside the other, that are enough for any step."""
FRAMES_LEAST: Final = 30
"""As many as it takes to begin something and to end it again."""
FRAMES_TO_END: Final = FRAMES_LEAST + 20
"""Where there are so many when something is begun that its user ends, its end will find FRAMES_LEAST."""
TRIES_MOST: Final = 20
"""What strikes a step so often is nothing that comes by chance: it is raised."""

_left: tuple[int, int] | None = None
"""A limit that could not be set again, and what stands in its place."""


def make_sure_of(frames: int) -> int:
    """RecursionError if there are not so many left. About 40 ns each."""
    return frames and make_sure_of(frames - 1)


class Headroom:
    """`with Headroom(struck):` raises the recursion limit meanwhile, if the step was struck by a RecursionError."""

    __slots__ = ("_limit",)

    def __init__(self, struck: BaseException | None) -> None:
        self._limit = -1 if isinstance(struck, RecursionError) else 0

    def __enter__(self) -> None:
        if self._limit:
            now = sys.getrecursionlimit()
            self._limit = _left[0] if _left is not None and _left[1] == now else now
            sys.setrecursionlimit(now + FRAMES)

    def __exit__(self, *_: object) -> None:
        global _left
        if self._limit > 0:
            try:
                sys.setrecursionlimit(self._limit)
                _left = None
            except RecursionError:  # this is deeper than the limit itself: the next one takes it back
                _left = self._limit, sys.getrecursionlimit()
