"""Damaged files: an answer is right or a typed error; nothing crashes, hangs, or takes memory (promise 9).

Mutants of small real databases (mutations.py in tests/rig/damage) are tried in long-lived processes (child.py), which
are judged as judge.py says. A finding names its trial, and the file of the databases that were damaged, whose name has
their seed: `PYTHONPATH=tests python -m rig.damage.child FILE SEED TRIAL` does it again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import Campaign
from rig.damage.crew import damage


@pytest.mark.timeout(600)
@pytest.mark.unproved
def test_a_damaged_file_is_answered_rightly_or_by_name(campaign: Campaign, tmp_path: Path, mode: str) -> None:
    count = campaign.count(2500 if mode == "compiled" else 2000, 1_000_000)
    figures = damage(tmp_path, campaign.seed, count, lambda: campaign.left > 0)
    campaign.report(mutants=len(figures.mutants), trials=figures.trials, findings=len(figures.findings),
                    kinds=figures.kinds, fields=len(figures.fields), outcomes=figures.outcomes,
                    slowest=figures.slowest)  # fmt: skip
    assert not figures.findings, "\n\n".join(
        "\n".join(f"{name}: {str(text)[:3000]}" for name, text in finding.items()) for finding in figures.findings
    )
    assert not figures.unchanged, "fields that were never changed behind right sums"
    found = figures.outcomes
    assert found["right answers"] > 0
    assert found["CorruptionError"] > 0
    assert found["page and segment right"] > 0
    assert found["verify found damage"] > 0
