"""`verify` finds every damage of bytes that are in use and under a sum, names it once, and goes on behind it."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from campaign import Campaign
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from rig.damage.anatomy import Anatomy, Region
from rig.damage.worn import Original, Summed

pytestmark = pytest.mark.unproved

NOTED = ("superblock", "log", "log value")
"""What a crash can leave damaged too."""

CLOSED = ("manifest", "bitmap")
"""Without these no database can be opened."""


def verified(path: Path) -> mmlsm.Report:
    with mmlsm.open(path, readonly=True) as database:
        return database.verify()


def prove_found(path: Path, kind: str, at: int) -> None:
    """Damage of one byte is found, and told as that of its page."""
    if kind in CLOSED:
        with pytest.raises(mmlsm.CorruptionError, match=r"manifest|free-space bitmap"):
            verified(path)
        return
    report = verified(path)
    told = report.notes if kind in NOTED else report.problems
    assert len(report.notes) + len(report.problems) == len(told) == 1, (kind, at, report)
    if kind not in ("filter", "overflow", "log", "log value"):
        assert told[0].startswith(f"page {at // PAGE_BYTES}: "), (kind, at, told)
    if kind in ("leaf", "parent", "overflow", "filter"):
        assert "segment" in told[0]


def test_a_sound_file_is_sound(original: Original, tidy: Original) -> None:
    for one in (original, tidy):
        report = verified(one.damaged())
        assert (report.problems, report.notes) == ([], [])
        assert {part.kind for part in one.summed} >= {"superblock", "manifest", "bitmap", "leaf", "parent", "overflow"}
    assert {part.kind for part in original.summed} >= {"filter", "log", "log value"}


def test_each_flipped_byte_under_a_sum_is_found(original: Original, tidy: Original, campaign: Campaign) -> None:
    """In CI the first and last byte of some of each kind and one between; in a long run as many as time allows."""
    found: Counter[str] = Counter()
    chance = random.Random(campaign.seed)
    for one in (original, tidy):
        kinds: dict[str, list[Summed]] = {}
        for part in one.summed:
            kinds.setdefault(part.kind, []).append(part)
        for kind, parts in kinds.items():
            for part in chance.sample(parts, min(3, len(parts))):
                for at in (part.start, part.stop - 1, chance.randrange(part.start, part.stop)):
                    prove_found(one.flipped(at, 1 << chance.randrange(8)), kind, at)
                    found[kind] += 1
    for _ in campaign.trials(0, 1 << 40):
        one = chance.choice((original, tidy))
        part = chance.choice(one.summed)
        at = chance.randrange(part.start, part.stop)
        prove_found(one.flipped(at, chance.randrange(1, 256)), part.kind, at)
        found[part.kind] += 1
    campaign.report(flips=sum(found.values()), **found)


def behind_right_sums(one: Original, at: int, data: bytes, region: Region, anatomy: Anatomy) -> Path:
    """The file with these bytes there, and all sums as if it had been written so."""
    image = bytearray(one.image)
    image[at : at + len(data)] = data
    anatomy.seal(image, [region])
    one.path.write_bytes(image)
    return one.path


def mask_of(name: str, within: int) -> int:
    """Bits to turn in a field of this name, so many bytes into its region, which no proof may pass by; 0 for others."""
    if name == "parent.flags":
        return 1 if within == 22 else 8
    return {"leaf.flags": 1, "leaf.a": 1, "leaf.birth": 1 << 40, "parent.birth": 1 << 40, "segment.flags": 1,
            "segment.data_bytes": 1, "segment.entries": 1, "segment.tombstones": 1, "segment.pages": 1,
            "parent.entries": 1}.get(name, 0)  # fmt: skip


def test_what_is_said_of_nodes_below_is_proved(original: Original, tidy: Original) -> None:
    """Flags, births and counts in headers, in parents and in the manifest: wrong ones behind right sums."""
    tried: Counter[str] = Counter()
    for one in (original, tidy):
        anatomy = Anatomy(one.image)
        for field in anatomy.fields:
            at, region = field.places[0]
            mask = mask_of(field.name, at - region.start)
            if not mask or tried[field.name] == 40:
                continue
            changed = (anatomy.number(at, field.width) ^ mask).to_bytes(field.width, "little")
            report = verified(behind_right_sums(one, at, changed, region, anatomy))
            assert report.problems, (field.name, at)
            tried[field.name] += 1
    assert len(tried) == 11, tried
    assert min(tried.values()) > 0


def test_a_filter_that_lacks_keys_is_found(original: Original) -> None:
    anatomy = Anatomy(original.image)
    filters = [region for region in anatomy.regions if region.kind == "filter"]
    assert filters
    for region in filters:
        path = behind_right_sums(original, region.start, bytes(region.length), region, anatomy)
        report = verified(path)
        assert {problem.partition(": ")[2].partition(" lacks")[0] for problem in report.problems} == {
            f"the filter of segment {region.owner}"
        }
        segment = next(record for record in original.manifest.segments() if record.id == region.owner)
        assert len(report.problems) == segment.entries


def test_every_damage_is_told_once_though_there_are_many(original: Original) -> None:
    leaves = original.pages("leaf")[1::2]
    parts = {part.kind: part for part in original.summed}
    flips = [parts[kind].start for kind in ("superblock", "filter", "log")]
    path = original.damaged(
        *((page * PAGE_BYTES, bytes(PAGE_BYTES)) for page in leaves),
        *((at, bytes([original.image[at] ^ 1])) for at in flips),
    )
    report = verified(path)
    told = [f"page {page}: the checksum differs" for page in leaves]
    assert sorted(problem.partition(", ")[0] for problem in report.problems if "checksum" in problem) == sorted(told)
    assert len(report.problems) == len(leaves) + 1
    assert len(report.notes) == 2


def test_a_page_that_is_older_than_it_should_be_is_found(path: Path) -> None:
    with mmlsm.open(path) as database:
        database[b"a"] = b"1"
    before = path.read_bytes()[:PAGE_BYTES]
    with mmlsm.open(path) as database:
        database[b"a"] = b"2"
    path.write_bytes(before + path.read_bytes()[PAGE_BYTES:])
    assert [note.partition(" holds")[0] for note in verified(path).notes] == ["page 0: superblock slot 0"]


def test_damage_under_an_open_writer_is_found_too(path: Path) -> None:
    with mmlsm.open(path, auto_merge=False) as database:
        database[b"a"] = b"1"
        database._engine.flush()
        assert database.verify().ok
        block, sound = database._engine.store.superblock, path.read_bytes()
        for page in (0, 1, block.manifest.page, database._engine.store.manifest.bitmap[0][0]):
            with path.open("r+b") as file:
                file.seek(page * PAGE_BYTES + 3)
                file.write(bytes([sound[page * PAGE_BYTES + 3] ^ 1]))
                file.flush()
                assert [problem.partition(":")[0] for problem in database.verify().problems] == [f"page {page}"]
                file.seek(page * PAGE_BYTES + 3)
                file.write(bytes([sound[page * PAGE_BYTES + 3]]))
        assert database.verify().ok


def test_the_command_says_how_bad_it_is(original: Original, run: Callable[..., tuple[int, str, str]]) -> None:
    def code_of(path: Path, text: str) -> int:
        code, out, err = run("verify", path)
        assert text in out + err
        facts: dict[str, Any] = json.loads(run("verify", path, "--json")[1])
        assert facts["ok"] == (code == 0 or bool(facts["notes"] and not facts["problems"]))
        return code

    parts = {part.kind: part for part in original.summed}
    assert code_of(original.damaged(), "sound") == 0
    assert code_of(original.flipped(parts["superblock"].start + 70), "sound, but for the notes") == 1
    assert code_of(original.flipped(parts["leaf"].start + 70), f"mmlsm salvage {original.path} OUT") == 1
    assert code_of(original.flipped(parts["manifest"].start + 70), f"mmlsm salvage {original.path} OUT") == 3


@pytest.mark.parametrize("flushed", [0, 1])
def test_a_database_that_is_open_for_writing_proves_its_log_too(path: Path, flushed: int) -> None:
    """And values that only the log refers to."""
    with mmlsm.open(path) as db:
        for number in range(flushed + 1):
            for i in range(20):
                db[b"%d %d" % (number, i)] = b"x" * 1000
            db[b"large"] = bytes(2 << 20)
            if number < flushed:
                db._engine.flush()
        committer = db._engine.committer
        assert committer is not None
        (value,) = committer.memtable.references
        assert db._engine.store is not None
        log = db._engine.store.superblock.log.offset
        assert (db.verify().problems, db.verify().notes) == ([], [])
        for at, told in ((value.page * PAGE_BYTES + 500_000, "no segment has"), (log + 3000, "the log ends behind")):
            with open(path, "r+b") as file:
                file.seek(at)
                before = file.read(1)
                file.seek(at)
                file.write(bytes([before[0] ^ 1]))
                file.flush()
                report = db.verify()
                assert len(report.problems) == 1
                assert told in report.problems[0]
                assert report.problems[0].startswith("page ")
                file.seek(at)
                file.write(before)
        assert (db.verify().problems, db.verify().notes) == ([], [])
        db[b"off"] = b"1"
        with db.batch(durability="off") as batch:
            batch.put(b"in the buffer", b"1")
        assert (db.verify().problems, db.verify().notes) == ([], [])


def test_the_log_is_proved_beside_flushes_that_let_go_of_it(path: Path) -> None:
    with mmlsm.Database(path, Settings(durability="off", memtable_bytes=4096, log_extent_bytes=4096)) as db:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                db[b"%d" % (number % 50)] = bytes(100)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(30):
                assert db.verify().problems == []
        finally:
            stop.set()
            thread.join(60)
