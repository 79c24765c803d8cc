"""Nothing hangs on the wall clock (promise 12): whatever it says, the answers are right.

That no module asks it is a rule of test_tidy.py; here it is set back and forth under a whole life, libraries and all.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

import mmlsm
from commit_rig import eventually
from rig.lifetime.world import World, reads, writes

DAY_S = 86400.0


def test_a_database_lives_well_under_a_clock_that_jumps_back_and_forth(
    path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    whole = [0.0, DAY_S, 1e9, 1e9 + 3600, 1e9 + DAY_S, 4e9]
    monkeypatch.setattr(time, "time", lambda: rng.choice(whole) + rng.random())
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    world = World(path, durability="group", group_interval=0.01, debug=True)
    held: list[tuple[mmlsm.Snapshot, dict[bytes, bytes]]] = []
    for step in range(1, 49):
        kinds, plain = writes(world), reads(world)
        after = dict(world.state)
        kinds[rng.choice(list(kinds))](after)()
        world.settle(after)
        assert world.state == after
        plain[rng.choice(list(plain))]()
        held.append((world.db.snapshot(), after))
        snapshot, want = rng.choice(held)
        assert dict(snapshot.items()) == want
        assert all(holder.age_s >= 0 for pin in world.db.stats().pins for holder in pin.holders)
        if step % 8 == 0:
            held.pop(rng.randrange(len(held)))[0].close()
        if step % 24 == 0:
            world.db[b"grouped"] = world.state[b"grouped"] = b"%d" % step
            committer = world.db._engine.committer
            assert committer is not None
            assert eventually(lambda to=committer: to.synced_seq >= to.last_seq, 20), "the interval's sync is missing"
            while held:
                held.pop()[0].close()
            world.is_sound()
            (world.drop if step == 24 else world.reopen)()
    world.db.close()
