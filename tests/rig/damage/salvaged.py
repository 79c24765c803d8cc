"""What a salvage is judged by: nothing is missing or wrong that its report does not list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmlsm
from mmlsm.rescue.report import Damage
from proof import prove_file
from rig.damage.worn import State

BringOut = Callable[..., tuple[State, mmlsm.SalvageReport]]


def brought_out(path: Path, out: Path, **more: Any) -> tuple[State, mmlsm.SalvageReport]:
    """What comes out of a file, and the report. The damaged file keeps each byte, the new one is proved."""
    before = path.read_bytes()
    out.unlink(missing_ok=True)
    report = mmlsm.salvage(path, out, **more)
    assert path.read_bytes() == before
    prove_file(out)
    with mmlsm.open(out, readonly=True) as database:
        found = dict(database.items())
    assert report.entries == len(found)
    assert report.bytes == sum(len(key) + len(value) for key, value in found.items())
    return found, report


def listed(damages: list[Damage], key: bytes) -> bool:
    return any(damage.touches(key) for damage in damages)


def judge(want: State, found: State, report: mmlsm.SalvageReport) -> None:
    """Nothing is missing and nothing is wrong that is not listed."""
    for key in want.keys() - found.keys():
        assert listed(report.lost, key) or listed(report.uncertain, key), (key[:20], report)
    for key, value in found.items():
        if value != want.get(key):
            assert listed(report.uncertain, key), (key[:20], report)


def everything_is_uncertain(report: mmlsm.SalvageReport) -> bool:
    return any(damage.low == b"" and damage.high is None for damage in report.uncertain)
