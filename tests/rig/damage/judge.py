"""What a damaged file is asked, and whether its answers will do: right, or an error of mmlsm that names the damage.

A `Trial` asks one mutant. Of a mutant with wrong sums every answer must be right or a CorruptionError (FormatError,
StorageError), `verify` must find the damage, and what has nothing to do with the damaged segment must be answered, or
where one of two equal superblock slots alone is damaged. Such an error names the page where what a wrong sum covers
begins, and the segment that has it; of a file that was cut, some page. Damage in the log may read as its end only where
no sound record says that what was damaged was durable. Of a mutant whose sums were made right again answers may be
anything; but no other exception is allowed, ever.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import mmlsm
from format_reader import PAGE
from mmlsm.cli import main as main_of_cli
from mmlsm.settings import Settings
from rig.damage.findings import Finding, raw
from rig.damage.mutations import Damage, Mutant
from rig.damage.seeds import Pairs

KEY = itemgetter(0)
TYPED = (mmlsm.CorruptionError, mmlsm.FormatError, mmlsm.StorageError)


def place(pairs: list[tuple[bytes, bytes]], key: bytes, way: str) -> int:
    """Where `seek(key, way)` leads: an index, or one outside where there is nothing."""
    if way in (">=", ">"):
        return (bisect_left if way == ">=" else bisect_right)(pairs, key, key=KEY)
    if way in ("<=", "<"):
        return (bisect_right if way == "<=" else bisect_left)(pairs, key, key=KEY) - 1
    at = bisect_left(pairs, key, key=KEY)
    return at if at < len(pairs) and pairs[at][0] == key else -1


class Trial:
    """One mutant, in a file at `path`. `tally` counts outcomes."""

    def __init__(self, damage: Damage, mutant: Mutant, path: Path, rng: random.Random, tally: Counter[str]) -> None:
        self.seed = damage.seed
        self.damage = damage
        self.mutant = mutant
        self.path = path
        self.rng = rng
        self.tally = tally
        self.hit = [] if mutant.sealed else damage.hit(mutant.data)
        self.judged = not mutant.sealed
        self.paged = not mutant.sealed
        """Whether each CorruptionError names a page; `named`: (page, segment) that it may be, None: any page."""
        whole = self.paged and len(mutant.data) >= len(self.seed.data)
        self.named = damage.named(self.hit, mutant.data) if whole else None
        in_log = any(region.owner == "log" for region in self.hit) or mutant.kind == "page of before"
        in_log = in_log or len(mutant.data) < len(self.seed.data)  # an extent of the log that is not whole ends it
        in_log = in_log and not damage.is_told(self.hit)
        self.states: list[Pairs] = self.seed.states if in_log else self.seed.states[-1:]
        self.keys = list(self.seed.pairs)
        owners = {region.owner for region in self.hit}
        self.lost = {owner for owner in owners if isinstance(owner, int)}
        self.rootless = None in owners or "log" in owners or len(mutant.data) < len(self.seed.data)
        self.rootless = self.rootless and not damage.has_another_slot(self.hit, mutant.data)
        self.written: dict[bytes, bytes | None] = {}
        self.writes_begun = False

    # -- asking

    def ask(self, what: str, call: Callable[[], Any]) -> Any:
        """The answer, or the typed error."""
        try:
            return call()
        except TYPED as error:
            self.tally[f"{type(error).__name__}"] += 1
            self.judge_error(what, error)
            error.__traceback__ = None
            return error
        except Exception as error:
            raise Finding(raw(what, error)) from None

    def judge_error(self, what: str, error: Exception) -> None:
        """A CorruptionError says which page is damaged, and whose; a merge may have given nodes to a newer segment."""
        if not self.paged or not isinstance(error, mmlsm.CorruptionError):
            return
        if error.page is None:
            raise Finding(f"{what}: no page is named: {error!r}")
        if self.named is None:
            return
        place = error.page, error.segment
        if self.writes_begun and error.segment not in {None, *(segment.id for segment in self.seed.segments)}:
            place = error.page, next((owner for page, owner in self.named if page == error.page), None)
        if place not in self.named:
            raise Finding(f"{what}: (page, segment) is {place}, and is to be one of {self.named}: {error!r}")
        self.tally["page and segment right"] += 1

    def answers(self, key: bytes) -> set[bytes | None]:
        """What `get` may say."""
        if key in self.written:
            return {self.written[key]}
        return {state.get(key) for state in self.states}

    def judge(self, what: str, answer: Any, allowed: Callable[[], bool]) -> bool:
        """Hold an answer against what is allowed; whether there was one."""
        if isinstance(answer, Exception):
            return False
        if self.judged and not allowed():
            raise Finding(f"{what}: a wrong answer: {answer!r:.300}")
        self.tally["right answers"] += 1
        return True

    def run(self) -> None:
        """All of it: a read-only open with some of the questions, now and then a writing one."""
        rng = self.rng
        self.path.write_bytes(self.mutant.data)
        draw = rng.random()
        verify = "first-read" if draw < 0.6 else "always" if draw < 0.7 else "never"
        if verify == "never":
            self.judged = self.paged = False  # a reference that is damaged may lead anywhere
        if rng.random() < 0.88:
            self.read_only(verify)
            if verify == "first-read" and rng.random() < 0.03:
                self.command_line()
        else:
            self.writing(verify)

    def read_only(self, verify: Any) -> None:
        db = self.ask("open", lambda: mmlsm.Database(self.path, Settings(readonly=True, verify=verify)))
        if isinstance(db, Exception):
            self.must_be_refused(db)
            return
        try:
            if self.rng.random() < 0.06:
                self.cut_beneath(db)
                return
            self.questions(db)
            if self.rng.random() < 0.5:
                self.verify(db)
        finally:
            db.close()

    def cut_beneath(self, db: Any) -> None:
        """Somebody else cuts the file that is open: what is read for the first time then is right or an error."""
        length = self.rng.randrange(len(self.mutant.data) + 1)
        self.rootless, self.named = True, None
        os.truncate(self.path, length if self.rng.random() < 0.5 else length // PAGE * PAGE)
        self.tally["cut while open"] += 1
        for question in self.rng.sample([self.gets, self.many, self.scan, self.walk, self.ranges, self.streams], 1):
            question(db)
        self.ask("verify", db.verify)

    def cut_under_writer(self, db: Any) -> None:
        """The same while it is open for writing: commits, flushes and merges say so, and `close` ends."""
        length = self.rng.randrange(len(self.mutant.data) + 1)
        self.rootless, self.named = True, None
        os.truncate(self.path, length if self.rng.random() < 0.5 else length // PAGE * PAGE)
        self.tally["cut while written to"] += 1
        self.rng.choice([self.gets, self.many, self.scan, self.walk, self.ranges, self.streams])(db)
        self.judged = self.paged = False  # what was read is read again below, and writes make the file longer
        self.writes(db)
        self.questions(db)
        self.ask("verify", db.verify)

    def must_be_refused(self, error: Exception) -> None:
        """An open that fails although nothing was damaged that it needs."""
        if not self.mutant.sealed and not self.rootless:
            raise Finding(f"the open is refused, although only segments {self.lost} are damaged: {error!r}")

    # -- questions

    def questions(self, db: Any) -> None:
        rng = self.rng
        everything = [self.gets, self.many, self.scan, self.walk, self.ranges, self.neighbours, self.streams]
        for question in rng.sample(everything, rng.choice([2, 3, 7])):
            question(db)
        if rng.random() < 0.2:
            self.scan(db.snapshot())
        if rng.random() < 0.1:
            self.ask("stats", db.stats)

    def some_keys(self, count: int) -> list[bytes]:
        rng = self.rng
        keys = rng.choices(self.keys, k=count) if self.keys else []
        keys += [key + b"\0" for key in keys[:2]] + [key[:-1] for key in keys[:2]] + [b"", b"\xff" * 9]
        return keys

    def gets(self, db: Any) -> None:
        for key in self.some_keys(6):
            how = self.rng.randrange(3)
            if how == 0:
                answer = self.ask("in", lambda key=key: key in db)
                known = {value is not None for value in self.answers(key)}
                self.judge(f"{key!r:.60} in", answer, lambda a=answer, known=known: a in known)
                continue
            if how == 1:
                answer = self.ask("value_length", lambda key=key: db.value_length(key))
                lengths = {None if v is None else len(v) for v in self.answers(key)}
                self.judge(f"value_length({key!r:.60})", answer, lambda a=answer, lengths=lengths: a in lengths)
                continue
            answer = self.ask("get", lambda key=key: db.get(key))
            told = self.judge(f"get({key!r:.60})", answer, lambda key=key, a=answer: a in self.answers(key))
            if not told and self.must_answer(key):
                raise Finding(f"get({key!r:.60}) needs nothing that is damaged, but: {answer!r}")

    def must_answer(self, key: bytes) -> bool:
        """Whether no damaged segment comes between the key and its answer."""
        if not self.judged or self.rootless or key in self.written:
            return False
        for segment in self.seed.segments:
            if segment.id in self.lost:
                if segment.first_key <= key <= segment.last_key:
                    return False
            elif key in segment.entries:
                return True
        return True

    def many(self, db: Any) -> None:
        keys = self.some_keys(15)
        answer = self.ask("get_many", lambda: db.get_many(keys))
        self.judge("get_many", answer, lambda: all(v in self.answers(k) for k, v in zip(keys, answer, strict=True)))

    def is_whole(self, pairs: list[tuple[bytes, bytes]], reverse: bool) -> bool:
        if reverse:
            pairs = pairs[::-1]
        return any(pairs == list(self.with_written(state).items()) for state in self.states)

    def with_written(self, state: Pairs) -> Pairs:
        if not self.written:
            return state
        both = {**state, **self.written}
        return {key: value for key, value in sorted(both.items()) if value is not None}

    def scan(self, db: Any) -> None:
        reverse, views = self.rng.random() < 0.5, self.rng.random() < 0.2
        most = 20 * len(self.seed.data) if self.mutant.sealed else None

        def all_pairs() -> list[tuple[bytes, bytes]]:
            found = []
            for key, value in db.items(reverse=reverse, views=views, limit=most and min(most, 20_000)):
                found.append((key, bytes(value)))
            return found

        answer = self.ask("items", all_pairs)
        self.judge("items", answer, lambda: self.is_whole(answer, reverse))

    def in_order(self) -> list[list[tuple[bytes, bytes]]]:
        """What there may be, each in the order of its keys."""
        return [list(self.with_written(state).items()) for state in self.states]

    def walk(self, db: Any) -> None:
        """A cursor is where one of the states has it, after each step, or says that there is nothing."""
        rng = self.rng
        with db.cursor() as cursor:
            for key in self.some_keys(3):
                way = rng.choice([">=", "<=", ">", "<", "=="])
                moved = self.ask("seek", lambda key=key, way=way: cursor.seek(key, way))
                said = f"seek({key!r:.60}, {way!r})"
                places = [(pairs, place(pairs, key, way)) for pairs in self.in_order()]
                for _ in range(rng.randrange(5)):
                    there = [(pairs, at) for pairs, at in places if 0 <= at < len(pairs)]
                    ends = len(there) < len(places)
                    told = self.judge(said, moved, lambda m=moved, t=there, e=ends: bool(t) if m else e)
                    if not (told and moved):
                        break
                    here = self.ask("cursor.key", lambda: (cursor.key, cursor.value, cursor.value_length))
                    pair = here if isinstance(here, Exception) else (here[0], here[1])
                    wanted = [pairs[at] for pairs, at in there]
                    if not self.judge(f"the pair after {said}", pair, lambda p=pair, w=wanted: p in w):
                        break
                    step = 1 if rng.random() < 0.6 else -1
                    places = [(pairs, at + step) for pairs, at in there if not self.judged or pairs[at] == pair]
                    said += " next" if step > 0 else " prev"
                    moved = self.ask("move", cursor.next if step > 0 else cursor.prev)

    def ranges(self, db: Any) -> None:
        rng = self.rng
        low, high = sorted(self.some_keys(2)[:2])
        reverse, limit = rng.random() < 0.5, rng.choice([None, 3])
        answer = self.ask("range", lambda: list(db.items(low, high, reverse=reverse, limit=limit or 5000)))

        def allowed() -> bool:
            for state in self.states:
                want = [(k, v) for k, v in self.with_written(state).items() if low <= k < high]
                if reverse:
                    want.reverse()
                if answer == want[: limit or 5000]:
                    return True
            return False

        self.judge("range", answer, allowed)
        exact = self.ask("count", lambda: db.count(low, high))
        counts = {sum(low <= key < high for key, _ in pairs) for pairs in self.in_order()}
        self.judge("count", exact, lambda: exact in counts)
        for name, ask in (
            ("count(exact=False)", lambda: db.count(low, high, exact=False)),
            ("approximate_size", lambda: db.approximate_size(low, high)),
        ):
            estimate = self.ask(name, ask)
            self.judge(name, estimate, lambda e=estimate: type(e) is int and e >= 0)

    def neighbours(self, db: Any) -> None:
        for key in self.some_keys(2):
            for name, way in (("floor", "<="), ("ceiling", ">="), ("lower", "<"), ("higher", ">")):
                answer = self.ask(name, lambda key=key, name=name: getattr(db, name)(key))
                found = [(pairs, place(pairs, key, way)) for pairs in self.in_order()]
                wanted = [pairs[at] if 0 <= at < len(pairs) else None for pairs, at in found]
                self.judge(f"{name}({key!r:.60})", answer, lambda a=answer, w=wanted: a in w)
        for name, at in (("first", 0), ("last", -1)):
            answer = self.ask(name, getattr(db, name))
            wanted = [pairs[at] if pairs else None for pairs in self.in_order()]
            self.judge(name, answer, lambda a=answer, w=wanted: a in w)

    def streams(self, db: Any) -> None:
        for key in self.some_keys(3):
            stream = self.ask("open_value", lambda key=key: db.open_value(key))
            if stream is not None and not isinstance(stream, Exception):
                if self.rng.random() < 0.5:
                    at = self.rng.randrange(200_000)
                    self.ask("stream.seek", lambda s=stream, at=at: s.seek(at))
                    part = self.ask("stream.read", lambda s=stream: s.read(10_000))
                    parts = [v[at:][:10_000] for v in self.answers(key) if v is not None]
                    self.judge("a part of a stream", part, lambda p=part, all_=parts: p in all_)
                    stream.seek(0)
                whole = self.ask("stream.read", lambda s=stream: s.read(4 << 20))
                self.judge("stream", whole, lambda key=key, w=whole: w in self.answers(key))
            view = self.ask("get_view", lambda key=key: db.get_view(key))
            if isinstance(view, memoryview):
                content = bytes(view)
                self.judge("view", content, lambda key=key, c=content: c in self.answers(key))
                view.release()

    # -- proving

    def verify(self, db: Any) -> None:
        """`verify` finds every damage of summed bytes, but of the log only what leaves a trace: else it is its end."""
        report = self.ask("verify", db.verify)
        if self.mutant.sealed:
            return
        wanted = [region for region in self.hit if region.owner != "log"]
        if len(self.mutant.data) >= len(self.seed.data) and not self.damage.leaves_no_trace(self.hit, self.mutant.data):
            wanted = self.hit
        found = isinstance(report, Exception) or bool(report.problems or report.notes)
        if wanted and not found:
            raise Finding(f"verify finds nothing, but {wanted[0].kind} at {wanted[0].start} is damaged")
        if not self.hit and found and len(self.mutant.data) >= len(self.seed.data):
            said = report if isinstance(report, Exception) else report.problems + report.notes
            raise Finding(f"verify finds {said!r:.300}, but nothing is damaged")
        self.tally["verify found damage" if wanted else "verify had nothing to find"] += 1

    def command_line(self) -> None:
        """A few commands, whatever they say."""
        out = self.path.with_name("out.db")
        page = str(self.rng.randrange(60))
        commands = (
            ["verify"], ["info", "--json"], ["free"], ["map"], ["levels"], ["page", page], ["salvage", str(out)],
        )  # fmt: skip
        command, *options = self.rng.choice(commands)
        out.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main_of_cli([command, str(self.path), *options])
            except SystemExit:
                pass
            except Exception as error:
                raise Finding(raw(f"mmlsm {command}", error)) from None

    # -- writing

    def writing(self, verify: Any) -> None:
        cut = self.rng.random() < 0.08  # then nothing is read before it, by merges neither: what was is not promised
        settings = Settings(
            verify=verify, leaf_bytes=4096, node_entries_max=8, auto_merge=self.rng.random() < 0.3 and not cut,
            durability=self.rng.choice(["full", "group", "off"]), log_extent_bytes=1 << 16, create=False,
        )  # fmt: skip
        db = self.ask("open for writing", lambda: mmlsm.Database(self.path, settings))
        if isinstance(db, Exception):
            self.must_be_refused(db)
            return
        self.tally["opened for writing"] += 1
        try:
            if cut:
                self.cut_under_writer(db)
                return
            self.questions(db)
            self.writes(db)
            self.questions(db)
            if self.rng.random() < 0.3:
                self.verify_after_writing(db)
        finally:
            error = self.ask("close", db.close)
        self.no_faults(db)
        if self.judged and not isinstance(error, Exception):
            self.reopen()

    def writes(self, db: Any) -> None:
        rng = self.rng
        self.writes_begun = True
        for _ in range(rng.choice([1, 3])):
            items: dict[bytes, bytes | None] = {
                key[:4000]: rng.choice([None, b"", b"new", rng.randbytes(30), rng.randbytes(9000)])
                for key in self.some_keys(rng.choice([1, 8]))
            }

            def commit(items: dict[bytes, bytes | None] = items) -> None:
                with db.batch() as batch:
                    for key, value in items.items():
                        if value is None:
                            batch.delete(key)
                        else:
                            batch.put(key, value)

            if not isinstance(self.ask("batch", commit), Exception):
                self.written.update(items)
            else:
                self.judged = False
            if rng.random() < 0.5:
                self.ask("flush", db._engine.flush)
        if rng.random() < 0.4:
            self.ask("compact", db.compact)

    def verify_after_writing(self, db: Any) -> None:
        """Writing must not have made sound what was damaged, nor the other way round; damage may be merged away."""
        report = self.ask("verify", db.verify)
        if self.judged and not self.hit and not isinstance(report, Exception) and report.problems:
            raise Finding(f"verify finds {report.problems!r:.300} after writing to a sound file")

    def no_faults(self, db: Any) -> None:
        """No thread of the database ended by a fault of its own."""
        store = db._engine.store
        for thread in (db._engine.writer, db._engine.merger) if store is not None else ():
            if thread.fault is not None:
                raise Finding(raw(thread.name, thread.fault))

    def reopen(self) -> None:
        """What was written, and what is sound, is there in the next life."""
        db = self.ask("reopen", lambda: mmlsm.Database(self.path, Settings(readonly=True)))
        if isinstance(db, Exception):
            raise Finding(f"what was open for writing is refused when it is opened again: {db!r}")
        try:
            self.gets(db)
            self.scan(db)
        finally:
            db.close()
