"""What a salvage is judged by: nothing is missing or wrong that its report does not list."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def judge(want: State, found: State, report: mmlsm.SalvageReport, ends: Iterable[State] = ()) -> None:
    """Nothing is missing and nothing is wrong that is not listed.

    `ends`: the states where the log may seem to end, as all that was behind is gone without a trace. Then there may be
    nothing against one of them instead, and the report must not say that the file was closed.
    """
    wrong = unlisted(want, found, report)
    if wrong and any(not unlisted(state, found, report) for state in ends):
        assert not report.closed
        return
    assert not wrong, (wrong, report)


def unlisted(want: State, found: State, report: mmlsm.SalvageReport) -> list[bytes]:
    """The keys that are missing or wrong and in no range that the report has for that."""
    doubtful = [*report.lost, *report.uncertain]
    missing = [key for key in want.keys() - found.keys() if not listed(doubtful, key)]
    wrong = [key for key, value in found.items() if value != want.get(key) and not listed(report.uncertain, key)]
    return missing + wrong


def everything_is_uncertain(report: mmlsm.SalvageReport) -> bool:
    return any(damage.low == b"" and damage.high is None for damage in report.uncertain)
