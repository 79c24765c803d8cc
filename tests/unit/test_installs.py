"""Installs beside each other and beside seals: none is lost to another (I2 of write/store.py)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from commit_rig import in_threads
from mmlsm.write.store import Edit

PATIENCE_S = 20


def unchanged(levels: Any, number: int) -> Any:
    return levels


def test_one_install_waits_for_the_other(open_db: Any) -> None:
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    db._engine.flush()
    store = db._engine.store
    before = store.manifest.install
    inside, go = threading.Event(), threading.Event()

    def slow(levels: Any, number: int) -> Any:
        inside.set()
        go.wait(0.5)  # the other has no other way in than to come in between
        return levels

    numbers: list[int] = []

    def install(change: Any) -> None:
        if change is unchanged:
            assert inside.wait(PATIENCE_S)
        numbers.append(store.install(store.file.channel(), Edit(change)))
        go.set()

    in_threads(lambda: install(slow), lambda: install(unchanged))
    assert numbers == [before + 1, before + 2]
    assert db[b"a"] == b"1"


def test_a_memtable_that_is_sealed_during_an_install_is_not_lost(open_db: Any, monkeypatch: Any) -> None:
    db = open_db(auto_merge=False)
    db[b"a"] = b"1"
    engine = db._engine
    sealed = threading.Event()

    def seal() -> None:
        with engine.committer.order_lock:
            engine._seal()
        sealed.set()

    class Tables:
        """What an install asks for each memtable: a seal of another thread comes in between, if it can."""

        def __iter__(self) -> Iterator[Any]:
            thread = threading.Thread(target=seal)
            thread.start()
            thread.join(0.2)
            return iter(())

    edit = Edit(unchanged)
    edit.without_tables = Tables()  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(engine.writer, "flush_sealed", lambda: None)  # what is sealed stays in memory
        engine.store.install(engine.store.file.channel(), edit)
        assert sealed.wait(PATIENCE_S)
        tables = engine.store.state.tables
        if tables[0] is not engine.committer.memtable:  # else close() would wait for it for ever
            engine.store.set_state((engine.committer.memtable, *tables), engine.store.state.version)
        assert len(tables) == 2
    db[b"b"] = b"2"
    assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
