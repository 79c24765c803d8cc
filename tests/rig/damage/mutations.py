"""Damage to database files: by page, by byte, by length, and to fields behind sums that are made right again.

`Damage(seed).mutant(rng)` is one of all the kinds; `systematic()` has what is to be done to every page, byte and
boundary once. A mutant that is not `sealed` has only changes that a sum, or the file's end, gives away.

I1. Each mutant differs from its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from format_reader import PAGE, checksum
from rig.damage.anatomy import Anatomy, Field, Pointer, Region
from rig.damage.seeds import Seed

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Mutant:
    """Damaged bytes. `kind` for tables, `what` to tell which it was."""

    kind: str
    what: str
    data: bytes
    sealed: bool = False
    fields: tuple[str, ...] = ()
    """The names of those that were changed."""


class Damage:
    """All that is done to one seed; `others` are those whose pages may come into it."""

    def __init__(self, seed: Seed, others: list[Seed]) -> None:
        self.seed = seed
        self.others = others
        self.anatomy = Anatomy(seed.data)
        self.pages = len(seed.data) // PAGE
        self.places = self.anatomy.summed()
        self.tags: dict[str, list[Field]] = {}
        for one in self.anatomy.fields:
            self.tags.setdefault(one.name, []).append(one)
        self.names = sorted(self.tags)
        self.alike: dict[bool, list[Pointer]] = {
            whole: [one for one in self.anatomy.pointers if (one.length is None) == whole] for whole in (False, True)
        }

    # -- what damage hit

    def hit(self, mutant: bytes) -> list[Region]:
        """The regions of which some summed byte is changed or gone."""
        data = self.seed.data
        if len(mutant) >= len(data) and mutant[: len(data)] == data:
            return []
        return [region for start, end, region in self.places if mutant[start:end] != data[start:end]]

    def is_told(self, hit: list[Region]) -> bool:
        """Whether a sound record in the extent where the log is first damaged says that the commit was durable."""
        damaged, lost, told = set(hit), 0, 0
        for region in self.anatomy.regions:
            if region.owner != "log":
                continue
            if region.kind == "record":
                seq, is_link = self.anatomy.number(region.start + 8, 8), self.seed.data[region.start + 32] == 2
            if region in damaged and not lost:
                if is_link:
                    return False  # nobody knows where the log went on
                lost = seq
            elif region.kind == "record" and region not in damaged and lost:
                told = max(told, self.anatomy.number(region.start + 48, 8))
            if lost and is_link:
                break
        return 0 < lost <= told

    def leaves_no_trace(self, hit: list[Region], mutant: bytes) -> bool:
        """Whether the log is damaged, and nothing of it is left from there on that would tell it from an end.

        A record, even a part of one, names its epoch and the sum of the one before it.
        """
        for region in self.anatomy.regions:
            if region.owner != "log" or region not in hit:
                continue
            if region.kind == "record":
                header = slice(region.start, region.start + 64)
                old, new = self.seed.data[header], mutant[header]
                gone = len(new) == 64 and all(old[part] != new[part] for part in self.CHAIN if any(old[part]))
                return gone and not self.is_told(hit)
            return False  # a part of a record whose header stands
        return False

    def has_another_slot(self, hit: list[Region], mutant: bytes) -> bool:
        """Whether nothing but one superblock slot is damaged, behind a wrong sum, and the other says the same."""
        if len(hit) != 1 or hit[0].kind != "superblock" or len(mutant) < len(self.seed.data):
            return False
        slots = [mutant[slot * PAGE : slot * PAGE + 512] for slot in (0, 1)]
        sound = [checksum(data[:504]) == int.from_bytes(data[504:], "little") for data in slots]
        generations = {self.seed.data[slot * PAGE + 64 : slot * PAGE + 72] for slot in (0, 1)}
        return sound.count(True) == 1 and len(generations) == 1

    CHAIN = (slice(0, 8), slice(16, 24))
    """Where the header of a log record has epoch and predecessor."""

    def named(self, hit: list[Region], mutant: bytes) -> set[tuple[int, int | None]]:
        """(page, segment) of each CorruptionError that there may be: the first page under a sum that is wrong.

        Of the log it is the page where it ends: that of the first record that is damaged, or names what is.
        """
        places = {(one.start // PAGE, one.owner if isinstance(one.owner, int) else None)
                  for one in hit if one.owner != "log"}  # fmt: skip
        record = None
        for region in self.anatomy.regions:
            if region.owner != "log":
                continue
            record = region if region.kind == "record" else record
            if region in hit:
                assert record is not None
                places.add((record.start // PAGE, None))
                break
        for slot in (region for region in hit if region.kind == "superblock"):
            data = mutant[slot.start : slot.end]
            if checksum(data[:504]) == int.from_bytes(data[504:512], "little"):  # another's: what it leads to is not
                manifest, log = (int.from_bytes(data[at : at + 8], "little") for at in (112, 152))
                places |= {(0, None), (manifest & 0xFFFFFFFF, None), (log // PAGE, None)}
        return places

    # -- systematic

    def systematic(self) -> list[tuple[str, int]]:
        """(kind, number) of all that is to be done once to everything; `systematically` makes it."""
        todo = [(kind, page) for page in range(self.pages) for kind in self.BY_PAGE if self.can(kind, page)]
        todo += [("page of before", page) for page in range(self.pages) for _ in self.before(page)[1:]]
        for region in self.anatomy.regions:
            if region.kind in ("superblock", "manifest", "bitmap"):
                end = region.start + PAGE if region.kind == "superblock" else region.end
                todo += [("flip", at) for at in range(region.start, end, 61 if region.kind == "bitmap" else 1)]
        todo += [("field", number) for number in range(len(self.names))]
        size = len(self.seed.data)
        return todo + [("cut", at + d) for at in range(0, size + 1, SECTOR) for d in (-1, 0, 1) if 0 <= at + d < size]

    def systematically(self, kind: str, number: int, rng: random.Random) -> Mutant:
        """One of `systematic()`."""
        if kind == "flip":
            return self.flip(rng, number)
        if kind == "cut":
            return Mutant("cut", f"to {number} bytes", self.seed.data[:number])
        while (made := self.again(kind, number, rng)).data == self.seed.data:
            pass
        return made

    def again(self, kind: str, number: int, rng: random.Random) -> Mutant:
        """What may have to be made more than once until it is another (I1)."""
        return self.set_fields(rng, [self.names[number]]) if kind == "field" else self.page_by(kind, number, rng)

    BY_PAGE = ("page zeroed", "page of noise", "pages swapped", "page of before", "page of another", "page elsewhere")

    def page(self, number: int) -> bytes:
        """What stands there."""
        return self.seed.data[number * PAGE : (number + 1) * PAGE]

    def before(self, page: int) -> list[bytes]:
        """What stood there before, each once, where that was something else."""
        olds = {old[page * PAGE : (page + 1) * PAGE] for old in self.seed.older}
        return sorted(olds - {b"", self.page(page)})

    def can(self, kind: str, page: int) -> bool:
        """Whether that makes another page of it."""
        if kind == "page zeroed":
            return any(self.page(page))
        return kind != "page of before" or bool(self.before(page))

    def page_by(self, kind: str, page: int, rng: random.Random) -> Mutant:
        """One page that is not what was written."""
        data = bytearray(self.seed.data)
        at = page * PAGE
        if kind == "page zeroed":
            new = bytes(PAGE)
        elif kind == "page of noise":
            new = rng.randbytes(PAGE)
        elif kind == "page of before":
            new = rng.choice(self.before(page))
        elif kind == "page of another":
            other = rng.choice(self.others).data
            there = rng.randrange(len(other) // PAGE) * PAGE if rng.random() < 0.5 else at
            new = other[there : there + PAGE]
        else:
            others = self.of_others(page) if kind == "page elsewhere" and rng.random() < 0.5 else []
            other_at = rng.choice(others or range(self.pages)) * PAGE
            new = bytes(data[other_at : other_at + PAGE])
            if kind == "pages swapped":
                data[other_at : other_at + PAGE] = data[at : at + PAGE]
        data[at : at + len(new)] = new
        return Mutant(kind, f"page {page}", bytes(data))

    def of_others(self, page: int) -> list[int]:
        """The pages of segments that do not have this one."""
        mine = {region.owner for start, end, region in self.places if start < (page + 1) * PAGE and end > page * PAGE}
        return [at for start, end, region in self.places if isinstance(region.owner, int) and region.owner not in mine
                for at in range(start // PAGE, -(-end // PAGE))]  # fmt: skip

    # -- by chance, sums not mended

    def flip(self, rng: random.Random, at: int | None = None) -> Mutant:
        """One bit, or the bits of one byte."""
        data = bytearray(self.seed.data)
        if at is None:
            start, end, _ = rng.choice(self.places)
            at = rng.randrange(start, end) if rng.random() < 0.8 else rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8) if rng.random() < 0.8 else rng.randrange(1, 256)
        return Mutant("flip", f"byte {at} is {data[at]:#x}", bytes(data))

    def noise(self, rng: random.Random) -> Mutant:
        """Some bytes overwritten."""
        data = bytearray(self.seed.data)
        at, count = rng.randrange(len(data)), rng.choice([2, 8, 64, 512, 5000])
        new = rng.randbytes(count) if rng.random() < 0.7 else bytes([rng.choice([0, 255])]) * count
        data[at : at + count] = new[: len(data) - at]
        return Mutant("noise", f"{count} bytes at {at}", bytes(data))

    def cut(self, rng: random.Random) -> Mutant:
        """Shorter, anywhere."""
        length = rng.randrange(len(self.seed.data) + 1)
        return Mutant("cut", f"to {length} bytes", self.seed.data[:length])

    def longer(self, rng: random.Random) -> Mutant:
        """Something behind the end."""
        count = rng.choice([1, 511, 512, 4095, 4096, 5000, 50_000])
        extra = rng.choice([bytes(count), rng.randbytes(count), self.seed.data[-count:]])
        return Mutant("garbage appended", f"{len(extra)} bytes", self.seed.data + extra)

    # -- sums mended

    def values(self, field: Field, now: int, rng: random.Random) -> int:
        """Something worth trying in a field that holds `now`."""
        top = (1 << 8 * field.width) - 1
        choices = (
            0, 1, 2, 3, top, top - 1, top >> 1, (top >> 1) + 1, now + 1, now - 1, now * 2, now // 2, now ^ 0x80,
            now + 0x100, now ^ 1 << rng.randrange(8 * field.width), rng.randrange(top + 1),
            rng.randrange(self.pages + 2), self.pages, self.pages - 1, rng.randrange(64), 4096, 8192, 65536,
            1 << rng.randrange(8 * field.width), top >> rng.randrange(8 * field.width),
        )  # fmt: skip
        return rng.choice(choices) & top

    def set_fields(self, rng: random.Random, names: list[str] | None = None) -> Mutant:
        """Fields of these names changed, one of each; of one to three names without."""
        data, changed, said = bytearray(self.seed.data), [], []
        names = names or rng.choices(self.names, k=rng.choice([1, 1, 1, 2, 3]))
        for one in [rng.choice(self.tags[name]) for name in names]:
            at = one.places[0][0]
            now = int.from_bytes(data[at : at + one.width], "little")
            value = self.values(one, now, rng)
            places = one.places if rng.random() < 0.95 else one.places[:1]
            for at, region in places:
                data[at : at + one.width] = value.to_bytes(one.width, "little")
                changed.append(region)
            said.append(f"{one.name} at {at}: {now} is {value}")
            self.aim_at(data, one, rng)
        self.anatomy.seal(data, changed)
        return Mutant("field", "; ".join(said), bytes(data), True, tuple(names))

    def aim_at(self, data: bytearray, one: Field, rng: random.Random) -> None:
        """After a part of a reference was changed: make the others fit, so that more than its sum is looked at."""
        for pointer in one.pointers:
            if pointer.length is not None and pointer.pages is not None and rng.random() < 0.5:
                at, width = pointer.pages
                length = int.from_bytes(data[pointer.length : pointer.length + 8], "little")
                pages = -(-length // PAGE) if length <= 65536 else -(-((length + 7) // 8 * 8 + (length >> 13)) // PAGE)
                data[at : at + width] = (pages & (1 << 8 * width) - 1).to_bytes(width, "little")
            if pointer.physical is not None and pointer.pages is not None:
                data[pointer.physical] = data[pointer.pages[0]]
            if rng.random() < 0.8:
                self.anatomy.aim(data, pointer)

    def copy_reference(self, rng: random.Random) -> Mutant | None:
        """A reference put in place of another: two parents share a child, a tree has a loop, extents are shared."""
        alike = self.alike[rng.random() < 0.6]
        if len(alike) < 2:
            return None
        source, target = rng.sample(alike, 2)
        data = bytearray(self.seed.data)
        pairs = [(source.page, target.page, 4)]
        if source.pages and target.pages and source.pages[1] == target.pages[1]:
            pairs.append((source.pages[0], target.pages[0], source.pages[1]))
        if source.length is not None and target.length is not None:
            pairs.append((source.length, target.length, 8))
        pairs.append((source.sum, target.sum, 8))
        for a, b, width in pairs:
            there = data[b : b + width]
            data[b : b + width] = data[a : a + width]
            if rng.random() < 0.3:
                data[a : a + width] = there
        for one in (source, target):
            if one.physical is not None and one.pages is not None:
                data[one.physical] = data[one.pages[0]]
        self.anatomy.aim(data, target)
        self.anatomy.seal(data, [source.region, target.region])
        return Mutant("reference", f"at {target.page} as at {source.page}", bytes(data), sealed=True)

    def havoc(self, rng: random.Random) -> Mutant:
        """Any bytes of one region changed, or moved about."""
        data = bytearray(self.seed.data)
        region = rng.choice(self.anatomy.regions)
        used = min(region.length, 600) if rng.random() < 0.7 else region.length
        said = []
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            at = region.start + rng.randrange(used)
            size = min(rng.choice([1, 1, 2, 4, 8, 40]), region.start + region.length - at)
            way = rng.randrange(4)
            if way == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif way == 1:
                data[at : at + size] = rng.randbytes(size)
            elif way == 2:
                data[at : at + size] = rng.choice([b"\0", b"\xff", b"\x80", b"\x7f"]) * size
            else:
                there = region.start + rng.randrange(used)
                moved = data[there : min(there + size, region.start + region.length)]
                data[at : at + len(moved)] = moved[: region.start + region.length - at]
            said.append(f"{at - region.start}+{size} way {way}")
        self.anatomy.seal(data, [region])
        return Mutant("havoc", f"{region.kind} at {region.start}: {', '.join(said)}", bytes(data), sealed=True)

    def mutant(self, rng: random.Random) -> Mutant:
        """One of what is done by chance."""
        while (made := self.drawn(rng)) is None or made.data == self.seed.data:
            pass
        return made

    def drawn(self, rng: random.Random) -> Mutant | None:
        draw = rng.random()
        for share, make in self.SHARES:
            draw -= share
            if draw < 0:
                return make(self, rng)
        return self.set_fields(rng)

    SHARES: tuple[tuple[float, Callable[[Damage, random.Random], Mutant | None]], ...] = (
        (0.12, flip), (0.06, noise), (0.02, cut), (0.02, longer), (0.12, copy_reference), (0.26, havoc),
    )  # fmt: skip


class Campaign:
    """The mutants of some seeds by number. Every other one is systematic, the kinds in turn, until all is done once;
    the rest by chance. Of each name of fields one, in whichever seed, comes before any second."""

    def __init__(self, seeds: list[Seed], number: int) -> None:
        self.number = number
        self.damages = [Damage(seed, seeds) for seed in seeds]
        kinds: dict[str, list[tuple[Damage, str, int]]] = {}
        for damage in self.damages:
            for kind, place in damage.systematic():
                kinds.setdefault(kind, []).append((damage, kind, place))
        for todo in kinds.values():
            random.Random(number).shuffle(todo)
        first = {damage.names[place]: (damage, kind, place) for damage, kind, place in kinds["field"]}
        kinds["field"] = [*first.values(), *(one for one in kinds["field"] if one not in first.values())]
        self.systematic = [one for turn in zip_longest(*kinds.values()) for one in turn if one is not None]
        self.fields = {name for damage in self.damages for name in damage.names}
        self.fields_within = 2 * self.systematic.index([*first.values()][-1]) + 1
        """So many trials, and a field of each name was changed alone."""

    @property
    def count(self) -> int:
        """So many trials, and all that is systematic is done, with as much by chance."""
        return 2 * len(self.systematic)

    def rng(self, trial: int) -> random.Random:
        """The chance of one trial: the same whoever asks."""
        return random.Random(self.number << 40 | trial)

    def mutant(self, trial: int, rng: random.Random) -> tuple[Damage, Mutant]:
        """The mutant of one trial."""
        turn, by_chance = divmod(trial, 2)
        if by_chance or turn >= len(self.systematic):
            damage = rng.choice(self.damages)
            return damage, damage.mutant(rng)
        damage, kind, place = self.systematic[turn]
        return damage, damage.systematically(kind, place, rng)
