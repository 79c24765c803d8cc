"""Histories: what threads wrote and read, and whether one order of commits explains each answer, in linear time.

**Recording.** Each thread has a Log of its own, so nothing is locked. Each call stands between two stamps of a counter
that all share. A Write notes what a commit set and the seq that it was given; a Read notes what one reader (a call of
the database, a snapshot, a cursor, an iteration) answered in all, between the stamps of its opening.

**Why stamps are sound.** `itertools.count().__next__` is one step under the GIL, so stamps are ordered as their calls
were. A call that took its last stamp before another took its first had returned before the other began. The reverse
does not hold: a call may have returned before a stamp that is taken late. Then two calls count as overlapping that did
not, which weakens what is asked of them and never asks too much.

**Checking.** The engine says in which order its commits are: by seq. With the order of versions known, to check is no
search (Adya, "Weak Consistency", 1999: read dependencies; Kingsbury and Alvaro, "Elle", VLDB 2020: versions that tell
who wrote them): of each key the commits from which up to which it has a value are known, and the state that a reader
saw lies where those of all its answers meet. What is absent is an answer too, and each range names what it passes over.
The window of a reader is walked along the stamps, as for an atomic register (Gibbons and Korach, "Testing Shared
Memories", 1997):

    at least    the last commit that returned, or was seen by a reader that had been opened, before it began;
    at most     as many commits as had been begun when it was opened: seqs have no holes, so no later one is ordered.

Each reader is given the oldest state that will do, so none asks more of the readers after it than it must; where there
is any explanation, that finds one. Cost: the events once, in the order of their stamps; for each answer a look into a
dict, and one bisection where a key has had the same value, or none, at several times.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PRESENT = object()
"""An answer that says no more of a key than that it is there. An int as an answer is the length of a value."""
COUNT = b"how many keys there are"
"""A key, the last of all, whose value at each commit is the number of keys."""
NEVER = 1 << 62

Answer = tuple[int, int, Sequence[tuple[bytes, Any]]]
"""Of the keys number low to high - 1 these are there, in order, and no others."""


@dataclass(slots=True)
class Write:
    """A commit: the values by number of key, None to delete. One without seq raised: it must not be there."""

    begin: int
    items: Mapping[int, bytes | None]
    end: int = -1
    seq: int | None = None


@dataclass(slots=True)
class Read:
    """All that one still reader answered. `seq`: the state that it says it is, if it does."""

    begin: int
    what: str
    end: int = -1
    seq: int | None = None
    answers: list[Answer] = field(default_factory=list)
    published: bool = True
    """False in a write transaction, which sees what is ordered before others do."""
    floor: int = 0


class Log:
    """One thread's history."""

    __slots__ = ("events", "tick")

    def __init__(self, tick: Any) -> None:
        self.tick = tick
        self.events: list[Write | Read] = []

    def write(self, items: Mapping[int, bytes | None]) -> Write:
        """A commit is about to be asked for."""
        write = Write(self.tick(), items)
        self.events.append(write)
        return write

    def wrote(self, write: Write, seq: int) -> None:
        """It returned, and it was `seq`."""
        write.end = self.tick()
        write.seq = seq

    def read(self, what: str) -> Read:
        """A reader is about to be opened."""
        read = Read(self.tick(), what)
        self.events.append(read)
        return read

    def opened(self, read: Read) -> None:
        """It is open: what commits from now on is not its business."""
        read.end = self.tick()


@dataclass(slots=True)
class Figures:
    """What was checked. An answer is one key's: a get, a key of get_many, a pair of a scan, a step of a cursor."""

    commits: int = 0
    operations: int = 0
    answers: int = 0
    absences: int = 0
    """Keys that were passed over besides, and are absent in the state that was found."""

    def add(self, other: Figures) -> None:
        self.commits += other.commits
        self.operations += other.operations
        self.answers += other.answers
        self.absences += other.absences


class Fault(AssertionError):
    """No order of commits explains this history."""


class History:
    """One life of a database with these keys, in order, from the state `pairs` after commit `seq` on."""

    def __init__(self, keys: Sequence[bytes], pairs: Mapping[bytes, bytes], seq: int) -> None:
        self.keys = [*keys, COUNT]
        self.first = self.last = seq
        self.index = {key: i for i, key in enumerate(self.keys)}
        self.state: dict[int, bytes] = {self.index[key]: value for key, value in pairs.items()}
        """The state after commit `last`, once `check` was called."""
        self.tick = itertools.count().__next__
        self.logs: list[Log] = []
        self._spans: list[dict[Any, list[int]]] = [{} for _ in self.keys]
        """Of each key and value: from, until, from, until and so on: at from <= commit < until it was so."""

    def log(self) -> Log:
        """A log for one thread."""
        self.logs.append(Log(self.tick))
        return self.logs[-1]

    def pairs(self) -> dict[bytes, bytes]:
        """The last state, in order."""
        return {self.keys[i]: self.state[i] for i in sorted(self.state)}

    def check(self) -> Figures:
        """Fault, which says what and why, unless one order of commits explains all that was logged."""
        events = [event for log in self.logs for event in log.events if event.end >= 0 or isinstance(event, Write)]
        self._order([event for event in events if isinstance(event, Write) and event.seq is not None])
        figures = Figures(commits=self.last - self.first)
        timeline: list[Write | Read | None] = [None] * self.tick()
        for event in events:
            timeline[event.begin] = event
            if event.end >= 0:
                timeline[event.end] = event
        floor, begun = self.first, self.first
        for stamp, event in enumerate(timeline):
            if isinstance(event, Read):
                if stamp == event.begin:
                    event.floor = floor
                elif (seen := self._place(event, begun, figures)) > floor and event.published:
                    floor = seen
            elif event is not None:
                if stamp == event.begin:
                    begun += 1
                    if event.seq is not None and event.seq <= floor:
                        raise Fault(f"seq {event.seq} was given after {floor} had been returned or seen")
                elif event.seq is not None:
                    if event.seq > begun:
                        raise Fault(f"seq {event.seq} was given when only {begun} could be")
                    floor = max(floor, event.seq)
        return figures

    # -- the versions

    def _order(self, writes: list[Write]) -> None:
        """Enter the commits by seq, of which none is given twice and none is missing."""
        by_seq: list[Write | None] = [None] * len(writes)
        for write in writes:
            at = write.seq - self.first - 1
            if not 0 <= at < len(writes):
                raise Fault(f"seq {write.seq} was given, of {len(writes)} commits after {self.first}")
            if by_seq[at] is not None:
                raise Fault(f"seq {write.seq} was given twice")
            by_seq[at] = write
        for i in range(len(self.keys) - 1):
            self._begin(i, self.state.get(i), self.first)
        self._begin(len(self.keys) - 1, len(self.state), self.first)
        for write in by_seq:
            self._enter(write)

    def _enter(self, write: Write) -> None:
        state, spans, before = self.state, self._spans, len(self.state)
        for i, value in write.items.items():
            old = state.get(i)
            if old == value:
                continue
            spans[i][old][-1] = write.seq
            self._begin(i, value, write.seq)
            if value is None:
                del state[i]
            else:
                state[i] = value
        if len(state) != before:
            spans[-1][before][-1] = write.seq
            self._begin(len(spans) - 1, len(state), write.seq)
        self.last = write.seq

    def _begin(self, i: int, value: Any, seq: int) -> None:
        self._spans[i].setdefault(value, []).extend((seq, NEVER))

    def _spans_of(self, i: int, value: Any) -> list[int]:
        """When key `i` had this value; of a length, or of being there: when it had any such value."""
        spans = self._spans[i]
        if value not in spans:
            if value is PRESENT:
                spans[value] = complement(spans.get(None, []), self.first)
            elif isinstance(value, int):
                alike = [at for known, at in spans.items() if isinstance(known, bytes) and len(known) == value]
                spans[value] = joined(pair for one in alike for pair in zip(one[::2], one[1::2], strict=True))
            else:
                return []
        return spans[value]

    # -- the readers

    def _place(self, read: Read, begun: int, figures: Figures) -> int:
        """The oldest state in its window that gives all its answers."""
        low, high = read.floor, begun
        if read.seq is not None:
            if not low <= read.seq <= high:
                raise Fault(f"{read.what}: says it is the state after commit {read.seq}, not one of {low} to {high}")
            low = high = read.seq
        several: list[list[int]] = []
        figures.operations += 1
        spans_of = self._spans
        for i, value in self._single(read, figures):
            spans = spans_of[i].get(value) or self._spans_of(i, value)
            if len(spans) == 2:
                if spans[0] > low:
                    low = spans[0]
                if spans[1] <= high:
                    high = spans[1] - 1
            else:
                several.append(spans)
        at = meeting(several, low, high)
        if at is None:
            raise Fault(self._explained(read, begun))
        return at

    def _single(self, read: Read, figures: Figures) -> Iterator[tuple[int, Any]]:
        """Each answer as (number of key, value, None where it is absent)."""
        index = self.index
        for low, high, found in read.answers:
            figures.answers += len(found) or 1
            figures.absences += high - low - (len(found) or 1)
            for key, value in found:
                at = index.get(key)
                if at is None:
                    raise Fault(f"{read.what}: {short(key)}, which nobody has written")
                if not low <= at < high:
                    raise Fault(f"{read.what}: {short(self.keys[at])} twice, out of order, or outside of the range")
                for i in range(low, at):
                    yield i, None
                yield at, value
                low = at + 1
            for i in range(low, high):
                yield i, None

    def _explained(self, read: Read, begun: int) -> str:
        """Why there is no such state."""
        low, high = (read.floor, begun) if read.seq is None else (read.seq, read.seq)
        newest, newest_of, oldest, oldest_of = low, "", high, ""
        for i, value in self._single(read, Figures()):
            spans, name = self._spans_of(i, value), f"{short(self.keys[i])} = {short(value)}"
            inside = [(a, b - 1) for a, b in zip(spans[::2], spans[1::2], strict=True) if a <= high and b > low]
            if not spans:
                return f"{read.what}: {name}, which nobody has written"
            if not inside:
                early = f"stale: {name} was so only up to commit {spans[-1] - 1}"
                late = f"from the future: {name} is so from commit {spans[0]} on"
                why = early if spans[-1] <= low else late if spans[0] > high else f"{name} was so before and after"
                return f"{read.what}: {why}; the reader may see {low} to {high}"
            if inside[0][0] > newest:
                newest, newest_of = inside[0][0], name
            if inside[-1][1] < oldest:
                oldest, oldest_of = inside[-1][1], name
        mixed = f"{newest_of} is so from commit {newest} on, {oldest_of} only up to {oldest}"
        if newest <= oldest:
            mixed = "keys that are absent, there, or of a length at no one time"
        return f"{read.what}: mixed: {mixed}; the reader may see {low} to {high}"


def meeting(several: list[list[int]], low: int, high: int) -> int | None:
    """The least commit from low to high that lies in a span of each. Each pass but the last leaves a span behind."""
    settled = False
    while low <= high and not settled:
        settled = True
        for spans in several:
            at = bisect_right(spans, low)
            if at == len(spans):
                return None
            if at % 2 == 0:
                low, settled = spans[at], False
    return low if low <= high else None


def complement(spans: list[int], first: int) -> list[int]:
    """What lies between, from `first` on."""
    if spans and spans[0] == first:
        rest = spans[1:]
    else:
        rest = [first, *spans]
    return rest[:-1] if rest[-1] == NEVER else [*rest, NEVER]


def joined(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Spans that do not overlap, in order, those that touch made one."""
    spans: list[int] = []
    for start, stop in sorted(pairs):
        if spans and spans[-1] == start:
            spans[-1] = stop
        else:
            spans += (start, stop)
    return spans


def short(text: Any) -> str:
    if not isinstance(text, bytes):
        return "there" if text is PRESENT else "absent" if text is None else str(text)
    return f"{text[:40]!r}" if len(text) <= 40 else f"{text[:40]!r}... ({len(text)} bytes)"
