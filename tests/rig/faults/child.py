"""The program whose system calls `strace` lets fail: a workload, what can be read meanwhile, and what it did, as JSON.

    python -m rig.faults.child PATH SEED
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import mmlsm
from mmlsm.file import SYSTEM
from rig.faults.ledger import Ledger
from rig.faults.workloads import MODES, Unopened, Work


def main() -> None:
    path, seed = sys.argv[1:]
    ledger = Ledger()
    work = Work(Path(path), SYSTEM, ledger, int(seed))
    final = opened = False
    with contextlib.suppress(Unopened):
        db = work.open()
        opened = True
        work.commits(40)
        work.flush()
        work.step(db.compact)
        work.commits(10)
        ledger.check(db, ledger.returned, ledger.returned)
        failure = db._engine.file.failure
        if failure is not None:
            final = True
            for mode in MODES:
                try:
                    ledger.commit(db, mode)
                except mmlsm.ReadOnlyError:
                    continue
                raise AssertionError("a commit has returned after a failed sync")
        work.close()
    print(json.dumps({
        "opened": opened, "final": final, "refused": work.refused, "returned": ledger.returned,
        "handed": ledger.handed, "tried": ledger.tried,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
