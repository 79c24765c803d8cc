"""A cursor beside the dict that it walks: what the model and the cursors' tests share."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import mmlsm
from mmlsm.limits import KEY_BYTES_MAX


class Walk:
    """A cursor, and where the model says that it stands. `live` is a transaction's own dict."""

    def __init__(self, cursor: mmlsm.Cursor, pairs: dict[bytes, bytes], live: bool) -> None:
        self.cursor = cursor
        self.pairs = pairs
        self.live = live
        self.here: bytes | None = None
        self.dirty = False

    def land(self, moved: bool, key: bytes | None) -> None:
        assert moved == (key is not None), key
        assert self.cursor.valid == moved
        self.here = key
        self.dirty = False
        if key is not None:
            self.check()

    def check(self) -> None:
        cursor, key = self.cursor, self.here
        if key is None:
            assert not cursor.valid
            return
        assert cursor.valid
        assert cursor.key == key
        assert cursor.compare(key) == 0
        if len(key) < KEY_BYTES_MAX:
            assert cursor.compare(key + b"\0") < 0
        if not self.dirty:  # what the transaction did to the very key it stands on is seen when it comes back
            want = self.pairs[key]
            assert cursor.value_length == len(want)
            assert cursor.value == want
            assert bytes(cursor.view) == want

    def step(self, forward: bool) -> None:
        order, key = sorted(self.pairs), self.here
        if key is None:
            assert not (self.cursor.next() if forward else self.cursor.prev())
            return
        at = bisect_right(order, key) if forward else bisect_left(order, key) - 1
        self.land(self.cursor.next() if forward else self.cursor.prev(), at_or_none(order, at))

    def seek(self, key: bytes, how: str) -> None:
        order = sorted(self.pairs)
        at = {
            ">=": bisect_left(order, key),
            ">": bisect_right(order, key),
            "<=": bisect_right(order, key) - 1,
            "<": bisect_left(order, key) - 1,
            "==": bisect_left(order, key) if key in self.pairs else -1,
        }[how]
        self.land(self.cursor.seek(key, how), at_or_none(order, at))


def at_or_none(order: list[bytes], at: int) -> bytes | None:
    return order[at] if 0 <= at < len(order) else None
