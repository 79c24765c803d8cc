"""What the benchmarks load: keys with their values, and the orders in which they come. All of it is seeded.

`paths` are the lines of a file of `key<TAB>value` lines (.xz is unpacked); without one, the files below the
interpreter's prefix and /usr. `pairs` are keys of 16 random bytes with values of 100.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mmlsm.demo.crawl import without_nested
from mmlsm.demo.lines import Source, read_whole

KEY_BYTES = 16
VALUE_BYTES = 100
CLUSTER_KEYS = (100, 500)
ZIPF_EXPONENT = 0.99

Pair = tuple[bytes, bytes]


class KeySet(Protocol):
    """Distinct keys in their order; a rank is a place in it."""

    def __len__(self) -> int: ...

    def pair(self, rank: int) -> Pair:
        """Key and value at that place."""
        ...


class Lines:
    """The lines of a plain file."""

    def __init__(self, path: Path) -> None:
        self.source = Source(path, None, lambda done, total: None)

    def __len__(self) -> int:
        return len(self.source)

    def pair(self, rank: int) -> Pair:
        return self.source.pair(self.source.starts[rank])


class RandomPairs:
    """`random_pairs`, in order."""

    def __init__(self, count: int) -> None:
        self.pairs = sorted(random_pairs(count))

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, rank: int) -> Pair:
        return self.pairs[rank]


def random_pairs(count: int) -> list[Pair]:
    """Pairs in random order."""
    rng = random.Random(1)
    values = [rng.randbytes(VALUE_BYTES) for _ in range(1009)]
    return [(rng.randbytes(KEY_BYTES), values[i % len(values)]) for i in range(count)]


# -- files of lines


def write_lines(data: Path | None, most: int, to: Path) -> None:
    """The first `most` lines of `data`, unpacked into a file; without `data` the files of this machine."""
    if data is not None:
        to.write_bytes(read_whole(data, most, lambda done, total: None))
        return
    found = sorted(itertools.islice(_files_here(), most))
    print(f"no --data: the paths of {len(found):,} files of this machine, for {most:,} keys", file=sys.stderr)
    to.write_bytes(b"".join(b"%b\t%b\n" % pair for pair in found))


def _files_here() -> Iterator[Pair]:
    """Path, and size with time of change, of each file below the interpreter's prefix and /usr."""
    for root in without_nested((Path(sys.prefix), Path("/usr"))):
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.fsencode(os.path.join(folder, name))
                if b"\n" not in path and b"\t" not in path:
                    facts = os.lstat(path)
                    yield path, b"%d %d" % (facts.st_size, facts.st_mtime_ns)


def shuffle_lines(path: Path, to: Path, seed: int) -> int:
    """The lines of a plain file in random order into another, to be read with little memory; how many."""
    source = Source(path, None, lambda done, total: None)
    order = array("Q", source.starts)
    random.Random(seed).shuffle(order)
    with to.open("wb", buffering=1 << 20) as file:
        for start in order:
            file.write(b"%b\t%b\n" % source.pair(start))
    return len(order)


def read_lines(path: Path) -> Iterator[Pair]:
    """The pairs of a plain file, one after the other."""
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            key, _, value = line[:-1].partition(b"\t")
            yield key, value


# -- orders: as many ranks as there are keys


def sequential(count: int, dice: random.Random) -> array[int]:
    """Each key once, sorted."""
    return array("I", range(count))


def clustered(count: int, dice: random.Random) -> array[int]:
    """Each key once: runs of 100 to 500 neighbours, sorted in themselves, one after the other in random order."""
    runs, at = [], 0
    while at < count:
        end = min(count, at + dice.randint(*CLUSTER_KEYS))
        runs.append(range(at, end))
        at = end
    dice.shuffle(runs)
    return array("I", itertools.chain.from_iterable(runs))


def uniform(count: int, dice: random.Random) -> array[int]:
    """Each key once, shuffled."""
    ranks = sequential(count, dice)
    dice.shuffle(ranks)
    return ranks


def zipf(count: int, dice: random.Random) -> array[int]:
    """`count` writes of keys drawn by Zipf's law, exponent 0.99, from all of them; which key is popular is random."""
    popular = uniform(count, dice)
    weights = list(itertools.accumulate(1 / place**ZIPF_EXPONENT for place in range(1, count + 1)))
    return array("I", dice.choices(popular, cum_weights=weights, k=count))


ORDERS = {"sequential": sequential, "clustered": clustered, "uniform": uniform, "zipf": zipf}
