"""Whole lives of a small database, again and again, and what the process holds before and after."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import psutil

from commit_rig import eventually
from rig.lifetime.world import maps_of, of_mmlsm, open_files, tiny


class Held(NamedTuple):
    """What the process holds."""

    descriptors: int
    threads: int
    maps: int
    objects: int
    """Those that the collector knows."""
    blocks: int
    """Of up to 512 bytes, of CPython's own allocator; weak references are left out, as tests/proof.py keeps some."""
    malloc_bytes: int
    """What is in use of malloc's, where glibc can tell: all that is larger, and what C took."""
    resident_bytes: int


GROWTH_MOST = Held(
    descriptors=0, threads=0, maps=0, objects=20, blocks=200, malloc_bytes=256 << 10, resident_bytes=8 << 20
)
"""What may have come with a thousand lives, by caches that still fill: not with each life.

Measured: 4 objects and 30 KiB of malloc's; of blocks 250 in the first 500 lives, 100 in the next thousand and 20 in the
one after. What is resident goes up and down by 4 MiB, an arena, a large value or a thread's stack: it is but a net
below the others.
"""


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 answers, of all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def malloc_bytes() -> int:
    """Bytes that malloc has given and not got back; 0 where it cannot be asked."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = MallInfo
    told = ask()
    return int(told.uordblks + told.hblkhd)


def held(path: Path) -> Held:
    """Now, after a collection."""
    assert eventually(lambda: not of_mmlsm(), 20), f"threads live on: {of_mmlsm()}"
    for _ in range(3):
        gc.collect()
    blocks, malloced = sys.getallocatedblocks(), malloc_bytes()
    things = gc.get_objects()
    objects = sum(1 for thing in things if type(thing) is not weakref.ref)
    blocks -= len(things) - objects
    del things
    resident = psutil.Process().memory_info().rss
    return Held(open_files(), threading.active_count(), maps_of(path), objects, blocks, malloced, resident)


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


def leaks(before: Held, after: Held) -> list[str]:
    """What grew over some lives by more than GROWTH_MOST."""
    return [
        f"{name}: {first} before, {last} after"
        for name, first, last, most in zip(Held._fields, before, after, GROWTH_MOST, strict=True)
        if last - first > most
    ]


def left_of_lives(path: Path, count: int, warming: int) -> tuple[Held, Held]:
    """What is held before and after so many lives, once `warming` have filled what is filled once."""
    lives(path, range(warming))
    before = held(path)
    lives(path, range(count))
    return before, held(path)


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
