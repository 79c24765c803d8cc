"""A database against a sorted dict, step by step: whatever is done to it, it answers as the dict does.

Trees are deep and memtables tiny, so that flushes, merges and overflow extents are everywhere; the file is proved at
the end of each run, and again after it was closed.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import mmlsm
import proof
from campaign import Campaign
from cursor_rig import Walk, at_or_none
from mmlsm.settings import Settings

NASTY = [
    b"",
    b"\0",
    b"\0\0",
    b"\0\0\0\0",
    b"\0\0\0\0\0",
    b"a",
    b"a\0",
    b"a\0\0\0\0",
    b"aaaa",
    b"aaaa\0",
    b"aaaab",
    b"\xff",
    b"\xff" * 4,
    b"\xff" * 300,
    b"p" * 127,
    b"p" * 128,
    b"p" * 129,
    b"p" * 511,
    b"p" * 512,
    b"p" * 513,
    b"p" * 600 + b"\0",
    b"p" * 600 + b"a",
    b"p" * 600 + b"b",
    b"p" * 65535,
    b"p" * 65534 + b"q",
]

keys = st.one_of(
    st.integers(0, len(NASTY) - 1).map(lambda i: NASTY[i]),
    st.integers(0, 60).map(lambda i: b"k%03d" % i),
    st.binary(max_size=3),
    st.binary(min_size=4, max_size=7).map(lambda tail: b"prefix" * 3 + tail),
)
value_sizes = st.sampled_from([0, 1, 5, 30, 100, 300, 1000, 1024, 1025, 4096, 5000, 70_000])
values = st.builds(lambda size, fill: bytes([fill]) * size, value_sizes, st.integers(0, 255))
bounds = st.one_of(st.none(), keys)
CURSORS_MOST = 4


class Model(RuleBasedStateMachine):
    """One run. `model` is what is committed, `own` what the open transaction sees."""

    steps: ClassVar[int] = 0
    """Of all runs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mmlsm-model-"))
        self.path = self.folder / "model.db"
        self.db: Any = None
        self.model: dict[bytes, bytes] = {}
        self.snapshots: list[tuple[mmlsm.Snapshot, dict[bytes, bytes]]] = []
        self.walks: list[Walk] = []
        self.views: list[tuple[memoryview, bytes]] = []
        self.transaction: Any = None
        self.own: dict[bytes, bytes] = {}
        self.savepoints: list[tuple[Any, dict[bytes, bytes]]] = []

    @initialize(
        node_entries_max=st.sampled_from([2, 3, 4, 8, 8192]),
        memtable_bytes=st.sampled_from([4096, 20_000, 1 << 20]),
        durability=st.sampled_from(["full", "group", "off"]),
        verify=st.sampled_from(["first-read", "always", "never"]),
        allocation=st.sampled_from(["earliest", "best"]),
        auto_merge=st.booleans(),
    )
    def begin(self, **settings: Any) -> None:
        self.settings = Settings(debug=True, leaf_bytes=4096, log_extent_bytes=1 << 16, **settings)
        self.open()

    def open(self) -> None:
        self.db = mmlsm.Database(self.path, self.settings)

    def teardown(self) -> None:
        try:
            if self.db is not None and not self.db.closed:
                if self.transaction is not None:
                    self.transaction.abort()
                    self.transaction = None
                self.same(self.db, self.model)
                for snapshot, pairs in self.snapshots:
                    self.same(snapshot, pairs)
                proof.prove(self.db)
                self.db.close()
                proof.prove_file(self.path)
                self.check_views()
        finally:
            self.forget()
            if self.db is not None:
                self.db.close()
            shutil.rmtree(self.folder)

    def forget(self) -> None:
        self.snapshots, self.walks, self.savepoints = [], [], []
        self.transaction = None

    @invariant()
    def count(self) -> None:
        Model.steps += self.db is not None

    def same(self, reader: Any, pairs: dict[bytes, bytes]) -> None:
        order = sorted(pairs)
        assert list(reader.keys()) == order
        assert [*reader.items(reverse=True)] == [(key, pairs[key]) for key in reversed(order)]

    def check_views(self) -> None:
        for view, want in self.views:
            assert view == want

    # -- commits

    @precondition(lambda self: self.transaction is None)
    @rule(key=keys, value=values, stream=st.booleans())
    def put(self, key: bytes, value: bytes, stream: bool) -> None:
        self.db.put(key, io.BytesIO(value) if stream else value)
        self.model[key] = value

    @precondition(lambda self: self.transaction is None)
    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self.db.delete(key)
        self.model.pop(key, None)

    @precondition(lambda self: self.transaction is None)
    @rule(pairs=st.lists(st.tuples(keys, st.one_of(st.none(), values)), max_size=30), drop=st.integers(0, 9))
    def batch(self, pairs: list[tuple[bytes, bytes | None]], drop: int) -> None:
        changed = dict(self.model)
        with self.db.batch() as batch:
            for key, value in pairs:
                if value is None:
                    batch.delete(key)
                    changed.pop(key, None)
                else:
                    batch.put(key, value)
                    changed[key] = value
            if drop == 0:
                batch.drop()
        if drop:
            self.model = changed

    @precondition(lambda self: self.transaction is None)
    @rule(count=st.integers(1, 200), step=st.integers(1, 7), fill=st.integers(0, 255))
    def fill(self, count: int, step: int, fill: int) -> None:
        pairs = {b"k%03d" % (i * step): bytes([fill]) * (i % 60) for i in range(count)}
        self.db.update(pairs)
        self.model.update(pairs)

    @precondition(lambda self: self.transaction is None)
    @rule(key=keys, value=values)
    def swap(self, key: bytes, value: bytes) -> None:
        was = self.model.get(key)
        assert self.db.compare_and_set(key, was, value)
        assert not self.db.compare_and_set(key, value + b"x", b"")
        self.model[key] = value

    # -- a transaction

    @precondition(lambda self: self.transaction is None)
    @rule()
    def begin_writing(self) -> None:
        self.transaction = self.db.begin(write=True)
        self.own = dict(self.model)

    @precondition(lambda self: self.transaction is not None)
    @rule(key=keys, value=st.one_of(st.none(), values))
    def write(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.transaction.delete(key)
            self.own.pop(key, None)
        else:
            assert self.transaction.replace(key, value) == self.own.get(key)
            self.own[key] = value
        for walk in self.walks:
            if walk.live and walk.here == key:
                walk.dirty = True

    @precondition(lambda self: self.transaction is not None and len(self.savepoints) < 3)
    @rule()
    def savepoint(self) -> None:
        block = self.transaction.savepoint()
        block.__enter__()
        self.savepoints.append((block, dict(self.own)))

    @precondition(lambda self: self.savepoints)
    @rule(back=st.booleans())
    def end_savepoint(self, back: bool) -> None:
        block, before = self.savepoints.pop()
        if back:
            error = ZeroDivisionError()
            assert not block.__exit__(ZeroDivisionError, error, None)
            self.own.clear()
            self.own.update(before)
            for walk in self.walks:
                walk.dirty = walk.dirty or walk.live
        else:
            block.__exit__(None, None, None)

    @precondition(lambda self: self.transaction is not None)
    @rule(keep=st.booleans())
    def end(self, keep: bool) -> None:
        if keep:
            while self.savepoints:
                self.savepoints.pop()[0].__exit__(None, None, None)
            self.transaction.commit()
            self.model = dict(self.own)
        else:
            self.transaction.abort()
            self.savepoints = []
        self.transaction = None
        self.walks = [walk for walk in self.walks if not walk.live]

    # -- reading

    def reader(self, which: int) -> tuple[Any, dict[bytes, bytes], bool]:
        """A database, snapshot or transaction, what it must show, and whether it shows writes to come."""
        choices: list[tuple[Any, dict[bytes, bytes], bool]] = [(self.db, dict(self.model), False)]
        choices += [(snapshot, pairs, False) for snapshot, pairs in self.snapshots]
        if self.transaction is not None:
            choices += [(self.transaction, self.own, True)] * 3
        return choices[which % len(choices)]

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def snapshot(self) -> None:
        snapshot = self.db.snapshot()
        assert snapshot.seq >= self.db.seq
        self.snapshots.append((snapshot, dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(at=st.integers(0, 9))
    def close_snapshot(self, at: int) -> None:
        snapshot, pairs = self.snapshots.pop(at % len(self.snapshots))
        self.same(snapshot, pairs)
        snapshot.close()
        with pytest.raises(mmlsm.ClosedError):
            snapshot.get(b"a")

    @rule(which=st.integers(0, 9), key=keys)
    def look_up(self, which: int, key: bytes) -> None:
        reader, pairs, _ = self.reader(which)
        want = pairs.get(key)
        assert reader.get(key) == want
        assert (key in reader) == (want is not None)
        assert reader.value_length(key) == (None if want is None else len(want))
        assert reader.get_many([key, key], b"?") == [b"?" if want is None else want] * 2
        stream, view = reader.open_value(key), reader.get_view(key)
        if want is None:
            assert stream is None
            assert view is None
        else:
            stream.seek(len(want) // 2)
            assert stream.read() == want[len(want) // 2 :]
            assert view == want
            assert view.readonly
            if len(self.views) < 8:
                self.views.append((view[1:], want[1:]))
        self.check_views()

    @rule(which=st.integers(0, 9), key=keys)
    def neighbours(self, which: int, key: bytes) -> None:
        reader, pairs, _ = self.reader(which)
        order = sorted(pairs)
        for name, at in (
            ("floor", bisect_right(order, key) - 1),
            ("lower", bisect_left(order, key) - 1),
            ("ceiling", bisect_left(order, key)),
            ("higher", bisect_right(order, key)),
        ):
            found = at_or_none(order, at)
            assert getattr(reader, name)(key) == (None if found is None else (found, pairs[found])), name

    @rule(
        which=st.integers(0, 9), start=bounds, stop=bounds, reverse=st.booleans(), include_start=st.booleans(),
        include_stop=st.booleans(), limit=st.one_of(st.none(), st.integers(0, 5)),
    )  # fmt: skip
    def ranges(self, which: int, start: bytes | None, stop: bytes | None, limit: int | None, **how: bool) -> None:
        reader, pairs, _ = self.reader(which)
        want = [
            key
            for key in sorted(pairs, reverse=how["reverse"])
            if (start is None or key > start or (key == start and how["include_start"]))
            and (stop is None or key < stop or (key == stop and how["include_stop"]))
        ][:limit]
        assert list(reader.items(start, stop, limit=limit, **how)) == [(key, pairs[key]) for key in want]

    @rule(which=st.integers(0, 9), prefix=keys)
    def prefixes(self, which: int, prefix: bytes) -> None:
        reader, pairs, _ = self.reader(which)
        want = [key for key in sorted(pairs) if key.startswith(prefix)]
        assert list(reader.keys(prefix=prefix)) == want
        assert reader.count(prefix=prefix) == len(want)

    @precondition(lambda self: len(self.walks) < CURSORS_MOST)
    @rule(which=st.integers(0, 9))
    def cursor(self, which: int) -> None:
        reader, pairs, live = self.reader(which)
        self.walks.append(Walk(reader.cursor(), pairs, live))

    @precondition(lambda self: self.walks)
    @rule(at=st.integers(0, 9), forward=st.booleans(), steps=st.integers(1, 12))
    def step(self, at: int, forward: bool, steps: int) -> None:
        walk = self.walks[at % len(self.walks)]
        walk.check()
        for _ in range(steps):
            walk.step(forward)

    @precondition(lambda self: self.walks)
    @rule(at=st.integers(0, 9), key=keys, how=st.sampled_from([">=", "<=", ">", "<", "=="]))
    def seek(self, at: int, key: bytes, how: str) -> None:
        self.walks[at % len(self.walks)].seek(key, how)

    @precondition(lambda self: self.walks)
    @rule(at=st.integers(0, 9), to_last=st.booleans())
    def to_end(self, at: int, to_last: bool) -> None:
        walk = self.walks[at % len(self.walks)]
        order = sorted(walk.pairs)
        moved = walk.cursor.last() if to_last else walk.cursor.first()
        walk.land(moved, at_or_none(order, len(order) - 1 if to_last else 0))

    @precondition(lambda self: self.walks)
    @rule(at=st.integers(0, 9))
    def close_cursor(self, at: int) -> None:
        self.walks.pop(at % len(self.walks)).cursor.close()

    # -- what changes no answer

    @precondition(lambda self: self.transaction is None)
    @rule()
    def flush(self) -> None:
        self.db._engine.flush()

    @precondition(lambda self: self.transaction is None)
    @rule()
    def compact(self) -> None:
        self.db.compact()
        self.same(self.db, self.model)

    @rule()
    def prove(self) -> None:
        proof.prove(self.db)

    @precondition(lambda self: self.transaction is None)
    @rule()
    def reopen(self) -> None:
        held = self.walks[0].cursor if self.walks else None
        self.db.close()
        if held is not None:
            with pytest.raises(mmlsm.ClosedError):
                held.first()
        del held
        self.forget()
        self.check_views()
        proof.prove_file(self.path)
        self.open()
        self.same(self.db, self.model)

    @rule()
    def kill(self) -> None:
        """What a kill at this moment leaves: the committed state, and nothing of the open transaction."""
        copy = self.folder / "copy.db"
        if self.settings.durability == "off":
            self.db.sync()
        with self.db._engine.store.install_lock:  # nothing is installed or reused while the bytes are copied
            shutil.copyfile(self.path, copy)
        proof.prove_file(copy)
        with mmlsm.Database(copy, self.settings) as again:
            self.same(again, self.model)
            proof.prove(again)
            again.put(b"after", b"the kill")
            assert again.get(b"after") == b"the kill"
        proof.prove_file(copy)
        copy.unlink()


@pytest.mark.timeout(600)
def test_whatever_is_done_it_answers_as_a_sorted_dict_does(campaign: Campaign) -> None:
    """Promise 4. In CI always the same runs; in a long one ever new ones, from the seed on."""
    Model.steps = 0
    for turn in campaign.trials(1, 1 << 40):
        machine = type("Model", (Model,), {})
        if campaign.long:
            machine = hypothesis.seed(campaign.seed << 32 | turn)(machine)
        run_state_machine_as_test(
            machine,
            settings=hypothesis.settings(
                max_examples=40 if campaign.long else 20,
                stateful_step_count=60,
                deadline=None,
                derandomize=not campaign.long,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
    campaign.report(steps=Model.steps, turns=turn + 1)
    assert Model.steps > 300
