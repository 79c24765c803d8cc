"""Bugs of what is believed of the medium: sums and structure that are not looked at."""

from __future__ import annotations

from sabotage import DAMAGED_FILES, Sabotage

PLANTED = (
    Sabotage(
        "leaf-sum-not-checked", "9", "a damaged leaf is read as it is",
        "read/pages.py",
        "if not self.verify_never and checksum(data) != expected:",
        "if height and not self.verify_never and checksum(data) != expected:",
        (DAMAGED_FILES, "unit/test_segments.py::test_each_page_that_is_broken_is_named_or_the_answer_is_right"),
    ),
    Sabotage(
        "parent-sum-not-checked", "9", "a damaged parent is descended through",
        "read/pages.py",
        "if not self.verify_never and checksum(data) != expected:",
        "if not height and not self.verify_never and checksum(data) != expected:",
        (DAMAGED_FILES, "unit/test_segments.py::test_each_page_that_is_broken_is_named_or_the_answer_is_right"),
    ),
    Sabotage(
        "chunk-sum-not-checked", "9", "a damaged piece of a large value is given as it is",
        "read/pages.py",
        "if len(data) != size or (not verify_never and checksum(data) != sums[i]):",
        "if len(data) != size:",
        (DAMAGED_FILES, "unit/test_segments.py::test_each_page_that_is_broken_is_named_or_the_answer_is_right"),
    ),
    Sabotage(
        "record-header-sum-not-checked", "2 9", "a damaged header of a log record is believed",
        "write/log_record.py",
        "if checksum(data[offset : offset + SUMMED_BYTES]) != header.sum:",
        "if False:",
        (DAMAGED_FILES, "unit/test_log.py::test_the_file_cut_or_spoilt_at_any_byte_gives_a_prefix"),
    ),
    Sabotage(
        "superblock-sum-not-checked", "2 9", "a damaged superblock is believed",
        "format/superblock.py",
        "    if not is_sealed(data):\n        raise CorruptionError(f\"superblock slot",
        "    if False:\n        raise CorruptionError(f\"superblock slot",
        (DAMAGED_FILES, "unit/test_superblock.py::test_damage_of_any_byte_is_a_typed_error"),
    ),
    Sabotage(
        "manifest-sum-not-checked", "9", "a damaged manifest is believed",
        "format/manifest.py",
        "if expected_sum is not None and checksum(data) != expected_sum:",
        "if False:",
        (DAMAGED_FILES, "unit/test_manifest.py::test_damage_of_any_byte_is_caught_by_the_sum"),
    ),
    Sabotage(
        "damage-told-of-no-segment", "9", "the error for a damaged node does not say which segment",
        "read/pages.py",
        "the checksum differs; restore a backup, or salvage what is sound\",\n"
        "                page=page,\n                segment=self.segment_id,",
        "the checksum differs; restore a backup, or salvage what is sound\",\n"
        "                page=page,\n                segment=None,",
        (DAMAGED_FILES, "unit/test_segments.py::test_a_damaged_leaf_keeps_no_other_from_being_read"),
    ),
    Sabotage(
        "damage-told-of-another-page", "9", "the error for a damaged large value says where that begins",
        "read/pages.py",
        "    page = at // limits.PAGE_BYTES\n",
        "    page = reference.page\n",
        (
            DAMAGED_FILES,
            "unit/test_damaged.py::"
            "test_a_damaged_large_value_is_told_with_page_and_segment_whichever_way_it_is_read",
        ),
    ),
    Sabotage(
        "proofs-not-forgotten", "9", "a page that is used again counts as proved, for what it held before",
        "space/allocator.py",
        "    def _reserve(self, extent: Extent) -> None:\n        self._forget(*extent)\n",
        "    def _reserve(self, extent: Extent) -> None:\n",
        ("unit/test_segments.py::test_what_was_proved_is_forgotten_when_its_pages_are_promised_anew",),
    ),
    Sabotage(
        "bitmap-sum-not-checked", "9 12", "a damaged bitmap is believed, and pages in use are given away",
        "write/recovery.py",
        "if len(bits_of_page) != PAGE or checksum(bits_of_page) != expected:",
        "if len(bits_of_page) != PAGE:",
        ("unit/test_segments.py::test_a_damaged_bitmap_is_named_before_its_pages_are_given_away",),
    ),
    Sabotage(
        "structure-not-checked", "9", "offsets within a leaf are believed wherever they lead",
        "read/pages.py",
        "            return leaf_fault(m8, size, limit, key_max)\n",
        "            return 0\n",
        (DAMAGED_FILES,),
    ),
    Sabotage(
        "sum-of-sums-not-checked", "9", "the sums of a large value are believed whatever became of them",
        "read/pages.py",
        "if len(data) != 8 * count or checksum(data) != reference.sum:",
        "if len(data) != 8 * count:",
        ("unit/test_views.py::test_an_extent_in_the_place_of_another_of_its_length_is_corruption",),
    ),
    Sabotage(
        "filter-not-proved", "9", "a damaged filter says of keys that they are not there",
        "read/segment.py",
        "            self.prove_extent(self.record.filter)\n",
        "            pass\n",
        (DAMAGED_FILES,),
    ),
    Sabotage(
        "verify-skips-large-values", "9", "verify() finds no damage in large values",
        "check.py",
        "            for _ in read_chunks(self.file, reference, 0, reference.length):\n",
        "            for _ in ():\n",
        (DAMAGED_FILES,),
    ),
    Sabotage(
        "filter-proved-once", "9", "with verify=always a filter that was damaged since is believed",
        "read/segment.py",
        "            self.filter_ready = not self.verify_always\n",
        "            self.filter_ready = True\n",
        ("unit/test_verify_always.py::test_with_always_a_filter_and_what_is_viewed_is_proved_each_time",),
    ),
    Sabotage(
        "verify-skips-the-log", "9", "verify() of a database that is written to finds no damage in its log",
        "check.py",
        "            report.problems.append(problem)\n            return\n",
        "            return\n",
        ("unit/test_verify.py::test_a_database_that_is_open_for_writing_proves_its_log_too",),
    ),
    Sabotage(
        "verify-skips-values-in-memory", "9", "verify() finds no damage in large values that no segment has yet",
        "check.py",
        "    for reference in layout.in_memory:\n",
        "    for reference in ():\n",
        ("unit/test_verify.py::test_a_database_that_is_open_for_writing_proves_its_log_too",),
    ),
    Sabotage(
        "merge-takes-damage-over", "9", "a merge reads leaves unproved, and what it writes has right sums",
        "write/merge_walk.py",
        "        self.segment.touch_nodes([(leaf.page, leaf.pages, leaf.sum) for leaf in leaves], 0)\n",
        "",
        (DAMAGED_FILES,),
    ),
    Sabotage(
        "compiled-structure-not-checked", "9", "offsets within a leaf are believed wherever they lead, in C",
        "read/pages.py",
        "return leaf_fault(m8, size, limit, key_max)",
        "return 0",
        (DAMAGED_FILES,),
        compiled=True,
    ),
    Sabotage(
        "walked-round-and-round", "9", "a cursor goes on where parents lead back",
        "read/segment.py",
        "        if self.valid and step * compare(",
        "        if False and step * compare(",
        ("unit/test_damaged_trees.py::test_readers_and_merges_meet_an_error_where_the_keys_do_not_go_on",),
    ),
    Sabotage(
        "filter-of-too-few-keys", "9", "verify() passes by a filter that lacks keys",
        "check.py",
        "            if filtered and pages.filter_lacks(key):\n",
        "            if False:\n",
        ("unit/test_verify.py::test_a_filter_that_lacks_keys_is_found",),
    ),
)  # fmt: skip
