"""Whole lives of a small database, again and again, and what the process holds before and after."""

from __future__ import annotations

import gc
import io
import os
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import psutil

from commit_rig import eventually
from rig.lifetime.world import maps_of, of_mmlsm, open_files, tiny


class Held(NamedTuple):
    """What the process holds; `objects` are those that the collector knows."""

    descriptors: int
    threads: int
    maps: int
    objects: int
    resident_bytes: int


def held(path: Path) -> Held:
    """Now, after a collection."""
    assert eventually(lambda: not of_mmlsm(), 20), f"threads live on: {of_mmlsm()}"
    for _ in range(3):
        gc.collect()
    objects = sum(1 for thing in gc.get_objects() if type(thing) is not weakref.ref)  # tests/proof.py keeps some
    process = psutil.Process()
    return Held(open_files(), threading.active_count(), maps_of(path), objects, process.memory_info().rss)


def life(path: Path, number: int) -> None:
    """Open, commit, flush, merge, read in all forms, keep views past the close; now and then drop instead of close."""
    db = tiny(path)
    db.update({b"%03d" % (i * 7 % 100): b"%d" % number * 20 for i in range(30)})
    if number % 4 == 0:
        db._engine.flush()
        db.put(b"large", io.BytesIO(bytes(70_000)))
    if number % 8 == 0:
        db.compact()
    with db.begin(write=True) as transaction:
        transaction.put(b"transaction", b"%d" % number)
        with transaction.savepoint():
            transaction.delete(b"transaction")
    snapshot, cursor = db.snapshot(), db.cursor()
    assert cursor.first()
    assert len(list(snapshot.items())) == len(db)
    views = [view for _, view in db.items(views=True)]
    stream = db.open_value(b"large")
    assert stream is None or len(stream.read()) == 70_000
    if number % 16 == 3:
        unfinished = db.begin(write=True)
        unfinished.put(b"never", bytes(2 << 20))
    if number % 16 == 5:
        del db  # as good as a kill
    else:
        db.close()
    assert views
    if number % 16 == 7:
        with tiny(path, readonly=True) as again:
            assert list(again.keys(limit=3))


def lives(path: Path, numbers: range) -> None:
    """One after the other."""
    for number in numbers:
        life(path, number)
        if number % 16 in (3, 5):
            gc.collect()
            assert eventually(lambda: not of_mmlsm(), 20)


def leaks(before: Held, after: Held, cycles: int) -> list[str]:
    """What grew. Objects and memory may grow a little, by caches, but not with each cycle."""
    found = [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name in ("descriptors", "threads", "maps")
        if getattr(after, name) > getattr(before, name)
    ]
    if after.objects - before.objects > max(200, cycles // 2):
        found.append(f"objects: {before.objects} before, {after.objects} after {cycles} cycles")
    if after.resident_bytes - before.resident_bytes > (8 << 20) + 1024 * cycles:
        found.append(f"resident: {before.resident_bytes} before, {after.resident_bytes} after {cycles} cycles")
    return found


def descriptors_of(path: Path) -> list[str]:
    """The descriptors that this process has of the file."""
    name, found = os.path.realpath(path), []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.removesuffix(" (deleted)") == name:
            found.append(number)
    return found
