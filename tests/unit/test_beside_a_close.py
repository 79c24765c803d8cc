"""Calls of other threads while a database is closed, by two threads at once: a right answer, or ClosedError."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from commit_rig import in_threads
from rig.lifetime.misuse import calls_on, calls_on_stream, handles_of
from rig.lifetime.world import LARGE, State, filled, tiny

DURABILITIES = ("full", "group", "off")


def others_of(db: mmlsm.Database) -> list[Any]:
    """Its other handles, none where it is empty or closed by now."""
    try:
        return handles_of(db)[1:]
    except (mmlsm.ClosedError, AssertionError, StopIteration):
        return []


def closers(db: mmlsm.Database, rng: random.Random) -> list[Callable[[], None]]:
    """Two threads' work: each close ends without an error, and then it is closed."""

    def close(pause: float) -> None:
        threading.Event().wait(pause)
        db.close()
        assert db.closed

    first = rng.random() * 0.1
    return [lambda: close(first), lambda: close(first + rng.choice([0, 0.001, 0.01]))]


def try_all(db: mmlsm.Database, rng: random.Random) -> None:
    """Every call on every handle, a write transaction and batches among them, until it is closed."""
    while not db.closed:
        calls = list(calls_on([db, *others_of(db)]))
        with contextlib.suppress(mmlsm.ClosedError):
            calls += () if (stream := db.open_value(b"large")) is None else calls_on_stream(stream)
        rng.shuffle(calls)
        for _, call in calls:
            attempt(call)
        with contextlib.suppress(mmlsm.ClosedError):
            calls = list(calls_on([db.begin(write=True)]))
            rng.shuffle(calls)
            for _, call in calls:
                attempt(call)
            del calls, call  # and with them the transaction, which lets go of the lock


def attempt(call: Callable[[], object]) -> None:
    """It answers, or says one of what it may say."""
    try:
        call()
    except (mmlsm.ClosedError, StopIteration, KeyError):
        pass
    except mmlsm.Error as error:
        if type(error) not in (mmlsm.Error, mmlsm.ReadOnlyError):  # moves of a shared cursor
            raise


def test_every_call_beside_a_close_answers_or_says_closed(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        db = filled(path)
        works = [lambda n=n, db=db: try_all(db, random.Random(n)) for n in range(4)]
        in_threads(*closers(db, rng), *works, timeout=60)
        proof.prove_file(path)


class Owner:
    """One thread, and keys that nobody else writes: `state` is what all that returned has made of them."""

    def __init__(self, db: mmlsm.Database, number: int, seed: str) -> None:
        self.db = db
        self.prefix = b"own %d " % number
        self.rng = random.Random(seed)
        self.state: State = {}
        self.number = 0
        self.commits = 0

    def work(self) -> None:
        """Until it is told that it is closed."""
        writes = (self.put, self.take, self.batch, self.transaction, self.update, self.swap, self.put_large)
        try:
            while True:
                after = dict(self.state)
                self.rng.choice(writes)(after)
                self.state = after
                self.commits += 1
                self.check()
        except mmlsm.ClosedError:
            return

    def pair(self, after: State) -> tuple[bytes, bytes]:
        """What is to be written next."""
        self.number += 1
        key, value = self.prefix + b"%d" % self.rng.randrange(20), b"%d" % self.number * 20
        after[key] = value
        return key, value

    # -- one commit each, which makes of the state what `after` becomes

    def put(self, after: State) -> None:
        self.db.put(*self.pair(after))

    def put_large(self, after: State) -> None:
        self.number += 1
        after[self.prefix] = value = (b"%07d" % self.number) * (LARGE // 7)
        self.db.put(self.prefix, value)

    def take(self, after: State) -> None:
        key = self.rng.choice([*self.state, self.prefix + b"absent"])
        assert self.db.pop(key, None) == after.pop(key, None)

    def batch(self, after: State) -> None:
        with self.db.batch(durability=self.rng.choice(DURABILITIES)) as batch:
            for _ in range(3):
                batch.put(*self.pair(after))
            for key in [*after][:2]:
                batch.delete(key)
                del after[key]

    def transaction(self, after: State) -> None:
        transaction = self.db.begin(write=True)
        try:
            for _ in range(3):
                key, value = self.pair(after)
                transaction.put(key, value)
                assert transaction[key] == value
            for key in [*after][:2]:
                del transaction[key]
                del after[key]
            assert dict(transaction.items(prefix=self.prefix)) == after
            transaction.commit(durability=self.rng.choice(DURABILITIES))
        finally:
            transaction.abort()

    def update(self, after: State) -> None:
        self.db.update([self.pair(after), self.pair(after)])

    def swap(self, after: State) -> None:
        key, value = self.pair(after)
        assert not self.db.compare_and_set(key, b"another", value)
        assert self.db.compare_and_set(key, self.state.get(key), value)

    # -- reading

    def check(self) -> None:
        """One way to read, whose answer is known: a thread sees its own commits, and nobody changes the rest."""
        db, state, prefix = self.db, self.state, self.prefix
        way = self.rng.randrange(8)
        if way == 0:
            assert {key: db.get(key) for key in state} == state
        elif way == 1:
            assert dict(db.items(prefix=prefix)) == state
        elif way == 2:
            assert [bytes(view) for view in db.values(prefix=prefix, reverse=True, views=True)] == [
                state[key] for key in sorted(state, reverse=True)
            ]
        elif way == 3:
            with db.snapshot() as snapshot:
                assert snapshot.get_many(list(state)) == list(state.values())
        elif way == 4:
            with db.begin() as transaction:
                assert transaction.count(prefix=prefix) == len(state)
        elif way == 5:
            with db.cursor() as cursor:
                assert cursor.seek(prefix + b"absent", ">=") in (True, False)
                assert not cursor.valid or cursor.key > prefix
        elif way == 6:
            assert (db[b"b"], db.floor(b"0001"), len(db.get_many([b"%03d" % i for i in range(60)]))) == (
                b"2", (b"000", b"v" * 50), 60,
            )  # fmt: skip
        elif (stream := db.open_value(prefix)) is not None:
            assert stream.read() == state[prefix]
        else:
            assert prefix not in state


@pytest.mark.parametrize("durability", DURABILITIES)
def test_what_returned_beside_a_close_is_right_and_stays(path: Path, seed: int, durability: str) -> None:
    """A commit that returned is there when it is opened again, and one that says ClosedError is not."""
    rng, commits = random.Random(f"{seed} {durability}"), 0
    for number in range(3):
        path.unlink(missing_ok=True)
        db = filled(path, durability=durability)
        owners = [Owner(db, n, f"{seed} {durability} {number} {n}") for n in range(4)]
        in_threads(*closers(db, rng), *(owner.work for owner in owners), timeout=60)
        proof.prove_file(path)
        with tiny(path) as again:
            for owner in owners:
                assert dict(again.items(prefix=owner.prefix)) == owner.state, owner.commits
            assert again[b"b"] == b"2"
            assert len(list(again.keys(stop=b"1"))) == 60
        commits += sum(owner.commits for owner in owners)
    assert commits, "no commit came before its close"
