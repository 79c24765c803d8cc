"""What the tests of the file share: a first image, other processes, forked children, a system that fails on demand."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

from mmlsm.file import System
from mmlsm.limits import PAGE_BYTES

IMAGE = b"a database".ljust(PAGE_BYTES, b"\0") + b"its copy".ljust(PAGE_BYTES, b"\0") + bytes(PAGE_BYTES)


def image() -> bytes:
    return IMAGE


def no_image() -> bytes:
    raise AssertionError("a first image is wanted for a file that is there")


class Process:
    """Another Python, that runs a program and is talked to by lines."""

    def __init__(self, program: str, *arguments: object) -> None:
        start = "import os, sys; from mmlsm.file import *; from mmlsm.errors import *\n"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", start + program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


HOLD = """
file = open_file(sys.argv[1], create=False)
print(os.getpid(), flush=True)
sys.stdin.readline()
"""


def in_forked_child(work) -> str:
    """What `work` returns in a forked child (its repr, or that of what it raised)."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = repr(work())
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


@contextlib.contextmanager
def living_child(work):
    """A forked child that does `work` when the yielded function asks for its answer, and lives until the block ends."""
    ask, answer = socket.socketpair()
    child = os.fork()
    if not child:
        ask.close()
        with contextlib.suppress(BaseException):
            if answer.recv(1):
                answer.send(work().encode())
            answer.recv(1)
        os._exit(0)
    answer.close()
    try:
        yield lambda: (ask.send(b"!"), ask.recv(100).decode())[1]
    finally:
        ask.close()
        os.waitpid(child, 0)


class Faulty(System):
    """Does what a list of outcomes says, one for each call of one method, then works again.

    An outcome is an errno, or for reads and writes a number of bytes as `("short", n)`.
    """

    def __init__(self, **outcomes: list[object]) -> None:
        self.outcomes = outcomes
        self.calls: list[str] = []

    def _next(self, name: str, full: int = 0) -> int:
        self.calls.append(name)
        todo = self.outcomes.get(name)
        outcome = todo.pop(0) if todo else None
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        return min(full, outcome[1]) if isinstance(outcome, tuple) else full

    def pread(self, fd, length, offset):
        return super().pread(fd, self._next("pread", length), offset)

    def pwrite(self, fd, data, offset):
        count = self._next("pwrite", len(data))
        return super().pwrite(fd, data[:count], offset)

    def pwrite_durably(self, fd, data, offset):
        count = self._next("pwrite_durably", len(data))
        return super().pwrite_durably(fd, data[:count], offset)

    def sync(self, fd):
        self._next("sync")
        super().sync(fd)

    def truncate(self, fd, length):
        self._next("truncate")
        super().truncate(fd, length)

    def allocate(self, fd, offset, length):
        self._next("allocate")
        super().allocate(fd, offset, length)
