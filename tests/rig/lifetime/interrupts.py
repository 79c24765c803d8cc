"""Interrupts where CPython can let one in: an exception raised in the calling thread at the n-th such point of a call.

A signal's handler runs, and may raise, where the interpreter looks up: at the entry of each Python function, after each
call of a C function, at the end of each round of a loop, and in C functions that wait (locks, sleeps, reads). `Strike`
counts these points, in whatever Python code runs below the call, and raises at one of them. Between a lock's
`__enter__` and the block behind `with` there is none, so none is struck there.

    for strike in points(operation):  # one operation a point, until it is through without being struck
        ...look whether all is well
"""

from __future__ import annotations

import dis
import gc
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FrameType
from typing import Any

import mmlsm

WAITS = frozenset(
    ["acquire", "sleep", "get", "open", "read", "pread", "pwrite", "pwritev", "fdatasync", "fsync", "fcntl"]
)
"""C functions that look for signals while they wait, and then have done nothing."""


class Interrupted(BaseException):
    """What a handler might raise that nobody knows."""


@cache
def loops(code: CodeType) -> frozenset[int]:
    """The instructions, by their offsets, to which rounds of loops go back."""
    return frozenset(step.argval for step in dis.get_instructions(code) if "JUMP_BACKWARD" in step.opname)


class Strike:
    """Runs a call and raises `error` at its point number `at` (from 1); 0 only counts.

    `struck` says whether it came to that, `where` in which line, `points` how many there were until then.
    """

    def __init__(self, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at = at
        self.error = error
        self.points = 0
        self.where = ""
        self._own = sys._getframe()

    @property
    def struck(self) -> bool:
        return bool(self.where)

    def __call__(self, call: Callable[[], object]) -> None:
        """Run it, up to where it is struck."""
        callbacks = gc.callbacks[:]  # Python functions of others, hypothesis for one, which a collection would call
        gc.callbacks.clear()
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        try:
            call()
        except self.error:
            if not self.struck:
                raise
        except mmlsm.Error:  # what an Exception in the middle of I/O is told as
            if not (self.struck and issubclass(self.error, Exception)):
                raise
        finally:
            sys.setprofile(None)
            sys.settrace(None)
            gc.callbacks[:] = callbacks

    def _point(self, frame: FrameType, what: str) -> None:
        self.points += 1
        if self.points == self.at:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname} {what}"
            sys.setprofile(None)
            sys.settrace(None)
            raise self.error

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename == __file__:
            return
        if event == "call":
            self._point(frame, "entered")
        elif event == "c_return":
            self._point(frame, f"after {getattr(argument, '__name__', argument)}")
        elif event == "c_call" and getattr(argument, "__name__", "") in WAITS:
            self._point(frame, f"in {argument.__name__}")

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        code = frame.f_code
        if sys.version_info >= (3, 12):  # what a trace raises in an inlined comprehension goes past the handlers around
            return None
        if code.co_filename == __file__ or not (targets := loops(code)):
            return None
        rounds = 0

        def in_loops(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal rounds
            if event == "line" and frame.f_lasti in targets:
                if rounds:  # else the loop is only entered
                    self._point(frame, "in a loop")
                rounds += 1
            return in_loops

        return in_loops


def points(
    call: Callable[[], Any],
    *,
    most: int | None = None,
    seed: object = 0,
    error: type[BaseException] = KeyboardInterrupt,
) -> Iterator[Strike]:
    """Runs `call` once for each of its points, struck there, and gives the strike.

    With `most`, once for each of so many points at most, drawn with `seed` from as many as a first run, which is given
    too, had; else until a run is through.
    """
    if most is not None:
        whole = Strike(0)
        whole(call)
        yield whole
        rng = random.Random(f"{seed}")
        for at in sorted(rng.sample(range(1, whole.points + 1), min(most, whole.points))):
            strike = Strike(at, error)
            strike(call)
            yield strike
        return
    at = 0
    while True:
        at += 1
        strike = Strike(at, error)
        strike(call)
        yield strike
        if not strike.struck:
            return


def every_point(
    call: Callable[[], Any], rng: random.Random, error: type[BaseException] = KeyboardInterrupt
) -> Iterator[Strike]:
    """As `points` without `most`, in any order: a run without a strike, one struck at each point that this one had, and
    on behind the last of them until a run is through."""
    strike = Strike(0, error)
    strike(call)
    yield strike
    last = strike.points
    for at in [*rng.sample(range(1, last + 1), last), *range(last + 1, last + 10_000)]:
        strike = Strike(at, error)
        strike(call)
        yield strike
        if at > last and not strike.struck:
            return
