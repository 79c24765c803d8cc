"""What the command line is given: input that comes by and by, by a pipe or damaged, and options between arguments."""

from __future__ import annotations

import contextlib
import fcntl
import io
import lzma
import os
import random
import re
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mmlsm

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.mmlsm"


# ---- pipes


@contextlib.contextmanager
def in_the_background(work: Callable[[], object]) -> Iterator[None]:
    """A thread does that meanwhile."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def input_by_and_by(monkeypatch: pytest.MonkeyPatch, *parts: bytes) -> Iterator[None]:
    """Standard input is a pipe that never waits. Each part is there a while after the one before was read."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.write(write, parts[0])

    def feed() -> None:
        deadline = time.monotonic() + 5
        for part in parts[1:]:
            while any(fcntl.ioctl(write, termios.FIONREAD, bytes(4))) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            os.write(write, part)
        os.close(write)

    with open(read, "rb") as stream, in_the_background(feed):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        yield


@pytest.mark.parametrize(
    "parts", [[b"", b"a\t1\nb\t2\n"], [b"a\t1\n", b"b\t2\n"], [b"a\t1\nb", b"\t", b"2"]], ids=str
)
def test_lines_of_a_pipe_that_does_not_wait_are_all_loaded(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[bytes]
) -> None:
    with input_by_and_by(monkeypatch, *parts):
        assert run("load", path) == (0, "2 lines loaded\n", "")
    assert run("dump", path) == (0, "a\t1\nb\t2\n", "")


@pytest.mark.parametrize("options", [[], ["--hex"]])
@pytest.mark.parametrize("parts", [[b"", b"00112233"], [b"0011", b"22", b"33"]], ids=str)
def test_a_value_of_a_pipe_that_does_not_wait_is_stored_whole(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], options: list[str]
) -> None:
    with input_by_and_by(monkeypatch, *parts):
        assert run("put", path, "aa", "-", *options) == (0, "", "")
    assert run("get", path, "aa", "--raw", *options) == (0, "00112233", "")


def test_what_a_program_had_read_ahead_is_loaded(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BufferedReader(io.BytesIO(b"a heading\na\t1\nb\t2\n"))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    assert sys.stdin.buffer.readline() == b"a heading\n"
    assert run("load", path) == (0, "2 lines loaded\n", "")


@pytest.mark.parametrize("name", ["pipe", "pipe.xz"])
def test_lines_of_a_named_pipe_are_loaded(run: Run, path: Path, name: str) -> None:
    pipe, lines = path.with_name(name), b"".join(b"%05d\tvalue\n" % i for i in range(3000))
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write_bytes(lzma.compress(lines) if name.endswith(".xz") else lines)

    with in_the_background(write):
        assert run("load", path, pipe) == (0, "3,000 lines loaded\n", "")
    assert run("dump", path)[1].encode() == lines


def test_a_demo_takes_the_lines_of_a_named_pipe(run: Run, path: Path) -> None:
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write_bytes(b"".join(b"folder/%05d\tvalue\n" % i for i in range(3000)))

    with in_the_background(write):
        code, _, err = run("demo", "--json", "--data", pipe, "--db", path)
    assert (code, err) == (0, "")


# ---- damaged archives


@pytest.mark.parametrize("damage", ["empty", "no archive", "cut off early", "cut off late", "changed"])
def test_a_damaged_archive_is_told_with_what_was_loaded(run: Run, path: Path, damage: str) -> None:
    digits = random.Random(1)
    packed = lzma.compress(b"".join(b"%06d\t%032x\n" % (i, digits.getrandbits(128)) for i in range(20_000)))
    middle = len(packed) // 2
    source = path.with_name("lines.xz")
    source.write_bytes({
        "empty": b"",
        "no archive": b"a\t1\n" * 100,
        "cut off early": packed[:10],
        "cut off late": packed[:middle],
        "changed": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
    }[damage])  # fmt: skip
    code, out, err = run("load", path, source, "--batch", 10)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"mmlsm: {source}: the .xz file is damaged or cut off")
    told = re.search(r"; the ([\d,]+) lines of the batches before it are loaded", err)
    assert told is not None, err
    with mmlsm.open(path, readonly=True) as database:
        assert database.count() == int(told[1].replace(",", ""))
        assert database.count() > 0 or damage not in ("cut off late", "changed")


def test_a_demo_tells_of_an_archive_that_is_cut_off(run: Run, path: Path) -> None:
    source = path.with_name("lines.xz")
    source.write_bytes(lzma.compress(b"a\t1\nb\t2\n")[:-20])
    code, out, err = run("demo", "--json", "--data", source, "--db", path)
    assert (code, out) == (2, "")
    assert err.startswith("mmlsm: the .xz file is damaged or cut off: ")


# ---- options between arguments


@pytest.mark.parametrize(
    "argv",
    [
        ["dump", "FILE", "--hex", "OUT"],
        ["dump", "--hex", "FILE", "OUT"],
        ["dump", "FILE", "--prefix", "6b", "--hex", "--limit=1", "OUT"],
        ["dump", "FILE", "--hex", "--", "OUT"],
    ],
    ids=" ".join,
)
def test_options_may_stand_before_what_may_be_left_out(run: Run, path: Path, argv: list[str]) -> None:
    with mmlsm.open(path) as database:
        database[b"key"] = b"value"
    target = path.with_name("lines")
    words = {"FILE": path, "OUT": target}
    assert run(*(words.get(part, part) for part in argv)) == (0, f"1 lines to {target}\n", "")
    copy = path.with_name("copy")
    assert run("load", copy, "--batch", "7", "--hex", target) == (0, "1 lines loaded\n", "")
    assert run("put", copy, "aa", "--hex", "bb") == (0, "", "")
    assert run("put", copy, "--hex", "cc", "--", "dd") == (0, "", "")
    assert run("put", copy, "--", "-a", "-b") == (0, "", "")
    assert run("put", copy, "e", "--json", "--", "-f") == (0, '{"key": "e", "bytes": 2}\n', "")
    assert run("dump", copy, "--hex")[1] == "2d61\t2d62\n65\t2d66\n6b6579\t76616c7565\naa\tbb\ncc\tdd\n"


def test_more_arguments_than_there_are_places_are_refused(run: Run, path: Path) -> None:
    for argv in (["put", path, "a", "b", "--hex", "c"], ["dump", path, "one", "--hex", "two"]):
        code, out, err = run(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert not path.exists()
