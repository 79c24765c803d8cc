"""What a power cut may leave: the legal images of a file at one point of a log (rig/crashes/recorded.py).

Durable is what a sync covers that began after the call had ended and has itself ended, and a durable write alone, with
the size that it takes to find it. Of all that came later, each part may be there or not: sectors of writes, and changes
of the size as events of their own. Where a write was not durable garbage may stand, in its own bytes and no others
(docs/format.md, "Writing, and crashes").

I1. `Disk.image` applies what it is given in the order of the effects, so a later write covers an earlier one that came
    through with it, and a durable one covers all before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from rig.crashes.recorded import (
    ALLOCATE,
    BEGIN,
    DURABLE_WRITE,
    END,
    LINK,
    RESIZE,
    SYNC,
    SYNC_DIRECTORY,
    WRITE,
    Call,
    Tick,
)

FEW: Final = 6
"""Of up to so many pending parts every subset is enumerated."""

WHOLE: Final = 0
TEARS: Final = (WHOLE, 4096, 512)
"""What a write is torn into: not at all, or sectors of so many bytes."""

NO_FILE: Final = None

Content = bytes | bytearray | None
"""An image's bytes, which nobody changes; None where there is no file."""


@dataclass(slots=True)
class Effect:
    """What a call does, while it is not durable: `data` at places, or a new `size` (`least`: at least that)."""

    parts: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = -1
    least: bool = False
    ended: int = -1
    """Its place in the order of effects; -1 while the call is under way."""

    def cut(self, start: int, end: int) -> None:
        """Something durable came later in these bytes: forget them."""
        left: list[tuple[int, bytes]] = []
        for offset, data in self.parts:
            if offset < start:
                left.append((offset, data[: start - offset]))
            if offset + len(data) > end:
                left.append((max(offset, end), data[max(0, end - offset) :]))
        self.parts = left


@dataclass(frozen=True, slots=True)
class Part:
    """The least that is there or not: some bytes, or a size."""

    offset: int = 0
    data: bytes = b""
    size: int = -1
    least: bool = False

    def apply(self, image: bytearray) -> None:
        if self.size >= 0:
            if self.size > len(image):
                image.extend(bytes(self.size - len(image)))
            elif not self.least:
                del image[self.size :]
        elif self.offset < len(image):
            data = self.data[: len(image) - self.offset]
            image[self.offset : self.offset + len(data)] = data


class Disk:
    """The state at one point of a log: `advance` goes to the next. `durable` are the bytes that no power cut takes."""

    def __init__(self, base: Content) -> None:
        self.durable = bytearray(base or b"")
        self.name_may_be = self.name_is = base is not None
        self.size = len(self.durable)
        self.pending: list[Effect] = []
        self.under_way: dict[int, list[Effect]] = {}
        self._linked = base is not None
        self._ends = 0
        self._syncs: dict[int, int] = {}
        self._directory_syncs: set[int] = set()

    # -- going on

    def advance(self, tick: Tick) -> None:
        """Past this tick of the log."""
        if tick.call is not None:
            if tick.what == BEGIN:
                self._begin(tick.call)
            elif tick.what == END:
                self._end(tick.call)

    def _begin(self, call: Call) -> None:
        key = id(call)
        if call.kind == SYNC:
            self._syncs[key] = self._ends
        elif call.kind == LINK:
            self.name_may_be = True
        elif call.kind == SYNC_DIRECTORY:
            if self._linked:
                self._directory_syncs.add(key)
        else:
            self.under_way[key] = self._effects(call)

    def _end(self, call: Call) -> None:
        key = id(call)
        if call.kind == SYNC:
            mark = self._syncs.pop(key)
            self._make_durable([effect for effect in self.pending if effect.ended < mark])
        elif call.kind == LINK:
            self._linked = True
        elif call.kind == SYNC_DIRECTORY:
            if key in self._directory_syncs:
                self.name_is = True
        else:
            del self.under_way[key]
            effects = self._effects(call)
            for effect in effects:
                effect.ended = self._ends
                self._ends += 1
                if effect.size >= 0:
                    self.size = max(self.size, effect.size) if effect.least else effect.size
            self.pending += effects
            if call.kind == DURABLE_WRITE:
                self._make_durable([*self._sizes_needed(call.offset + len(call.data)), effects[-1]])

    def _effects(self, call: Call) -> list[Effect]:
        """What the call does to the file as it is now."""
        if call.kind == RESIZE:
            return [Effect(size=call.size)] if call.size != self.size else []
        if call.kind == ALLOCATE:
            return [Effect(size=call.size, least=True)] if call.size > self.size else []
        assert call.kind in (WRITE, DURABLE_WRITE), call.kind
        end = call.offset + len(call.data)
        grow = [Effect(size=end, least=True)] if end > self.size else []
        return [*grow, Effect(parts=[(call.offset, call.data)])]

    def _sizes_needed(self, end: int) -> list[Effect]:
        """The changes of the size that must be durable for bytes before `end` to be found: all so far, or none."""
        sizes = [effect for effect in self.pending if effect.size >= 0]
        least = min([len(self.durable), *(effect.size for effect in sizes if not effect.least)])
        return sizes if least < end else []

    def _make_durable(self, effects: list[Effect]) -> None:
        chosen = {id(effect) for effect in effects}
        left: list[Effect] = []
        for effect in self.pending:
            if id(effect) not in chosen:
                left.append(effect)
                continue
            if effect.size >= 0:
                Part(size=effect.size, least=effect.least).apply(self.durable)
                gone = [] if effect.least else [(effect.size, 1 << 62)]
            else:
                gone = [(offset, offset + len(data)) for offset, data in effect.parts]
                for offset, data in effect.parts:
                    Part(offset, data).apply(self.durable)
            for start, end in gone:
                for earlier in left:
                    earlier.cut(start, end)
        self.pending = [effect for effect in left if effect.parts or effect.size >= 0]

    # -- what may be there

    def parts(self, tear: int, *, under_way: bool = True) -> list[Part]:
        """All that is not durable, in the order of the effects, what is under way last; writes torn at multiples of
        `tear`."""
        effects = list(self.pending)
        if under_way:
            effects += [effect for some in self.under_way.values() for effect in some]
        found: list[Part] = []
        for effect in effects:
            if effect.size >= 0:
                found.append(Part(size=effect.size, least=effect.least))
            for offset, data in effect.parts:
                found += torn(offset, data, tear)
        return found

    def image(self, parts: Iterable[Part]) -> bytearray:
        """The file with these parts; nobody changes it."""
        image = bytearray(self.durable)
        for part in parts:
            part.apply(image)
        return image


def torn(offset: int, data: bytes, tear: int) -> list[Part]:
    """The sectors of one write."""
    if tear == WHOLE:
        return [Part(offset, data)]
    cuts = [offset, *range((offset // tear + 1) * tear, offset + len(data), tear), offset + len(data)]
    return [Part(a, data[a - offset : b - offset]) for a, b in pairwise(cuts)]


def subsets_of(count: int) -> int:
    """How many subsets of `count` parts are enumerated: all, or none, all, each alone and each missing."""
    return 1 << count if count <= FEW else 2 + 2 * count


def subset(count: int, number: int) -> list[int]:
    """The subset of that number."""
    if count <= FEW:
        return [i for i in range(count) if number >> i & 1]
    if number < 2:
        return list(range(count)) if number else []
    alone, i = divmod(number - 2, count)
    return [j for j in range(count) if j != i] if alone else [i]


def enumerated(disk: Disk) -> Iterator[Content]:
    """Every image that is enumerated without a die: each once or more often."""
    if not disk.name_is:
        yield NO_FILE
    if disk.name_may_be:
        for tear in TEARS:
            parts = disk.parts(tear)
            for number in range(subsets_of(len(parts))):
                yield disk.image(parts[i] for i in subset(len(parts), number))


@dataclass(frozen=True, slots=True)
class Image:
    """A legal image, None for no file; `how` it came about. `killed`: so it is also after kill -9 of the process."""

    content: Content
    how: str
    killed: bool = False


def drawn(disk: Disk, rng: random.Random, most: int) -> Iterator[Image]:
    """Some of the legal images, the same ones often: nothing that is pending, all, and all as garbage, and `most` more.

    Those are drawn from what is enumerated, from random subsets, and from images with garbage.
    """
    if not disk.name_is:
        yield Image(NO_FILE, "no file", killed=not disk.name_may_be)
        if not disk.name_may_be:
            return
        yield Image(b"", "an empty file")
    whole = disk.parts(WHOLE)
    yield Image(disk.image(()), "nothing pending")
    yield Image(disk.image(disk.parts(WHOLE, under_way=False)), "all that ended", killed=True)
    if not whole:
        return
    yield Image(disk.image(whole), "all, under way too")
    wrong = (Part(part.offset, b"\xa5" * len(part.data)) if part.data else part for part in whole)
    yield Image(disk.image(wrong), "all of it garbage")
    for _ in range(most):
        yield one_of(disk, rng)


def one_of(disk: Disk, rng: random.Random) -> Image:
    """A legal image by chance."""
    tear = rng.choice(TEARS)
    parts = disk.parts(tear)
    count = len(parts)
    name = f"torn at {tear}" if tear else "calls"
    way = rng.random()
    if disk.under_way and way < 0.1:
        ended = disk.parts(tear, under_way=False)
        begun = parts[: rng.randrange(len(ended), count + 1)]
        return Image(disk.image(begun), f"{name}, all that ended and {len(begun) - len(ended)} more", killed=True)
    if way < 0.4:
        number = rng.randrange(subsets_of(count))
        return Image(disk.image(parts[i] for i in subset(count, number)), f"{name}, subset {number} of {count}")
    share = rng.choice((0.2, 0.5, 0.8, 0.95))
    chosen = [part for part in parts if rng.random() < share]
    if way < 0.75:
        return Image(disk.image(chosen), f"{name}, {len(chosen)} of {count} by chance")
    wrong = rng.choice((0.1, 0.5, 1.0))
    garbled = [spoilt(part, rng) if part.data and rng.random() < wrong else part for part in chosen]
    return Image(disk.image(garbled), f"{name}, {len(chosen)} of {count} with garbage")


def spoilt(part: Part, rng: random.Random) -> Part:
    """Garbage instead of a part's bytes, from somewhere on."""
    at = rng.randrange(len(part.data))
    return Part(part.offset, part.data[:at] + rng.randbytes(len(part.data) - at))
