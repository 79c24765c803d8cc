"""Every form of reading, and what each answer says about the keys: the questions of a history (checker.py).

An actor is a thread with a Random and a Log of its own. It checks nothing of what it reads but that held views stay
what they were; the rest is for the checker to do, once the round is over.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

from rig.histories.checker import COUNT, PRESENT, Answer, History, short

VIEWS_MOST = 40


class Actor:
    """`noted.seq` is that of the thread's last commit; `shared` has snapshots with their Reads, or None."""

    def __init__(
        self, history: History, db: Any, noted: threading.local, shared: list[Any], rng: random.Random
    ) -> None:
        self.history = history
        self.log = history.log()
        self.db = db
        self.noted = noted
        self.shared = shared
        self.rng = rng
        self.keys = history.keys[:-1]
        self.index = history.index
        self.prefixes: list[tuple[bytes, int, int]] = []
        for prefix in (b"key", *[b"key 000", b"key 0001", b"key 0002"] * 3, b"nothing"):
            inside = [i for i, key in enumerate(self.keys) if key.startswith(prefix)]
            self.prefixes.append((prefix, inside[0], inside[-1] + 1) if inside else (prefix, 0, 0))
        self.forms: list[Callable[[Any, Callable[[], None]], list[Answer]]] = [
            *[self.points] * 6, *[self.many] * 3, *[self.range] * 4, self.prefix, self.nearest, self.walk, self.count,
        ]  # fmt: skip
        self.asked: Counter[str] = Counter()
        """Answers so far, by form."""
        self.form = ""
        """What it asked in last."""
        self.views: list[tuple[memoryview, bytes]] = []
        """Views that are held, with what they must show, past the close too."""

    def step(self) -> None:
        raise NotImplementedError

    def rest(self, share: float = 0.002) -> None:
        """Let the others go ahead in the middle of something, now and then."""
        if self.rng.random() < share:
            time.sleep(self.rng.random() * 0.002)

    def ask(self, reader: Any, opened: Callable[[], None] = lambda: None) -> list[Answer]:
        """Read in some form; `opened` is called once it is settled which state is read."""
        form = self.rng.choice(self.forms)
        self.form = form.__name__
        return self.counted(form(reader, opened))

    def counted(self, answers: list[Answer]) -> list[Answer]:
        self.asked[self.form] += sum(len(found) or 1 for _, _, found in answers)
        return answers

    def some_key(self) -> int:
        """The number of a key: often of one of three that all are after."""
        n = len(self.keys)
        return self.rng.choice((1, 2, n // 2)) if self.rng.random() < 0.4 else self.rng.randrange(n)

    # -- the forms

    def hold(self, view: memoryview) -> bytes:
        """The view's bytes; it is held for a while."""
        value = bytes(view)
        views, rng = self.views, self.rng
        views.append((view, value))
        while len(views) > VIEWS_MOST or (views and rng.random() < 0.8):
            held, copy = views.pop(rng.randrange(len(views)))
            assert held == copy, f"a view of {short(copy)} has changed: {short(bytes(held))}"
        return value

    def points(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        i = self.some_key()
        key = self.keys[i]
        value: Any
        match self.rng.randrange(9):
            case 0:
                try:
                    value = reader[key]
                except KeyError:
                    value = None
            case 1:
                value = PRESENT if key in reader else None
            case 2:
                value = reader.value_length(key)
            case 3:
                view = reader.get_view(key)
                value = None if view is None else self.hold(view)
            case 4:
                stream = reader.open_value(key)
                opened()
                value = None if stream is None else stream.read()
            case _:
                value = reader.get(key)
        return [(i, i + 1, [] if value is None else [(key, value)])]

    def many(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        rng, n = self.rng, len(self.keys)
        count = rng.choice([1, 5, 5, 20, 70])
        if rng.random() < 0.5:
            first = rng.randrange(n)
            chosen = list(range(first, min(n, first + count)))
        else:
            chosen = [self.some_key() for _ in range(count)]
        values = reader.get_many([self.keys[i] for i in chosen])
        assert len(values) == len(chosen)
        return [
            (i, i + 1, [] if value is None else [(self.keys[i], value)])
            for i, value in zip(chosen, values, strict=True)
        ]

    def range(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        rng, n = self.rng, len(self.keys)
        low = rng.randrange(n)
        high = rng.choice([low + 1, *[low + 8] * 4, *[low + 30] * 3, n])
        how: dict[str, Any] = {}
        if low or rng.random() < 0.5:
            how["start"] = self.keys[low]
            if rng.random() < 0.2:
                how["include_start"] = False
                low += 1
        if high < n:
            how["stop"] = self.keys[high]
            if rng.random() < 0.2:
                how["include_stop"] = True
                high += 1
        return [self.scan(reader, opened, low, min(high, n), how)]

    def prefix(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        prefix, low, high = self.rng.choice(self.prefixes)
        return [self.scan(reader, opened, low, high, {"prefix": prefix})]

    def scan(self, reader: Any, opened: Callable[[], None], low: int, high: int, how: dict[str, Any]) -> Answer:
        """One pass over the keys number `low` to `high` - 1, or its beginning, in some of its forms."""
        rng = self.rng
        what = rng.choice(["items", "items", "items", "keys", "values"])
        reverse, views, most = rng.random() < 0.4, what != "keys" and rng.random() < 0.3, None
        if rng.random() < 0.3:
            most = how["limit"] = rng.choice([0, 1, 7])
        if views:
            how["views"] = True
        one_pass = iter(getattr(reader, what)(reverse=reverse, **how))
        opened()
        if rng.random() < 0.2:
            most = 5 if most is None else min(5, most)
            one_pass = islice(one_pass, most)
        found = []
        for one in one_pass:
            self.rest()
            if what == "keys":
                found.append((one, PRESENT))
                continue
            value = one if what == "values" else one[1]
            if views:
                value = self.hold(value)
            found.append((self.key_told(value) if what == "values" else one[0], value))
        if reverse:
            found.reverse()
        if most == 0:
            return low, low, found
        if most == len(found):
            if reverse:
                low = self.index.get(found[0][0], low)
            else:
                high = self.index.get(found[-1][0], high - 1) + 1
        return low, high, found

    def key_told(self, value: bytes) -> bytes:
        """The key that a value is of; a value that is none of ours is no key of ours either."""
        number = value.split(b" ", 1)[0]
        return self.keys[int(number)] if number.isdigit() and int(number) < len(self.keys) else value

    def nearest(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        n = len(self.keys)
        i = self.rng.randrange(n)
        match self.rng.choice(["first", "last", "ceiling", "higher", "floor", "lower"]):
            case "first":
                return [self.ahead(0, reader.first())]
            case "last":
                return [self.behind(n, reader.last())]
            case "ceiling":
                return [self.ahead(i, reader.ceiling(self.keys[i]))]
            case "higher":
                return [self.ahead(i + 1, reader.higher(self.keys[i]))]
            case "floor":
                return [self.behind(i + 1, reader.floor(self.keys[i]))]
            case _:
                return [self.behind(i, reader.lower(self.keys[i]))]

    def ahead(self, low: int, pair: tuple[bytes, Any] | None) -> Answer:
        """That this is the first pair from key number `low` on."""
        return (low, len(self.keys), []) if pair is None else (low, self.index.get(pair[0], low) + 1, [pair])

    def behind(self, high: int, pair: tuple[bytes, Any] | None) -> Answer:
        """That this is the last pair before key number `high`."""
        return (0, high, []) if pair is None else (self.index.get(pair[0], 0), high, [pair])

    def count(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        count = len(reader) if self.rng.random() < 0.5 else reader.count()
        return [(len(self.keys), len(self.keys) + 1, [(COUNT, count)])]

    def walk(self, reader: Any, opened: Callable[[], None]) -> list[Answer]:
        with reader.cursor() as cursor:
            opened()
            return self.moves(cursor, self.rng.randrange(5, 40))

    def moves(self, cursor: Any, count: int) -> list[Answer]:
        """Moves a cursor to and fro, from wherever it stands."""
        rng, n, index = self.rng, len(self.keys), self.index
        answers: list[Answer] = []
        forward = rng.random() < 0.6
        for _ in range(count):
            self.rest()
            if cursor.valid and rng.random() < 0.9:
                at = index.get(cursor.key, 0)
                if rng.random() < 0.05:
                    forward = not forward
                moved = cursor.next() if forward else cursor.prev()
                answers.append(self.stood(cursor, moved, at + 1 if forward else at, forward))
                continue
            i = rng.randrange(n)
            match rng.choice(["first", "last", ">=", ">", "<=", "<", "=="]):
                case "first":
                    answers.append(self.stood(cursor, cursor.first(), 0, True))
                case "last":
                    answers.append(self.stood(cursor, cursor.last(), n, False))
                case "==":
                    moved = cursor.seek(self.keys[i], "==")
                    answers.append((i, i + 1, [(cursor.key, cursor.value)] if moved else []))
                case how:
                    moved = cursor.seek(self.keys[i], how)
                    answers.append(self.stood(cursor, moved, i + (how in (">", "<=")), how[0] == ">"))
        return answers

    def stood(self, cursor: Any, moved: bool, end: int, forward: bool) -> Answer:
        """What a move tells: the pair where the cursor stands now, and that none lies before it from `end` on."""
        pair = None
        if moved:
            kind = self.rng.random()
            if kind < 0.6:
                value = cursor.value
            elif kind < 0.8:
                value = PRESENT if kind < 0.7 else cursor.value_length
            else:
                value = self.hold(cursor.view)
            pair = cursor.key, value
        return self.ahead(end, pair) if forward else self.behind(end, pair)
