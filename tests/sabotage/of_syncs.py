"""Bugs of what is durable when: each sync left out, one by one, and writes that come before what they name."""

from __future__ import annotations

from sabotage import CRASH_IMAGES, FAULTS, Sabotage

PLANTED = (
    Sabotage(
        "full-commit-not-synced", "1 2", "a full commit returns with its record written and not synced",
        "write/commit.py",
        "write = self._channel.pwrite_durably if durable and not sync_after else self._channel.pwrite",
        "write = self._channel.pwrite",
        (f"{CRASH_IMAGES}[creation in zeros]", "unit/test_commit.py::test_each_durability_does_its_io_and_no_more"),
    ),
    Sabotage(
        "references-not-synced", "1 2", "a large value is not synced before a durable record names it",
        "write/commit.py",
        "sync_first = durable and self._references_end > self.synced_end",
        "sync_first = False",
        (
            f"{CRASH_IMAGES}[overflow]",
            "unit/test_commit.py::test_overflow_values_are_durable_before_a_durable_record_names_them",
        ),
    ),
    Sabotage(
        "earlier-commits-not-synced", "1 2", "a full commit syncs its own record only, not those written before it",
        "write/commit.py",
        "sync_after = durable and not sync_first and self.written_end > self.synced_end",
        "sync_after = False",
        (
            f"{CRASH_IMAGES}[mixed_commits]",
            "unit/test_commit.py::test_a_full_commit_takes_unsynced_commits_before_it_along",
        ),
    ),
    Sabotage(
        "interval-not-synced", "1", "what group commits wrote is never synced",
        "write/writer.py",
        "            try:\n                committer.sync()\n",
        "            try:\n                committer.write_out()\n",
        ("unit/test_misbehaviour.py::test_what_group_commits_wrote_is_synced_though_flushes_fail",),
    ),
    Sabotage(
        "interval-twice", "1", "what group commits wrote is synced when two intervals have passed",
        "write/writer.py",
        "return self.synced_at + self.store.settings.group_interval\n",
        "return self.synced_at + self.store.settings.group_interval * 2\n",
        ("unit/test_group_interval.py::test_the_writer_thread_waits_for_the_interval_and_no_longer",),
    ),
    Sabotage(
        "interval-sync-waits-for-a-flush", "1", "a long flush keeps what group commits wrote from being synced",
        "write/writer.py",
        "            pause=self.sync_if_due,\n",
        "",
        ("unit/test_group_interval.py::test_a_sync_follows_a_group_commit_in_the_middle_of_a_flush",),
    ),
    Sabotage(
        "interval-sync-waits-for-an-install", "1", "a merge's install keeps what group commits wrote from being synced",
        "write/writer.py",
        "            try:\n                committer.sync()\n            except",
        "            try:\n                with self.store.install_lock:\n"
        "                    committer.sync()\n            except",
        ("unit/test_group_interval.py::test_a_sync_follows_each_group_commit_though_a_merge_stands_still",),
    ),
    Sabotage(
        "sync-does-not-sync", "1", "sync() answers and has synced nothing",
        "write/commit.py",
        "                self._sync_channel.sync()\n",
        "                pass\n",
        (f"{CRASH_IMAGES}[group_commits]", "unit/test_recovery.py::test_what_each_durability_waits_for"),
    ),
    Sabotage(
        "install-not-synced", "1 2 3", "a superblock names a segment and a manifest that are not synced",
        "write/store.py",
        "                draft = self._write_manifest(channel, edit, number, own)\n                channel.sync()\n",
        "                draft = self._write_manifest(channel, edit, number, own)\n",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_recovery.py::test_an_install_syncs_before_each_superblock_and_writes_both",
        ),
    ),
    Sabotage(
        "superblock-before-manifest", "1 2 3", "the superblock is written before what it names is synced",
        "write/store.py",
        """\
                channel.sync()
                version = self.version_of(draft.manifest, self.superblock.seq if edit.seq is None else edit.seq)
            except BaseException:
                for extent in own:
                    self.allocator.give_back(extent)
                raise
            self._switch(channel, edit, draft, own, version)
""",
        """\
                version = self.version_of(draft.manifest, self.superblock.seq if edit.seq is None else edit.seq)
            except BaseException:
                for extent in own:
                    self.allocator.give_back(extent)
                raise
            self._switch(channel, edit, draft, own, version)
            channel.sync()
""",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_recovery.py::test_an_install_syncs_before_each_superblock_and_writes_both",
        ),
    ),
    Sabotage(
        "first-slot-not-synced", "1 2", "the second slot is written before the first is durable",
        "write/store.py",
        "channel.pwrite_durably(left[0] * limits.PAGE_BYTES, image)\n",
        "(channel.pwrite if len(left) == 2 else channel.pwrite_durably)(left[0] * limits.PAGE_BYTES, image)\n",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_recovery.py::test_an_install_syncs_before_each_superblock_and_writes_both",
        ),
    ),
    Sabotage(
        "second-slot-not-synced", "1 2", "pages are used again while the second slot may still name them",
        "write/store.py",
        "channel.pwrite_durably(left[0] * limits.PAGE_BYTES, image)\n",
        "(channel.pwrite if len(left) == 1 else channel.pwrite_durably)(left[0] * limits.PAGE_BYTES, image)\n",
        (
            f"{CRASH_IMAGES}[creation]",
            "unit/test_recovery.py::test_an_install_syncs_before_each_superblock_and_writes_both",
        ),
    ),
    Sabotage(
        "second-slot-not-written", "1 2", "each generation goes into one slot only, over the one before",
        "write/store.py",
        "block.encode(), list(self.slot_order),",
        "block.encode(), list(self.slot_order[:1]),",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_recovery.py::test_an_install_syncs_before_each_superblock_and_writes_both",
        ),
    ),
    Sabotage(
        "creation-not-synced", "2", "a new file gets its name before its bytes are durable",
        "file.py",
        "        write_all(system.pwrite, unnamed.fd, image, 0)\n        system.sync(unnamed.fd)\n",
        "        write_all(system.pwrite, unnamed.fd, image, 0)\n",
        (
            f"{CRASH_IMAGES}[creation]",
            "unit/test_file_creation.py::test_a_name_is_durable_before_the_opener_can_commit",
        ),
    ),
    Sabotage(
        "directory-not-synced", "1", "the name of a new file is not durable when its first commit returns",
        "file.py",
        "            directory_sync(os.path.dirname(os.path.realpath(shown)), system)\n",
        "",
        (
            f"{CRASH_IMAGES}[creation in place]",
            "unit/test_file_creation.py::test_a_name_is_durable_before_the_opener_can_commit",
        ),
    ),
    Sabotage(
        "durable-write-falls-back-to-none", "1 2", "where the system has no durable write there is no sync instead",
        "channel.py",
        "        self.pwrite(offset, data)\n        self.sync()\n",
        "        self.pwrite(offset, data)\n",
        (
            f"{CRASH_IMAGES}[full commits without durable writes]",
            "unit/test_file.py::test_where_there_is_no_durable_write_a_write_and_a_sync_do",
        ),
    ),
    Sabotage(
        "close-without-flush", "1", "close() leaves a clean file without the last memtable",
        "closing.py",
        "    if not engine.closing_errors:\n        engine.flush()\n",
        "    pass\n",
        (f"{CRASH_IMAGES}[creation in zeros]", "unit/test_database.py::test_what_was_put_is_there_after_close"),
    ),
    Sabotage(
        "failed-sync-retried", "7", "a sync that failed is tried once more, and believed",
        "channel.py",
        """            if error.errno is None:
                raise
            file.failure = file.failure or file.cut_off
            raise file.sync_failed(error) from error
""",
        """            self._system.sync(self._descriptor.fd)
""",
        (
            f"{FAULTS}[threads-sync-cached-once]",
            "unit/test_file.py::test_a_failed_sync_in_one_channel_is_final_for_all",
        ),
    ),
    Sabotage(
        "handlers-error-taken-for-a-failed-sync", "7", "a time-out's exception in a sync makes the handle read-only",
        "channel.py",
        "            if error.errno is None:\n                raise\n",
        "",
        ("unit/test_struck.py::test_what_a_handler_raises_in_a_system_call_is_no_failure_of_it",),
    ),
    Sabotage(
        "failed-durable-write-retried", "7", "a durable write that failed is followed by a plain one and a sync",
        "channel.py",
        "if code not in UNSUPPORTED:\n",
        "if False:\n",
        (
            f"{FAULTS}[threads-pwrite_durably-EIO-once]",
            "unit/test_file.py::test_a_failed_sync_in_one_channel_is_final_for_all",
        ),
    ),
    Sabotage(
        "failed-sync-of-another-thread-ignored", "7", "a sync that succeeds acknowledges what another's failure lost",
        "channel.py",
        "            raise file.sync_failed(error) from error\n        file.check_failure()\n",
        "            raise file.sync_failed(error) from error\n",
        ("unit/test_file.py::test_a_sync_that_succeeds_beside_a_failed_one_does_not_acknowledge",),
    ),
    Sabotage(
        "one-open-for-all-threads", "7", "all threads sync through one open, which is told once of what was lost",
        "handle.py",
        "        return Channel(self, Descriptor(self.system, fd))\n",
        "        only = self.__dict__.setdefault('only', Descriptor(self.system, fd))\n"
        "        if only.fd != fd:\n"
        "            self.system.close(fd)\n"
        "        return Channel(self, only)\n",
        ("unit/test_faults.py::test_a_channel_learns_what_anothers_sync_lost_before_that_ones_thread_runs_again",),
    ),
    Sabotage(
        "failed-sync-forgotten", "7", "a failed sync raises, and the handle writes on as if nothing had happened",
        "handle.py",
        "            if self.failure is None or self.failure is self.cut_off:\n"
        "                self.failure = failure\n",
        "            self.failure = None\n",
        (
            f"{FAULTS}[threads-sync-EIO-once]",
            "unit/test_file.py::test_a_failed_sync_in_one_channel_is_final_for_all",
        ),
    ),
    Sabotage(
        "blank-file-not-synced", "2", "an empty file is made a database and its second slot is not synced",
        "handle.py",
        "            channel.pwrite(PAGE_BYTES, image[PAGE_BYTES:])\n            channel.sync()\n",
        "            channel.pwrite(PAGE_BYTES, image[PAGE_BYTES:])\n",
        (f"{CRASH_IMAGES}[creation in place]",),
    ),
    Sabotage(
        "blank-file-size-not-synced", "2", "an empty file has a first page of a database before it has the size of one",
        "handle.py",
        "            self.resize(len(image) // PAGE_BYTES)\n            channel.sync()\n",
        "            self.resize(len(image) // PAGE_BYTES)\n",
        (f"{CRASH_IMAGES}[creation in zeros]",),
    ),
)  # fmt: skip
