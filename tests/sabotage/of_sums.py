"""Bugs of what is believed of the medium: sums and structure that are not looked at."""

from __future__ import annotations

from sabotage import Sabotage

PLANTED = (
    Sabotage(
        "leaf-sum-not-checked", "9", "a damaged leaf is read as it is",
        "read/pages.py",
        "if not self.verify_never and checksum(data) != expected:",
        "if height and not self.verify_never and checksum(data) != expected:",
        ("unit/test_segments.py::test_each_page_that_is_broken_is_named_or_the_answer_is_right",),
    ),
    Sabotage(
        "parent-sum-not-checked", "9", "a damaged parent is descended through",
        "read/pages.py",
        "if not self.verify_never and checksum(data) != expected:",
        "if not height and not self.verify_never and checksum(data) != expected:",
        ("unit/test_segments.py::test_each_page_that_is_broken_is_named_or_the_answer_is_right",),
    ),
    Sabotage(
        "chunk-sum-not-checked", "9", "a damaged piece of a large value is given as it is",
        "read/pages.py",
        "if len(data) != size or (not verify_never and checksum(data) != sums[i]):",
        "if len(data) != size:",
        ("unit/test_segments.py::test_each_page_that_is_broken_is_named_or_the_answer_is_right",),
    ),
    Sabotage(
        "record-header-sum-not-checked", "2 9", "a damaged header of a log record is believed",
        "write/log_record.py",
        "if checksum(data[offset : offset + SUMMED_BYTES]) != header.sum:",
        "if False:",
        ("unit/test_log.py::test_the_file_cut_or_spoilt_at_any_byte_gives_a_prefix",),
    ),
    Sabotage(
        "superblock-sum-not-checked", "2 9", "a damaged superblock is believed",
        "format/superblock.py",
        "    if not is_sealed(data):\n        raise CorruptionError(f\"superblock slot",
        "    if False:\n        raise CorruptionError(f\"superblock slot",
        ("unit/test_superblock.py::test_damage_of_any_byte_is_a_typed_error",),
    ),
    Sabotage(
        "manifest-sum-not-checked", "9", "a damaged manifest is believed",
        "format/manifest.py",
        "if expected_sum is not None and checksum(data) != expected_sum:",
        "if False:",
        ("unit/test_manifest.py::test_damage_of_any_byte_is_caught_by_the_sum",),
    ),
    Sabotage(
        "proofs-not-forgotten", "9", "a page that is used again counts as proved, for what it held before",
        "space/allocator.py",
        "    def _reserve(self, extent: Extent) -> None:\n        self._forget(*extent)\n",
        "    def _reserve(self, extent: Extent) -> None:\n",
        ("unit/test_segments.py::test_what_was_proved_is_forgotten_when_its_pages_are_promised_anew",),
    ),
)  # fmt: skip
