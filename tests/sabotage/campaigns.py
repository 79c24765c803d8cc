"""The rig's campaigns in pieces that end in seconds, for the planted bugs: only `make sabotage` runs them.

Each stands for a campaign of tests/stress/ that covers far more of the same (`make stress-long`).
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from rig.crashes import crash
from rig.crashes.workloads import WORKLOADS
from rig.damage.crew import damage
from rig.faults import trial as fault_trial
from rig.faults.workloads import templates
from rig.histories.rounds import run_rounds


@pytest.mark.parametrize("workload", WORKLOADS)
def test_crash_images(workload: str) -> None:
    """tests/stress/test_crash_images.py: one workload, some images."""
    for seed in range(3):
        result = crash.run(seed, 120, [workload], findings_most=1)
        assert not result.findings, result.findings[0]


@pytest.mark.unproved
@pytest.mark.parametrize(
    ("workload", "method", "kind", "ever"),
    [
        ("threads", "sync", "EIO", "once"),
        ("threads", "sync", "cached", "once"),
        ("threads", "pwrite_durably", "EIO", "once"),
        ("threads", "pwrite", "short", "once"),
    ],
)
def test_faults(
    workload: str, method: str, kind: str, ever: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/stress/test_faults.py: one kind of fault at some calls of one method in one workload."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # a trial sets its own
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for module, name, value in fault_trial.HURRIED:
        monkeypatch.setattr(module, name, value)
    made = templates(tmp_path)
    for call in (1, 2, 3, 5, 8, 13, 21, 34):
        task = {"number": call, "workload": workload, "method": method, "kind": kind, "call": call}
        found = fault_trial.run_one(tmp_path, made, {**task, "ever": ever == "for ever"})
        assert found["finding"] is None, f"{task}: {found['finding']}"


def test_histories(tmp_path: Path) -> None:
    """tests/stress/test_histories.py: some answers."""
    run_rounds(tmp_path, 0, 60_000)


@pytest.mark.unproved
def test_damaged_files(tmp_path: Path) -> None:
    """tests/stress/test_corrupt.py: some mutants."""
    figures = damage(tmp_path, 0, 1000, lambda: True, findings_most=1)
    assert not figures.findings, figures.findings[0]
