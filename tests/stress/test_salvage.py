"""`salvage` of mutants (rig/mutations): what comes out is right or listed; of forged sums nothing but typed errors."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

import mmlsm
from campaign import Campaign
from rig.damage.mutations import Campaign as Mutants
from rig.damage.mutations import Damage, Mutant
from rig.damage.salvaged import judge
from rig.damage.seeds import make_seeds


def come_of(damage: Damage, mutant: Mutant, path: Path, out: Path, *, unproved: bool) -> str:
    """What a salvage came to, found right. None may be refused but where both superblocks are damaged."""
    hit = damage.hit(mutant.data)
    try:
        report = mmlsm.salvage(path, out, unproved=unproved)
    except mmlsm.Error as error:
        refusal = error
    else:
        if mutant.sealed:
            return "sealed"
        with mmlsm.open(out, readonly=True) as database:
            found = dict(database.items())
        traceless = damage.leaves_no_trace(hit, mutant.data)
        judge(damage.seed.pairs, found, report, damage.seed.states if traceless else ())
        return "no trace" if traceless else "complete" if report.complete else "with loss"
    assert not out.exists()
    assert mutant.sealed or sum(region.kind == "superblock" for region in hit) == 2, refusal
    return type(refusal).__name__


@pytest.mark.unproved
def test_whatever_comes_out_of_a_damaged_file_is_right_or_listed(tmp_path: Path, campaign: Campaign) -> None:
    mutants = Mutants(make_seeds(tmp_path, campaign.seed), campaign.seed)
    path, out = tmp_path / "mutant.db", tmp_path / "out.db"
    reached: Counter[str] = Counter()
    for number in campaign.trials(200, 1 << 40):
        chance: random.Random = mutants.rng(number)
        damage, mutant = mutants.mutant(number, chance)
        path.write_bytes(mutant.data)
        out.unlink(missing_ok=True)
        try:
            reached[come_of(damage, mutant, path, out, unproved=chance.random() < 0.7)] += 1
        except Exception:
            print(f"seed {campaign.seed}, trial {number}: {damage.seed.name}, {mutant.kind}, {mutant.what}")
            raise
    campaign.report(trials=number + 1, **reached)
