"""Who makes a history (rig/histories/checker.py): writers, readers, and one who flushes and compacts beside them."""

from __future__ import annotations

import contextlib
import gc
import io
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import mmlsm
from rig.histories.checker import COUNT, PRESENT, Answer, Read, short
from rig.histories.forms import Actor

Items = dict[int, bytes | None]
SIZES = (*(0, 3, 40, 90, 90) * 8, 300, 1000, 2500, 6000)
SIZE_LARGE = 1_100_000


def value_of(stamp: bytes, i: int, size: int) -> bytes:
    """A value that tells which commit wrote it, for which key: no other one is equal."""
    head = b"%d %b " % (i, stamp)
    return (head * (size // len(head) + 1))[: max(size, len(head))]


def alike(own: bytes | None, seen: Any) -> bool:
    """Whether an answer is right for a key that is known to be `own`."""
    if own is None or seen is None:
        return own is seen
    return seen is PRESENT or seen == (len(own) if isinstance(seen, int) else own)


class Pass:
    """A pass over all pairs that is taken up again and again."""

    def __init__(self, reader: Any, keys: int, reverse: bool) -> None:
        self.pairs = iter(reader.items(reverse=reverse))
        self.reverse = reverse
        self.low, self.high = 0, keys
        """The keys that are left."""

    def go_on(self, count: int, index: dict[bytes, int]) -> list[Answer]:
        """The next pairs, so many if there are."""
        low, high, found = self.low, self.high, list(islice(self.pairs, count))
        if low == high and not found:
            return []
        if self.reverse:
            found.reverse()
            self.high = low = index.get(found[0][0], low) if len(found) == count else low
        else:
            self.low = high = index.get(found[-1][0], low) + 1 if len(found) == count else high
        return [(low, high, found)]


class Reader(Actor):
    """Reads the database, and what it holds of it: snapshots, read transactions, cursors, passes over all."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.held: list[tuple[Any, Read]] = []
        self.most = self.rng.choice([1, 3, 8])

    def step(self) -> None:
        kind = self.rng.random()
        if kind < 0.5:
            self.read_now()
        elif kind < 0.55 and len(self.held) < self.most:
            self.open()
        elif self.held:
            self.read_held()
        self.rest(0.1)

    def read_now(self) -> None:
        log, db = self.log, self.db
        if self.rng.random() < 0.1:
            read = log.read("db.seq")
            read.seq = db.seq
            log.opened(read)
            return
        read = log.read("")
        read.answers = self.ask(db, lambda: log.opened(read))
        if read.end < 0:
            log.opened(read)
        read.what = f"{self.form} of the database"

    def open(self) -> None:
        log, db, rng = self.log, self.db, self.rng
        what = rng.choice(["a snapshot", "a snapshot", "a snapshot", "a read transaction", "a cursor", "a pass"])
        read = log.read(what)
        reader: Any
        match what:
            case "a snapshot":
                reader = db.snapshot()
                read.seq = reader.seq
            case "a read transaction":
                reader = db.begin()
                read.seq = reader.seq
            case "a cursor":
                reader = db.cursor()
            case _:
                reader = Pass(db, len(self.keys), rng.random() < 0.5)
        log.opened(read)
        if what == "a snapshot" and rng.random() < 0.4:
            self.shared[rng.randrange(len(self.shared))] = reader, read
        else:
            self.held.append((reader, read))

    def read_held(self) -> None:
        """Go on with something that was opened a while ago, by another thread even."""
        rng = self.rng
        shared = rng.choice(self.shared)
        if shared is not None and rng.random() < 0.3:
            reader, read = shared
            read.answers += self.ask(reader)
            return
        number = rng.randrange(len(self.held))
        reader, read = self.held[number]
        count = rng.randrange(1, 30)
        if isinstance(reader, mmlsm.Cursor):
            self.form = "moves"
            read.answers += self.counted(self.moves(reader, count))
        elif isinstance(reader, Pass):
            self.form = "go_on"
            read.answers += self.counted(reader.go_on(count, self.index))
        else:
            read.answers += self.ask(reader)
        if rng.random() < 0.1:
            del self.held[number]
            if rng.random() < 0.5 and not isinstance(reader, Pass):
                reader.close()


class Writer(Actor):
    """Commits of every kind, transactions that read what they write."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.name = b"%d" % self.rng.getrandbits(32)
        self.written = 0
        self.value_sizes = self.rng.choice([SIZES, SIZES, SIZES, (*SIZES * 30, SIZE_LARGE)])

    def step(self) -> None:
        durability = self.rng.choice([None, None, "off", "off", "group", "full"])
        kind = self.rng.random()
        if kind < 0.4:
            self.batch(durability)
        elif kind < 0.7:
            self.transaction(durability)
        elif kind < 0.85:
            self.plain()
        elif kind < 0.97:
            self.conditional()
        else:
            self.all_or_first()
        self.rest(0.02)

    def value(self, i: int) -> bytes:
        self.written += 1
        return value_of(b"%b-%d" % (self.name, self.written), i, self.rng.choice(self.value_sizes))

    def items(self) -> Items:
        rng, n = self.rng, len(self.keys)
        if rng.random() < 0.02:  # a range goes
            first = rng.randrange(n)
            return dict.fromkeys(range(first, min(n, first + rng.randrange(1, n // 4))))
        count = min(n, rng.choice([1, 1, 2, 2, 5, 25]))
        first = self.some_key()
        chosen = range(first, min(n, first + count)) if rng.random() < 0.5 else {self.some_key() for _ in range(count)}
        return {i: None if rng.random() < 0.15 else self.value(i) for i in chosen}

    def fill(self, writes: Any, items: Items) -> None:
        for i, value in items.items():
            if self.rng.random() < 0.03:
                writes.put(self.keys[i], self.value(i))  # replaced before it is committed: nobody is to see it
            if value is None:
                writes.delete(self.keys[i])
            elif len(value) > 2000 and self.rng.random() < 0.5:
                writes.put(self.keys[i], io.BytesIO(value))
            else:
                writes.put(self.keys[i], value)

    def batch(self, durability: Any) -> None:
        items = self.items()
        batch = self.db.batch(durability=durability)
        self.fill(batch, items)
        if self.rng.random() < 0.03:
            batch.drop()
            return
        write = self.log.write(items)
        self.log.wrote(write, batch.commit())

    def plain(self) -> None:
        """What commits without telling its seq."""
        db, i = self.db, self.some_key()
        kind = self.rng.randrange(4)
        items: Items = {i: None} if kind == 1 else {i: self.value(i)} if kind < 2 else self.items()
        pairs = {self.keys[i]: value for i, value in items.items() if value is not None}
        if len(pairs) != len(items):
            kind = 1
            items = {i: None}
        write = self.log.write(items)
        match kind:
            case 0:
                db[self.keys[i]] = items[i]
            case 1:
                db.delete(self.keys[i])
            case 2:
                db.update(pairs)
            case _:
                db.put_many(pairs.items())
        self.log.wrote(write, self.noted.seq)

    def conditional(self) -> None:
        """Calls that read and write in one: what they read is the state just before their commit."""
        log, db, i = self.log, self.db, self.some_key()
        key, new, seen = self.keys[i], self.value(i), None
        kind = self.rng.randrange(3)
        if kind == 0:
            look = log.read("the database")
            seen = db.get(key)
            log.opened(look)
            look.answers.append((i, i + 1, [] if seen is None else [(key, seen)]))
        self.noted.seq = None
        write = log.write({i: None if kind == 1 else new})
        read = log.read(("compare_and_set", "pop", "setdefault")[kind])
        read.published = False
        if kind == 0:
            told = db.compare_and_set(key, seen, new) == (self.noted.seq is not None)
        elif kind == 1:
            seen = db.pop(key, None)
            told = (seen is not None) == (self.noted.seq is not None)
        else:
            found = db.setdefault(key, new)
            seen = None if found == new else found
            told = (seen is None) == (self.noted.seq is not None)
        log.opened(read)
        assert told, f"{read.what} answers what is not so"
        if self.noted.seq is not None:
            log.wrote(write, self.noted.seq)
            read.seq = self.noted.seq - 1
        if kind or self.noted.seq is not None:
            read.answers.append((i, i + 1, [] if seen is None else [(key, seen)]))
        self.asked[read.what] += 1

    def all_or_first(self) -> None:
        """What goes is for the database to say: the first pair, or all."""
        log, db = self.log, self.db
        self.noted.seq = None
        write, read = log.write({}), log.read("popitem")
        read.published = False
        pair = None
        if self.rng.random() < 0.03:
            write.items = dict.fromkeys(range(len(self.keys)))
            db.clear()
        else:
            with contextlib.suppress(KeyError):
                pair = db.popitem()
                write.items = {self.index[pair[0]]: None}
            read.answers.append(self.ahead(0, pair))
        log.opened(read)
        if self.noted.seq is not None:
            log.wrote(write, self.noted.seq)
            read.seq = self.noted.seq - 1
        self.asked[read.what] += 1

    def transaction(self, durability: Any) -> None:
        log, rng = self.log, self.rng
        read = log.read("a write transaction")
        read.published = False
        try:
            transaction = self.db.begin(write=True, timeout=rng.choice([None, None, 0.5]))
        except mmlsm.LockTimeout:
            return
        log.opened(read)
        read.seq = transaction.seq
        own: Items = {}
        try:
            for _ in range(rng.randrange(3)):
                read.answers += self.ask(transaction)
            if rng.random() < 0.2:
                with contextlib.suppress(ZeroDivisionError), transaction.savepoint():
                    self.fill(transaction, self.items())
                    raise ZeroDivisionError
            for _ in range(rng.randrange(1, 3)):
                items = self.items()
                self.fill(transaction, items)
                own.update(items)
                if rng.random() < 0.5:
                    read.answers += self.beside(own, self.ask(transaction))
            if rng.random() < 0.05:
                return
            write = log.write(own)
            seq = transaction.commit(durability=durability)
            log.wrote(write, seq)
            read.seq = seq - 1
        finally:
            transaction.abort()

    def beside(self, own: Items, answers: Sequence[Answer]) -> list[Answer]:
        """The answers of a transaction without those of its own writes, which must be as it wrote them."""
        rest: list[Answer] = []
        for low, high, found in answers:
            if found and found[0][0] == COUNT:
                continue
            outside = [key for key, _ in found if not low <= self.index.get(key, -1) < high]
            assert not outside, f"{short(outside[0])} is outside of what a transaction asked for"
            seen = dict(found)
            for i in sorted(i for i in own if low <= i < high):
                answer = seen.get(self.keys[i])
                assert alike(own[i], answer), f"a transaction wrote {short(own[i])} and reads {short(answer)}"
                rest += self.piece(low, i, found)
                low = i + 1
            rest += self.piece(low, high, found)
        return rest

    def piece(self, low: int, high: int, found: Sequence[tuple[bytes, Any]]) -> Iterator[Answer]:
        if low < high:
            yield low, high, [pair for pair in found if low <= self.index[pair[0]] < high]


class Disturber(Actor):
    """Flushes, compacts, syncs and collects."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pause = self.rng.choice([0.01, 0.1, 0.3])

    def step(self) -> None:
        match self.rng.randrange(6):
            case 0:
                self.db.compact()
            case 1:
                self.db.sync()
            case 2:
                gc.collect()
            case _:
                self.db._engine.flush()
        time.sleep(self.rng.random() * self.pause)
