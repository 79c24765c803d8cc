"""Runs tests against a copy of the package with one bug planted in it, in a process group with a time limit.

I1. Caught means that a test went red, that the process died, or that it hung: nothing else. Tests that cannot be
    collected, or a copy that cannot be imported, are a fault of the sabotage and not its catch.
I2. What was started is gone afterwards, whatever it did: the whole process group is killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sabotage import Sabotage

CHECKOUT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 600.0
"""For all tests of one sabotage, and for all tests of one file with the package as it is."""
LINGER_S = 3.0
"""So long a process may go on after its last word."""
TEST_LIMIT_S = 60
"""For each test that does not say otherwise of itself."""

RED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - (.*))?$", re.MULTILINE)
RUNNING = re.compile(r"^(tests/\S+::\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run: "passed", "red", "hung", "crashed" or "broken" (I1)."""

    kind: str
    test: str
    """The test that ended it, below tests/."""
    message: str
    seconds: float
    output: str

    @property
    def caught(self) -> bool:
        return self.kind in ("red", "hung", "crashed")


@contextlib.contextmanager
def copied(sabotage: Sabotage | None, *, compiled: bool = False) -> Iterator[Path]:
    """A folder with a copy of the package in it, the bug planted, for as long as the block goes on."""
    with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
        root = Path(folder)
        shutil.copytree(CHECKOUT / "mmlsm", root / "mmlsm", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
        if sabotage is not None:
            sabotage.plant(root / "mmlsm")
        if compiled:
            take_compiled(root / "mmlsm")
        if sabotage is not None and sabotage.compiled:
            compile_anew(root, sabotage.file)
        yield root


def take_compiled(package: Path) -> None:
    """Add the compiled modules of the installed package."""
    spec = importlib.util.find_spec("mmlsm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    installed = Path(spec.submodule_search_locations[0])
    modules = list(installed.rglob("*.so"))
    assert modules, f"{installed} is not compiled"
    for module in modules:
        shutil.copy2(module, package / module.relative_to(installed))


def compile_anew(root: Path, file: str) -> None:
    """Compile one module in its place."""
    for old in (root / "mmlsm" / file).parent.glob(f"{Path(file).stem}.*.so"):
        old.unlink()
    subprocess.run(
        [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-3", "-q", f"mmlsm/{file}"],
        cwd=root, check=True, capture_output=True, timeout=LIMIT_S,
    )  # fmt: skip


def run(root: Path, tests: list[str], limit_s: float = LIMIT_S) -> Outcome:
    """Run these tests, in their order up to the first that is red, against the package in `root`."""
    command = [
        sys.executable, "-m", "pytest", "-x", "-v", "--no-header", "-p", "no:cacheprovider",
        "--timeout", str(TEST_LIMIT_S), "--basetemp", str(root / "tests"),
        *(f"tests/{test}" for test in tests),
    ]  # fmt: skip
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MMLSM_EXPECT_MODE", "MMLSM_FIGURES")
    }
    environment |= {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "COLUMNS": "300", "NO_COLOR": "1"}
    began = time.monotonic()
    place = root / "output"
    with place.open("w") as output:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = exit_code(process, place, began + limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return judged(code, place.read_text(errors="replace"), time.monotonic() - began)


def exit_code(process: subprocess.Popen[bytes], output: Path, deadline: float) -> int | None:
    """What it ends with; None when it does not, in time or once it has said what was red: threads may be left."""
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, 1))
        if RED.search(output.read_text(errors="replace")):
            deadline = min(deadline, time.monotonic() + LINGER_S)
    return None


def judged(code: int | None, output: str, seconds: float) -> Outcome:
    """What pytest's exit code, None for one that did not end in time, and its output say."""
    red = max(RED.finditer(output), key=lambda match: match[0].startswith("FAILED"), default=None)
    running = RUNNING.findall(output)
    last = running[-1].removeprefix("tests/") if running else ""
    if red is not None and code in (1, None):
        message = (red[2] or "").strip()
        hung = message.startswith("Failed: Timeout")
        return Outcome("hung" if hung else "red", red[1].removeprefix("tests/"), message, seconds, output)
    if code is None and last:
        return Outcome("hung", last, f"no end within {seconds:.0f} s", seconds, output)
    if code is not None and code < 0:
        return Outcome("crashed", last, f"ended by {signal.Signals(-code).name}", seconds, output)
    return Outcome("passed" if code == 0 else "broken", "", "", seconds, output)
