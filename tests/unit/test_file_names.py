"""What a path may be, for opening and for salvage, and what is told of one that leads to no file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import mmlsm
from mmlsm.errors import StorageError


@pytest.fixture
def nowhere(tmp_path: Path):
    """The working directory is one that has been deleted."""
    before, gone = Path.cwd(), tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    yield
    os.chdir(before)


def test_in_a_directory_that_is_gone_only_absolute_paths_will_do(nowhere: None, path: Path) -> None:
    for use in (
        lambda: mmlsm.open("some.db"),
        lambda: mmlsm.open("./some.db", readonly=True),
        lambda: mmlsm.open("../some.db", create=False),
        lambda: mmlsm.salvage("some.db", path.with_name("out")),
        lambda: mmlsm.salvage(path, "out.db"),
        lambda: mmlsm.salvage(path, "../out.db"),
    ):
        with pytest.raises(StorageError, match=r"working directory.*absolute path") as refused:
            use()
        assert refused.value.errno == errno.ENOENT
    assert os.listdir(path.parent) == []
    mmlsm.open(path).close()
    assert mmlsm.salvage(path, path.with_name("out")).complete


@pytest.mark.parametrize("name", ["a\0b", "/tmp/a\0", "\0", "\ud800.db", Path("a\0b")], ids=ascii)
def test_what_no_file_can_be_named_is_told_and_nothing_is_made(tmp_path: Path, path: Path, name: str | Path) -> None:
    with mmlsm.open(path) as db:
        db[b"a"] = b"1"
    for use in (
        lambda: mmlsm.open(name),
        lambda: mmlsm.open(name, readonly=True),
        lambda: mmlsm.salvage(name, tmp_path / "out"),
        lambda: mmlsm.salvage(path, name),
    ):
        with pytest.raises(ValueError, match="no file can be named"):
            use()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", [b"bytes.db", 3, None, True, 3.5, ["a"]], ids=repr)
def test_what_is_no_path_is_told_and_nothing_is_made(tmp_path: Path, path: Path, name: object) -> None:
    mmlsm.open(path).close()
    for use in (
        lambda: mmlsm.open(name),
        lambda: mmlsm.salvage(name, tmp_path / "out"),
        lambda: mmlsm.salvage(path, name),
    ):
        with pytest.raises(TypeError, match="str or a Path"):
            use()
    assert os.listdir(tmp_path) == [path.name]


class Named:
    """A path of somebody's own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __fspath__(self) -> str:
        return self.name


def test_paths_of_every_kind_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "a"), tmp_path / "a", Named(str(tmp_path / "a"))):
        with mmlsm.open(name) as db:
            assert db.path == tmp_path / "a"
    with mmlsm.open(Named(":memory:")) as db:
        db[b"a"] = b"1"
    assert os.listdir(tmp_path) == ["a"]


def test_a_salvage_goes_to_the_place_that_it_claimed(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    mmlsm.open(tmp_path / "a").close()
    assert mmlsm.salvage(tmp_path / "a", f"{tmp_path}/link/../out").complete
    assert sorted(os.listdir(tmp_path)) == ["a", "far", "link", "out"]
    assert os.listdir(tmp_path / "far") == ["deep"]
