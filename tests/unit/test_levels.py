"""`mmlsm levels`: a row for each run, with what its segments have together; what a narrow terminal shows of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import mmlsm
from mmlsm.cli import main, shape


def test_levels_show_the_trees_shape(
    open_db: Callable[..., mmlsm.Database], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = open_db(leaf_bytes=4096, auto_merge=False)
    for i in range(4):
        database.put_many([(b"key %05d" % j, b"value" * i) for j in range(i * 100, 900 - i * 100)])
        database.delete(b"key 00450")
        database._engine.flush()
    database.close()
    with mmlsm.open(path, readonly=True) as reader:
        segments, report = reader.stats().segments, reader.verify()

    def printed(*more: str) -> str:
        assert main(["levels", str(path), *more]) == 0
        return capsys.readouterr().out

    told = json.loads(printed("--json"))
    assert [row["id"] for row in told] == [segment.id for segment in segments]
    assert sum(row["leaves"] for row in told) == report.leaves
    assert sum(row["parents"] for row in told) == report.parents > 0
    lines = printed().splitlines()
    assert lines[0].split()[:4] == ["level", "run", "segments", "entries"]
    runs = sorted({(segment.level, segment.run) for segment in segments})
    shown = [line.split() for line in lines[1:-1] if "–" not in line.split()]
    assert len(shown) == len(runs)
    for row, place in zip(shown, runs, strict=True):
        entries = sum(segment.entries for segment in segments if (segment.level, segment.run) == place)
        assert f"{entries:,}" in row
    assert lines[-1].split()[:5] == [
        "all", f"{len(runs)}", f"{len(segments)}", f"{report.entries:,}", f"{report.tombstones}",
    ]  # fmt: skip
    assert f"{report.live:,}" in lines[-1].split()
    single = printed("--segments").splitlines()
    assert [line.split()[0] for line in single[1:]] == [f"{segment.id}" for segment in segments]


@pytest.mark.unproved
def test_damage_that_hides_leaves_is_told(
    open_db: Callable[..., mmlsm.Database], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = open_db(leaf_bytes=4096, auto_merge=False)
    database.put_many([(b"key %05d" % i, b"value") for i in range(2000)])
    database.close()
    with mmlsm.open(path, readonly=True) as reader:
        (record,) = reader._engine.root.manifest.segments()
    with path.open("r+b") as file:
        file.seek(record.root_page * 4096 + 60)
        file.write(b"damage")
    assert main(["levels", str(path)]) == 1
    assert f"page {record.root_page}: the checksum differs" in capsys.readouterr().out


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    rows: list[list[object]] = [["tier 0", "0", 1, 12_345, 0, 2, 300, 4, 5000, " 19.5", "50.0 %", 1, "a", "z"]]
    assert shape.narrowed(shape.HEADS, rows, None) == (list(shape.HEADS), rows)
    heads, cells = shape.narrowed(shape.HEADS, rows, 85)
    assert heads == ["level", "run", "segments", "entries", "tombstones", "MiB", "share", "first key"]
    assert cells == [["tier 0", "0", 1, 12_345, 0, " 19.5", "50.0 %", "a"]]
    heads, _ = shape.narrowed(shape.HEADS, rows, 10)
    assert heads == ["level", "run", "segments", "entries", "MiB", "share"]
