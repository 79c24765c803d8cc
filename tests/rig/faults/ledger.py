"""What is committed while things fail, and what must be there afterwards.

Commit n is a function of n, whoever makes it: it sets the counter to n, and a batch. Numbers are given out inside write
transactions, so commit n follows n - 1 in the one order of commits, also when n - 1 has an unknown fate; a commit that
was refused leaves its number to the next. Safe between threads.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import mmlsm
from rig.numbered import COUNTER, batch_of

UNKNOWN = "unknown until the database is reopened"
REFUSALS = (mmlsm.StorageError, mmlsm.ReadOnlyError, mmlsm.ClosedError, MemoryError)
"""What a call may raise because of an injected fault. All else is a finding."""


@functools.cache
def small_batch_of(number: int) -> dict[bytes, bytes | None]:
    """What commit `number` writes, made once."""
    return batch_of(number)


@functools.cache
def large_batch_of(number: int) -> dict[bytes, bytes | None]:
    """The same with values that are written ahead of their commits, which are overwritten and deleted too."""
    batch = batch_of(number)
    if number % 3 == 0:
        batch[b"large %d" % (number % 4)] = bytes([number % 251]) * (1 << 20)
    elif number % 7 == 0:
        batch[b"large %d" % (number % 4)] = None
    return batch


def growing_batch_of(number: int) -> dict[bytes, bytes | None]:
    """New keys each time, so that the database grows for ever."""
    return {b"%06d %d" % (number, i): bytes([number % 251]) * (300 * i) for i in range(4)}


class Ledger:
    """Numbers of commits: `tried` the last that may be there, `returned` the last that must be visible, `handed` the
    last that survives the process, `durable` the last that survives a power cut. `unknown` counts those whose fate is.
    """

    def __init__(self, batch: Callable[[int], dict[bytes, bytes | None]] = small_batch_of) -> None:
        self.batch = batch
        self.lock = threading.Lock()
        self.attempts: Counter[int] = Counter()
        """Those of each number that were not refused."""
        self._count = 0
        self._pairs: dict[bytes, bytes] = {}
        self.begin(0)

    def begin(self, count: int) -> None:
        """A database with so many commits, all durable, is to be opened."""
        self.attempts.clear()
        self.attempts[count] = 1
        self.returned = self.handed = self.durable = count
        self.unknown = 0

    def twin(self) -> Ledger:
        """The same numbers once more, to go on with apart."""
        twin = copy.copy(self)
        twin.lock, twin.attempts = threading.Lock(), Counter(self.attempts)
        twin._pairs = dict(self._pairs)
        return twin

    @property
    def tried(self) -> int:
        with self.lock:
            return max(number for number, count in self.attempts.items() if count > 0)

    def commit(self, db: Any, mode: str) -> int:
        """Make the next commit in a transaction; its number. Whatever that raises."""
        number, counted = 0, False
        try:
            with db.begin(write=True) as transaction:
                number = int(transaction.get(COUNTER, b"0")) + 1
                transaction.put(COUNTER, b"%d" % number)
                for key, value in self.batch(number).items():
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
                with self.lock:
                    self.attempts[number] += 1
                    counted = True
                transaction.commit(durability=mode)
        except BaseException as error:
            with self.lock:
                if UNKNOWN in str(error):
                    self.unknown += 1
                elif counted:
                    self.attempts[number] -= 1
            raise
        with self.lock:
            self.returned = max(self.returned, number)
            if mode != "off":
                self.handed = max(self.handed, number)
            if mode == "full":
                self.durable = max(self.durable, number)
        return number

    def sync(self, db: Any) -> None:
        """`db.sync()`, which makes durable what had returned before."""
        before = self.returned
        db.sync()
        with self.lock:
            self.handed = max(self.handed, before)
            self.durable = max(self.durable, before)

    def closed(self) -> None:
        """`close()` has returned."""
        self.handed = self.durable = self.returned

    def at(self, count: int) -> dict[bytes, bytes]:
        """The state after so many commits."""
        with self.lock:
            if count < self._count:
                self._count, self._pairs = 0, {}
            while self._count < count:
                self._count += 1
                for key, value in self.batch(self._count).items():
                    if value is None:
                        self._pairs.pop(key, None)
                    else:
                        self._pairs[key] = value
            return dict(self._pairs)

    def check(self, db: Any, least: int, most: int) -> int:
        """The database is in the state after some commit between these; which."""
        found = dict(db.items())
        count = int(found.pop(COUNTER, b"0"))
        assert least <= count <= most, f"the state after commit {count}, which must be {least} to {most}"
        want = self.at(count)
        wrong = sorted(key for key in found.keys() | want.keys() if found.get(key) != want.get(key))
        assert not wrong, f"not the state after commit {count}: {len(wrong)} keys differ, {wrong[0][:20]!r} first"
        return count
