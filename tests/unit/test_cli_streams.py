"""The command line between streams that are closed, full, of a narrow encoding or without an end: one line, a code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mmlsm
from mmlsm.cli import lines, streams

Run = Callable[..., tuple[int, str, str]]
TEXT = "Grüße – ü"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.mmlsm"


@pytest.fixture
def filled(path: Path) -> Path:
    with mmlsm.open(path) as database:
        database.put_many([(b"key %03d" % i, b"value %d" % i) for i in range(300)])
        database.put(b"long", bytes(range(256)) * 400)
        database.put(b"k" * 5000, b"of a long key")
        database.put(TEXT.encode(), TEXT.encode())
    return path


def shell(redirection: str, *argv: object, **environment: str) -> tuple[int, bytes, bytes]:
    """A command of its own process, its streams as the shell redirects them; its exit code, stdout and stderr.

    It writes no file of more than some 64 MiB.
    """
    script = f'ulimit -f 131072; "$@" {redirection}'
    command = ["/bin/sh", "-c", script, "sh", sys.executable, "-m", "mmlsm", *map(str, argv)]
    done = subprocess.run(
        command, input=b"", capture_output=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def is_one_line(err: bytes, *words: str) -> bool:
    text = err.decode()
    return text.startswith("mmlsm: ") and text.count("\n") == 1 and all(word in text for word in words)


# ---- closed and full


@pytest.mark.parametrize(
    "argv",
    [["verify"], ["get", "long"], ["get", b"key 001".hex(), "--hex"], ["scan"], ["dump"], ["info"], ["levels"], ["map"],
     ["keys", "--count"], ["put", "new", "value", "--json"], ["load", "LINES"], ["--help"]],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_told(filled: Path, argv: list[str], redirection: str) -> None:
    source = filled.with_name("lines")
    source.write_bytes(b"new\tvalue\n")
    command, *rest = [str(source) if part == "LINES" else part for part in argv]
    code, out, err = shell(redirection, command, *([] if command == "--help" else [filled]), *rest)
    word = "standard output is closed" if redirection == ">&-" else "No space left"
    assert (code, out) == (2, b"")
    assert is_one_line(err, word), err
    with mmlsm.open(filled, readonly=True) as database:
        assert (b"new" in database) == (command in ("put", "load")), "what was asked for is done all the same"


def test_a_command_that_has_nothing_to_say_does_not_miss_its_output(filled: Path) -> None:
    assert shell(">&-", "delete", filled, "long") == (0, b"", b"")
    assert shell(">&- 2>&-", "put", filled, "new", "value") == (0, b"", b"")
    with mmlsm.open(filled, readonly=True) as database:
        assert b"long" not in database
        assert database[b"new"] == b"value"


def test_without_stderr_complaints_go_nowhere(filled: Path) -> None:
    for argv in (["get", filled, "none"], ["nonsense"], ["info", filled.with_name("none")]):
        code, out, _ = shell("2>&-", *argv)
        assert code > 0
        assert out == b""
    assert shell(">&- 2>&-", "info", filled)[0] == 2


COMPLAINTS = [(["get", "FILE", "none"], 1), (["delete", "FILE", "none"], 1), (["nonsense"], 2), (["get", "FILE"], 2),
              (["load", "FILE", "none"], 2), (["info", "none"], 3)]  # fmt: skip


@pytest.mark.parametrize(("argv", "expected"), COMPLAINTS, ids=str)
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">/dev/full 2>/dev/full"])
def test_a_complaint_that_cannot_be_written_changes_no_exit_code(
    filled: Path, argv: list[str], expected: int, redirection: str
) -> None:
    words = {"FILE": filled, "none": filled.with_name("none")}
    code, out, _ = shell(redirection, *(words.get(part, part) for part in argv))
    assert (code, out) == (expected, b"")


def with_a_reader_gone(which: str, *argv: object) -> tuple[int, bytes]:
    """A command one of whose streams nobody reads; its exit code and the other stream."""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, which: write}
    try:
        command = [sys.executable, "-m", "mmlsm", *map(str, argv)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=False, **streams)
    finally:
        os.close(write)
    return done.returncode, done.stdout if which == "stderr" else done.stderr


@pytest.mark.parametrize(("argv", "expected"), COMPLAINTS, ids=str)
def test_a_complaint_that_nobody_reads_changes_no_exit_code(filled: Path, argv: list[str], expected: int) -> None:
    words = {"FILE": filled, "none": filled.with_name("none")}
    assert with_a_reader_gone("stderr", *(words.get(part, part) for part in argv)) == (expected, b"")


@pytest.mark.parametrize("command", [[], ["get"]], ids=str)
def test_help_that_nobody_reads_is_no_error(command: list[str]) -> None:
    assert with_a_reader_gone("stdout", *command, "--help") == (0, b"")


@pytest.mark.parametrize("argv", [["load"], ["load", "-", "--hex"], ["put", "key", "-"]], ids=" ".join)
def test_input_that_is_closed_is_told(path: Path, argv: list[str]) -> None:
    command, *rest = argv
    code, out, err = shell("<&-", command, path, *rest)
    assert (code, out) == (2, b"")
    assert is_one_line(err, "standard input is closed"), err
    assert not path.exists()


# ---- encodings


@pytest.mark.parametrize(
    "argv", [["levels"], ["levels", "--segments"], ["map"], ["scan"], ["keys"], ["info"], ["get", TEXT]], ids=" ".join
)
def test_a_narrow_encoding_loses_nothing(filled: Path, argv: list[str]) -> None:
    command, *rest = argv
    code, out, err = shell("", command, filled, *rest, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (code, err) == (0, b"")
    if command != "get":
        assert out.isascii()
    shown = rb"Gr\xc3\xbc\xc3\x9fe \xe2\x80\x93 \xc3\xbc"
    if command in ("scan", "keys"):
        assert shown in out
    if command in ("levels", "map"):
        assert b"\\x" not in out.replace(shown, b""), "no mark of ours is escaped"


def test_a_narrow_encoding_leaves_json_what_it_is(filled: Path) -> None:
    argv = ["scan", filled, "--json"]
    wide, narrow = (shell("", *argv, PYTHONIOENCODING=encoding)[1] for encoding in ("utf-8", "ascii"))
    assert narrow.isascii()
    assert not wide.isascii()
    loaded = [[json.loads(line) for line in out.splitlines()] for out in (wide, narrow)]
    assert loaded[0] == loaded[1]
    assert {"key": TEXT, "value": TEXT} in loaded[1]


def test_a_name_that_is_no_text_is_shown_by_its_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.db")
    try:
        mmlsm.open(name).close()
    except mmlsm.StorageError:
        pytest.skip("this file system has no such names")
    code, out, err = shell("", "info", name, PYTHONIOENCODING="utf-8")
    assert (code, err) == (0, b"")
    assert b"/\\xff.db: mmlsm database" in out
    code, out, err = shell("", "info", name, "--json", PYTHONIOENCODING="utf-8")
    assert (code, err) == (0, b"")
    assert json.loads(out)["path"] == name


# ---- lines without an end


class Endless(io.RawIOBase):
    """Gives `head` and then zeros for ever; notes how much."""

    def __init__(self, head: bytes = b"") -> None:
        self.head = head
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        assert self.given < 64 << 20, "it reads on and on"
        part, self.head = self.head[: len(buffer)].ljust(len(buffer), b"\0"), self.head[len(buffer) :]
        buffer[:] = part
        self.given += len(part)
        return len(part)


def feed(monkeypatch: pytest.MonkeyPatch, stream: io.RawIOBase | io.BytesIO) -> None:
    """What standard input is."""
    buffer = io.BufferedReader(stream) if isinstance(stream, io.RawIOBase) else stream
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(buffer))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", ["line 1", "no tab between a key and a value in its first 131,072 bytes"]),
        (b"a\t1\nb\t2\n", ["line 3", "no tab", "the 2 lines"]),
        (b"a\t1\nb\t2\nc\t", ["line 3", "a line of more than 1,000,000 bytes", "put --from", "the 2 lines"]),
    ],
)
@pytest.mark.parametrize("options", [[], ["--batch", "1"]])
def test_a_line_without_an_end_is_told(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, words: list[str], options: list[str]
) -> None:
    monkeypatch.setattr(streams, "LINE_BYTES_MOST", 1_000_000)
    stream = Endless(head)
    feed(monkeypatch, stream)
    code, out, err = run("load", path, *options)
    assert (code, out) == (2, "")
    if not options:  # all in one batch, of which nothing is loaded
        words = [word.replace("the 2 lines", "the 0 lines") for word in words]
    assert is_one_line(err.encode(), *words), err
    assert stream.given < 4 << 20
    assert run("keys", path)[1] == ("a\nb\n" if head and options else "")


def test_hexadecimal_input_without_an_end_is_told(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LINE_BYTES_MOST", 1_000_000)
    stream = Endless()
    feed(monkeypatch, stream)
    code, out, err = run("put", path, "00", "-", "--hex")
    assert (code, out) == (2, "")
    assert is_one_line(err.encode(), "more than 1,000,000"), err
    assert stream.given < 4 << 20
    assert not path.exists()


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("options", [[], ["--hex"]])
def test_the_longest_line_is_loaded_and_dumped_and_no_longer_one(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes, options: list[str]
) -> None:
    key = b"k" * 65_535
    line = (key.hex().encode() if options else key) + b"\t" + b"6" * 200_000
    longest = b"00\t11\n" + line + end
    monkeypatch.setattr(streams, "LINE_BYTES_MOST", len(line))
    feed(monkeypatch, io.BytesIO(longest))
    assert run("load", path, *options) == (0, "2 lines loaded\n", "")
    code, out, err = run("dump", path, *options)
    assert (code, out, err) == (0, f"00\t11\n{line.decode()}\n", "")
    monkeypatch.setattr(streams, "LINE_BYTES_MOST", len(line) - 1)
    code, _, err = run("dump", path, *options)
    assert code == 2
    assert is_one_line(err.encode(), "too long for a line", "get --to"), err
    feed(monkeypatch, io.BytesIO(longest))
    assert run("load", path, *options)[0] == 2


def test_long_lines_make_small_batches(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BATCH_BYTES", 1000)
    feed(monkeypatch, io.BytesIO(b"".join(b"%d\t%s\n" % (i, b"v" * 300) for i in range(10)) + b"no tab\n"))
    code, _, err = run("load", path)
    assert code == 2
    assert "the 8 lines of the batches before it" in err
    assert run("keys", path, "--count") == (0, "8\n", "")


# ---- what is written over, and what is read while it is written


@pytest.mark.parametrize("name", ["some.mmlsm", "hard link", "symbolic link", "standard input"])
@pytest.mark.parametrize(
    "argv", [["put", "key", "--from", "SOURCE"], ["put", "00", "--hex", "--from", "SOURCE"], ["load", "SOURCE"]],
    ids=" ".join,
)  # fmt: skip
def test_no_database_is_its_own_input(filled: Path, name: str, argv: list[str]) -> None:
    source: object = filled.with_name(name)
    redirection = ""
    if name == "hard link":
        filled.with_name(name).hardlink_to(filled)
    elif name == "symbolic link":
        filled.with_name(name).symlink_to(filled)
    elif name == "standard input":
        source, redirection = "-", f"<'{filled}'"
        argv = [part for part in argv if part != "--from"]
    before = filled.read_bytes()
    command, *rest = argv
    code, out, err = shell(redirection, command, filled, *(source if part == "SOURCE" else part for part in rest))
    assert (code, out) == (2, b"")
    assert is_one_line(err, "the database itself"), err
    assert filled.read_bytes() == before


@pytest.mark.unproved
def test_no_database_is_written_over_and_no_file_by_half(path: Path, filled: Path) -> None:
    before, target = filled.read_bytes(), filled.with_name("target")
    other = filled.with_name("other.mmlsm")
    with mmlsm.open(other) as database:
        database[b"a"] = b"1"
    for taken in (filled, other):
        code, out, err = shell("", "get", filled, "long", "--to", taken)
        assert (code, out) == (2, b"")
        assert is_one_line(err, str(taken), "database")
    assert filled.read_bytes() == before
    target.write_bytes(b"as it was")
    with mmlsm.open(filled) as database:
        database[b"large"] = bytes(3 << 20)
        database._engine.flush()
    assert shell("", "get", filled, "long", "--to", target)[0] == 0
    assert target.read_bytes() == bytes(range(256)) * 400
    data = bytearray(filled.read_bytes())
    start = data.find(bytes(2 << 20)) + (1 << 20)
    data[start] ^= 1
    filled.write_bytes(data)
    code, _, err = shell("", "get", filled, "large", "--to", target)
    assert code == 3
    assert is_one_line(err, "page")
    assert target.read_bytes() == bytes(range(256)) * 400
    assert sorted(one.name for one in path.parent.iterdir()) == ["other.mmlsm", "some.mmlsm", "target"]


@pytest.mark.unproved
@pytest.mark.parametrize("command", ["verify", "salvage", "map"])
def test_who_reads_no_further_is_not_told_that_a_damaged_file_is_sound(filled: Path, command: str) -> None:
    with mmlsm.open(filled, readonly=True) as database:
        root = database._engine.root.manifest.levels[-1][0][0].root_page
    data = bytearray(filled.read_bytes())
    data[root * 4096 + 100] ^= 1
    filled.write_bytes(data)
    more = [filled.with_name("out")] if command == "salvage" else []
    code, err = with_a_reader_gone("stdout", command, filled, *more)
    assert code == 1, err
