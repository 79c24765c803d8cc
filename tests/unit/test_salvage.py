"""`salvage`: all that is undamaged comes out, and whatever is missing, old or back is in a listed range.

The oracle of most tests: a key that is in no listed range has in the new database what it had in the damaged one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.cli.pages_by_owner import Stretch, layout_of, walk
from mmlsm.limits import PAGE_BYTES
from mmlsm.rescue.report import Damage
from mmlsm.settings import Settings
from proof import prove_file

pytestmark = pytest.mark.unproved

State = dict[bytes, bytes]


@dataclass
class Original:
    """A sound file with several runs, tombstones, extents and a log, what is in it, and whose its pages are."""

    path: Path
    image: bytes
    want: State
    stretches: list[Stretch]

    def pages(self, kind: str) -> list[tuple[int, int]]:
        return [(first, count) for owner, first, count in self.stretches if owner.kind == kind]

    def damaged(self, *changes: tuple[int, bytes]) -> Path:
        """The file with these bytes put in at these places."""
        image = bytearray(self.image)
        for at, data in changes:
            image[at : at + len(data)] = data
        self.path.write_bytes(image)
        return self.path

    def flipped(self, at: int) -> Path:
        return self.damaged((at, bytes([self.image[at] ^ 0x40])))

    def without(self, *numbers: int) -> Path:
        """The file with these pages zeroed."""
        return self.damaged(*((number * PAGE_BYTES, bytes(PAGE_BYTES)) for number in numbers))


def filled(path: Path, *, seed: int = 1, closed: bool = False, rounds: int = 4, compact: bool = False) -> Original:
    """A database of four runs, the newer of which overwrite and delete what the older have; the log has a few more."""
    chance = random.Random(seed)
    want: State = {}
    settings = Settings(leaf_bytes=4096, node_entries_max=6, durability="off", auto_merge=False)
    database = mmlsm.Database(path, settings)
    lengths = [0, 5, 40, 700, 3000, 70_000]
    for turn in range(rounds + 1):
        for _ in range(12 if turn == rounds else 60):
            key = b"%03d" % chance.randrange(150)
            if chance.random() < 0.03:
                key += b"k" * chance.choice([600, 5000])
            if chance.random() < 0.25:
                database.delete(key)
                want.pop(key, None)
                continue
            want[key] = chance.randbytes(chance.choices(lengths, [2, 20, 20, 3, 1, 1])[0])
            database.put(key, want[key])
        if turn < rounds:
            database._engine.flush()
    if compact:
        database.compact()
    if closed:
        database.close()
    else:
        database.sync()
    copy = path.with_suffix(".damaged")
    shutil.copy(path, copy)
    database.close()
    with mmlsm.open(copy, readonly=True) as reader:
        assert dict(reader.items()) == want
        stretches = walk(layout_of(reader._engine)).stretches
    return Original(copy, copy.read_bytes(), want, stretches)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return filled(tmp_path_factory.mktemp("salvage") / "original.db")


@pytest.fixture(scope="module")
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """One run, no log: nothing older lies below anything."""
    return filled(tmp_path_factory.mktemp("salvage") / "tidy.db", closed=True, compact=True)


@pytest.fixture
def bring_out(tmp_path: Path) -> Callable[..., tuple[State, mmlsm.SalvageReport]]:
    """Salvages a file: what came out, and the report. The damaged file keeps each byte, the new one is proved."""

    def call(path: Path, **more: Any) -> tuple[State, mmlsm.SalvageReport]:
        before, out = path.read_bytes(), tmp_path / "out.db"
        out.unlink(missing_ok=True)
        report = mmlsm.salvage(path, out, **more)
        assert path.read_bytes() == before
        prove_file(out)
        with mmlsm.open(out, readonly=True) as database:
            found = dict(database.items())
        assert report.entries == len(found)
        assert report.bytes == sum(len(key) + len(value) for key, value in found.items())
        return found, report

    return call


def listed(damages: list[Damage], key: bytes) -> bool:
    return any(damage.touches(key) for damage in damages)


def judge(want: State, found: State, report: mmlsm.SalvageReport) -> None:
    """Nothing is missing and nothing is wrong that is not listed."""
    for key in want.keys() - found.keys():
        assert listed(report.lost, key) or listed(report.uncertain, key), (key[:20], report)
    for key, value in found.items():
        if value != want.get(key):
            assert listed(report.uncertain, key), (key[:20], report)


# -- nothing is wrong


def test_a_sound_file_comes_out_whole(original: Original, tidy: Original, bring_out: Any) -> None:
    for one in (original, tidy):
        found, report = bring_out(one.damaged())
        assert found == one.want
        assert report.complete
        assert report.notes == []


def test_an_empty_database_comes_out_empty(tmp_path: Path, bring_out: Any) -> None:
    mmlsm.open(tmp_path / "empty.db").close()
    found, report = bring_out(tmp_path / "empty.db")
    assert (found, report.complete, report.notes) == ({}, True, [])


def test_progress_ends_the_work_and_leaves_nothing_behind(original: Original, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def tell(done: int, total: int) -> None:
        assert 1 <= done <= total
        if done == 100:
            raise Enough

    with pytest.raises(Enough):
        mmlsm.salvage(original.damaged(), tmp_path / "out.db", progress=tell)
    assert not (tmp_path / "out.db").exists()


def test_what_is_there_already_is_never_written_to(original: Original, tmp_path: Path) -> None:
    path = original.damaged()
    (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere")
    for out in (path, tmp_path / "dangling.db"):
        with pytest.raises(mmlsm.StorageError, match="already"):
            mmlsm.salvage(path, out)
    assert path.read_bytes() == original.image
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"short", b"something else\n" * 1000, bytes(40960)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(mmlsm.FormatError):
            mmlsm.salvage(tmp_path / "other", tmp_path / "out.db")
    with pytest.raises(mmlsm.StorageError):
        mmlsm.salvage(tmp_path / "nothing", tmp_path / "out.db")
    assert not (tmp_path / "out.db").exists()


# -- damage of each kind of page


KINDS = ["header", "manifest", "bitmap", "log", "leaf", "parent", "overflow", "filter"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compact", [False, True])
def test_damage_of_any_page_is_passed_by_and_listed(
    original: Original, tidy: Original, bring_out: Any, kind: str, compact: bool
) -> None:
    one = tidy if compact else original
    chance = random.Random(kind)
    pages = [first + i for first, count in one.pages(kind) for i in range(count)]
    for number in pages if len(pages) <= 8 else chance.sample(pages, 8):
        at = number * PAGE_BYTES
        flip = at + chance.randrange(PAGE_BYTES)
        for change in (
            (at, bytes(PAGE_BYTES)),
            (at, chance.randbytes(PAGE_BYTES)),
            (flip, bytes([one.image[flip] ^ 0x40])),
        ):
            found, report = bring_out(one.damaged(change))
            judge(one.want, found, report)
