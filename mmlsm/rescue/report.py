"""What a salvage answers: how much came out, what did not, and what of it may be wrong. Plain values; any thread.

I1. A range of keys is low <= key < high; `high` None is "no end".
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of keys that damage has touched, and where."""

    reason: str
    low: bytes = b""
    high: bytes | None = None
    """Not included; None: no end."""
    page: int | None = None
    segment: int | None = None
    entries: int | None = None
    """How many entries were there, tombstones and older values included; None where nobody knows."""

    def touches(self, key: bytes) -> bool:
        """Whether the key is in the range."""
        return self.low <= key and (self.high is None or key < self.high)


@dataclass(slots=True)
class SalvageReport:
    """What came out of a damaged file.

    What is in neither list came out as it was: each key that is not in a range of `lost` or `uncertain` has in the new
    database the value of commit `seq`, or is absent in both. A file that is not `closed` may have had later commits:
    damage that took all of the log behind that one leaves no trace.
    """

    entries: int = 0
    """Pairs in the new database."""
    bytes: int = 0
    """Bytes of their keys and values."""
    lost: list[Damage] = field(default_factory=list)
    """Entries that did not come out. A key in these ranges may be missing."""
    uncertain: list[Damage] = field(default_factory=list)
    """A key in these ranges may have an older value, or one that no sum proves, or be back though it was deleted."""
    notes: list[str] = field(default_factory=list)
    """Damage that cost nothing."""
    seq: int = 0
    """The last commit that the file has; 0 where nobody knows."""
    closed: bool = False
    """Whether the file was closed in good order, so that there is no later commit."""

    @property
    def complete(self) -> bool:
        """Whether all came out, and nothing of it is in doubt."""
        return not self.lost and not self.uncertain

    def lose(self, damage: Damage, *, older: bool) -> None:
        """Note a loss; `older`: there are older segments from which other values may have come instead."""
        self.lost.append(damage)
        if older:
            self.uncertain.append(damage)

    def doubt(self, reason: str) -> None:
        """Everything may be older than it was."""
        self.uncertain.append(Damage(reason))

    def note(self, text: str) -> None:
        """Damage that cost nothing, each once."""
        if text not in self.notes:
            self.notes.append(text)


def after(key: bytes) -> bytes:
    """The least key above `key`."""
    return key + b"\0"


def past(prefix: bytes) -> bytes | None:
    """The least string above all that begin with `prefix`; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
