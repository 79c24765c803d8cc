"""The crash rig on several processes: long-lived ones, each with a workload at a time.

Each keeps to a core of its own, but for what it records. One that hangs says where and ends, which ends the run.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Final

from campaign import Campaign
from rig.crashes.crash import CORES, FINDINGS_MOST, Result, run
from rig.crashes.workloads import WORKLOADS

HANG_S: Final = 600
"""So long without a next image is a hang."""
LOOK_S: Final = 5
FEW: Final = 100
"""So many images are taken of a workload that has its first turn when the time is up."""
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3


def prepare(cores: SimpleQueue[int]) -> None:
    """In a worker, first. Its threads take turns for the interpreter, so they are quickest on one core."""
    keep_memory()
    if not cores.empty():
        os.sched_setaffinity(0, {cores.get()})


def keep_memory() -> None:
    """Have glibc keep freed blocks of a few MiB: each open wants the same again, and page faults cost half of it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)


def one(seed: str, images: int, workload: str, kept: Path, every: int, until: float) -> Result:
    """In a worker. What is watched is the single image: a workload of which all are taken may last for long."""
    watched = 0.0

    def watch() -> None:
        nonlocal watched
        if time.monotonic() - watched > LOOK_S:
            watched = time.monotonic()
            faulthandler.dump_traceback_later(HANG_S, exit=True)

    watch()
    try:
        return run(seed, images, [workload], kept=kept, every=every, until=until, alive=watch)
    finally:
        faulthandler.cancel_dump_traceback_later()


def turns(campaign: Campaign) -> Iterator[tuple[str, str]]:
    """A seed and a workload, all workloads in turn, for ever."""
    for number in itertools.count():
        for name in WORKLOADS:
            yield f"{campaign.seed}.{number}", name


def share_out(campaign: Campaign, images: int, each: int, kept: Path, every: Mapping[str, int]) -> Result:
    """Crash all workloads, about `each` images at a time, with ever new seeds, until there are so many distinct ones or
    the campaign's time is up; every workload at least once. The first time takes all images that are enumerated at
    every tick, of workloads in `every`, at depths below what it says."""
    result = Result()
    tasks = turns(campaign)
    workers = len(CORES) or os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    cores = spawn.SimpleQueue()
    for core in CORES:
        cores.put(core)
    begun = 0
    until = time.monotonic() + campaign.left  # one clock for all processes
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=prepare, initargs=(cores,)) as pool:
        busy: set[Future[Result]] = set()
        while True:
            enough = len(result.images) >= images or campaign.left <= 0 or len(result.findings) >= FINDINGS_MOST
            while len(busy) < 2 * workers and (begun < len(WORKLOADS) or not enough):
                seed, name = next(tasks)
                count, all_below = each, every.get(name, 0) if begun < len(WORKLOADS) else 0
                if campaign.left <= 0:
                    count = min(each, FEW)
                busy.add(pool.submit(one, seed, count, name, kept, all_below, until))
                begun += 1
            if not busy:
                return result
            done, busy = wait(busy, return_when=FIRST_COMPLETED)
            for future in done:
                result.add(future.result())
