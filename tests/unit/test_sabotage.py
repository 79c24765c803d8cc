"""The planted bugs of tests/sabotage: each still fits the source and names its tests, and a few are really planted.

`make sabotage` plants them all.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from sabotage import Sabotage, StaleError, everything
from sabotage.runner import Outcome, copied, judged, run

pytestmark = pytest.mark.rig

ALL = {one.name: one for one in everything()}
HARMLESS = dataclasses.replace(ALL["full-commit-not-synced"], new="write =  " + ALL["full-commit-not-synced"].old[8:])


def outcome_of(sabotage: Sabotage, *tests: str) -> Outcome:
    with copied(sabotage) as root:
        return run(root, list(tests or sabotage.tests), 60)


@pytest.mark.parametrize("name", ALL)
def test_it_fits_the_source_and_its_tests_are_there(name: str, checkout: Path) -> None:
    planted = ALL[name]
    compile(planted.applied((checkout / "mmlsm" / planted.file).read_text()), planted.file, "exec")
    assert planted.what
    assert all(1 <= int(number) <= 12 for number in planted.promises.split())
    for test in planted.tests:
        file, _, function = test.partition("::")
        text = (checkout / "tests" / file).read_text()
        name = function.partition("[")[0]
        assert not name or re.search(rf"\b(def|class) {name}\b|^{name} =", text, re.MULTILINE), test


def test_names_and_words_are_each_there_once_and_every_promise_is_attacked() -> None:
    assert len(ALL) == len(everything()) >= 40
    assert len({(one.file, one.old, one.new) for one in ALL.values()}) == len(ALL)
    assert {number for one in ALL.values() for number in one.promises.split()} == {str(i) for i in range(1, 13)}


def test_an_edit_that_fits_no_longer_or_twice_is_stale() -> None:
    for source in ("", ALL["full-commit-not-synced"].old * 2):
        with pytest.raises(StaleError, match="full-commit-not-synced"):
            ALL["full-commit-not-synced"].applied(source)


@pytest.mark.parametrize("name", ["full-commit-not-synced", "second-slot-not-written", "record-header-sum-not-checked"])
def test_it_is_caught(name: str) -> None:
    exact = ALL[name].tests[-1]
    outcome = outcome_of(ALL[name], exact)
    assert (outcome.kind, outcome.test.partition("[")[0]) == ("red", exact), outcome.output


def test_what_breaks_nothing_is_not_caught() -> None:
    outcome = outcome_of(HARMLESS, HARMLESS.tests[-1])
    assert (outcome.kind, outcome.caught) == ("passed", False), outcome.output


def test_only_a_test_that_ran_counts_as_a_catch() -> None:
    assert outcome_of(HARMLESS, "unit/test_commit.py::test_that_is_not_there").kind == "broken"
    started = "tests/unit/test_a.py::test_b \n"
    assert judged(-11, started, 1).kind == "crashed"
    assert judged(None, started, 1) == Outcome("hung", "unit/test_a.py::test_b", "no end within 1 s", 1, started)
    assert judged(None, "", 1).kind == "broken"
    assert judged(2, "ERROR tests/unit/test_a.py - SyntaxError", 1).kind == "broken"
    assert judged(1, "FAILED tests/unit/test_a.py::test_b[a - b] - AssertionError: no", 1).kind == "red"
    both = "ERROR tests/unit/test_a.py::test_b - teardown\nFAILED tests/unit/test_a.py::test_b - AssertionError: no\n"
    assert judged(1, both, 1).message == "AssertionError: no"
    assert judged(1, "FAILED tests/unit/test_a.py::test_b - Failed: Timeout (>60.0s)", 1).kind == "hung"
