"""Bugs of opening: what is believed of the log's tail, of the slots and of the pages in use."""

from __future__ import annotations

from sabotage import CRASH_IMAGES, DAMAGED_FILES, FAULTS, Sabotage

PLANTED = (
    Sabotage(
        "log-tail-trusted", "2 3", "a torn record at the log's end is replayed",
        "write/log_scan.py",
        "if len(payload) < header.length or checksum(payload) != header.payload_sum:",
        "if len(payload) < header.length:",
        (
            f"{CRASH_IMAGES}[mixed_commits]",
            "unit/test_recovery.py::test_the_tail_of_the_log_cut_anywhere_gives_a_prefix",
        ),
    ),
    Sabotage(
        "log-damage-reads-as-its-end", "1 9", "commits that were durable are dropped where one before them is damaged",
        "write/recovery.py",
        "for commit in whole_log(file, scan, root.bits):",
        "for commit in scan:",
        (
            DAMAGED_FILES,
            "unit/test_log_damage.py::test_a_damaged_record_that_was_durable_is_corruption_and_nothing_is_dropped",
        ),
    ),
    Sabotage(
        "durable-said-too-early", "2", "a record says of the commit before it that it was synced when it was not",
        "write/log.py",
        "log_record.COMMIT_RECORD, payload_sum, self._durable\n",
        "log_record.COMMIT_RECORD, payload_sum, max(0, state.seq - self._seq_before) and state.seq\n",
        (f"{CRASH_IMAGES}[group_commits]", "unit/test_log_damage.py::test_what_was_not_synced_ends_the_log_as_ever"),
    ),
    Sabotage(
        "log-looked-at-once", "5 9", "a reader beside a writer takes what is just being written for damage",
        "write/log_end.py",
        "        scan.look_again()\n",
        "",
        ("unit/test_log_damage.py::test_a_reader_beside_a_writer_looks_twice",),
    ),
    Sabotage(
        "reader-keeps-a-log-that-is-no-more", "4 5", "a reader takes for the log what the next writer has put there",
        "write/recovery.py",
        "    return now.log.epoch != root.superblock.log.epoch\n",
        "    return False\n",
        ("unit/test_readers_beside.py::test_a_reader_that_opens_while_writers_change_sees_what_had_returned",),
    ),
    Sabotage(
        "reader-numbered-by-the-ceiling", "5", "a reader is at a commit that is still to come",
        "engine.py",
        "exact = settings.readonly or root.superblock.clean",
        "exact = root.superblock.clean",
        (
            f"{CRASH_IMAGES}[full_commits]",
            "unit/test_readers_beside.py::test_a_reader_has_the_number_of_the_last_commit",
        ),
    ),
    Sabotage(
        "log-chain-not-followed", "2", "records of another life of the log's pages are replayed",
        "write/log_scan.py",
        "if header.epoch != at.epoch or header.predecessor != at.predecessor:",
        "if False:",
        ("unit/test_log.py::test_records_of_an_earlier_epoch_in_the_same_place_are_not_replayed",),
    ),
    Sabotage(
        "replayed-values-not-protected", "2 9", "pages of large values that only the log names are given away",
        "write/recovery.py",
        "    used = used_pages(root, retired)\n    claimed = [*replay.log_extents, *replay.value_extents]\n",
        "    used = used_pages(root, retired)\n    claimed = [*replay.log_extents]\n",
        (f"{CRASH_IMAGES}[overflow]", "unit/test_recovery.py::test_a_commit_that_returned_survives_a_kill"),
    ),
    Sabotage(
        "log-not-protected", "2", "recovery gives the log's own pages away before its commits are in a segment",
        "write/recovery.py",
        "    used = used_pages(root, retired)\n    claimed = [*replay.log_extents, *replay.value_extents]\n",
        "    used = used_pages(root, retired)\n    claimed = [*replay.value_extents]\n",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_recovery.py::test_recovery_is_repeated_until_it_is_durable",
        ),
    ),
    Sabotage(
        "newest-slot-overwritten-first", "2", "the only good slot is written first, and torn by a crash",
        "format/superblock.py",
        "return (0, 1) if ages[0] < ages[1] else (1, 0)",
        "return (0, 1)",
        ("unit/test_superblock.py::test_the_stale_or_damaged_slot_is_written_first",),
    ),
    Sabotage(
        "slots-not-in-turn", "2 7", "the slot whose sync failed is not the first that is written after it",
        "format/superblock.py",
        "    return (generation % 2, 1 - generation % 2)\n",
        "    return (0, 1)\n",
        ("unit/test_faults.py::test_a_slot_that_only_the_cache_has_and_somebody_maps_is_written_first",),
    ),
    Sabotage(
        "damaged-slot-not-mended", "2 9", "one superblock slot stays damaged, and the next damage is the end",
        "engine.py",
        "        if not root.slots_agree:\n",
        "        if False:\n",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_recovery.py::test_one_superblock_is_enough_and_the_other_is_mended",
        ),
    ),
    Sabotage(
        "seq-ceiling-not-written", "5", "numbers of commits that a crash took are given again",
        "engine.py",
        "self.last_seq = replay.seq if exact else max(replay.seq, root.superblock.seq_ceiling)",
        "self.last_seq = replay.seq",
        (f"{CRASH_IMAGES}[creation in zeros]", "unit/test_recovery.py::test_no_seq_is_given_twice_across_a_kill"),
    ),
    Sabotage(
        "bitmap-without-the-new-pages", "2 12", "the durable bitmap calls the pages of a new segment free",
        "write/store.py",
        "bits = self.allocator.live_bits(extra_live=[*edit.commit, *own])",
        "bits = self.allocator.live_bits(extra_live=own)",
        (f"{CRASH_IMAGES}[creation in zeros]", "unit/test_recovery.py::test_a_commit_that_returned_survives_a_kill"),
    ),
    Sabotage(
        "bitmap-not-written", "2 12", "only new bitmap pages are written, never those that changed",
        "write/store.py",
        "changed.update(bits.changed_since(self.bits), range(len(self.manifest.bitmap), bits.page_count))",
        "changed.update(range(len(self.manifest.bitmap), bits.page_count))",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_database.py::test_space_comes_back_when_everything_is_deleted",
        ),
    ),
    Sabotage(
        "old-manifest-leaks", "12", "the pages of the manifest before are never free again",
        "write/store.py",
        "        self.reclaimer.retire(draft.outdated, number, number)\n",
        "",
        (
            f"{CRASH_IMAGES}[creation in zeros]",
            "unit/test_database.py::test_a_small_store_overwritten_for_ever_stays_small",
        ),
    ),
    Sabotage(
        "unknown-version-taken", "12", "a file of another format version is opened as if it were ours",
        "format/superblock.py",
        "if len(data) >= 12 and version != FORMAT_VERSION:",
        "if len(data) < 12 and version != FORMAT_VERSION:",
        ("unit/test_superblock.py::test_an_unknown_version_is_refused_whatever_the_sum",),
    ),
    Sabotage(
        "growth-noted-before-made", "8", "pages that the file could not grow by count as there",
        "space/allocator.py",
        """        self._resize(pages)
        self._free.add(self._total, pages - self._total)
        self._total = pages
""",
        """        self._free.add(self._total, pages - self._total)
        self._total = pages
        self._resize(pages)
""",
        ("unit/test_allocator.py::TestEarliest",),
    ),
    Sabotage(
        "log-not-preallocated", "8", "no space is met when the log is written, and not before the commit is ordered",
        "write/log.py",
        "            self._file.preallocate(extent.first, extent.count)\n",
        "            pass\n",
        ("unit/test_recovery.py::test_no_space_for_the_log_is_a_commit_that_did_not_happen",),
    ),
    Sabotage(
        "no-space-swallowed", "8", "a log extent without space is written to all the same",
        "write/log.py",
        """            self._file.preallocate(extent.first, extent.count)
        except BaseException:
            self._allocator.give_back(extent)
            raise
""",
        """            self._file.preallocate(extent.first, extent.count)
        except BaseException:
            pass
""",
        ("unit/test_recovery.py::test_no_space_for_the_log_is_a_commit_that_did_not_happen",),
    ),
    Sabotage(
        "short-write-taken-for-whole", "1 8", "the rest of a short write is not written",
        "channel.py",
        "            done += count\n",
        "            done = len(view)\n",
        (
            f"{FAULTS}[threads-pwrite-short-once]",
            "unit/test_file.py::test_short_and_interrupted_writes_are_gone_on_with",
        ),
    ),
    Sabotage(
        "log-references-trusted", "2 3", "a record is replayed though the large value that it names was lost",
        "write/recovery.py",
        "scan = scan_log(file, log, lambda reference: is_sound(file, reference), root.superblock.seq)",
        "scan = scan_log(file, log, None, root.superblock.seq)",
        (
            f"{CRASH_IMAGES}[overflow]",
            "unit/test_recovery.py::test_the_log_ends_before_a_commit_whose_large_value_was_lost",
        ),
    ),
    Sabotage(
        "log-released-early", "1 2", "the log's pages are free before the flush that replaces them is durable",
        "write/flush.py",
        "    if not live:\n        commit += [*log_extents, *extents]\n",
        """    if not live:
        commit += extents
        for extent in log_extents:
            store.allocator.give_back(extent)
        log_extents = []
""",
        (f"{CRASH_IMAGES}[off_commits]",),
    ),
    Sabotage(
        "reclaimed-before-durable", "1 2 12", "pages are free, and cut off, before the superblock that frees them",
        "write/store.py",
        "        self.write_superblock(channel, draft.following)\n        try:\n"
        "            self._adopt(edit, draft, own, version)\n",
        """\
        try:
            self._adopt(edit, draft, own, version)
            self.reclaimer.reclaim(draft.manifest.install)
            self.allocator.truncate()
            self.write_superblock(channel, draft.following)
""",
        (f"{CRASH_IMAGES}[emptied]", f"{CRASH_IMAGES}[creation in place]"),
    ),
    Sabotage(
        "unknown-version-opened", "12", "a file of a format version that is not known is opened all the same",
        "format/superblock.py",
        "    if len(data) >= 12 and version != FORMAT_VERSION:\n",
        "    if False:\n",
        ("unit/test_misuse.py::test_a_newer_format_is_refused_untouched",),
    ),
)  # fmt: skip
