"""Crashes at every point of a workload, and the oracle: what a power cut leaves is the state after one commit.

`run` records workloads, takes crash images at each tick of their logs, checks each distinct one, and records some
recoveries for the crashes that hit those, to depth 2. One process; rig/crashes/workers.py has several.

I1. Recovered is exactly the state after some commit k: the last durable one, or one ordered after it and attempted.
    Durable is what returned in `full`, what `sync()` covered, and of what returned in `group` all that came before the
    begin of a sync that has ended, whoever made it. After kill -9 (`Image.killed`) all that returned in `group`.
I2. The next commit's seq is above every seq that was returned before the crash.
I3. The file is proved whole after recovery and again after a write and a reopen (tests/proof.py).
I4. One image alone may be refused: that of a creation in place, in no bytes or zeros, whose page 0 is garbage and was
    never synced (docs/format.md).
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

import mmlsm
import proof
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from rig.crashes.images import Content, Disk, Image, drawn, enumerated
from rig.crashes.recorded import BEGIN, DURABLE_WRITE, END, SYNC, WRITE, Log, Tick
from rig.crashes.workloads import TINY, WORKLOADS, Commit, Story, Workload, recovery, seeded

Pairs = list[tuple[bytes, bytes]]

SHARED_MEMORY: Final = Path("/dev/shm")
CORES: Final = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
"""What this process may run on, as it began; nothing where that cannot be asked."""
PROBE: Final = b"~ written after the crash"
DEPTH_MOST: Final = 2
RECOVERY_IMAGES: Final = 100
"""About so many images are taken of one recovery and of the recoveries of those."""
FINDINGS_MOST: Final = 20
"""A run that has found so much ends."""


class History:
    """A log with its commits in order: the states, and which of them a crash at each tick may leave. Of `before`, the
    first one, `seq` is the last number known to be given, and `reached` one that none of its commits is above."""

    def __init__(self, log: Log, commits: Iterable[Commit], before: Pairs, seq: int, reached: int) -> None:
        self.log = log
        order = sorted(commits, key=lambda commit: commit.seq)
        seqs = [commit.seq for commit in order]
        assert len({seq, *seqs}) == len(seqs) + 1, f"a seq was given twice: {seq}, {seqs}"
        self.seqs = [max(seq, reached), *seqs]
        self.states: list[Pairs] = [before]
        self.numbers: dict[int, list[int]] = {}
        """By a state's hash, the numbers of the commits that it is the state after."""
        state = dict(before)
        for commit in order:
            for key, value in commit.items.items():
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
            self.states.append(sorted(state.items()))
        for number, pairs in enumerate(self.states):
            self.numbers.setdefault(hash(tuple(pairs)), []).append(number)
        self.bounds = list(self._bounds({id(commit): i + 1 for i, commit in enumerate(order)}, seqs, seq))

    def _bounds(self, place: dict[int, int], seqs: list[int], seq: int) -> Iterator[tuple[int, int, int, int]]:
        """After each tick: the least k after a power cut, the least after a kill, the most, and the last seq given."""
        durable = returned = most = 0
        attempted: set[int] = set()
        syncs: dict[int, int] = {}
        """What had returned as each sync began that is under way."""
        for tick in self.log.ticks:
            if tick.call is not None and tick.call.kind == SYNC:
                if tick.what == BEGIN:
                    syncs[id(tick.call)] = returned
                else:
                    durable = max(durable, syncs.pop(id(tick.call)))
            elif tick.word == "attempt":
                attempted.add(place[id(tick.value)])
                while most + 1 in attempted:
                    most += 1
            elif tick.word == "returned":
                number = place[id(tick.value)]
                seq = max(seq, tick.value.seq)
                if tick.value.durability != "off":
                    returned = max(returned, number)
                if tick.value.durability == "full":
                    durable = max(durable, number)
            elif tick.word == "synced":
                durable = max([durable, *(i + 1 for i, one in enumerate(seqs) if one <= tick.value)])
            returned = max(returned, durable)
            yield durable, returned, most, seq

    def reached(self, found: Found) -> int:
        """The last number that the state found may have: one state may be that after several commits."""
        return max([self.seqs[0], *(self.seqs[k] for k in found.numbers)])

    def which(self, pairs: Pairs) -> list[int]:
        """The commits after which this is the state."""
        return [number for number in self.numbers.get(hash(tuple(pairs)), ()) if self.states[number] == pairs]


@dataclass(slots=True)
class Found:
    """What a check of an image found: the commits that it may be the state after, and the seq given next."""

    pairs: Pairs
    numbers: list[int]
    seq: int
    looked: int | None
    """The seq of a reader, if there was one."""


class Label(NamedTuple):
    """What was crashed when an image was left first."""

    workload: str
    depth: int


@dataclass(slots=True)
class Result:
    """What a run reached, and what it found wrong."""

    images: dict[int, Label] = field(default_factory=dict)
    """By digest: each image is counted once."""
    crash_points: int = 0
    """Ticks that were gone past, whether images were taken there or not."""
    judged_at: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Images that the oracle was asked about, by the operation and the phase that the crash came after or in: under
    each that leaves it, distinct within one history."""
    judged: int = 0
    """Pairs of a crash point and an image that the oracle was asked about."""
    refused: int = 0
    """Images of a creation in place with garbage in page 0, which are refused by name (I4)."""
    enumerated: int = 0
    """Of histories of which all were taken that are enumerated, the images distinct within each."""
    findings: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Take in what another run reached."""
        for digest, one in other.images.items():
            self.images.setdefault(digest, one)
        self.crash_points += other.crash_points
        self.judged_at.update(other.judged_at)
        self.judged += other.judged
        self.refused += other.refused
        self.enumerated += other.enumerated
        self.findings += other.findings

    def by(self, name: str) -> dict[str, int]:
        """Distinct images by a field of their labels."""
        return dict(sorted(Counter(str(getattr(one, name)) for one in self.images.values()).items()))

    def judged_by(self, part: int) -> dict[str, int]:
        """Judged images by operation (0) or phase (1)."""
        found: Counter[str] = Counter()
        for where, count in self.judged_at.items():
            found[where[part]] += count
        return dict(sorted(found.items()))


class Crasher:
    """The crashes of one workload. `folder`: where files stand, fast; `kept`: for the images of findings, if any."""

    def __init__(
        self,
        workload: Workload,
        seed: int | str,
        folder: Path,
        kept: Path | None,
        result: Result,
        findings_most: int = FINDINGS_MOST,
        every: int = 0,
        until: float = math.inf,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        self.workload = workload
        self.seed = seed
        self.rng = random.Random(f"{workload.name} {seed}")
        self.folder = folder
        self.kept = kept
        self.result = result
        self.findings_most = findings_most
        self.every = every
        self.until = until
        self.alive = alive
        self.files = 0

    def crash(self, images: int) -> None:
        """Record the workload and check about so many distinct images; and, at depths below `every`, all there are."""
        try:
            with seeded(self.rng, self.workload.idle_s):
                self.explore(self.record(Log(self.workload.base), self.workload, [], 0), images, 0)
        except Exception:
            self.result.findings.append(
                f"{self.workload.name!r}, seed {self.seed!r}: while it was recorded: {traceback.format_exc()}"
            )

    # -- recording

    def path(self) -> Path:
        self.files += 1
        return self.folder / f"{self.files}.db"

    def record(self, log: Log, workload: Workload, before: Pairs, seq: int, reached: int = 0) -> History:
        """Run the workload on what the log begins with; its history."""
        path = self.path()
        if log.base is not None:
            path.write_bytes(log.base)
        story = Story(path, log, f"{self.seed} {self.rng.random()}", workload.options, workload.settings)
        try:
            with any_core():
                workload.run(story)
        finally:
            log.freeze()
            if story.db is not None:
                with contextlib.suppress(mmlsm.Error):
                    story.db.close()
            path.unlink(missing_ok=True)
        return History(log, story.commits, before, seq, reached)

    # -- crashing

    def explore(self, history: History, images: int, depth: int) -> None:
        """Check about so many distinct images of a history, a share of them of recoveries. At depths below `every` also
        all that are enumerated, at each tick that there is time for."""
        deeper = max(1, images // 2 // RECOVERY_IMAGES) if depth < DEPTH_MOST else 0
        own = images // 2 if deeper else images
        ticks = history.log.ticks
        every = depth < self.every and time.monotonic() < self.until
        chosen = set(range(len(ticks))) if every else self.chosen(ticks, own)
        most = max(1, 2 * own // max(1, len(ticks)))
        known: dict[int, Found | None] = {}
        judged: set[tuple[int, tuple[str, str]]] = set()
        candidates: list[tuple[bytes | bytearray, Pairs, int, int]] = []  # any of those seen, as likely as any other
        seen = 0
        disk = Disk(history.log.base)
        for number, tick in enumerate(ticks):
            disk.advance(tick)
            self.result.crash_points += 1
            taken: Iterable[Image] = drawn(disk, self.rng, most if number in chosen else 0)
            if every and time.monotonic() < self.until:
                taken = chain(taken, (Image(content, "all that is enumerated") for content in enumerated(disk)))
            for image in taken:
                digest = xxhash.xxh3_64_intdigest(image.content or b"", seed=image.content is None)
                new = digest not in known
                if new and number not in chosen and number != len(ticks) - 1:
                    continue
                if new:
                    known[digest] = self.checked(history, number, image, digest, depth)
                    self.result.enumerated += every
                found = known[digest]
                if found is not None:
                    self.judge(history, number, image, found, depth)
                    judged.add((digest, label(tick)))
                    if new and image.content:
                        seen += 1
                        candidate = image.content, found.pairs, history.bounds[number][3], history.reached(found)
                        if len(candidates) < deeper:
                            candidates.append(candidate)
                        elif self.rng.random() < deeper / seen:
                            candidates[self.rng.randrange(deeper)] = candidate
            if len(self.result.findings) >= self.findings_most:
                return
        self.result.judged_at.update(where for _, where in judged)
        for content, pairs, seq, reached in candidates:
            again = Workload("recovery", recovery, {}, self.workload.settings)
            below = self.record(Log(content), again, pairs, seq, reached)
            self.explore(below, (images - own) // deeper, depth + 1)

    def chosen(self, ticks: list[Tick], images: int) -> set[int]:
        """The ticks at which new images are checked: all, or where those are too many some of each kind."""
        if images >= 2 * len(ticks):
            return set(range(len(ticks)))
        numbers = list(range(len(ticks)))
        self.rng.shuffle(numbers)
        kinds: set[tuple[str, str]] = set()
        first = [n for n in numbers if (kind := label(ticks[n])) not in kinds and not kinds.add(kind)]
        return set([*first, *numbers][: max(images // 2, len(first))])

    def checked(self, history: History, number: int, image: Image, digest: int, depth: int) -> Found | None:
        """Check an image and count it; None where it is not to be judged."""
        self.alive()
        self.result.images.setdefault(digest, Label(self.workload.name, depth))
        path = self.path()
        try:
            pairs, seq, looked = check(
                path, image.content, debug=digest % 8 == 0, kill=digest % 2 == 1, readonly=digest >> 8 & 3 != 0,
                look=digest >> 16 & 3 == 0,
            )  # fmt: skip
        except BaseException as error:
            if not isinstance(error, Exception):
                raise
            if isinstance(error, (mmlsm.FormatError, mmlsm.CorruptionError)) and may_be_refused(image, history, number):
                self.result.refused += 1
            else:
                self.finding(history, number, image, depth, repr(error))
            return None
        finally:
            path.unlink(missing_ok=True)
        return Found(pairs, history.which(pairs), seq, looked)

    def judge(self, history: History, number: int, image: Image, found: Found, depth: int) -> None:
        """The oracle (I1, I2)."""
        self.result.judged += 1
        durable, returned, most, seq = history.bounds[number]
        least = returned if image.killed else durable
        if not any(least <= k <= most for k in found.numbers):
            is_one = f"the state after {found.numbers}" if found.numbers else "the state after no commit"
            self.finding(history, number, image, depth, f"{is_one}, not after one from {least} to {most}")
        elif found.seq <= seq:
            self.finding(history, number, image, depth, f"seq {found.seq} was given, but {seq} had been before")
        elif found.looked is not None and found.looked > history.reached(found):
            self.finding(history, number, image, depth, f"a reader is at seq {found.looked}, which was not given yet")

    def finding(self, history: History, number: int, image: Image, depth: int, what: str) -> None:
        """Note what is wrong, with what it takes to look at it."""
        where = ""
        if self.kept is not None and image.content is not None:
            kept = self.kept / f"{self.workload.name.replace(' ', '-')}-{self.seed}-{len(self.result.findings)}.db"
            kept.write_bytes(image.content)
            where = f"; the image: {kept}"
        tick = history.log.ticks[number]
        self.result.findings.append(
            f"{self.workload.name!r}, seed {self.seed!r}, depth {depth}, tick {number} of {len(history.log.ticks)} "
            f"({tick.what} {tick.word or label(tick)}), image of {image.how}: {what}{where}"
        )


@contextlib.contextmanager
def any_core() -> Iterator[None]:
    """Threads that begin here run on any core, whatever this one keeps to: where they meet is for them to find."""
    if not CORES:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def label(tick: Tick) -> tuple[str, str]:
    """The operation and the phase that a crash after this tick belongs to."""
    if tick.call is None:
        return f"after {tick.word}", "the caller"
    return f"{'after' if tick.what == END else 'inside'} {tick.call.kind}", tick.call.phase


def may_be_refused(image: Image, history: History, number: int) -> bool:
    """Whether the image is of a creation in place, and its page 0 is garbage (I4)."""
    ticks = history.log.ticks[: number + 1]
    if image.content is None or any(history.log.base or b"") or any(tick.word == "opened" for tick in ticks):
        return False
    first = bytes(image.content[:PAGE_BYTES])
    calls = [tick.call for tick in ticks if tick.call is not None and tick.call.kind in (WRITE, DURABLE_WRITE)]
    written = [call.data[:PAGE_BYTES] for call in calls if call.offset == 0]
    return "garbage" in image.how and any(first) and first not in written


def check(
    path: Path, content: Content, *, debug: bool = True, kill: bool = False, readonly: bool = True, look: bool = False
) -> tuple[Pairs, int, int | None]:
    """Recover an image, prove it, write, reopen, prove it again: what was recovered, the seq of the write, and that of
    a reader before it all, if there was one.

    `look`: it is opened read-only first, and what is seen so must be what is recovered.
    `kill`: the first handle ends as by a kill, and not by `close()`. `readonly`: so it is opened again.
    """
    if content is not None:
        path.write_bytes(content)
    settings = {**TINY, "memtable_bytes": 1 << 20, "auto_merge": False, "debug": debug}
    looked: tuple[Pairs, int] | None = None
    if look and content is not None:
        with contextlib.suppress(mmlsm.FormatError), mmlsm.Database(path, Settings(**settings, readonly=True)) as db:
            looked = list(db.items()), db.seq
            proof.prove(db)
    db = mmlsm.Database(path, Settings(**settings))
    try:
        pairs = list(db.items())
        proof.prove(db)
        if looked is not None:
            assert looked[0] == pairs, "a reader finds another state than who recovers"
            assert looked[1] <= db.seq, f"a reader is at seq {looked[1]}, who recovers at {db.seq}"
        batch = db.batch(durability="full")
        batch.put(PROBE, b"")
        seq = batch.commit()
    finally:
        if kill:
            forsake(db)
        else:
            db.close()
    with mmlsm.Database(path, Settings(**settings, readonly=readonly)) as db:
        want = [pair for pair in pairs if pair[0] != PROBE] + [(PROBE, b"")]
        assert list(db.items()) == want, "what was recovered and written is not what a reopen finds"
        proof.prove(db)
    return pairs, seq, None if looked is None else looked[1]


def forsake(db: mmlsm.Database) -> None:
    """End a database as a kill would: its threads end, nothing is written."""
    engine = db._engine
    engine.abandon()
    engine.writer.wait_until_over()
    engine.merger.wait_until_over()


def run(
    seed: int | str,
    images: int,
    workloads: Iterable[str] = (),
    *,
    folder: Path = SHARED_MEMORY,
    kept: Path | None = None,
    findings_most: int = FINDINGS_MOST,
    every: int = 0,
    until: float = math.inf,
    alive: Callable[[], object] = lambda: None,
) -> Result:
    """Crash these workloads (all, without), about so many distinct images of them all, and at depths below `every` all
    that are enumerated, as long as `time.monotonic()` is before `until`; what was reached and found. `alive` is called
    before each image."""
    names = list(workloads) or list(WORKLOADS)
    result = Result()
    with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else None) as place:
        for name in names:
            if len(result.findings) < findings_most:
                crasher = Crasher(WORKLOADS[name], seed, Path(place), kept, result, findings_most, every, until, alive)
                crasher.crash(-(-images // len(names)))
    return result
