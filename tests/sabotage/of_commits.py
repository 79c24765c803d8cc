"""Bugs of the way of a commit to its readers: halves, holes, wrong orders, too early words."""

from __future__ import annotations

from sabotage import CRASH_IMAGES, HISTORIES, KILLS, Sabotage

PLANTED = (
    Sabotage(
        "batch-as-two-commits", "3", "a batch is committed in two records",
        "database.py",
        "            return self._engine.commit(items, durability)\n",
        """            pairs = list(items.items())
            self._engine.commit(dict(pairs[: len(pairs) // 2]), durability)
            return self._engine.commit(dict(pairs[len(pairs) // 2 :]), durability)
""",
        (f"{CRASH_IMAGES}[creation in zeros]", "unit/test_database.py::test_an_update_is_one_commit"),
    ),
    Sabotage(
        "group-acknowledged-before-its-write", "1 7", "a group commit returns while its record is in memory only",
        "write/commit.py",
        "            elif ticket.mode == OFF or ticket.end <=",
        "            elif ticket.mode != FULL or ticket.end <=",
        (
            KILLS,
            "unit/test_commit.py::test_a_group_commit_that_comes_while_another_is_written_waits_for_its_own_write",
        ),
    ),
    Sabotage(
        "published-out-of-turn", "5", "an off commit is seen before a full one that was ordered before it",
        "write/commit.py",
        "if not self._pending and ticket.mode == OFF:",
        "if ticket.mode == OFF:",
        (
            HISTORIES,
            "unit/test_commit.py::"
            "test_ordering_passes_on_while_a_full_commit_is_written_and_publication_keeps_the_order",
        ),
    ),
    Sabotage(
        "failed-write-tried-again", "7 8", "a commit whose write failed stays in the queue and is written again",
        "write/commit.py",
        "            elif self.failure is None:\n                self.failure = failure\n",
        "",
        ("unit/test_commit.py::test_a_failed_write_fails_all_that_is_not_published_and_nothing_else",),
    ),
    Sabotage(
        "half-a-commit-after-an-interrupt", "3", "Ctrl-C leaves a commit in the log and not in memory, or half of it",
        "write/commit.py",
        "while True:\n                    try:\n                        with Headroom(first):",
        "while isinstance(first, Exception):\n                    try:\n                        with Headroom(first):",
        ("unit/test_commit_interrupted.py::test_ctrl_c_at_any_step",),
    ),
    Sabotage(
        "ordered-and-given-back", "2 9", "a signal's handler strikes a commit, and its large values' pages are free",
        "write/commit.py",
        "        if given is not None:\n            given.clear()\n",
        "        if False:\n            given.clear()\n",
        ("unit/test_interrupted.py::test_a_commit_of_large_values_struck_at_any_step_gives_nothing_away",),
    ),
    Sabotage(
        "memtable-that-nobody-sees", "1 5", "a handler's exception leaves a memtable that nobody reads",
        "engine.py",
        "                    with Headroom(struck):\n                        self._seal_or_go_on()\n",
        "                    if False:\n                        self._seal_or_go_on()\n",
        ("unit/test_struck.py::test_two_strikes_leave_no_memtable_that_readers_do_not_see",),
    ),
    Sabotage(
        "leader-leaves-with-the-lead", "5", "Ctrl-C in the thread that leads keeps all others waiting",
        "write/commit.py",
        """            if self._leader is ticket:
                self._leader = None  # at once, for the rest may fail for want of memory
            struck, tries = None, 0
            while tries < TRIES_MOST:
""",
        "            struck, tries = None, 0\n            while False:\n",
        ("unit/test_commit_interrupted.py::test_ctrl_c_at_any_step",),
    ),
    Sabotage(
        "write-lock-kept-after-an-interrupt", "5 8", "Ctrl-C in a commit leaves the write lock taken",
        "write/commit.py",
        """        finally:
            tries = 0
            while lock.owner == me and""",
        """        except Exception:
            lock.release()
            raise
        else:
            tries = 0
            while lock.owner == me and""",
        ("unit/test_commit_interrupted.py::test_ctrl_c_at_any_step",),
    ),
    Sabotage(
        "commits-after-close-began", "1", "a commit that comes while close() flushes returns and is lost",
        "write/commit.py",
        "            if self.closing:\n",
        "            if False:\n",
        ("unit/test_misbehaviour.py::test_a_commit_about_to_be_ordered_while_another_thread_closes_is_refused",),
    ),
    Sabotage(
        "flushed-before-published", "4 7", "a memtable is flushed while commits in it may still fail",
        "write/writer.py",
        "        committer.write_out()\n        while committer.pins.published < table.last_seq:\n",
        "        while False:\n",
        ("unit/test_installs.py::test_what_is_not_yet_published_is_not_flushed",),
    ),
    Sabotage(
        "sealed-memtable-not-read", "4 5", "get() looks into the newest memtable only",
        "read/reader.py",
        "        for table in state.tables:\n            if not table.entries:\n",
        "        for table in state.tables[:1]:\n            if not table.entries:\n",
        (HISTORIES, "unit/test_snapshots.py::test_point_reads_from_every_layer"),
    ),
    Sabotage(
        "trimmed-under-a-snapshot", "4", "versions that an open snapshot sees are unlinked from the memtable",
        "write/memtable.py",
        "if newer.seq <= published and not pinned(pins, entry.seq, newer.seq):",
        "if newer.seq <= published:",
        (HISTORIES, "unit/test_memtable.py::test_a_pinned_version_stays_and_those_beside_it_go"),
    ),
    Sabotage(
        "trimmed-under-a-reader", "4", "get() does not look whether what it should see was unlinked meanwhile",
        "read/reader.py",
        "                if table.trimmed > seq:\n",
        "                if False:\n",
        ("unit/test_snapshots.py::test_a_get_whose_version_is_trimmed_under_it_reads_again",),
    ),
    Sabotage(
        "flush-error-swallowed", "8", "who waits for a flush is not told that it fails",
        "write/writer.py",
        "            if (error := self.error) is not None and error is not earlier:\n                raise error\n",
        "",
        ("unit/test_installs.py::test_who_waits_for_a_flush_is_told_that_it_fails",),
    ),
    Sabotage(
        "snapshot-state-before-its-seq", "4", "a snapshot says that it has a commit which its memtables lack",
        "database.py",
        """        pin = SeqPin(self._engine.pins)
        state = self.state
        if state is None:
""",
        """        state = self.state
        pin = SeqPin(self._engine.pins)
        if state is None:
""",
        ("unit/test_snapshots.py::test_what_is_sealed_while_a_snapshot_is_taken_is_in_it",),
    ),
)  # fmt: skip
