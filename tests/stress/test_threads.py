"""Many threads on one database: writers, snapshots, cursors, views, compactions, and a close in the middle of it all.

Each commit of a writer moves an amount from one account to another, in one batch, so every committed state has the same
sum: a reader that sees a half commit, or two states at once, sees another sum. After close nothing but ClosedError.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.settings import Settings

ACCOUNTS = 60
START = 1000
TINY: dict[str, Any] = {"memtable_bytes": 8192, "leaf_bytes": 4096, "node_entries_max": 8, "log_extent_bytes": 1 << 16}


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def account(i: int) -> bytes:
    return b"account %02d" % i


def balance(value: bytes) -> int:
    return int(value[:12])


def paper(amount: int, rng: random.Random) -> bytes:
    """An account's value: its balance, and a tail that makes some of them overflow."""
    return b"%012d" % amount + bytes(rng.choice([0, 5, 100, 100, 2000]))


class Bank:
    """One database under load; `run` lets every role work until it closes the database under them."""

    def __init__(self, db: mmlsm.Database, seed: int) -> None:
        self.db = db
        self.seed = seed
        self.stop = threading.Event()
        self.closing = False
        self.errors: list[BaseException] = []
        self.counts: dict[str, int] = {}
        rng = random.Random(seed)
        db.update({account(i): paper(START, rng) for i in range(ACCOUNTS)})

    def check(self, pairs: Any) -> None:
        found = {bytes(key): balance(bytes(value)) for key, value in pairs}
        assert len(found) == ACCOUNTS, f"{len(found)} accounts"
        assert sum(found.values()) == ACCOUNTS * START, f"the sum is {sum(found.values())}"

    def transfer(self, rng: random.Random) -> None:
        one, other = rng.sample(range(ACCOUNTS), 2)
        amount = rng.randrange(50)
        with self.db.begin(write=True) as transaction:
            ours, theirs = balance(transaction[account(one)]), balance(transaction[account(other)])
            transaction.put(account(one), paper(ours - amount, rng))
            transaction.delete(account(other))
            transaction.put(account(other), paper(theirs + amount, rng))
            transaction.commit(durability=rng.choice(["off", "off", "off", "group", "full"]))

    def swap(self, rng: random.Random) -> None:
        """A commit without a transaction: a key comes and one goes, beside the accounts."""
        with self.db.batch() as batch:
            batch.put(b"other %02d" % rng.randrange(20), bytes(rng.randrange(300)))
            batch.delete(b"other %02d" % rng.randrange(20))

    def scan(self, rng: random.Random) -> None:
        self.check(self.db.items(prefix=b"account", reverse=rng.random() < 0.5, views=rng.random() < 0.3))

    def read_snapshot(self, rng: random.Random) -> None:
        before = self.db.seq
        with self.db.snapshot() as snapshot:
            assert snapshot.seq >= before
            for _ in range(3):
                self.check((account(i), snapshot[account(i)]) for i in rng.sample(range(ACCOUNTS), ACCOUNTS))
            assert [key for key, _ in snapshot.items(prefix=b"account")] == [account(i) for i in range(ACCOUNTS)]

    def walk(self, rng: random.Random) -> None:
        """A cursor that is held over whatever is installed meanwhile."""
        with self.db.cursor() as cursor:
            forward = rng.random() < 0.5
            found = {}
            moved = cursor.seek(b"account") if forward else cursor.seek(b"account~", "<=")
            while moved and cursor.key.startswith(b"account"):
                found[cursor.key] = cursor.value
                if rng.random() < 0.1:
                    time.sleep(0.001)
                    key = cursor.key
                    if cursor.prev() if forward else cursor.next():
                        assert cursor.next() if forward else cursor.prev()
                        assert cursor.key == key
                    else:
                        assert cursor.seek(key, "==")
                moved = cursor.next() if forward else cursor.prev()
            self.check(found.items())

    def hold(self, rng: random.Random) -> None:
        with self.db.snapshot() as snapshot:
            views = [(key, view, bytes(view)) for key, view in snapshot.items(prefix=b"account", views=True)]
        time.sleep(rng.random() * 0.02)
        assert all(view == copy for _, view, copy in views)
        self.check((key, view) for key, view, _ in views)

    def read_many(self, rng: random.Random) -> None:
        self.check(zip(map(account, range(ACCOUNTS)), self.db.get_many(map(account, range(ACCOUNTS))), strict=True))
        key = account(rng.randrange(ACCOUNTS))
        assert balance(self.db[key]) is not None
        assert key in self.db

    def compact(self, rng: random.Random) -> None:
        self.db.compact()
        time.sleep(0.02)

    def look(self, rng: random.Random) -> None:
        stats = self.db.stats()
        assert stats.merge_error is None
        assert stats.flush_error is None
        self.db.sync()
        proof.prove(self.db)
        gc.collect()
        time.sleep(0.05)

    def work(self, role: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(f"{self.seed} {role.__name__} {number}")
        while not self.stop.is_set():
            try:
                role(rng)
                self.counts[role.__name__] = self.counts.get(role.__name__, 0) + 1
            except mmlsm.ClosedError as error:
                if not self.closing:
                    self.errors.append(error)
                return
            except BaseException as error:
                self.errors.append(error)
                self.stop.set()
                return

    def run(self, seconds: float) -> None:
        roles = [self.transfer] * 2 + [
            self.swap, self.scan, self.read_snapshot, self.walk, self.hold, self.read_many, self.compact, self.look,
        ]  # fmt: skip
        threads = [
            threading.Thread(target=self.work, args=(role, i), name=role.__name__, daemon=True)
            for i, role in enumerate(roles)
        ]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.closing = True
        self.db.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} hangs"
        self.stop.set()
        if self.errors:
            raise self.errors[0]
        print(f"seed {self.seed}: {self.counts}")


@pytest.mark.timeout(3600)
def test_close_in_the_middle_gives_nothing_but_closed_error(tmp_path: Path, seed: int, effort: int) -> None:
    rng = random.Random(seed)
    for round_ in range(4 * effort):
        path = tmp_path / f"{round_}.db"
        db = mmlsm.Database(path, Settings(debug=True, durability="off", **TINY))
        bank = Bank(db, seed * 1000 + round_)
        view = db.get_view(account(0))
        copy = bytes(view)
        bank.run(rng.random() * 0.6)
        assert view == copy
        del view
        proof.prove_file(path)
        with mmlsm.open(path, readonly=True) as again:
            bank.check(again.items(prefix=b"account"))


@pytest.mark.timeout(3600)
def test_many_threads_fight_for_the_write_lock_and_each_gets_it(path: Path, effort: int) -> None:
    with mmlsm.Database(path, Settings(durability="off", **TINY)) as db:
        stop = time.monotonic() + 1.0 * effort
        made = [0] * 8

        def count(i: int) -> None:
            while time.monotonic() < stop:
                with db.begin(write=True) as transaction:
                    transaction.put(b"n", b"%d" % (int(transaction.get(b"n", b"0")) + 1))
                made[i] += 1

        threads = [threading.Thread(target=count, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert int(db[b"n"]) == sum(made)
        assert min(made) > 0
