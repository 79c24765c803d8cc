"""The actors of a crowd (tests/crowd_rig.py): what each does in one step, and what it checks.

One thread has one actor, with a Random of its own. What is read is compared with the journal, to the byte.
"""

from __future__ import annotations

import contextlib
import gc
import io
import random
import shutil
from bisect import bisect_left, bisect_right
from typing import Any

import mmlsm
import proof
from crowd_rig import KEYS, Crowd, key_of
from cursor_rig import at_or_none
from journal_rig import Items, same, stamp_key

Pairs = dict[bytes, bytes]
TINY_SIZES = (0, 1, 8, 30, 60, 100)
SIZES = (*TINY_SIZES * 4, 300, 1000, 2500, 6000)


class Actor:
    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.db: Any = crowd.db
        self.journal = crowd.journal
        self.number = number
        self.rng = random.Random(f"{crowd.seed} {type(self).__name__} {number}")

    def rest(self, seconds: float) -> None:
        self.crowd.stopped.wait(self.rng.random() * seconds)

    def some_keys(self, most: int) -> list[bytes]:
        """Some neighbours, or some from all over."""
        rng = self.rng
        count = rng.randrange(1, most + 1)
        if rng.random() < 0.5:
            first = rng.randrange(KEYS)
            return [key_of(i) for i in range(first, min(first + count, KEYS))]
        return [key_of(rng.randrange(KEYS)) for _ in range(count)]


class Writer(Actor):
    """Commits of all kinds; each has this writer's stamp, so that it can be told from what it left."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self.count = 0
        self.last_seq = self.journal.first

    def items(self) -> Items:
        rng = self.rng
        self.count += 1
        stamp = b"%.9f %d %d" % (self.crowd.seed, self.number, self.count)
        kind = rng.random()
        items: Items = {}
        if kind < 0.12:  # a range goes: leaves that are left empty
            first = rng.randrange(KEYS)
            items = dict.fromkeys((key_of(i) for i in range(first, min(KEYS, first + rng.randrange(150)))), None)
        else:
            sizes = TINY_SIZES if kind < 0.7 else SIZES
            for key in self.some_keys(25):
                size = rng.choice(sizes)
                items[key] = None if rng.random() < 0.2 else (stamp + key)[: max(size, 1)] * (size // 50 + 1)
            if kind > 0.998:
                items[key_of(rng.randrange(KEYS))] = stamp * (60_000 + rng.randrange(20_000))
        items[stamp_key(self.number)] = stamp
        return items

    def step(self) -> None:
        rng = self.rng
        items = self.items()
        durability = rng.choice(["off", "off", "off", "group", "full", None])
        if rng.random() < 0.6:
            seq = self.batch(items, durability)
        else:
            seq = self.transaction(items, durability)
        if seq is None:
            self.count -= 1
            return
        assert seq > self.last_seq, "seq has gone back (promise 5)"
        assert self.db.seq >= seq, "a commit returned before readers see it"
        self.last_seq = seq
        mode = durability or self.crowd.settings["durability"]
        self.journal.record(seq, items, durable=mode != "off")
        if rng.random() < 0.05:
            self.rest(0.005)

    def value(self, value: bytes) -> Any:
        return io.BytesIO(value) if len(value) > 2000 and self.rng.random() < 0.5 else value

    def fill(self, writes: Any, items: Items) -> None:
        for key, value in items.items():
            if value is None:
                writes.delete(key)
            else:
                if self.rng.random() < 0.05:
                    writes.put(key, self.value(bytes(3000)))  # replaced before it is committed
                writes.put(key, self.value(value))

    def batch(self, items: Items, durability: Any) -> int | None:
        batch = self.db.batch(durability=durability)
        self.fill(batch, items)
        if self.rng.random() < 0.03:
            batch.drop()
            return None
        seq: int = batch.commit()
        return seq

    def transaction(self, items: Items, durability: Any) -> int | None:
        rng = self.rng
        try:
            transaction = self.db.begin(write=True, timeout=rng.choice([None, 0.5]))
        except mmlsm.LockTimeout:
            return None
        before = transaction.seq
        try:
            stamp = transaction.get(stamp_key(self.number))
            assert self.count == 1 or stamp == b"%.9f %d %d" % (self.crowd.seed, self.number, self.count - 1), before
            if rng.random() < 0.2:
                with contextlib.suppress(ZeroDivisionError), transaction.savepoint():
                    self.fill(transaction, dict.fromkeys(self.some_keys(5), b"undone"))
                    raise ZeroDivisionError
            self.fill(transaction, items)
            for key in rng.sample(list(items), min(3, len(items))):
                assert transaction.get(key) == items[key]
            if rng.random() < 0.05:
                transaction.abort()
                return None
            seq: int = transaction.commit(durability=durability)
            return seq
        finally:
            transaction.abort()


class Held:
    """A snapshot, and the state that it must show."""

    def __init__(self, actor: Actor) -> None:
        before = actor.journal.last
        self.snapshot = actor.db.snapshot()
        assert self.snapshot.seq >= before, "older than a commit that had returned (promise 4)"
        self.pairs = actor.journal.state(self.snapshot.seq)
        self.order = list(self.pairs)
        self.what = f"the state at {self.snapshot.seq}"


class SnapshotReader(Actor):
    """Holds a few snapshots for random times and reads them in every way."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self.held: list[Held] = []
        self.most = self.rng.choice([1, 4, 12])

    def step(self) -> None:
        rng = self.rng
        if len(self.held) < self.most and rng.random() < 0.5:
            self.held.append(Held(self))
        if not self.held:
            return
        held = rng.choice(self.held)
        rng.choice([self.all, self.points, self.range, self.neighbours])(held)
        if rng.random() < 0.25:
            self.held.remove(held)
            if rng.random() < 0.5:
                held.snapshot.close()
        self.rest(0.02)

    def all(self, held: Held) -> None:
        reverse = self.rng.random() < 0.5
        pairs = list(held.snapshot.items(reverse=reverse))
        same(pairs[::-1] if reverse else pairs, held.pairs, held.what)

    def points(self, held: Held) -> None:
        snapshot, pairs = held.snapshot, held.pairs
        keys = self.some_keys(20)
        assert snapshot.get_many(keys) == [pairs.get(key) for key in keys], held.what
        for key in keys[:5]:
            want = pairs.get(key)
            assert snapshot.get(key) == want, held.what
            assert (key in snapshot) == (want is not None)
            assert snapshot.value_length(key) == (None if want is None else len(want))
        if want is not None:
            with snapshot.open_value(key) as stream:
                assert stream.read() == want

    def range(self, held: Held) -> None:
        rng = self.rng
        low, high = sorted(rng.sample(range(KEYS), 2))
        how: dict[str, Any] = {"include_start": rng.random() < 0.8, "include_stop": rng.random() < 0.2}
        start, stop, reverse, limit = key_of(low), key_of(high), rng.random() < 0.5, rng.choice([None, None, 7])
        first = (bisect_left if how["include_start"] else bisect_right)(held.order, start)
        last = (bisect_right if how["include_stop"] else bisect_left)(held.order, stop)
        keys = held.order[first:last][:: -1 if reverse else 1][:limit]
        found = list(held.snapshot.items(start, stop, reverse=reverse, limit=limit, **how))
        same(found, {key: held.pairs[key] for key in keys}, f"a range of {held.what}")
        assert list(held.snapshot.keys(prefix=b"key 000")) == [k for k in held.order if k.startswith(b"key 000")]

    def neighbours(self, held: Held) -> None:
        order = held.order
        key = key_of(self.rng.randrange(KEYS))
        for name, at in (
            ("floor", bisect_right(order, key) - 1),
            ("lower", bisect_left(order, key) - 1),
            ("ceiling", bisect_left(order, key)),
            ("higher", bisect_right(order, key)),
        ):
            want = at_or_none(order, at)
            found = getattr(held.snapshot, name)(key)
            assert found == (None if want is None else (want, held.pairs[want])), (name, held.what)
        assert held.snapshot.count() == len(order)


class Walker(Actor):
    """A cursor that is moved both ways, across whatever is installed; its snapshot may be closed long since."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self.left = 0

    def begin(self) -> None:
        self.held = held = Held(self)
        self.cursor = held.snapshot.cursor()
        if self.rng.random() < 0.5:
            held.snapshot.close()
        self.at = -1
        self.left = self.rng.choice([5, 40, 40, 200])
        assert not self.cursor.valid

    def step(self) -> None:
        if self.left == 0:
            self.begin()
        self.left -= 1
        rng, order = self.rng, self.held.order
        if rng.random() < 0.2 or not 0 <= self.at < len(order):
            self.jump(order)
        else:
            forward = rng.random() < 0.6
            for _ in range(rng.choice([1, 1, 3, 30])):
                self.at += 1 if forward else -1
                assert (self.cursor.next() if forward else self.cursor.prev()) == (0 <= self.at < len(order))
                if not 0 <= self.at < len(order):
                    break
                self.look(order)
        if self.left == 0 and rng.random() < 0.5:
            self.cursor.close()
        self.rest(0.008)

    def jump(self, order: list[bytes]) -> None:
        rng = self.rng
        key = key_of(rng.randrange(KEYS))
        how = rng.choice([">=", "<=", ">", "<", "first", "last"])
        self.at = {
            ">=": bisect_left(order, key), ">": bisect_right(order, key), "<=": bisect_right(order, key) - 1,
            "<": bisect_left(order, key) - 1, "first": 0, "last": len(order) - 1,
        }[how]  # fmt: skip
        moved = getattr(self.cursor, how)() if how in ("first", "last") else self.cursor.seek(key, how)
        assert moved == (0 <= self.at < len(order)), (how, key[:20], self.held.what)
        if moved:
            self.look(order)

    def look(self, order: list[bytes]) -> None:
        key = order[self.at]
        assert self.cursor.key == key, self.held.what
        if self.rng.random() < 0.5:
            assert self.cursor.value == self.held.pairs[key], self.held.what
        else:
            assert self.cursor.value_length == len(self.held.pairs[key])


class Scanner(Actor):
    """Scans without a snapshot: each iteration sees one state, which its stamps tell."""

    def step(self) -> None:
        least, kind = self.journal.last, self.rng.randrange(4)
        if kind == 0:
            pairs = dict(self.db.items())
        elif kind == 1:
            pairs = dict([*self.db.items(reverse=True)][::-1])
        elif kind == 2:
            pairs = {key: bytes(view) for key, view in self.db.items(views=True)}
        else:
            with self.db.cursor() as cursor:
                pairs = {}
                while cursor.next() if pairs else cursor.first():
                    pairs[cursor.key] = cursor.value
                    if self.rng.random() < 0.01:
                        self.rest(0.002)
                back = [cursor.key] if cursor.last() else []
                while cursor.prev():
                    back.append(cursor.key)
                assert back[::-1] == list(pairs), "not the same keys both ways"
        self.journal.identify(pairs, least=least)
        self.rest(0.05)


class ViewHolder(Actor):
    """Holds views for random times, past the close too; each stays what it was."""

    def step(self) -> None:
        rng, views = self.rng, self.crowd.views
        kind = rng.randrange(3)
        found: list[tuple[memoryview, bytes]] = []
        if kind == 0:
            seq = self.journal.last
            for key in self.some_keys(6):
                if (view := self.db.get_view(key)) is not None:
                    found.append((view[rng.randrange(2) :], b""))
            assert self.db.seq >= seq
        else:
            held = Held(self)
            if kind == 1:
                for key, view in held.snapshot.items(start=key_of(rng.randrange(KEYS)), views=True, limit=5):
                    assert view == held.pairs[key], held.what
                    found.append((view, b""))
            else:
                with held.snapshot.cursor() as cursor:
                    if cursor.seek(key_of(rng.randrange(KEYS))):
                        assert cursor.view == held.pairs[cursor.key], held.what
                        found.append((cursor.view, b""))
        views.extend((view, bytes(view)) for view, _ in found)
        assert all(view == copy for view, copy in views), "a view has changed"
        while len(views) > 40 or (views and rng.random() < 0.7):
            views.pop(rng.randrange(len(views)))
        self.rest(0.03)


class Compactor(Actor):
    """Compacts, gives up in the middle of some, flushes; everything is deleted now and then."""

    def step(self) -> None:
        kind = self.rng.random()
        if kind < 0.5:
            self.db.compact()
        elif kind < 0.8:
            bound = self.rng.random()

            def progress(done: int, total: int) -> None:
                if total and done > bound * total:
                    raise ZeroDivisionError

            with contextlib.suppress(ZeroDivisionError):
                self.db.compact(progress=progress)
        else:
            self.db._engine.flush()
        self.rest(0.05)


class Looker(Actor):
    """Looks at figures, syncs, collects."""

    def step(self) -> None:
        self.crowd.look()
        before = self.journal.last
        durable = self.db.sync()
        assert durable >= before
        self.journal.note_durable(durable)
        if self.rng.random() < 0.3:
            gc.collect()
        self.rest(0.1)


class Killer(Actor):
    """What a kill at this moment leaves: the state after a commit no older than the last durable one (promise 2)."""

    def step(self) -> None:
        copy = self.crowd.path.with_name(f"killed {self.number}.db")
        with self.db._engine.store.install_lock:  # nothing is installed or reused while the bytes are copied
            durable = self.journal.durable
            shutil.copyfile(self.crowd.path, copy)
        proof.prove_file(copy)
        with mmlsm.open(copy) as again:
            pairs = dict(again.items())
            self.journal.identify(pairs, least=durable)
            again.put(b"after", b"the kill")
            again.compact()
            assert dict(again.items()) == pairs | {b"after": b"the kill"}
        proof.prove_file(copy)
        copy.unlink()
        self.rest(0.3)


def everybody(crowd: Crowd) -> list[tuple[str, Any]]:
    """The whole cast."""
    roles: list[type[Actor]] = [
        *[Writer] * 3, *[SnapshotReader] * 2, *[Walker] * 2, Scanner, ViewHolder, Compactor, Looker, Killer,
    ]  # fmt: skip
    actors = [role(crowd, number) for number, role in enumerate(roles)]
    return [(type(actor).__name__, actor.step) for actor in actors]
