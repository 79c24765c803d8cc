"""A long-lived process that tries mutants one after the other; its death, or its silence, is a finding of its parent.

    python -m rig.damage.child SEEDS CAMPAIGN FOLDER DATA_BYTES
    python -m rig.damage.child SEEDS CAMPAIGN TRIAL             one again, with whatever it raises

Reads lines "BEGIN END" and tries the mutants from BEGIN to before END. Says a line of JSON for each finding, and one
when these are done; the trial under way stands in FOLDER/trial as 8 bytes, so that the parent knows it whatever becomes
of this process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import mmap
import resource
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import xxhash

from rig.damage import seeds
from rig.damage.findings import Finding
from rig.damage.judge import Trial
from rig.damage.mutations import Campaign

GROWTH_KIB_MOST = 192 << 10
"""What the peak of resident memory may grow by in one trial."""
FILE_BYTES_MOST = 1 << 30


class Child:
    """Its figures, and what its threads complained of."""

    def __init__(self, folder: Path, campaign: Campaign) -> None:
        self.folder = folder
        self.campaign = campaign
        self.kinds: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.mutants: list[int] = []
        self.fields: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.slowest = (0.0, -1)
        with (folder / "trial").open("r+b") as file:
            self.progress = mmap.mmap(file.fileno(), 8)
        threading.excepthook = self.complain
        sys.unraisablehook = self.complain

    def complain(self, what: Any) -> None:
        """A thread or a finaliser met an exception that nobody caught."""
        text = "".join(traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)[-6:])
        self.complaints.append(text)

    def run(self, trial: int) -> None:
        """One trial."""
        self.progress[:] = struct.pack("<Q", trial)
        forget_peak()
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rng = self.campaign.rng(trial)
        damage, mutant = self.campaign.mutant(trial, rng)
        self.mutants.append(xxhash.xxh3_64_intdigest(mutant.data))
        self.fields.update(mutant.fields)
        self.kinds[f"{mutant.kind}, sealed" if mutant.sealed else mutant.kind] += 1
        try:
            Trial(damage, mutant, self.folder / "mutant.db", rng, self.outcomes).run()
            if self.complaints:
                raise Finding(f"a thread or finaliser: {self.complaints.pop()}")
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > GROWTH_KIB_MOST:
                raise Finding(f"the process grew by {grown} KiB")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            text = str(error) if isinstance(error, Finding) else traceback.format_exc()
            self.say(finding=text, trial=trial, seed=damage.seed.name, kind=mutant.kind, what=mutant.what)
            self.complaints.clear()
        self.slowest = max(self.slowest, (time.monotonic() - begun, trial))

    @staticmethod
    def say(**what: object) -> None:
        print(json.dumps(what), flush=True)


def forget_peak() -> None:
    """Have the peak of resident memory begin anew, where Linux lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def again(seeds_path: str, number: str, trial: str) -> None:
    """One trial, here and now."""
    campaign = Campaign(seeds.load(Path(seeds_path)), int(number))
    rng = campaign.rng(int(trial))
    damage, mutant = campaign.mutant(int(trial), rng)
    print(f"{damage.seed.name}: {mutant.kind}: {mutant.what}")
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        Trial(damage, mutant, Path(folder) / "mutant.db", rng, outcomes).run()
    print(dict(outcomes))


def main() -> None:
    if len(sys.argv) == 4:
        again(*sys.argv[1:])
        return
    seeds_path, number, folder, data_bytes = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    resource.setrlimit(resource.RLIMIT_DATA, (int(data_bytes), int(data_bytes)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MOST, FILE_BYTES_MOST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child = Child(Path(folder), Campaign(seeds.load(Path(seeds_path)), int(number)))
    gc.collect()
    gc.freeze()
    child.say(ready=True)
    for line in sys.stdin:
        begin, end = map(int, line.split())
        for trial in range(begin, end):
            child.run(trial)
        child.say(
            done=end, mutants=child.mutants, kinds=child.kinds, fields=child.fields, outcomes=child.outcomes,
            slowest=child.slowest,
        )  # fmt: skip
        for counted in (child.mutants, child.kinds, child.fields, child.outcomes):
            counted.clear()


if __name__ == "__main__":
    main()
