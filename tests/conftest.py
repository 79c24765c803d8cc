"""What all tests share: which mmlsm is under test, how long to look, and which seeds.

The suite runs against an installed mmlsm, compiled or interpreted; `MMLSM_EXPECT_MODE` says which it must be, and a
run that meets the other, or the checkout, ends before its first test. Without it anything goes, for a quick look.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import mmlsm
import mmlsm.memory
import proof
from campaign import Campaign, share
from mmlsm.cli import main as main_of_cli
from mmlsm.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent
MODE = "compiled" if mmlsm.memory.COMPILED else "interpreted"
PLACE = Path(mmlsm.memory.__file__).resolve().parent

hypothesis.settings.register_profile("ci", max_examples=50, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mmlsm")
    group.addoption("--effort", type=int, default=1, help="times the usual number of steps in stress tests")
    group.addoption("--seeds", type=int, default=2, help="how many seeds each seeded test runs with")
    group.addoption("--minutes", type=float, default=None, help="the campaigns' long form, for so long in all")
    group.addoption("--seed", type=int, default=None, help="the one seed to run seeded tests with")


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, Python leaves it ignored
    hypothesis.settings.load_profile("long" if config.getoption("--effort") > 1 else "ci")


def pytest_sessionstart(session: pytest.Session) -> None:
    expected = os.environ.get("MMLSM_EXPECT_MODE")
    if expected is None:
        return
    if expected != MODE:
        pytest.exit(f"MMLSM_EXPECT_MODE={expected}, but {PLACE} is {MODE}", returncode=3)
    if PLACE.is_relative_to(CHECKOUT / "mmlsm"):
        pytest.exit(f"{PLACE} is the checkout, not an installed mmlsm", returncode=3)
    if MODE == "interpreted" and (built := [*PLACE.rglob("*.so")]):
        pytest.exit(f"an interpreted mmlsm with compiled modules: {built}", returncode=3)


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"mmlsm: {MODE}, at {PLACE}; Python {sys.version.split()[0]}; seeds {_seeds(config)}, "
        f"effort {config.getoption('--effort')}, hypothesis profile {hypothesis.settings._current_profile}"
    )


CAMPAIGNS = pytest.StashKey[list[Campaign]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that takes `campaign` is marked so, before `-m` chooses; its time is its own affair in the long form."""
    for item in items:
        if "campaign" in getattr(item, "fixturenames", ()):
            item.add_marker("campaign")
            if config.getoption("--minutes") is not None:
                item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.fixture
def campaign(request: pytest.FixtureRequest, mode: str) -> Campaign:
    """How long to go on and where to tell what was reached (tests/campaign.py)."""
    minutes = request.config.getoption("--minutes")
    before = request.config.stash.setdefault(CAMPAIGNS, [])
    if minutes is None:
        seconds = None
    else:
        to_come = sum(1 for item in request.session.items if item.get_closest_marker("campaign")) - len(before)
        seconds = share(minutes * 60 - (time.monotonic() - before[0].began if before else 0), to_come)
    made = Campaign(request.node.nodeid.split("::")[-1], request.config.getoption("--seed") or 0, seconds, mode)
    before.append(made)
    return made


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = [line for campaign in config.stash.get(CAMPAIGNS, []) for line in campaign.lines]
    if lines:
        terminalreporter.section("what the campaigns reached")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What stays to the end is left out of each garbage collection that proves a test (thousands of objects)."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `seed` runs once for each seed; its name says which."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", _seeds(metafunc.config))


def _seeds(config: pytest.Config) -> list[int]:
    seed = config.getoption("--seed")
    return list(range(config.getoption("--seeds"))) if seed is None else [seed]


@pytest.fixture
def effort(request: pytest.FixtureRequest) -> int:
    """How many times the usual number of steps a stress test takes; 1 in CI."""
    return int(request.config.getoption("--effort"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the project's sources, whichever mmlsm is under test."""
    return CHECKOUT


@pytest.fixture(scope="session")
def mode() -> str:
    """ "compiled" or "interpreted": which mmlsm is under test."""
    return MODE


@pytest.fixture(scope="session")
def version() -> str:
    return importlib.metadata.version("mmlsm")


@pytest.fixture(autouse=True)
def proved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[proof.Opened]:
    """After the test, whatever it was about: every database that it opened is proved whole (tests/proof.py)."""
    opened = proof.Opened()
    proof.watch(opened, monkeypatch)
    yield opened
    if opened.engines and request.node.get_closest_marker("unproved") is None:
        opened.prove()


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; its exit code, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        try:
            code = main_of_cli([str(part) for part in argv])
        except SystemExit as error:
            code = int(error.code or 0)
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where this test's database may be."""
    return tmp_path / "test.db"


@pytest.fixture
def open_db(path: Path, proved: proof.Opened) -> Iterator[Callable[..., mmlsm.Database]]:
    """Opens databases with inner knobs turned for tests: `open_db()`, `open_db(path, memtable_bytes=4096)`.

    Debug checks are on, and commits wait for no disk, unless the test asks otherwise. All are closed at the end.
    """
    databases: list[mmlsm.Database] = []

    def open_one(where: Any = path, **settings: Any) -> mmlsm.Database:
        databases.append(mmlsm.Database(where, Settings(**{"debug": True, "durability": "off", **settings})))
        return databases[-1]

    yield open_one
    for database in databases:
        if not database.closed and database._engine.file.failure is None:
            proof.prove(database)
            database.close()
