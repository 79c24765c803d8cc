"""Threads that write and threads that read in every form: each answer is of one committed state, in its window.

The rig is in tests/rig/: histories.py says what is checked, and why that is enough.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from campaign import Campaign
from mmlsm.write.commit import Committer
from mmlsm.write.pins import Pins
from mmlsm.write.store import Store
from mmlsm.write.ticket import ASKING
from rig.histories.rounds import run_rounds


@pytest.mark.timeout(600)
def test_every_answer_is_of_one_committed_state_in_its_window(tmp_path: Path, campaign: Campaign, mode: str) -> None:
    began = time.monotonic()
    short = 300_000 if mode == "compiled" else 60_000
    totals = run_rounds(tmp_path, campaign.seed, campaign.count(short, 10_000_000), lambda: campaign.left)
    figures = totals.figures
    campaign.report(
        rounds=totals.rounds,
        commits=figures.commits,
        operations=figures.operations,
        answers=figures.answers,
        absences=figures.absences,
        asked=dict(totals.asked),
        answers_a_second=round(figures.answers / (time.monotonic() - began)),
        installs=totals.installs,
        merges=dict(totals.merges),
    )
    assert figures.commits > 20 * totals.rounds
    assert totals.asked.keys() >= {
        "points", "many", "range", "prefix", "nearest", "walk", "count", "moves", "go_on",
        "compare_and_set", "pop", "setdefault", "popitem",
    }  # fmt: skip
    assert totals.installs > 5 * totals.rounds
    assert totals.merges["bottom"] > 0


# -- bugs planted in the engine, each of which a history tells


def publish_before_the_insert(patch: pytest.MonkeyPatch) -> None:
    enter = Committer._enter

    def early(self: Committer, ticket: Any, *rest: Any) -> None:
        if not self._pending:
            self._publish(ticket.seq)
            time.sleep(0.0005)
        enter(self, ticket, *rest)

    patch.setattr(Committer, "_enter", early)


def return_before_publishing(patch: pytest.MonkeyPatch) -> None:
    """Others wait on behalf of the threads that commit."""
    wait = Committer._await

    def later(self: Committer, ticket: Any) -> None:
        if ticket.mode == ASKING:
            wait(self, ticket)
        else:
            threading.Timer(0.003, wait, (self, ticket)).start()

    patch.setattr(Committer, "_await", later)


def lose_sight_of_sealed_memtables_while_they_are_flushed(patch: pytest.MonkeyPatch) -> None:
    install = Store.install

    def gap(self: Store, channel: Any, edit: Any) -> int:
        with self.order_lock:
            kept = (table for table in self.state.tables if not any(table is gone for gone in edit.without_tables))
            self.set_state(tuple(kept), self.state.version)
        return install(self, channel, edit)

    patch.setattr(Store, "install", gap)


def forget_the_pins_of_snapshots(patch: pytest.MonkeyPatch) -> None:
    """Versions that only a snapshot sees are dropped."""
    view = Pins.view
    patch.setattr(Pins, "view", lambda self: (view(self)[0], ()))


def get_many_one_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mmlsm.Database, "get_many", lambda self, keys: [self.get(key) for key in keys])


def publish_to_snapshots_first(patch: pytest.MonkeyPatch) -> None:
    """As it once was: in between, gets go by an older commit than snapshots."""

    def publish(self: Pins, seq: int, tell: Any) -> None:
        self.published = seq
        time.sleep(0.0002)
        if tell is not None:
            tell(seq)

    patch.setattr(Pins, "publish", publish)


def cursors_of_the_live_database(patch: pytest.MonkeyPatch) -> None:
    """Cursors and ranges read at a seq that is not registered."""
    patch.setattr(mmlsm.Database, "still", lambda self: self)


def begin_at_the_published_state(patch: pytest.MonkeyPatch) -> None:
    """A write transaction reads what others read, not what is ordered before its own commit."""
    begin = mmlsm.Database.begin

    def stale(self: Any, write: bool = False, **how: Any) -> Any:
        transaction = begin(self, write, **how)
        transaction.seq = self.seq
        return transaction

    patch.setattr(mmlsm.Database, "begin", stale)


def release_the_write_lock_at_once(patch: pytest.MonkeyPatch) -> None:
    """A transaction has the write lock only to commit: two may read the same state."""
    begin = mmlsm.Database.begin

    def unlocked(self: Any, write: bool = False, **how: Any) -> Any:
        transaction = begin(self, write, **how)
        if write:
            self._engine.write_lock.release()
            transaction._tenure = None
            transaction._commit = lambda items, durability, drop: self._commit(items, durability)
            time.sleep(0.001)
        return transaction

    patch.setattr(mmlsm.Database, "begin", unlocked)


def keep_the_reader_of_a_version_that_is_outdated(patch: pytest.MonkeyPatch) -> None:
    still = mmlsm.Database.still

    def outdated(self: Any) -> Any:
        bare = self.__dict__.get("_kept")
        if bare is None or random.random() < 0.01:
            self._kept = bare = still(self)
        return bare

    patch.setattr(mmlsm.Database, "still", outdated)


TOLD = "stale: |mixed: |from the future: |nobody has written|before and after|not one of|and reads "


@pytest.mark.unproved
@pytest.mark.parametrize(
    ("plant", "fixed"),
    [
        (publish_before_the_insert, {"durability": "off"}),
        (return_before_publishing, {"durability": "group"}),
        (lose_sight_of_sealed_memtables_while_they_are_flushed, {}),
        (publish_to_snapshots_first, {"durability": "off"}),
        (forget_the_pins_of_snapshots, {"memtable_bytes": 200_000}),
        (get_many_one_by_one, {"memtable_bytes": 200_000}),
        (cursors_of_the_live_database, {"durability": "off", "memtable_bytes": 1 << 20}),
        (begin_at_the_published_state, {"durability": "full"}),
        (release_the_write_lock_at_once, {"durability": "off"}),
        (keep_the_reader_of_a_version_that_is_outdated, {}),
    ],
)
def test_a_planted_bug_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Any, fixed: dict[str, Any]
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=TOLD) as raised:
        run_rounds(tmp_path, 0, 2_000_000, **({"debug": False} | fixed))
    print(raised.value)
