"""Promises 7 and 8: whatever call of the operating system fails, however, nothing that was promised is lost.

The trials are those of rig/faults/trial.py: in CI some, in a long run first one of each call, kind, once and for ever.
A finding names its task; `python -m rig.faults.trial FOLDER 'TASK'` does it again.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from campaign import Campaign
from rig.faults.campaign import Findings, run
from rig.faults.system import METHODS


@pytest.mark.timeout(900)
def test_a_fault_at_any_call_breaks_no_promise(campaign: Campaign, tmp_path: Path, mode: str) -> None:
    began = time.monotonic()
    few = 420 if mode == "compiled" else 250
    try:
        figures = run(tmp_path, campaign.seed, campaign.trials(few, 10**9), every=campaign.long)
    except Findings as found:
        campaign.report(**found.figures)
        raise
    campaign.report(trials_per_s=round(figures["trials"] / (time.monotonic() - began), 1), **figures)
    assert figures["injected"] >= 0.5 * figures["trials"], figures
    missing = set(METHODS) - figures["by_method"].keys()
    assert missing == ({"map", "pinned_map"} if mode == "compiled" else set()), f"no fault was injected into {missing}"
