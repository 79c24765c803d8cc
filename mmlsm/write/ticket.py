"""Ticket: a commit, or who asks for a write, on its way. What may be done to it, and by whom: see commit.py."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mmlsm.settings import Durability

OFF, GROUP, FULL, ASKING = range(4)
MODES: Final[dict[Durability, int]] = {"off": OFF, "group": GROUP, "full": FULL}
WAITING, SETTLED, FAILED = range(3)


class Ticket:
    """One commit on its way, or one thread that asks for everything before `end` to be written (ASKING)."""

    __slots__ = ("end", "gate", "mode", "seq", "state")

    def __init__(self, seq: int, mode: int) -> None:
        self.seq = seq
        self.mode = mode
        self.end = 0
        self.state = WAITING
        self.gate: threading.Lock | None = None


def wake(ticket: Ticket) -> None:
    """Open the ticket's gate, if it waits. Opened twice, after Ctrl-C in between, it is as open as once."""
    gate = ticket.gate
    if gate is not None:
        if gate.locked():
            gate.release()
        ticket.gate = None
