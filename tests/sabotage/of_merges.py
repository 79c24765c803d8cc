"""Bugs of merges: wrong answers, wrong orders, pages that are lost."""

from __future__ import annotations

from sabotage import HISTORIES, Sabotage

PLANTED = (
    Sabotage(
        "tombstone-dropped-too-early", "1 4", "a merge drops a tombstone over a key that an older run still has",
        "write/merge_run.py",
        "core.decide(any(segment.holds(key) for segment in self.older))",
        "core.decide(False)",
        (HISTORIES, "unit/test_merge.py::test_a_tombstone_stays_while_something_older_may_hold_its_key"),
    ),
    Sabotage(
        "flush-drops-tombstones", "1 4", "a flush drops tombstones though there is something below",
        "write/flush.py",
        "                if alone:\n",
        "                if True:\n",
        (
            HISTORIES,
            "unit/test_merge.py::test_a_tombstone_stays_while_something_older_may_hold_its_key",
        ),
    ),
    Sabotage(
        "bottom-merged-as-the-newest", "1 4", "of a key in the bottom and above it the older value wins",
        "write/merge_run.py",
        "sources = [*segments, *([into] if into is not None else [])]",
        "sources = [*([into] if into is not None else []), *segments]",
        (HISTORIES, "unit/test_merge.py::test_progress_that_raises_stops_a_compaction_cleanly"),
    ),
    Sabotage(
        "merged-run-put-behind-older-ones", "1 4", "what a merge made is read after runs that are older",
        "write/merge_jobs.py",
        "tiers[chosen.into] = (*newer, *made, *older)",
        "tiers[chosen.into] = (*newer, *older, *made)",
        (HISTORIES, "unit/test_merge_drains.py::test_the_newest_level_does_not_starve_while_runs_drain"),
    ),
    Sabotage(
        "failed-merge-keeps-its-pages", "8 12", "a merge that fails does not give back what it reserved",
        "write/merge_run.py",
        "    except BaseException:\n        writer.abandon()\n        for leftover in leftovers:\n",
        "    except BaseException:\n        for leftover in leftovers:\n",
        ("unit/test_merge_slices.py::test_whichever_write_fails_the_merge_gives_everything_back",),
    ),
    Sabotage(
        "moved-value-leaks", "12", "the place that a large value was moved away from is never free again",
        "write/merge_run.py",
        "                    self.dropped.append((old.page, old.pages))\n",
        "",
        ("unit/test_shrinking.py::test_a_compaction_moves_overflow_extents_from_the_end_of_the_file_too",),
    ),
    Sabotage(
        "taken-over-under-newer-keys", "1 4", "a node is taken over though a newer run has keys in its range",
        "write/merge_inputs.py",
        "        if not alone or core.has_written(low):\n",
        "        if core.has_written(low):\n",
        (
            HISTORIES,
            "unit/test_merge_reuse.py::test_a_few_keys_into_a_huge_segment_write_their_leaves_and_ancestors",
        ),
    ),
    Sabotage(
        "failed-install-keeps-its-pages", "8 12", "an install that fails does not give back its manifest's pages",
        "write/store.py",
        """            except BaseException:
                for extent in own:
                    self.allocator.give_back(extent)
                raise
            self._switch(channel, edit, draft, own, version)
""",
        """            except BaseException:
                raise
            self._switch(channel, edit, draft, own, version)
""",
        ("unit/test_installs.py::test_an_install_that_fails_gives_its_own_pages_back",),
    ),
    Sabotage(
        "drained-in-part-forgets-the-rest", "1 12", "runs that drain later are lost when older ones have drained",
        "write/merge_jobs.py",
        "(*others.draining, *left)",
        "left",
        ("unit/test_merge_many.py::test_what_drains_stays_in_order_when_not_all_of_it_is_merged_at_once",),
    ),
    Sabotage(
        "merges-nest-without-end", "8", "long merges come in between long merges of the same tier",
        "write/merge_jobs.py",
        "chosen.into - 1 if aside",
        "chosen.into if aside",
        ("unit/test_merge_many.py::test_merges_in_between_go_into_newer_and_newer_tiers",),
    ),
    Sabotage(
        "manifest-kept-in-the-place-first-guessed", "8", "a file that grows much during an install fails the writer",
        "write/store.py",
        "            elif self._manifest_pages(draft, bits.pages, spare=0) > place.count:\n",
        "            elif False:\n",
        ("unit/test_installs.py::test_a_file_that_grows_much_while_a_manifest_is_made_gets_a_larger_one",),
    ),
    Sabotage(
        "moved-by-the-users-policy", "12", "with the best fit, what is moved to make the file shorter stays at its end",
        "write/overflow.py",
        "allocator.reserve(old.pages, early=True)",
        "allocator.reserve(old.pages)",
        ("unit/test_relocation.py::test_what_moves_goes_to_the_earliest_pages_whatever_the_policy",),
    ),
    Sabotage(
        "held-back-by-a-reader-for-good", "12", "a file of which a reader kept the end stays long when the reader goes",
        "write/merger.py",
        "        if self.is_held():\n            self.relocating, self.expecting = False, True\n",
        "        if self.is_held():\n            self.relocating, self.relocated_at = False, store.manifest.install\n",
        (
            "unit/test_shrinking.py::"
            "test_an_idle_file_of_which_a_reader_kept_the_end_is_cut_when_the_reader_is_gone",
        ),
    ),
)  # fmt: skip
