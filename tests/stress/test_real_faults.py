"""Promises 7 and 8 once more where the operating system itself says no: `strace` injects errors into the system calls
of a process, and a small ext4 file system gets really full. Skipped, with the reason, where that cannot be had.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from campaign import Campaign
from commit_rig import eventually
from mmlsm.file import SYSTEM
from mmlsm.settings import Settings
from rig.faults.ledger import UNKNOWN, Ledger, growing_batch_of
from rig.faults.trial import HURRIED
from rig.faults.workloads import MODES, TINY, Work
from rig.kills import ext4

INJECTED = (
    ("fdatasync", "EIO"), ("pwritev2", "EIO"), ("pwrite64", "ENOSPC"), ("ftruncate", "ENOSPC"), ("fallocate", "ENOSPC"),
    ("fdatasync", "ENOSPC"), ("pwritev2", "EOPNOTSUPP"), ("pwrite64", "EIO"), ("fallocate", "EOPNOTSUPP"),
    ("pwrite64", "EDQUOT"), ("fdatasync", "EDQUOT"), ("fallocate", "EDQUOT"), ("pwritev2", "ENOSPC"), ("fsync", "EIO"),
    ("pwrite64", "EINTR"), ("fdatasync", "EINTR"), ("fallocate", "EINTR"), ("ftruncate", "EIO"),
)  # fmt: skip
"""(system call, error) in turn. EOPNOTSUPP is no fault, there is another way then, nor EINTR, which is tried again."""
SHORT = 6
"""So many of them in CI."""
NO_FAULTS = ("EOPNOTSUPP", "EINTR")
LEFT_BYTES = 1 << 20
"""Space on the disk that gets full."""
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf")


def run_under_strace(path: Path, seed: int, inject: str) -> subprocess.CompletedProcess[str]:
    call = inject.partition(":")[0]
    return subprocess.run(
        [*STRACE, "-o", f"{path}.strace", "-e", f"trace={call}", "-e", f"inject={inject}",
         sys.executable, "-m", "rig.faults.child", str(path), str(seed)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


@pytest.fixture
def strace(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    tried = subprocess.run(
        [*STRACE, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1", "true"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"strace cannot inject here: {tried.stderr.strip()}")


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("strace")
def test_a_system_call_that_fails_breaks_no_promise(campaign: Campaign, tmp_path: Path) -> None:
    injected, pairs = 0, set()
    first = 0 if campaign.mode == "compiled" else SHORT  # CI has both modes, and so twice as many pairs
    for number in campaign.trials(SHORT, 10**9):
        rng = random.Random(f"{campaign.seed} {number}")
        call, error = INJECTED[(first + number) % len(INJECTED)]
        often = {"EOPNOTSUPP": ["+"], "EINTR": ["", "+2", "+3"]}.get(error, ["", "", "+"])
        when = f"{rng.choice([1, 2, 3, 5, 8, 13, 21])}{rng.choice(often)}"
        inject = f"{call}:error={error}:when={when}"
        path = tmp_path / f"{number}.db"
        child = run_under_strace(path, number, inject)
        what = f"seed {campaign.seed}, trial {number}: {inject}\n{child.stdout}\n{child.stderr}"
        assert child.returncode == 0, what
        said = json.loads(child.stdout)
        hit = "(INJECTED)" in Path(f"{path}.strace").read_text()
        injected += hit
        pairs |= {f"{call} {error}"} if hit else set()
        if hit and said["opened"] and call in ("fdatasync", "pwritev2") and error not in NO_FAULTS:
            assert said["final"], what
        if error in NO_FAULTS:
            assert not said["refused"], what
        try:
            check_file(path, said)
        except BaseException as error_found:
            raise AssertionError(what) from error_found
        path.unlink(missing_ok=True)
    campaign.report(runs=number + 1, injected=injected, pairs=sorted(pairs))
    assert injected >= (number + 1) / 2


def check_file(path: Path, said: dict[str, Any]) -> None:
    """A prefix, proved; it takes a commit."""
    ledger = Ledger()
    with mmlsm.Database(path, Settings(debug=True, **TINY)) as db:
        count = ledger.check(db, said["handed"], said["tried"])
        proof.prove(db)
        ledger.begin(count)
        ledger.commit(db, "full")
        ledger.check(db, count + 1, count + 1)
    proof.prove_file(path)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[ext4.Disk]:
    """A small ext4 file system, unmounted whatever happens."""
    if reason := ext4.reason_for_none(tmp_path):
        pytest.skip(reason)
    with ext4.disk(tmp_path) as made:
        rng = random.Random(0)
        made.mount(made.format(rng), rng)
        yield made


@pytest.mark.unproved
@pytest.mark.parametrize("mode", MODES)
def test_on_a_full_disk_commits_are_refused_and_with_space_back_work_goes_on(
    mode: str, mounted: ext4.Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in HURRIED:
        monkeypatch.setattr(module, name, value)
    place, ledger = mounted.place, Ledger(growing_batch_of)
    path, ballast = place / "test.db", place / "ballast"
    fill(ballast, LEFT_BYTES)
    work = Work(path, SYSTEM, ledger)
    db = work.open(memtable_bytes=1 << 16)
    try:
        refusals = until_full(work, mode)
        assert all(refusal.errno == errno.ENOSPC for refusal in refusals), refusals
        assert not any(UNKNOWN in str(refusal) for refusal in refusals), refusals
        engine = db._engine
        assert "No space" in str(db.stats().flush_error)
        assert engine.file.failure is None, "the disk is full, and the handle is read-only for it"
        ledger.check(db, ledger.returned, ledger.returned)
        proof.prove(db)
        ballast.unlink()
        for one in MODES:
            ledger.commit(db, one)
        db.compact()
        assert eventually(lambda: engine.writer.error is None and engine.merger.error is None)
        ledger.check(db, ledger.returned, ledger.returned)
        proof.prove(db)
        engine.allocator._check()
    finally:
        work.close()
        work.db = db = engine = None
    with mmlsm.open(path, readonly=True) as again:
        ledger.check(again, ledger.returned, ledger.returned)
        proof.prove(again)


def fill(path: Path, left: int) -> None:
    """A file that leaves about so many bytes of its file system."""
    space = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)


def until_full(work: Work, mode: str) -> list[mmlsm.StorageError]:
    """Commit until there is no more space, not for a flush either; what was raised."""
    refusals: list[mmlsm.StorageError] = []
    for _ in range(20_000):
        try:
            work.ledger.commit(work.db, mode)
        except mmlsm.StorageError as refusal:
            refusals.append(refusal.with_traceback(None))
            try:
                work.db._engine.flush()
            except mmlsm.StorageError as error:
                return [*refusals, error.with_traceback(None)]
    raise AssertionError("the disk does not get full")
