"""Memory that fails at one step of a commit, an install or a reclaim: pages keep one owner."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import proof
from mmlsm import limits
from mmlsm.locks import RWLock
from mmlsm.space.allocator import Allocator
from mmlsm.space.births import Births
from mmlsm.space.extents import Extent
from mmlsm.space.reclaim import Reclaimer
from mmlsm.write.merger import Merger


def no_memory(*_: object) -> None:
    raise MemoryError


def test_an_error_after_a_commit_was_ordered_leaves_it_its_extents(
    open_db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_db(durability="off")
    db[b"a"] = b"1"
    value = bytes(range(256)) * (limits.LARGE_VALUE_BYTES // 256)
    with monkeypatch.context() as patch:
        patch.setattr(db._engine.committer, "_write_behind", no_memory)
        with pytest.raises(MemoryError):
            db.put_many({b"large": value, **{b"%d" % i: value[: 1 << 16] for i in range(100)}})
    assert db[b"large"] == value
    db._engine.flush()
    assert db[b"large"] == value
    proof.prove(db)


def test_an_install_ends_with_the_log_knowing_what_it_let_go(open_db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_db()
    db[b"a"] = b"1"
    engine = db._engine
    store, log = engine.store, engine.committer.log
    old, told = log.extents[0], list[bool]()
    store.on_install.append(lambda: told.append(log.extents[0].first == store.superblock.log.page))
    for number in range(10):
        db[b"%d" % number] = bytes(1 << 16)
        engine.flush()
    assert told
    assert all(told)
    assert old not in log.extents


@pytest.mark.parametrize("failing", range(4))
def test_what_a_reclaim_could_not_free_is_freed_by_the_next(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(100, [(10, 3), (20, 2), (30, 4)], resize=lambda pages: None, forget=lambda *_: None)
    reclaimer = Reclaimer(allocator)
    reclaimer.retire([(10, 3), (20, 2)], 1, 2)
    reclaimer.retire([(30, 4)], 1, 2)
    free, calls = allocator.free, []

    def fails(extent: Extent) -> None:
        calls.append(extent)
        if len(calls) == failing + 1:
            raise MemoryError
        free(extent)

    with monkeypatch.context() as patch:
        patch.setattr(allocator, "free", fails)
        if failing < 3:
            with pytest.raises(MemoryError):
                reclaimer.reclaim(2)
        else:
            reclaimer.reclaim(2)
    assert (
        sum(retirement.pages for retirement in reclaimer.pending()) + sum(extent.count for extent in calls[:failing])
        == 9
    )
    reclaimer.reclaim(2)
    assert reclaimer.pending() == []
    assert allocator.live_extents() == []
    allocator._check()


@pytest.mark.parametrize("failing", [(RWLock, "release_shared"), (Reclaimer, "unpin"), (Births, "forget_until")])
@pytest.mark.parametrize("number", range(4))
def test_a_version_that_is_gone_is_let_go_of_once(
    failing: tuple[type, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often, and wherever, memory fails in that."""
    reclaimer = Reclaimer(Allocator(100, [], resize=lambda pages: None, forget=lambda *_: None))
    for install in (1, 1, 2):
        reclaimer.pin(install)
    locks = [RWLock() for _ in range(3)]
    for lock in locks:
        lock.acquire_shared()
        lock.acquire_shared()
    entry: Any = SimpleNamespace(what=(1, [SimpleNamespace(lock=lock) for lock in locks]))
    store = SimpleNamespace(versions={id(entry): entry}, made_at={1: 0.0, 2: 0.0}, reclaimer=reclaimer)
    reclaimer.unpin(1)
    owner, name = failing
    call: Callable[..., None] = getattr(owner, name)
    calls = []

    def fails(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == number + 1:
            raise MemoryError
        call(*arguments)

    merger: Any = SimpleNamespace(store=store)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        try:
            Merger.unpin(merger, entry)
        except MemoryError:
            Merger.unpin(merger, entry)
    Merger.unpin(merger, entry)
    assert [lock.shared_count for lock in locks] == [1, 1, 1]
    assert (reclaimer.pinned(), store.versions, store.made_at) == ([2], {}, {2: 0.0})
