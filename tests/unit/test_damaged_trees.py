"""Trees that are damaged behind right sums so that the same nodes are below them many times: every walk ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from file_rig import in_forked_child
from mmlsm.cli.pages_by_owner import nodes_of
from mmlsm.limits import PAGE_BYTES
from mmlsm.settings import Settings
from rig.damage.patient import Patient, opened
from rig.damage.seeds import TINY

pytestmark = pytest.mark.unproved


@pytest.fixture
def folded(path: Path) -> Patient:
    patient = Patient(path)
    patient.fold()
    return patient


def test_verify_tells_it_and_ends(folded: Patient) -> None:
    with opened(folded) as db:
        report = db.verify()
    assert any("another owner" in problem for problem in report.problems)
    assert report.leaves == report.segments == 2


@pytest.mark.parametrize("way", ["items", "backwards", "views", "values", "next", "prev", "count", "compact"])
def test_readers_and_merges_meet_an_error_where_the_keys_do_not_go_on(folded: Patient, way: str) -> None:
    def walk(db: mmlsm.Database) -> Iterator[object]:
        if way == "compact":
            db.compact()
        elif way == "count":
            yield db.count(b"key 000", b"key 0599")
        elif way in ("next", "prev"):
            cursor = db.cursor()
            there = cursor.first() if way == "next" else cursor.last()
            while there:
                yield cursor.key
                there = cursor.next() if way == "next" else cursor.prev()
        elif way == "values":
            yield from db.values()
        else:
            yield from db.items(reverse=way == "backwards", views=way == "views")

    with mmlsm.Database(folded.path, Settings(readonly=way != "compact", **TINY)) as db:
        found: list[object] = []
        with pytest.raises(mmlsm.CorruptionError) as error:
            found.extend(walk(db))
        assert len(found) <= len(folded.pairs)
        assert error.value.page is not None


def test_a_walk_over_the_nodes_meets_each_once(folded: Patient, run: Callable[..., Any]) -> None:
    told: list[str] = []
    with opened(folded) as db:
        for record in db._engine.root.manifest.segments():
            pages = [page for page, *_ in nodes_of(db._engine.file, record, told.append)]
            assert len(pages) == len(set(pages)) == record.height + 1
    assert told
    assert all("twice" in text for text in told)
    for command in ("levels", "map", "page"):
        arguments = ["5"] if command == "page" else []
        assert run(command, folded.path, *arguments)[0] in (0, 1, 3)


def test_a_merge_does_not_read_what_was_proved_and_then_cut_off(path: Path) -> None:
    """No SIGBUS: it asks for the file's length before it reads a node again that it knows."""
    pairs = {b"%06d" % i: bytes(500) for i in range(600)}
    with mmlsm.Database(path, Settings(leaf_bytes=4096, auto_merge=False)) as db:
        db.update(pairs)
        db.compact()
        db.update({b"%06d" % i: b"new" for i in range(0, 600, 7)})
        db._engine.flush()

    def merge() -> str:
        db = mmlsm.Database(path, Settings(leaf_bytes=4096, auto_merge=False))
        assert len(dict(db.items())) == 600  # every page is read
        os.truncate(path, 4 * PAGE_BYTES)
        with pytest.raises(mmlsm.Error):
            db.compact()
        return "told"

    assert in_forked_child(merge) == repr("told")
