"""Power cuts at every operation of every workload, on the simulated disk, and again while that is recovered from.

`rig/crashes/workloads.py` has the workloads; one that is added there is crashed here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from campaign import Campaign
from rig.crashes.recorded import KINDS
from rig.crashes.workers import share_out
from rig.crashes.workloads import WORKLOADS

PHASES = {
    "creation", "opening", "first commit", "commit", "sync", "log extent", "flush", "merge of tiers",
    "merge into the bottom", "reclaim", "relocation", "moving the log", "large value", "recovery", "close", "log ahead",
    "setting aside", "moving the manifest", "moving a large value",
}  # fmt: skip

SMALL = {
    "creation", "creation in place", "creation in zeros", "creation in an empty file", "full_commits", "group_commits",
    "off_commits", "mixed_commits", "full commits without durable writes", "commits_of_several_threads", "flushes",
}  # fmt: skip
"""Of these CI takes all images that are enumerated: they are few. A long run does so of each workload, and recovery."""


def cpu_s() -> float:
    """Seconds of processor time that the workers which have ended took."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.timeout(900)
def test_every_crash_image_recovers_to_the_state_after_one_commit(campaign: Campaign, tmp_path: Path) -> None:
    """Promises 1, 2, 3, 5, 12."""
    short = 20_000 if campaign.mode == "compiled" else 2_000
    kept = tmp_path / "findings"
    kept.mkdir()
    before = cpu_s()
    every = dict.fromkeys(WORKLOADS, 2) if campaign.long else dict.fromkeys(SMALL, int(campaign.mode == "compiled"))
    result = share_out(campaign, campaign.count(short, 1_000_000), campaign.count(short // 20, 600), kept, every)
    campaign.report(
        images=len(result.images),
        images_a_core_second=round(len(result.images) / (cpu_s() - before), 1),
        by_depth=result.by("depth"),
        by_workload=result.by("workload"),
        judged_by_operation=result.judged_by(0),
        judged_by_phase=result.judged_by(1),
        crash_points=result.crash_points,
        judged=result.judged,
        refused=result.refused,
        enumerated=result.enumerated,
        findings=len(result.findings),
    )
    assert not result.findings, "\n".join(result.findings)
    assert set(result.by("workload")) == set(WORKLOADS)
    assert set(result.by("depth")) == {"0", "1", "2"}
    operations, phases = result.judged_by(0).keys(), result.judged_by(1).keys()
    assert operations >= {f"{where} {kind}" for where in ("inside", "after") for kind in KINDS}, operations
    assert phases >= PHASES, PHASES - phases
