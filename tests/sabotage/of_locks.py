"""Bugs of threads and processes: locks that are not taken, not given back, or not in turn; forked children."""

from __future__ import annotations

from sabotage import CROWD, Sabotage

PLANTED = (
    Sabotage(
        "order-lock-not-taken-in-publish", "4 5", "a leader publishes while others order their commits",
        "write/commit.py",
        "        with self.order_lock:\n            if failure is None:\n                self.log.written(end)\n",
        "        if True:\n            if failure is None:\n                self.log.written(end)\n",
        ("unit/test_commit.py::test_commits_are_published_under_the_order_lock",),
    ),
    Sabotage(
        "order-lock-not-taken-in-install", "1 4", "a memtable that is sealed during an install is lost",
        "write/store.py",
        "        with self.order_lock:\n            if self.log is not None",
        "        if True:\n            if self.log is not None",
        ("unit/test_installs.py::test_a_memtable_that_is_sealed_during_an_install_is_not_lost",),
    ),
    Sabotage(
        "install-lock-not-taken", "1 2 4", "a flush and a merge install at once, and one of them is lost",
        "write/store.py",
        "        with self.install_lock:\n            self.file.check_writable()\n            number",
        "        if True:\n            self.file.check_writable()\n            number",
        (CROWD, "unit/test_installs.py::test_one_install_waits_for_the_other"),
    ),
    Sabotage(
        "allocator-lock-not-taken", "12", "two threads reserve the same pages",
        "space/allocator.py",
        "        with self._lock:\n            self._before = None\n            try:\n                found = (",
        "        if True:\n            self._before = None\n            try:\n                found = (",
        (CROWD, "unit/test_free_space.py::test_reservations_of_many_threads_never_overlap"),
    ),
    Sabotage(
        "write-lock-not-fair", "5", "of those who wait for the write lock the last comes first",
        "locks.py",
        "self._waiting[0]\n            self.tenure += 1\n            del self._waiting[0]\n",
        "self._waiting[-1]\n            self.tenure += 1\n            del self._waiting[-1]\n",
        ("unit/test_locks.py::test_the_lock_is_given_in_the_order_of_asking",),
    ),
    Sabotage(
        "interrupted-waiter-stays-in-the-queue", "5 8", "the write lock is given to a thread that has left",
        "locks.py",
        "                    self._leave(me)\n",
        "                    pass\n",
        ("unit/test_locks.py::test_ctrl_c_while_waiting_leaves_the_queue",),
    ),
    Sabotage(
        "snapshot-waits-for-the-leader", "5", "a snapshot waits until what was ordered before it is written",
        "database.py",
        "        pin = SeqPin(self._engine.pins)\n",
        """        if (committer := self._engine.committer) is not None:
            committer.write_out()
        pin = SeqPin(self._engine.pins)
""",
        ("unit/test_nobody_waited_for.py::test_readers_wait_for_no_commit_that_stands_still",),
    ),
    Sabotage(
        "reader-takes-the-install-lock", "5", "a range waits for the install that a flush or merge is in",
        "database.py",
        "        state = self.state\n        if state is None or any(",
        """        if (store := self._engine.store) is not None:
            with store.install_lock:
                pass
        state = self.state
        if state is None or any(""",
        ("unit/test_nobody_waited_for.py::test_readers_wait_for_no_flush_merge_or_sync_that_stands_still",),
    ),
    Sabotage(
        "dropped-transaction-keeps-the-lock", "8", "a write transaction that is dropped keeps all writers out",
        "database.py",
        "            engine.note_writer(transaction, tenure)\n",
        "",
        ("unit/test_transactions.py::test_a_dropped_transaction_lets_go_of_the_lock",),
    ),
    Sabotage(
        "write-lock-kept-by-who-is-cut-off", "3 8", "Ctrl-C in a transaction's commit keeps all writers out",
        "write/transaction.py",
        "                while lock.tenure == tenure and tries < TRIES_MOST:",
        "                while False:",
        ("unit/test_struck.py::test_a_transaction_whose_commit_is_struck_at_once_lets_go_of_the_lock",),
    ),
    Sabotage(
        "batch-goes-on-in-a-forked-child", "11", "a forked child's batch takes writes",
        "write/batch.py",
        "        if items is None or self._life.ended:\n",
        "        if items is None:\n",
        ("unit/test_lifetime.py::test_in_children_forked_amid_commits_and_merges_each_call_says_so",),
    ),
    Sabotage(
        "closed-file-keeps-its-descriptor", "6 10", "a closed database keeps the file, and its file system, in use",
        "handle.py",
        "        self._data = Descriptor(self.system, -1)\n",
        "",
        ("unit/test_lifetime.py::test_a_closed_database_holds_no_descriptor_and_no_map",),
    ),
    Sabotage(
        "writer-lock-not-taken", "10", "two processes write the same file",
        "descriptor.py",
        "        if not self._take(exclusive=True):\n",
        "        if False:\n",
        ("unit/test_file_locks.py::test_a_second_process_is_refused_at_once_and_told_the_holders_pid",),
    ),
    Sabotage(
        "writer-lock-shared", "10", "the writer's lock keeps no other writer out",
        "descriptor.py",
        "        if not self._take(exclusive=True):\n",
        "        if not self._take(exclusive=False):\n",
        ("unit/test_file_locks.py::test_a_second_process_is_refused_at_once_and_told_the_holders_pid",),
    ),
    Sabotage(
        "writer-lock-not-released", "10", "a closed database keeps its file while something refers to it",
        "handle.py",
        "        if self._writer is not None:\n            self._writer.close()\n",
        "",
        ("unit/test_file_locks.py::test_closing_frees_the_file_for_this_process_and_others",),
    ),
    Sabotage(
        "child-unlocks", "10 11", "a forked child gives up the lock that it shares with its parent",
        "descriptor.py",
        "    for lock in list(_locks):\n        lock.abandon()\n",
        "    for lock in list(_locks):\n        lock.close()\n",
        ("unit/test_file_locks.py::test_in_a_forked_child_each_call_raises_and_the_parents_lock_stays",),
    ),
    Sabotage(
        "child-keeps-the-lock", "10 11", "a killed writer's lock lives on in its forked child",
        "descriptor.py",
        "    for lock in list(_locks):\n        lock.abandon()\n",
        "",
        ("unit/test_file_locks.py::test_a_killed_holder_frees_the_file_even_when_a_forked_child_lives_on",),
    ),
    Sabotage(
        "fork-not-told-to-the-file", "11", "a forked child writes to its parent's file",
        "handle.py",
        "        file.forked = True\n",
        "        pass\n",
        ("unit/test_file_locks.py::test_in_a_forked_child_each_call_raises_and_the_parents_lock_stays",),
    ),
    Sabotage(
        "fork-not-told-to-the-handles", "11", "a forked child's calls do not raise ForkError",
        "engine.py",
        "        self.life.end(2)\n",
        "        pass\n",
        ("unit/test_misuse.py::test_in_a_forked_child_everything_says_so",),
    ),
    Sabotage(
        "childs-views-not-held", "6 11", "what views in a forked child show is used again",
        "forks.py",
        "            if keepers := list({id(keeper): keeper for keeper in self.viewed()}.values()):\n",
        "            if keepers := []:\n",
        ("unit/test_forks.py::test_views_of_a_child_show_what_they_did_whatever_the_parent_does",),
    ),
)  # fmt: skip
