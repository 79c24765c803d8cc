"""What the tests of salvage and verify share: worn databases, made once, and how one is salvaged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from rig.damage.salvaged import BringOut, brought_out
from rig.damage.worn import Original, worn


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """With all that there can be in a file."""
    return worn(tmp_path_factory.mktemp("worn") / "original.db")


@pytest.fixture(scope="session")
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """One run, no log: nothing older lies below anything."""
    return worn(tmp_path_factory.mktemp("worn") / "tidy.db", tidy=True)


@pytest.fixture
def bring_out(tmp_path: Path) -> BringOut:
    """Salvages a file: what came out, and the report."""
    return partial(brought_out, out=tmp_path / "out.db")
