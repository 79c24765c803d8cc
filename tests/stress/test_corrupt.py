"""Damaged files: an answer is right or a typed error; nothing crashes, hangs, or takes memory (promise 9).

Mutants of small real databases (mutations.py in tests/rig/damage) are tried in long-lived processes (child.py), which
are judged as judge.py says. A finding names its trial, and the file with the databases that were damaged:
`PYTHONPATH=tests python -m rig.damage.child FILE SEED TRIAL` does it again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import Campaign
from rig.damage.crew import Crew
from rig.damage.seeds import make_seeds, save

FINDINGS_MOST = 20


@pytest.mark.timeout(600)
@pytest.mark.unproved
def test_a_damaged_file_is_answered_rightly_or_by_name(campaign: Campaign, tmp_path: Path, mode: str) -> None:
    place = tmp_path / "seeds"
    save(make_seeds(tmp_path, campaign.seed), place)
    count = campaign.count(2500 if mode == "compiled" else 2000, 1_000_000)
    with Crew(place, campaign.seed, tmp_path) as crew:
        tried = crew.run(0, count, lambda: campaign.left > 0 and len(crew.findings) < FINDINGS_MOST)
    campaign.report(mutants=tried, findings=len(crew.findings), kinds=crew.kinds, outcomes=crew.outcomes,
                    slowest=crew.slowest)  # fmt: skip
    assert not crew.findings, f"of {place}, seed {campaign.seed}:\n" + "\n\n".join(
        "\n".join(f"{name}: {text}" for name, text in finding.items()) for finding in crew.findings[:5]
    )
    found = crew.outcomes
    assert found["right answers"] > 0
    assert found["CorruptionError"] > 0
    assert found["verify found damage"] > 0
