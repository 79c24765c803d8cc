"""A crowd in a process of its own, with the crime of the notes planted or without, for tests/stress/test_merging.py.

The crime: a page is freed once no version pins the last segment that had it, though an older one, which had it too, is
still read. A reader of such a page may see anything, up to the end of the process: hence the child. It ends with 1, and
"found" with the reason, when some actor sees something wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from actors_rig import everybody
from crowd_rig import run_rounds
from mmlsm.space.allocator import Allocator
from mmlsm.space.reclaim import Reclaimer


def plant() -> None:
    retire = Reclaimer.retire

    def retire_too_late_born(self: Reclaimer, extents: Iterable[tuple[int, int]], born: int, died: int) -> None:
        retire(self, extents, max(born, died - 1), died)

    Reclaimer.retire = retire_too_late_born  # type: ignore[method-assign]
    Allocator.truncate = lambda self: 0  # type: ignore[method-assign]  # a map's cut end would kill before it is told


def main(folder: str, seed: str, seconds: str, debug: str, planted: str) -> int:
    if planted == "planted":
        plant()
    try:
        print("clean:", run_rounds(Path(folder), int(seed), float(seconds), everybody, debug=debug == "debug"))
    except BaseException as error:
        print(f"found: {error!r}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
