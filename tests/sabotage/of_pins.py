"""Bugs of when pages may be used again: pins dropped, births forgotten, cuts too early or too far."""

from __future__ import annotations

from sabotage import CRASH_IMAGES, CROWD, HISTORIES, Sabotage

PLANTED = (
    Sabotage(
        "pins-ignored", "4 6", "pages are free as soon as the newest version has them no more",
        "space/reclaim.py",
        "        seen = at < len(pinned) and pinned[at] < retirement.died\n",
        "        seen = False\n",
        (HISTORIES, CROWD, "unit/test_reclaim.py::test_the_theory_of_the_crime"),
    ),
    Sabotage(
        "reclaimed-one-install-early", "4 6", "the version just before the one that let go of a page does not keep it",
        "space/reclaim.py",
        "        seen = at < len(pinned) and pinned[at] < retirement.died\n",
        "        seen = at < len(pinned) and pinned[at] < retirement.died - 1\n",
        (HISTORIES, "unit/test_reclaim.py::test_the_theory_of_the_crime"),
    ),
    Sabotage(
        "birth-of-shared-pages-forgotten", "4 6", "a page counts as born with the last segment that has it",
        "write/merge_walk.py",
        "self.unlinked.add(child.page, child.pages, self.segment.birth_of(child.page))",
        "self.unlinked.add(child.page, child.pages, self.segment.record.installed)",
        (CROWD, "unit/test_theory_of_the_crime.py::test_merges_share_overflow_extents_and_readers_keep_them"),
    ),
    Sabotage(
        "birth-of-values-too-late", "4 6", "a large value counts as born with the next install, and readers have it",
        "write/values.py",
        "install = self.store.state.version.install if self.born is None else self.born",
        "install = self.store.manifest.install + 1",
        ("unit/test_reclaim.py::test_the_birth_of_a_value_is_the_version_that_readers_have",),
    ),
    Sabotage(
        "version-expires-by-the-clock", "4 12", "a version is let go under its readers when the wall clock says so",
        "write/merger.py",
        "            if entry() is None:  # told already",
        "            if entry() is None or time.time() > 2e9:  # told already",
        ("unit/test_wall_clock.py::test_a_database_lives_well_under_a_clock_that_jumps_back_and_forth",),
    ),
    Sabotage(
        "snapshot-not-registered", "4", "a snapshot pins nothing in the memtables",
        "write/pins.py",
        "            self._register.enter(holder, seq)\n",
        "",
        (HISTORIES, "unit/test_snapshots.py::test_ranges_and_cursors_of_a_snapshot_outlive_it"),
    ),
    Sabotage(
        "cursor-does-not-share-the-pin", "4", "a range that outlives its snapshot is no longer pinned",
        "read/snapshot.py",
        "return Snapshot(self.opened(), self.seq, self.life, pin)",
        "return Snapshot(self.opened(), self.seq, self.life, None)",
        ("unit/test_snapshots.py::test_ranges_and_cursors_of_a_snapshot_outlive_it",),
    ),
    Sabotage(
        "transaction-misses-what-is-ordered", "4 5", "a write transaction sees what is published, not what is ordered",
        "database.py",
        "SeqPin(engine.pins, 0 if committer is None else committer.last_seq)",
        "SeqPin(engine.pins)",
        ("unit/test_transactions.py::test_a_cursor_of_a_transaction_keeps_what_was_ordered_and_not_yet_published",),
    ),
    Sabotage(
        "pin-read-after-its-state", "4", "a cursor that is made as another thread closes its snapshot pins nothing",
        "read/snapshot.py",
        "        pin = self._pin  # before",
        "        self.opened()\n        pin = self._pin  # before",
        ("unit/test_snapshots.py::test_what_another_thread_closes_meanwhile_is_pinned_or_told_so",),
    ),
    Sabotage(
        "views-of-what-no-log-names-forgotten", "6 10", "what views of a life that was cut off show is given away",
        "engine.py",
        "            retired = (*retired, *maybe_seen(root, replay, retired, file.pages))\n",
        "            pass\n",
        (
            "unit/test_views.py::"
            "test_views_of_a_life_that_was_cut_off_stay_right_though_its_log_does_not_name_them",
        ),
    ),
    Sabotage(
        "cursor-does-not-share-a-transactions-pin", "4", "a range that outlives its transaction is no longer pinned",
        "write/transaction.py",
        "return Snapshot(self.opened(), self.seq, self.life, pin, self._write)",
        "return Snapshot(self.opened(), self.seq, self.life, None, self._write)",
        ("unit/test_transactions.py::test_iterators_and_cursors_outlive_their_transaction",),
    ),
    Sabotage(
        "view-pins-nothing", "6", "a view does not keep the version that it was read from",
        "file.py",
        "        mapping.owner = owner\n",
        "",
        ("unit/test_views.py::test_views_stay_right_through_writes_merges_and_close",),
    ),
    Sabotage(
        "compiled-view-pins-nothing", "6", "a view does not keep the version that it was read from",
        "read/view.py",
        "        exporter.version = version\n",
        "",
        ("unit/test_views.py::test_views_stay_right_through_writes_merges_and_close",),
        compiled=True,
    ),
    Sabotage(
        "view-without-the-pin-lock", "6 10", "views that outlive close() are unknown to the next writer",
        "read/version.py",
        "        self.pin = pin\n",
        "        self.pin = None\n",
        ("unit/test_views.py::test_views_stay_right_through_writes_merges_and_close",),
    ),
    Sabotage(
        "pins-elsewhere-ignored-at-open", "6 10", "a writer gives away what views of the one before still show",
        "engine.py",
        "        pinned = file.pins_elsewhere()\n",
        "        pinned = False\n",
        ("unit/test_views.py::test_views_stay_right_through_writes_merges_and_close",),
    ),
    Sabotage(
        "pins-elsewhere-ignored-at-reclaim", "6 10", "a writer cuts off what views of the one before still show",
        "write/merger.py",
        "store.allocator.free_extents()) and not store.file.pins_elsewhere():\n",
        "store.allocator.free_extents()):\n",
        ("unit/test_views.py::test_views_stay_right_through_writes_merges_and_close",),
    ),
    Sabotage(
        "truncated-one-page-too-far", "1 12", "the file is cut in the middle of what is in use",
        "space/allocator.py",
        "                self._resize(tail.first)\n",
        "                self._resize(tail.first - 1)\n",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_database.py::test_space_comes_back_when_everything_is_deleted",
        ),
    ),
    Sabotage(
        "value-freed-while-referred-to", "1 12", "a flush retires the large values that its segment refers to",
        "write/flush.py",
        "    dropped = [extent for extent in extents if extent not in flushed.kept]\n",
        "    dropped = list(extents)\n",
        (f"{CRASH_IMAGES}[overflow]", "unit/test_recovery.py::test_a_commit_that_returned_survives_a_kill"),
    ),
)  # fmt: skip
