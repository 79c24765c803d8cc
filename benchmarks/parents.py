"""How many leaves and parents a merge of few keys into a huge segment writes.

    PYTHONPATH=tests:tests/unit python benchmarks/parents.py [--leaves 1000000] [--keys 350] [--seeds 5] [--markdown]

The segment is that of tests/unit/test_merge_reuse.py: leaves of 4 KiB with 30 entries, of which only those stand in the
file (in memory) that the keys come into and their neighbours; each key comes into another leaf, at random. Pages are
counted that the merge's segment has and the one before had not, by their height.

leaves      that were written, and of those how many a key came into
parents     that were written; the root is one
a key       parents written for each key
taken over  nodes of the old segment that the new one has too
"""

from __future__ import annotations

import argparse
import random

from observed import print_table, what_runs
from test_merge_reuse import ENTRIES, NEW, begun, by_height, huge, key_of, pages_of

from merge_rig import MergeRig


def cells(leaves: int, keys: int, seed: int) -> list[str]:
    """One line of the table."""
    dice = random.Random(seed)
    rig = MergeRig()
    hit = dice.sample(range(leaves), keys)
    source = rig.write(dict.fromkeys(sorted(key_of(leaf, dice.randrange(ENTRIES)) for leaf in hit), NEW))
    real = {near for leaf in {*hit} | begun(rig, source) for near in range(leaf, leaf + 3)}
    bottom = huge(rig, leaves, real | {0, leaves - 1})
    before = [pages_of(nodes) for nodes in by_height(rig, bottom)]
    made = rig.open(rig.merge([source], into=bottom).record)
    assert made is not None
    after = [pages_of(nodes) for nodes in by_height(rig, made)]
    assert made.record.entries == bottom.record.entries
    written = [len(new - old) for new, old in zip(after, before, strict=True)]
    parents = sum(written[1:])
    return [
        str(seed),
        " + ".join(f"{len(nodes):,}" for nodes in after),
        f"{written[0]:,} ({keys:,})",
        " + ".join(f"{count:,}" for count in written[1:]) + f" = {parents:,}",
        f"{parents / keys:.2f}",
        f"{sum(len(new & old) for new, old in zip(after, before, strict=True)):,}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", metavar="N", type=int, default=1_000_000)
    parser.add_argument("--keys", metavar="N", type=int, default=350)
    parser.add_argument("--seeds", metavar="N", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="a table as it goes into a document")
    arguments = parser.parse_args()
    print(what_runs())
    rows = [cells(arguments.leaves, arguments.keys, seed) for seed in range(1, arguments.seeds + 1)]
    columns = ("seed", "nodes by height", "leaves", "parents", "a key", "taken over")
    print_table(f"{arguments.keys:,} keys into {arguments.leaves:,} leaves", columns, rows, arguments.markdown)


if __name__ == "__main__":
    main()
