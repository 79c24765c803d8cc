"""Many trials: which fault at which call of which workload, and the long-lived processes that try them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from rig.faults.system import METHODS, kinds_of

Task = dict[str, Any]
PROCESSES = 2


class Server:
    """A process that does trials one by one (rig/faults/trial.py)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = (folder / "stderr").open("w+b")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "rig.faults.trial", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def answer(self) -> Any:
        """The next line; AssertionError with what it said last when the process has died."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise AssertionError(f"the process ended with {self.popen.wait()}: " + self.errors.read().decode()[-6000:])
        return json.loads(line)

    def ask(self, task: Task) -> Any:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(task).encode() + b"\n")
        self.popen.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self.errors):
            assert pipe is not None
            pipe.close()


@contextmanager
def servers(folder: Path, count: int = PROCESSES) -> Iterator[tuple[list[Server], dict[str, dict[str, int]]]]:
    """So many of them, and how often each workload makes each call."""
    made = [Server(folder / str(number)) for number in range(count)]
    try:
        counts = [server.answer() for server in made]
        yield made, counts[0]
    finally:
        for server in made:
            server.end()


def tasks(counts: dict[str, dict[str, int]], seed: int) -> Iterator[Task]:
    """Trials without end. Each round has every method, kind and duration, those that are called often more often, each
    time with another workload; now the first call, now any."""
    rng = random.Random(seed)
    groups = [
        (method, kind, ever)
        for method in METHODS
        if any(method in calls for calls in counts.values())
        for kind in kinds_of(method)
        for ever in (False, True)
        for _ in range(weight_of(max(calls.get(method, 0) for calls in counts.values())))
    ]
    homes = {method: [name for name, calls in counts.items() if method in calls] for method in METHODS}
    for names in homes.values():
        rng.shuffle(names)
    turns: Counter[tuple[str, str, bool]] = Counter()
    number = 0
    while True:
        rng.shuffle(groups)
        for group in groups:
            method, kind, ever = group
            names = homes[method]
            name = names[(turns[group] + sum(kind.encode())) % len(names)]
            turns[group] += 1
            call = 1 if rng.random() < 0.1 else rng.randint(1, counts[name][method])
            yield {"number": number, "workload": name, "method": method, "call": call, "kind": kind, "ever": ever}
            number += 1


def every_site(counts: dict[str, dict[str, int]], seed: int) -> Iterator[Task]:
    """Each kind at each call of each workload, once and for ever: one trial of each, in any order, but that the first
    are one of each method, kind and duration."""
    sites = [
        {"workload": name, "method": method, "call": call, "kind": kind, "ever": ever}
        for name, calls in counts.items()
        for method, count in calls.items()
        for call in range(1, count + 1)
        for kind in kinds_of(method)
        for ever in (False, True)
    ]
    random.Random(seed).shuffle(sites)
    early = list({(site["method"], site["kind"], site["ever"]): site for site in sites}.values())
    for number, site in enumerate([*early, *(site for site in sites if not any(site is one for one in early))]):
        yield {"number": number, **site}


def weight_of(calls: int) -> int:
    """How often a method that is called so often has its turn in a round."""
    return 1 if calls <= 10 else 2 if calls <= 60 else 4


class Findings(AssertionError):
    """What trials found; `figures` as `run` gives them."""

    def __init__(self, text: str, figures: dict[str, Any]) -> None:
        super().__init__(text)
        self.figures = figures


def run(
    folder: Path, seed: int, numbers: Iterable[int], *, every: bool = False, findings_most: int = 5
) -> dict[str, Any]:
    """Do as many trials as there are numbers, first of all one of each site with `every`; figures of what was injected.
    Findings when there are any."""
    totals: Counter[str] = Counter()
    by_method: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    findings: list[str] = []
    with servers(folder) as (made, counts):
        lock, going, plan = threading.Lock(), iter(numbers), tasks(counts, seed)
        sites = list(every_site(counts, seed))
        if every:
            plan = chain(sites, plan)

        def next_task() -> Task | None:
            with lock:
                if len(findings) >= findings_most or next(going, None) is None:
                    return None
                return next(plan)

        def serve(server: Server) -> None:
            while (task := next_task()) is not None:
                try:
                    result = server.ask(task)
                except AssertionError as error:
                    result = {"injected": 1, "final": False, "finding": str(error)}
                    findings.extend([""] * findings_most)  # nobody is there any more
                with lock:
                    totals["trials"] += 1
                    totals["injected"] += min(1, result["injected"])
                    totals["calls_failed"] += result["injected"]
                    totals["final"] += result["final"]
                    if result["injected"]:
                        by_method[task["method"]] += 1
                        by_kind[task["kind"]] += 1
                    if result["finding"]:
                        findings.append(f"seed {seed}: {json.dumps(task)}\n{result['finding']}")

        threads = [threading.Thread(target=serve, args=(server,)) for server in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    figures = {**totals, "sites": len(sites), "by_method": dict(by_method), "by_kind": dict(by_kind)}
    if findings:
        told = [finding for finding in findings if finding]
        raise Findings("\n\n".join(told), {**figures, "findings": len(told)})
    return figures
