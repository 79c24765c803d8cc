"""python -m sabotage [NAME ...]: plant each bug, or those of these names, and see whether its tests go red.

Ends with 1 if one was not caught, or if a test is red without any.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sabotage import Sabotage, everything, report
from sabotage.runner import Outcome, copied, run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="sabotage", description="Plant bugs; see whether the tests catch them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all of them without")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="so many at once")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="put sabotage.md and sabotage.json there")
    options = parser.parse_args(arguments)
    known = {one.name: one for one in everything()}
    if unknown := sorted(set(options.names) - known.keys()):
        parser.error(f"there is no sabotage {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names or known]
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        sound = dict(pool.map(run_sound, parts_of(chosen).items()))
        outcomes = list(pool.map(run_planted, chosen))
    failed = report.show(chosen, outcomes, sound, time.monotonic() - began)
    if options.write is not None:
        report.write(options.write, chosen, outcomes)
    return int(failed)


def parts_of(chosen: list[Sabotage]) -> dict[tuple[str, bool], list[str]]:
    """The tests that these name, once each, by their file and whether they are to run compiled; campaigns alone."""
    parts: dict[tuple[str, bool], list[str]] = {}
    for one in chosen:
        for test in one.tests:
            file = test.split("::")[0]
            known = parts.setdefault((test if file.startswith("sabotage/") else file, one.compiled), [])
            if test not in known:
                known.append(test)
    return parts


def run_sound(part: tuple[tuple[str, bool], list[str]]) -> tuple[str, Outcome]:
    """Some tests with the package as it is: all must pass, so that red means the sabotage."""
    (name, compiled), tests = part
    with copied(None, compiled=compiled) as root:
        outcome = run(root, tests)
    name += ", compiled" * compiled
    report.say(f"as it is: {name}", outcome)
    return name, outcome


def run_planted(sabotage: Sabotage) -> Outcome:
    """Its tests with the bug in place."""
    with copied(sabotage, compiled=sabotage.compiled) as root:
        outcome = run(root, list(sabotage.tests))
    report.say(sabotage.name, outcome)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
