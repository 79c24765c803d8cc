"""What many threads committed, by seq, so that the state after each commit can be told: the stress tests' model.

Safe between threads. Each commit writes its writer's stamp beside its keys, so that a state that is found without a seq
(a live scan, a killed file) tells which commit it is the state after, and must then be that state to the byte.

I1. `record` is called with what a commit wrote once it has returned; a commit that raised is never recorded. So when
    all commits have returned, a seq that is missing is a commit that was ordered though it raised.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping

Items = dict[bytes, bytes | None]
PATIENCE_S = 60
STAMP = b"stamp "


def stamp_key(writer: int) -> bytes:
    return STAMP + b"%03d" % writer


class Journal:
    """The commits of one life of a database, after `pairs`, which was its state at `seq`."""

    def __init__(self, pairs: Mapping[bytes, bytes], seq: int) -> None:
        self.first = seq
        self.changed = threading.Condition()
        # guarded by changed
        self.last = seq
        """All commits up to here have been recorded."""
        self.durable = seq
        """A kill at any moment from now on loses nothing up to here."""
        self._waiting: dict[int, Items] = {}
        self._versions: dict[bytes, tuple[list[int], list[bytes | None]]] = {}
        self._stamps: dict[bytes, int] = {}
        for key, value in pairs.items():
            self._versions[key] = [seq], [value]
            if key.startswith(STAMP):
                self._stamps[value] = seq

    def record(self, seq: int, items: Items, *, durable: bool) -> None:
        """The commit `seq` has returned; `durable`: it survives a kill."""
        with self.changed:
            assert seq > self.last, f"seq {seq} was given twice (promise 5)"
            assert seq not in self._waiting, f"seq {seq} was given twice (promise 5)"
            self._waiting[seq] = items
            while (items_next := self._waiting.pop(self.last + 1, None)) is not None:
                self.last += 1
                self._enter(self.last, items_next)
            if durable:
                self.durable = max(self.durable, seq)
            self.changed.notify_all()

    def _enter(self, seq: int, items: Items) -> None:
        for key, value in items.items():
            seqs, values = self._versions.setdefault(key, ([], []))
            seqs.append(seq)
            values.append(value)
            if value is not None and key.startswith(STAMP):
                assert value not in self._stamps, "a stamp was given twice"
                self._stamps[value] = seq

    def note_durable(self, seq: int) -> None:
        """What `sync()` answered."""
        with self.changed:
            self.durable = max(self.durable, seq)

    def wait_for(self, seq: int) -> None:
        """Until all commits up to `seq` are recorded: readers may be quicker than a commit's own thread."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.last >= seq, PATIENCE_S):
                raise AssertionError(f"commit {self.last + 1} of {seq} was seen, but never returned (I1)")

    def at(self, key: bytes, seq: int) -> bytes | None:
        """The value of `key` after commit `seq`, which was waited for."""
        seqs, values = self._versions.get(key, ((), ()))
        at = bisect_right(seqs, seq)
        return values[at - 1] if at else None

    def state(self, seq: int) -> dict[bytes, bytes]:
        """Everything after commit `seq`, in order."""
        self.wait_for(seq)
        with self.changed:
            keys = sorted(self._versions)
        found = {key: self.at(key, seq) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def identify(self, pairs: Mapping[bytes, bytes], *, least: int | None = None, most: int | None = None) -> int:
        """Which commit this is the state after; AssertionError when it is not exactly one's."""
        seq = self.first
        for key, value in pairs.items():
            if not key.startswith(STAMP):
                continue
            with self.changed:
                known = self.changed.wait_for(lambda value=value: value in self._stamps, PATIENCE_S)
                assert known, f"{key!r} is {value!r}, which no commit that returned has written"
                seq = max(seq, self._stamps[value])
        same(pairs.items(), self.state(seq), f"the state after commit {seq}")
        assert least is None or seq >= least, f"the state after commit {seq}, but {least} had returned before"
        assert most is None or seq <= most, f"the state after commit {seq}, but the last was {most}"
        return seq


def same(found: Iterable[tuple[bytes, bytes]], want: Mapping[bytes, bytes], what: str) -> None:
    """Pairs in order against a dict in order; the first difference in few words."""
    pairs, wanted = list(found), list(want.items())
    if pairs == wanted:
        return
    for i, (pair, other) in enumerate(zip([*pairs, None], [*wanted, None], strict=False)):
        if pair != other:
            raise AssertionError(
                f"not {what}: pair {i} of {len(pairs)} is {short(pair)}, wanted {short(other)} of {len(wanted)}"
            )


def short(pair: tuple[bytes, bytes] | None) -> str:
    return "none" if pair is None else f"{pair[0][:40]!r}: {pair[1][:30]!r} ({len(pair[1])} bytes)"
