"""Pending writes: the part that batches and transactions share, and Batch itself.

One thread owns a batch. Nothing of it is visible before its commit, all of it is afterwards, or nothing (promise 3).
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mmlsm.errors import ClosedError
from mmlsm.read.cursor import not_copied
from mmlsm.read.given import as_key

if TYPE_CHECKING:
    from mmlsm.read.life import Life
    from mmlsm.settings import Durability
    from mmlsm.write.values import ValueWriter

Commit = Callable[[dict[bytes, Any], "Durability | None"], int]


class Batch:
    """Collects puts and deletes and commits them as one when its `with` block ends; an exception drops them.

    A later write of a key replaces an earlier one. Cost: about a dict access a write, until the commit.
    """

    __slots__ = ("_commit", "_durability", "_items", "_life", "_values")

    def __init__(self, commit: Commit, values: ValueWriter, durability: Durability | None, life: Life) -> None:
        self._items: dict[bytes, Any] | None = {}
        self._commit = commit
        self._values = values
        self._durability = durability
        self._life = life

    def _open(self) -> dict[bytes, Any]:
        self._life.check_open()
        if self._items is None:
            raise ClosedError("the batch has been committed or dropped: begin another")
        return self._items

    def put(self, key: bytes, value: Any) -> None:
        """Set `key` to `value`: bytes-like, or a readable binary stream of any length."""
        items = self._items
        if items is None or self._life.ended:
            items = self._open()
        if type(key) is not bytes or len(key) > 65535:
            key = as_key(key)
        if type(value) is not bytes or len(value) >= 1 << 20:
            self._life.check_open()
            value = self._values.take(value)
        if self._items is not items:  # ended by the stream's own read(), or by other code of what was given
            self._values.give_back(value)
            raise ClosedError("the batch has ended while it took a key or value: begin another")
        replaced = items.get(key)
        items[key] = value
        if replaced is not None and type(replaced) is not bytes:
            self._values.give_back(replaced)

    __setitem__ = put

    def delete(self, key: bytes) -> None:
        """Delete `key`, there or not."""
        key = as_key(key)
        items = self._open()
        replaced = items.get(key)
        items[key] = None
        self._values.give_back(replaced)

    def __len__(self) -> int:
        """How many keys the batch writes."""
        return len(self._open())

    def commit(self) -> int:
        """Commit now; the seq. An empty batch commits nothing."""
        items = self._open()
        self._items = None
        # Whether extents come back when this raises is for `_commit` to say: only it knows if the commit was ordered.
        return self._commit(items, self._durability)

    def drop(self) -> None:
        """Forget all of it."""
        items, self._items = self._items, None
        if items:
            give_all_back(self._values, items)

    def __reduce__(self) -> str:
        raise not_copied(self)

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self.drop()
        elif self._items is not None:
            self.commit()

    def __del__(self) -> None:
        if getattr(self, "_items", None):
            self._values.abandon(self._items.values())  # type: ignore[union-attr]


def give_all_back(values: ValueWriter, items: dict[bytes, Any]) -> None:
    """Give the extents of values that came to nothing back."""
    for value in items.values():
        values.give_back(value)
