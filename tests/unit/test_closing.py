"""Closes that fail in the middle, for want of stack or memory or by our own fault, and the call that comes after."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mmlsm
from mmlsm import closing
from mmlsm.engine import Engine
from rig.lifetime.world import of_mmlsm, tiny

PAIRS = {b"%03d" % i: bytes(50) for i in range(60)}
NAMES = [step.__name__ for step in closing.STEPS]


def at_depth(room: int, call: Callable[[], object]) -> object:
    """Run it where the stack has so many frames left."""
    depth, frame = 0, sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1

    def descend(frames: int) -> object:
        return call() if frames <= 0 else descend(frames - 1)

    return descend(sys.getrecursionlimit() - depth - room)


@pytest.mark.parametrize("frames", [closing.FRAMES_LEAST, 0])
def test_a_close_that_has_no_stack_left_is_done_by_the_next_call(
    path: Path, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "FRAMES_LEAST", frames)
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    refused = 0
    for room in range(2, 30):
        db = tiny(path)
        db.update(PAIRS)
        try:
            at_depth(room, db.close)
        except RecursionError:
            refused += 1
            if frames:
                assert db[b"000"] == PAIRS[b"000"], "nothing is half done"
        db.close()
        assert db.closed
        assert of_mmlsm() == [], f"{room} frames"
        with tiny(path) as again:
            assert dict(again.items()) == PAIRS
    assert refused > 3


def fail(monkeypatch: pytest.MonkeyPatch, name: str, error: type[BaseException]) -> list[type[BaseException]]:
    """The step of close() of that name fails for as long as the error stands in what this gives."""
    number, errors = NAMES.index(name), [error]
    step = closing.STEPS[number]

    def failing(engine: Engine) -> None:
        if errors:
            raise errors[0]("planted")
        step(engine)

    monkeypatch.setattr(closing, "STEPS", (*closing.STEPS[:number], failing, *closing.STEPS[number + 1 :]))
    return errors


@pytest.mark.parametrize("error", [RecursionError, MemoryError, KeyboardInterrupt, AssertionError])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_cannot_be_done_is_left_to_the_next_call_or_left_out(
    path: Path, name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tiny(path, durability="full")
    db.update(PAIRS)
    errors = fail(monkeypatch, name, error)
    with pytest.raises(error, match="planted"):
        db.close()
    how = closing.TRIES[NAMES.index(name)]
    left = how == closing.ALWAYS or (how == closing.AGAIN and error is not AssertionError)
    if left:
        with pytest.raises(mmlsm.LockedError):
            tiny(path)
        with pytest.raises(error, match="planted"):
            db.close()
    errors.clear()
    db.close()
    assert db.closed
    assert of_mmlsm() == []
    with tiny(path, readonly=True) as again:
        assert dict(again.items()) == PAIRS
        assert again.stats().clean == (left or name == "let_go"), "the log is to be replayed"
