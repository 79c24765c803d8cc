"""The package as others get it: a complete sdist, installed from that in the mode under test, and typed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import mmlsm


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def unpacked(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's contents, built from a copy of what git would check out."""
    if not (checkout / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of the sources")
    place = tmp_path_factory.mktemp("sdist")
    names = run("git", "ls-files", "-z", "--cached", cwd=checkout).stdout.split("\0")
    for name in names:
        if name and (checkout / name).exists():
            (place / "clean" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "clean" / name).write_bytes((checkout / name).read_bytes())
    built = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", place, cwd=place / "clean")
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = place.glob("mmlsm-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


def test_the_sdist_holds_every_source_and_test_and_nothing_built(unpacked: Path) -> None:
    clean = unpacked.parent / "clean"
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    wanted = {
        path.relative_to(clean).as_posix()
        for folder in ("mmlsm", "tests", "benchmarks")
        for path in (clean / folder).rglob("*")
        if path.is_file()
    }
    assert wanted, "no sources found"
    assert wanted - held == set()
    assert {"pyproject.toml", "setup.py", "Makefile"} <= held
    assert [name for name in held if name.endswith((".so", ".c", ".pyc"))] == []


@pytest.mark.timeout(600)
def test_installing_from_the_sdist_gives_a_whole_working_package_in_this_mode(unpacked: Path, mode: str) -> None:
    target = unpacked.parent / "target"
    installed = run(
        *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, "."),
        cwd=unpacked,
        MMLSM_INTERPRETED=str(int(mode == "interpreted")),
        CFLAGS="-O0 -g0",  # half the time, and nobody measures this one
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    sources = {path.relative_to(unpacked / "mmlsm") for path in (unpacked / "mmlsm").rglob("*.py")}
    assert {path.relative_to(target / "mmlsm") for path in (target / "mmlsm").rglob("*.py")} == sources
    assert (target / "mmlsm" / "py.typed").exists()
    assert (target / "bin" / "mmlsm").exists()
    looked = run(
        *(sys.executable, "-c", "import mmlsm.memory as m; print(m.COMPILED, m.__file__)"),
        cwd=target.parent,
        PYTHONPATH=str(target),
    )
    compiled, place = looked.stdout.split(maxsplit=1)
    assert Path(place.strip()).is_relative_to(target), looked.stderr
    assert compiled == str(mode == "compiled")
    hot = {
        path.relative_to(unpacked / "mmlsm").with_suffix("")
        for path in (unpacked / "mmlsm").rglob("*.py")
        if path.read_text().startswith("# cython:")
    }
    built = {
        path.with_name(path.name.split(".")[0]).relative_to(target / "mmlsm")
        for path in (target / "mmlsm").rglob("*.so")
    }
    assert built == (hot if mode == "compiled" else set())


def test_without_a_compiler_the_installation_fails_and_says_how_to_go_on(unpacked: Path) -> None:
    target = unpacked.parent / "no_compiler"
    failed = run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", target, "."),
        cwd=unpacked,
        CC="there-is-no-such-compiler",
        MMLSM_INTERPRETED="0",
    )
    assert failed.returncode != 0
    assert "there is no C compiler" in failed.stdout + failed.stderr
    assert "MMLSM_INTERPRETED=1 pip install ." in failed.stdout + failed.stderr
    assert not (target / "mmlsm").exists()


def test_a_compiler_that_fails_also_fails_the_installation(unpacked: Path) -> None:
    failed = run(
        *(sys.executable, "setup.py", "build_ext", "--build-lib", "broken", "--build-temp", "broken"),
        cwd=unpacked,
        CC="false",
        MMLSM_INTERPRETED="0",
    )
    assert failed.returncode != 0
    assert "could not be compiled" in failed.stderr
    assert "MMLSM_INTERPRETED=1 pip install ." in failed.stderr


def test_the_version_is_the_installed_one(version: str) -> None:
    assert mmlsm.__version__ == version
