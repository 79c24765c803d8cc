"""The file shrinks by itself, a pin holds exactly what it needs, and all of it returns.

What the merge thread does in its own time is waited for; the waits end as soon as it is done.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
import proof
from mmlsm.write import merger
from mmlsm.write.merger import Merger

PAGE_BYTES = 4096
EMPTY_BYTES_MOST = 64 << 10
TINY: dict[str, Any] = {"memtable_bytes": 1 << 16, "leaf_bytes": 4096, "log_extent_bytes": 1 << 14}


IDLE_BYTES_MOST = 192 << 10
"""So much the file of an idle database may have beside twice what is live: for less it is not moved together."""


def eventually(what: str, ready: Callable[[], bool], patience_s: float = 30) -> None:
    """Wait for the threads behind to bring it about."""
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, f"not in {patience_s} seconds: {what}"
        time.sleep(0.01)


def load(db: Any, count: int, rng: random.Random, *, size: int = 300) -> dict[bytes, bytes]:
    pairs = {b"%06d" % i: rng.randbytes(size) for i in range(count)}
    shuffled = list(pairs.items())
    rng.shuffle(shuffled)
    for at in range(0, count, 50):
        db.update(shuffled[at : at + 50])
    return pairs


def live_bytes(pairs: dict[bytes, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in pairs.items())


def segment_pages(db: Any) -> int:
    return sum(segment.pages for segment in db.stats().segments)


@pytest.mark.parametrize("how", ["clear", "delete", "batch"])
def test_after_everything_is_deleted_and_compacted_the_file_is_tiny(open_db: Any, path: Path, how: str) -> None:
    db = open_db(**TINY)
    pairs = load(db, 3000, random.Random(how))
    db.put(b"large", bytes(3 << 20))
    assert path.stat().st_size > live_bytes(pairs)
    if how == "clear":
        db.clear()
    elif how == "delete":
        for key in [*pairs, b"large"]:
            db.delete(key)
    else:
        with db.batch() as batch:
            for key in [*pairs, b"large"]:
                batch.delete(key)
    db.compact()
    db.close()
    assert path.stat().st_size <= EMPTY_BYTES_MOST
    proof.prove_file(path)
    with mmlsm.open(path, readonly=True) as again:
        assert list(again) == []


def test_a_file_of_which_everything_is_deleted_shrinks_with_nobody_asking(open_db: Any, path: Path) -> None:
    db = open_db(**TINY)
    pairs = load(db, 2000, random.Random(1))
    for key in pairs:
        db.delete(key)
    db._engine.flush()
    eventually("the file is cut", lambda: path.stat().st_size <= IDLE_BYTES_MOST)
    assert db.stats().space.truncated > 0


def test_a_file_of_which_the_most_is_deleted_follows_what_is_left(open_db: Any, path: Path) -> None:
    """Whichever part is left: the earliest pages, the latest, or some everywhere."""
    for which in (slice(0, 200), slice(1800, 2000), slice(0, 2000, 10)):
        db = open_db(**TINY)
        pairs = load(db, 2000, random.Random(2))
        kept = sorted(pairs)[which]
        for key in set(pairs) - set(kept):
            db.delete(key)
        db._engine.flush()
        bound = 2 * sum(len(key) + len(pairs[key]) for key in kept) + IDLE_BYTES_MOST
        eventually("the file is cut", lambda bound=bound: path.stat().st_size <= bound)
        assert dict(db.items()) == {key: pairs[key] for key in kept}
        db.clear()
        db.close()


def test_after_compaction_the_file_is_little_more_than_what_is_live(open_db: Any, path: Path) -> None:
    rng = random.Random(1)
    db = open_db(**TINY)
    pairs = load(db, 4000, rng, size=1000)
    for _ in range(2):
        for key in rng.choices(sorted(pairs), k=2000):
            pairs[key] = rng.randbytes(1000)
            db.put(key, pairs[key])
    db.compact()
    assert path.stat().st_size <= 1.15 * live_bytes(pairs)
    assert dict(db.items()) == pairs
    db.close()
    assert path.stat().st_size <= 1.15 * live_bytes(pairs)


def test_a_compaction_moves_overflow_extents_from_the_end_of_the_file_too(open_db: Any, path: Path) -> None:
    """Values in extents of their own are moved by reference in other merges, and would keep the tail for ever."""
    rng = random.Random(3)
    db = open_db(**TINY)
    for i in range(60):
        db.put(b"early %02d" % i, rng.randbytes(60_000))
    last = {b"last %d" % i: rng.randbytes(60_000) for i in range(3)}
    db.update(last)
    db.compact()
    for i in range(60):
        db.delete(b"early %02d" % i)
    for _ in range(2):
        db.compact()
    assert path.stat().st_size <= 1.15 * live_bytes(last) + 2 * EMPTY_BYTES_MOST
    assert dict(db.items()) == last


@pytest.mark.parametrize("kind", ["snapshot", "iterator", "cursor", "transaction", "view"])
def test_a_pin_holds_exactly_what_it_needs_and_all_returns_when_it_ends(open_db: Any, path: Path, kind: str) -> None:
    rng = random.Random(kind)
    db = open_db(**TINY)
    pairs = load(db, 1500, rng)
    db.compact()
    needed = segment_pages(db)
    pin: Any = {
        "snapshot": db.snapshot,
        "iterator": lambda: iter(db.items()),
        "cursor": db.cursor,
        "transaction": db.begin,
        "view": lambda: db.get_view(b"000700"),
    }[kind]()
    newer = pairs
    for _ in range(3):  # what comes and goes meanwhile is none of the pin's
        newer = load(db, 1500, rng)
        db.compact()
        eventually(f"{needed} pages are retired", lambda: db.stats().space.retired == needed)
    assert len(db.stats().pins) == 2
    proof.prove(db)
    if kind == "view":
        assert pin == pairs[b"000700"]
    elif kind == "iterator":
        assert dict(pin) == pairs
    elif kind == "cursor":
        assert pin.last()
        assert pin.item() == (b"001499", pairs[b"001499"])
    else:
        assert dict(pin.items()) == pairs
    if hasattr(pin, "close"):
        pin.close()
    del pin
    gc.collect()
    eventually("what was retired is free", lambda: db.stats().space.retired == 0)
    db.compact()
    assert path.stat().st_size <= 1.15 * live_bytes(newer) + EMPTY_BYTES_MOST
    assert dict(db.items()) == newer


def test_a_pin_needs_only_what_the_newest_version_has_no_more(open_db: Any) -> None:
    """Old and new share overflow extents; a pin costs those that are gone from the newest, and the nodes."""
    db = open_db(**TINY)
    large = {b"large %02d" % i: random.Random(i).randbytes(50_000) for i in range(20)}
    db.update(large)
    db.compact()
    nodes = segment_pages(db) - sum(-(-50_000 // PAGE_BYTES) for _ in large)
    with db.snapshot() as snapshot:
        for i in range(5):
            db.delete(b"large %02d" % i)
        db.compact()
        most = nodes + 5 * -(-50_000 // PAGE_BYTES)
        eventually("what the pin sees is kept", lambda: 0 < db.stats().space.retired <= most)
        assert dict(snapshot.items()) == large
    eventually("what was retired is free", lambda: db.stats().space.retired == 0)


def test_pins_of_many_ages_each_hold_their_own(open_db: Any, path: Path, seed: int) -> None:
    """Let go in any order; what is retired falls with each, to nothing."""
    rng = random.Random(seed)
    db = open_db(**TINY, node_entries_max=8)
    held: list[tuple[Any, dict[bytes, bytes], int]] = []
    for _ in range(6):
        pairs = load(db, 300, rng)
        db.compact()
        held.append((db.snapshot(), pairs, segment_pages(db)))
    load(db, 300, rng)
    db.compact()
    rng.shuffle(held)
    while held:
        needed = sum(pages for _, _, pages in held)
        eventually(f"{needed} pages are retired", lambda needed=needed: db.stats().space.retired == needed)
        snapshot, pairs, _ = held.pop()
        assert dict(snapshot.items()) == pairs
        snapshot.close()
    eventually("nothing is retired", lambda: db.stats().space.retired == 0)


def test_a_view_that_outlives_its_database_keeps_its_pages_until_it_goes(open_db: Any, path: Path) -> None:
    db = open_db(**TINY)
    pairs = load(db, 1000, random.Random(5))
    db.compact()
    view = db.get_view(b"000500")
    db.close()
    db = open_db(**TINY)
    for _ in range(2):
        newer = load(db, 1000, random.Random(6))
        db.compact()
    assert view == pairs[b"000500"]
    db.close()
    assert view == pairs[b"000500"]
    held = path.stat().st_size
    assert held > 2 * live_bytes(pairs), "nothing that was there when the writer opened is reused under the view"
    view.release()
    del view
    gc.collect()
    db = open_db(**TINY)
    db.compact()
    db.close()
    assert path.stat().st_size <= 1.15 * live_bytes(newer) + EMPTY_BYTES_MOST
    with mmlsm.open(path, readonly=True) as again:
        assert dict(again.items()) == newer


@pytest.mark.parametrize("where", ["here", "here, of the newest", "elsewhere", "elsewhere, nothing retired"])
def test_an_idle_file_of_which_a_reader_kept_the_end_is_cut_when_the_reader_is_gone(
    open_db: Any, path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nothing is installed any more by then, and nothing but its going tells the merge thread to try again."""
    plain, tried, allowed = Merger.relocate_when_idle, [], False

    def relocate_when_idle(self: Merger, jobs: Any) -> bool:
        if not allowed:
            self.expecting = True
            return False
        idle = self.is_idle(self.store.state.version)
        more = plain(self, jobs)
        tried.append(idle and not more)
        return more

    monkeypatch.setattr(merger, "RELOCATE_PAGES_MIN", 8)  # in many passes
    monkeypatch.setattr(Merger, "relocate_when_idle", relocate_when_idle)
    rng = random.Random(where)
    kept = {b"z%03d" % i: rng.randbytes(3000) for i in range(30)}  # in extents of their own, which merges refer to
    db = open_db(**{**TINY, "memtable_bytes": 1 << 24}, auto_merge=False)
    for pairs in ({b"a%04d" % i: rng.randbytes(3000) for i in range(1000)}, kept):
        db.update(pairs)
        db._engine.flush()
    db.close()
    db = open_db(**TINY)
    with db.batch() as batch:
        for i in range(1000):
            batch.delete(b"a%04d" % i)
    db._engine.flush()
    eventually("all is one run", lambda: (db.stats().runs, db.stats().space.retired) == (1, 0))
    long = path.stat().st_size
    assert long > 10 * live_bytes(kept), "what is kept stands at the end"
    reader = mmlsm.open(path, readonly=True) if where.startswith("elsewhere") else db.snapshot()
    if where in ("here", "elsewhere"):
        kept[b"z000"] = b"another"
        db[b"z000"] = kept[b"z000"]
        db._engine.flush()
        eventually("all is one run", lambda: db.stats().runs == 1)
    allowed = True
    eventually("it was tried", lambda: any(tried))
    assert path.stat().st_size > long // 2
    assert len(dict(reader.items())) == len(kept)
    reader.close()
    del reader
    bound = 2 * live_bytes(kept) + IDLE_BYTES_MOST
    eventually("the file is cut", lambda: path.stat().st_size <= bound)
    eventually("the merge thread waits", lambda: not db._engine.merger.relocating)
    assert dict(db.items()) == kept
