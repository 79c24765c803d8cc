"""Readers of a file that others write: what they open beside them, and the number that they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.write import recovery


@pytest.mark.parametrize("when", ["before the scan", "after it"])
def test_a_reader_that_opens_while_writers_change_sees_what_had_returned(
    path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The log that its superblock named is anybody's when its writer has closed, and the next one writes into it."""
    db = mmlsm.open(path)
    want = {b"%d" % i: b"x" * 1000 for i in range(50)}
    db.update(want)
    replay, writers = recovery.replay_log, [db]

    def change() -> None:
        writers[-1].close()
        writers.append(mmlsm.open(path))
        for i in range(50):
            writers[-1][b"later %d" % i] = bytes([i]) * 3000

    def replay_beside(file: Any, root: Any) -> Any:
        beside = file.readonly and len(writers) == 1
        if beside and when == "before the scan":
            change()
        found = replay(file, root)
        if beside and when == "after it":
            change()
        return found

    monkeypatch.setattr(recovery, "replay_log", replay_beside)
    with mmlsm.open(path, readonly=True) as reader:
        assert len(writers) == 2
        assert want.items() <= dict(reader.items()).items()
        assert reader.verify().notes == []
        change()
        assert want.items() <= dict(reader.items()).items()
        report = reader.verify()
        assert (report.problems, report.notes) == ([], []), "its log is no more"
    writers[-1].close()


def test_a_reader_has_the_number_of_the_last_commit(path: Path) -> None:
    with mmlsm.open(path) as db:
        with mmlsm.open(path, readonly=True) as reader:
            assert reader.seq == 0
        for number in range(1, 4):
            db[b"a"] = b"%d" % number
            with mmlsm.open(path, readonly=True) as reader, reader.snapshot() as snapshot:
                assert reader.seq == snapshot.seq == reader.sync() == db.seq == number
    with mmlsm.open(path, readonly=True) as reader:
        assert reader.seq == 3
