"""A small ext4 file system in a file, loop-mounted, and copies of it as a power cut would leave them.

What the programs have written stands in the page cache of the mounted file system and reaches its device only when ext4
hands it on: for a sync, in a journal commit, in writeback. The loop device writes what it is handed into the backing
file, whose own page cache is read by the copy. So the backing file is the medium, and a copy of it, mounted elsewhere,
is what is found after the power went: all that ext4 had handed on, nothing else. (A write cache of the device that
forgets is not in it: what is handed on is kept, flush or no flush. The simulated disk has that.)

ext4 itself is kept from handing on by the clock: `commit=300` for the journal; the kernel's writeback begins at 30
seconds, and a mount lives far shorter. No lazy initialisation writes behind our back. Still the copy takes time, so it
must be of a moment that was: who writes is stopped, every thread of it, and two copies in a row are equal. As each byte
was then the same in both, and all of the first was read before all of the second, the file stood like this in between.

I1. Only mounts and loop devices that were made here are undone here, and all of them, whatever happens: `mount -o loop`
    makes a loop device that goes with its mount.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_BYTES = 48 << 20
STEP_BYTES = 4096


class Disk:
    """A folder with images of file systems, at most one of them mounted, at `place`."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "mounted"
        self.place.mkdir()
        self._folder = folder
        self._image: Path | None = None
        self._made = 0

    def format(self, rng: random.Random) -> Path:
        """A new image with an empty file system."""
        image = self._new_image()
        with open(image, "wb") as file:
            file.truncate(DISK_BYTES)
        kind = "lazy_itable_init=0,lazy_journal_init=0"
        _run("mkfs.ext4", "-q", "-F", "-b", rng.choice(["1024", "4096"]), "-J", "size=4", "-E", kind, image)
        return image

    def mount(self, image: Path, rng: random.Random) -> None:
        """Mount the image at `place`; ext4 first replays its journal."""
        options = ["loop", "commit=300", "data=" + rng.choice(["ordered", "ordered", "writeback"])]
        if rng.random() < 0.2:
            options.append("nodelalloc")
        self._image = image
        _run("mount", "-t", "ext4", "-o", ",".join(options), image, self.place)

    def unmount(self) -> None:
        """Undo `mount`, and delete the image."""
        if self._image is None:
            return
        if os.path.ismount(self.place):
            try:
                _run("umount", self.place)
            except subprocess.CalledProcessError:
                gc.collect()  # an open that a cycle keeps
                _run("umount", self.place)
        self._image.unlink()
        self._image = None

    def detach(self) -> None:
        """As `unmount`, but whoever uses it still, as the frames of a failure do, keeps the mount until he is gone."""
        try:
            self.unmount()
        except subprocess.CalledProcessError:
            _run("umount", "-l", self.place)
            self.unmount()

    def stir(self, path: Path, rng: random.Random) -> None:
        """Have some of the file's dirty pages, or the journal, written at once: the kernel may do so at any time."""
        if rng.random() < 0.5 and path.exists():
            fd = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(fd).st_size
                for _ in range(rng.choice([1, 5, 30])):
                    first = rng.randrange(size // STEP_BYTES + 1)
                    length = int(rng.expovariate(1 / 8)) + 1
                    os.posix_fadvise(fd, first * STEP_BYTES, length * STEP_BYTES, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        if rng.random() < 0.3:
            fd = os.open(self.place, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def cut(self) -> Path:
        """An image of what is on the medium now. REQUIRES that who writes to the mounted one is stopped."""
        assert self._image is not None
        before = _content(self._image)
        for _ in range(200):
            now = _content(self._image)
            if now == before:
                break
            before = now
        else:
            raise AssertionError("the disk is never at rest")
        copy = self._new_image()
        with open(copy, "wb") as file:
            for offset, data in now:
                file.seek(offset)
                file.write(data)
            file.truncate(DISK_BYTES)
        return copy

    def _new_image(self) -> Path:
        self._made += 1
        return self._folder / f"{self._made}.img"


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    """A Disk in memory where there is such a place, else in `folder`; nothing of it is left behind."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else folder
    with tempfile.TemporaryDirectory(prefix="mmlsm-disk-", dir=parent) as name:
        made = Disk(Path(name))
        try:
            yield made
        finally:
            made.detach()


def reason_for_none(folder: Path) -> str | None:
    """Why no disk can be had here; None where it can."""
    if not sys.platform.startswith("linux"):
        return "loop mounts of ext4 are Linux's"
    if os.geteuid() != 0:
        return "only root may mount"
    if missing := [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]:
        return f"there is no {missing[0]}"
    rng = random.Random(0)
    try:
        with disk(folder) as tried:
            tried.mount(tried.format(rng), rng)
    except subprocess.CalledProcessError as error:
        return f"{error.cmd[0]} says: {error.stderr.strip()}"
    return None


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)


def _content(image: Path) -> list[tuple[int, bytes]]:
    """All of a sparse file but its holes, as (offset, bytes)."""
    found = []
    with open(image, "rb") as file:
        fd, end = file.fileno(), 0
        with contextlib.suppress(OSError):  # no data behind `end`
            while True:
                begin = os.lseek(fd, end, os.SEEK_DATA)
                end = os.lseek(fd, begin, os.SEEK_HOLE)
                found.append((begin, os.pread(fd, end - begin, begin)))
    return found
