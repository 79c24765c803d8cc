"""The command line: what each command prints, its JSON and exit codes; bad input is one line, never a traceback."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mmlsm
from mmlsm.cli.output import json_of, size_of, text_of
from mmlsm.cli.page import dump_of

Run = Callable[..., tuple[int, str, str]]

COMMANDS = [
    *("demo", "get", "put", "delete", "scan", "keys", "load"),
    *("dump", "info", "levels", "map", "free", "verify", "salvage", "compact", "page"),
]
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.mmlsm"


@pytest.fixture
def filled(path: Path) -> Path:
    with mmlsm.open(path) as database:
        database.put_many([(b"key %03d" % i, b"value %d" % i) for i in range(300)])
        database.put(b"long", bytes(range(256)) * 400)
        database.put(b"k" * 5000, b"of a long key")
        database.delete(b"key 007")
    return path


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """What standard input holds."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# ---- single keys


def test_what_is_put_is_got(run: Run, path: Path) -> None:
    assert run("put", path, "a key", "a value") == (0, "", "")
    assert run("get", path, "a key") == (0, "a value\n", "")
    assert run("get", path, "a key", "--raw") == (0, "a value", "")
    assert run("get", path, "a key", "--json") == (0, '{"key": "a key", "found": true, "value": "a value"}\n', "")


def test_hexadecimal_keys_and_values(run: Run, path: Path) -> None:
    assert run("put", path, "00ff", "fe01", "--hex")[0] == 0
    assert run("get", path, "00ff", "--hex") == (0, "fe01\n", "")
    assert run("keys", path) == (0, "\\x00\\xff\n", "")
    assert run("keys", path, "--hex") == (0, "00ff\n", "")
    assert run("keys", path, "--json") == (0, '{"hex": "00ff"}\n', "")


def test_values_from_files_and_standard_input(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = path.with_name("source"), path.with_name("target")
    source.write_bytes(bytes(range(256)) * 9000)
    assert run("put", path, "blob", "--from", source)[0] == 0
    assert run("get", path, "blob", "--to", target) == (0, f"2,304,000 bytes to {target}\n", "")
    assert target.read_bytes() == source.read_bytes()
    feed(monkeypatch, b"from\nstdin")
    assert run("put", path, "piped", "-")[0] == 0
    assert run("get", path, "piped", "--raw")[1] == "from\nstdin"


def test_an_absent_key_is_exit_code_1(run: Run, filled: Path) -> None:
    assert run("get", filled, "none") == (1, "", "mmlsm: there is no key none\n")
    assert run("get", filled, "none", "--json") == (1, '{"key": "none", "found": false}\n', "")
    assert run("delete", filled, "none", "key 001") == (1, "", "mmlsm: there is no key none\n")
    assert run("get", filled, "key 001")[0] == 1
    assert run("delete", filled, "key 002") == (0, "", "")


def test_ranges(run: Run, filled: Path) -> None:
    assert run("keys", filled, "--prefix", "key 00", "--limit", 3) == (0, "key 000\nkey 001\nkey 002\n", "")
    assert run("keys", filled, "--start", "key 298", "--stop", "kf", "--reverse")[1] == "key 299\nkey 298\n"
    assert run("keys", filled, "--prefix", "key", "--count") == (0, "299\n", "")
    assert run("scan", filled, "--prefix", "key 01", "--limit", 1) == (0, "key 010\tvalue 10\n", "")
    line = run("scan", filled, "--prefix", "long", "--json")[1]
    assert json.loads(line) == {"key": "long", "value": {"hex": (bytes(range(256)) * 400).hex()}}
    assert run("keys", filled, "--prefix", "a", "--start", "b")[0] == 2


# ---- whole files as text


@pytest.mark.parametrize("name", ["lines.tsv", "lines.tsv.xz"])
@pytest.mark.parametrize("options", [[], ["--hex"]])
def test_what_is_dumped_can_be_loaded(run: Run, filled: Path, name: str, options: list[str]) -> None:
    lines, copy = filled.with_name(name), filled.with_name("copy.mmlsm")
    if not options:
        assert run("delete", filled, "long")[0] == 0
    count = 301 if options else 300
    assert run("dump", filled, lines, *options) == (0, f"{count} lines to {lines}\n", "")
    assert run("load", copy, lines, "--batch", 7, *options) == (0, f"{count} lines loaded\n", "")
    with mmlsm.open(filled, readonly=True) as one, mmlsm.open(copy, readonly=True) as other:
        assert list(one.items()) == list(other.items())
    assert run("dump", filled, lines)[0] == 2, "an existing file is not overwritten"


def test_lines_from_standard_input(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"a\t1\nb\t2\t3\nc\t")
    assert run("load", path, "--json") == (0, '{"loaded": 3}\n', "")
    assert run("dump", path) == (0, "a\t1\nb\t2\t3\nc\t\n", "")


def test_a_line_without_a_tab_is_named(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"a\t1\nb\t2\nno tab\n")
    code, out, err = run("load", path, "--batch", 2)
    assert (code, out) == (2, "")
    assert err.startswith("mmlsm: standard input, line 3: no tab")
    assert "the 2 lines" in err
    assert run("keys", path)[1] == "a\nb\n"


def test_dump_refuses_what_does_not_go_into_a_line(run: Run, path: Path) -> None:
    target = path.with_name("lines")
    run("put", path, "two\nlines", "x")
    code, _, err = run("dump", path, target)
    assert (code, err.count("\n")) == (2, 1)
    assert "--hex" in err
    assert not target.exists()


def test_a_damaged_archive_is_bad_input(run: Run, path: Path) -> None:
    source = path.with_name("lines.xz")
    source.write_bytes(lzma.compress(b"a\t1\n")[:-3] + b"xyz")
    code, _, err = run("load", path, source)
    assert (code, err.count("\n")) == (2, 1)


# ---- the whole file


def test_info_of_a_closed_and_of_an_open_file(run: Run, filled: Path) -> None:
    code, out, _ = run("info", filled)
    assert code == 0
    assert "closed cleanly  yes" in out
    with mmlsm.open(filled) as database:
        database.put(b"new", b"entry")
        facts = json.loads(run("info", filled, "--json")[1])
        assert facts["clean"] is False
        assert (facts["log"]["commits"], facts["log"]["entries"]) == (1, 1)
        assert "no: open for writing" in run("info", filled)[1]
    facts = json.loads(run("info", filled, "--json")[1])
    assert facts["clean"] is True
    assert facts["log"]["entries"] == 0
    assert facts["file_bytes"] == filled.stat().st_size
    assert facts["seq"] == 5


def test_pages_add_up(run: Run, filled: Path) -> None:
    facts = json.loads(run("info", filled, "--json")[1])
    free = json.loads(run("free", filled, "--json")[1])
    assert sum(extent["pages"] for extent in free["free"]) == facts["free_pages"]
    report = json.loads(run("verify", filled, "--json")[1])
    assert report["ok"] is True
    assert report["free"] == facts["free_pages"]
    assert report["live"] == facts["segment_pages"]
    assert "sound" in run("verify", filled)[1]
    assert "pages are free" in run("free", filled)[1]


def test_levels_lists_each_segment(run: Run, filled: Path) -> None:
    segments = json.loads(run("levels", filled, "--json")[1])
    assert segments[-1]["last_key"] == "long"
    assert "first key" in run("levels", filled)[1]


def test_compact_gives_space_back(run: Run, filled: Path) -> None:
    with mmlsm.open(filled) as database:
        for round_ in range(3):
            database.put_many([(b"more %05d" % i, b"%d" % round_ * 50) for i in range(5000)])
    sizes = json.loads(run("compact", filled, "--json")[1])
    assert sizes["bytes_after"] == filled.stat().st_size < sizes["bytes_before"]
    assert run("verify", filled)[0] == 0
    assert len(json.loads(run("levels", filled, "--json")[1])) == 1


def test_every_page_of_a_file_is_decoded(run: Run, filled: Path) -> None:
    copy = filled.with_name("copy.mmlsm")
    with mmlsm.open(filled, auto_merge=False) as database:
        database.put(b"only in the log", b"x")
        allocator = database._engine.allocator
        unused = allocator.reserve(3)
        database.put(b"large and only in the log", bytes(1 << 20))
        allocator.give_back(unused)
        shutil.copy(filled, copy)
    found = set()
    number = 0
    while number < copy.stat().st_size // PAGE:
        code, out, err = run("page", copy, number, "--json")
        assert (code, err) == (0, "")
        shown = json.loads(out)
        found.add(shown["kind"])
        assert run("page", copy, number)[1].startswith(f"page {number:,} belongs to ")
        last = shown["first_page"] + shown["pages"] - 1
        number = last if number < last else number + 1
    assert found - {"retired"} == {"superblock", "holder", "manifest", "bitmap", "leaf", "extent", "log", "free"}
    assert "mmlsm writer pid" in run("page", copy, 2)[1]


def test_a_page_shows_entries_and_children(run: Run, path: Path) -> None:
    with mmlsm.open(path, leaf_bytes=4096) as database:
        database.put_many([(b"key %05d" % i, b"value %d" % i) for i in range(2000)])
    kinds: dict[str, dict[str, object]] = {}
    for number in range(path.stat().st_size // PAGE):
        shown = json.loads(run("page", path, number, "--json")[1])
        kinds.setdefault(shown["kind"], shown)
    parent, leaf = kinds["parent"], kinds["leaf"]
    assert sum(row["entries"] for row in parent["rows"]) == 2000  # type: ignore[attr-defined]
    assert leaf["rows"][0]["value"].startswith("value ")  # type: ignore[index]


def test_a_page_of_the_log_shows_the_commits_on_it_also_behind_a_link(run: Run, path: Path) -> None:
    copy = path.with_name("copy.mmlsm")
    with mmlsm.open(path, auto_merge=False) as database:
        database.put(b"first", b"x")
        allocator, log = database._engine.allocator, database._engine.committer.log  # type: ignore[union-attr]
        unused = allocator.reserve(allocator.counts().free + 1)
        while len(log.extents) < 2:
            database.put(b"%04d" % database.seq, bytes(900))
        database.put(b"last", b"x")
        allocator.give_back(unused)
        shutil.copy(path, copy)
        (before, before_count), (first, count) = log.extents
        last = database.seq
    assert before + before_count < first, "the link leads to a higher place"
    rows = {
        (number, row["commit"]): row
        for start, pages in ((before, before_count), (first, count))
        for number in range(start, start + pages)
        for row in json.loads(run("page", copy, number, "--json")[1])["rows"]
    }
    for (number, _), row in rows.items():
        start, end = row["file offset"], row["file offset"] + row["bytes"]
        assert start // PAGE <= number <= (end - 1) // PAGE
        assert row["bytes"] < 1100
    assert {commit for number, commit in rows if number >= first} == {last - 1, last}
    assert min(row["file offset"] for (number, _), row in rows.items() if number >= first) == first * PAGE


# ---- what can go wrong


@pytest.mark.unproved
def test_damage_is_found_by_verify(run: Run, filled: Path) -> None:
    leaf = next(
        number
        for number in range(filled.stat().st_size // PAGE)
        if json.loads(run("page", filled, number, "--json")[1])["kind"] == "leaf"
    )
    with filled.open("r+b") as file:
        file.seek(leaf * PAGE + 2000)
        file.write(b"damage")
    code, out, err = run("verify", filled)
    assert (code, err) == (1, "")
    assert f"page {leaf}: the checksum differs" in out
    assert run("page", filled, leaf)[0] == 1
    assert run("scan", filled)[0] == 3


@pytest.mark.unproved
def test_salvage_brings_out_what_is_sound_and_says_what_is_not(run: Run, filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved.mmlsm"
    code, text, err = run("salvage", filled, out)
    assert (code, err) == (0, "")
    assert text.startswith("301 entries, ")
    assert text.endswith("all came out\n")
    assert run("salvage", filled, out)[0] == 2
    with mmlsm.open(filled, readonly=True) as before, mmlsm.open(out, readonly=True) as after:
        assert dict(after.items()) == dict(before.items())
    value = bytes(range(256)) * 400
    filled.write_bytes(filled.read_bytes().replace(value, b"x" + value[1:]))
    out.unlink()
    code, text, err = run("salvage", filled, out)
    assert (code, err) == (1, "")
    assert "1 losses, 0 ranges uncertain" in text
    out.unlink()
    code, text, err = run("salvage", filled, out, "--json", "--hex", "--proved-only")
    facts = json.loads(text)
    (loss,) = facts["lost"]
    assert (code, facts["complete"], facts["entries"], facts["uncertain"]) == (1, False, 300, [])
    assert facts["seq"] > 0
    assert facts["closed"]
    assert (loss["from"], loss["to"], loss["entries"]) == (b"long".hex(), b"long\0".hex(), 1)
    assert run("keys", out, "--count")[1] == "300\n"


def test_salvage_of_what_is_no_database_is_one_line(run: Run, path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"something else\n" * 1000)
    code, out, err = run("salvage", path, tmp_path / "out")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.unproved
def test_pages_of_a_file_whose_root_is_damaged(run: Run, filled: Path) -> None:
    with filled.open("r+b") as file:
        for slot in (0, 1):
            file.seek(slot * PAGE + 100)
            file.write(b"damage")
    assert run("info", filled)[0] == 3
    code, out, _ = run("page", filled, 0)
    assert code == 1
    assert "its sum is wrong" in out
    assert run("page", filled, 3)[0] == 1


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("demo", "put", "load")])
def test_a_missing_file_is_one_line(run: Run, path: Path, command: str) -> None:
    more = {"get": ["key"], "delete": ["key"], "page": ["0"], "salvage": [path.with_name("out")]}.get(command, [])
    code, out, err = run(command, path, *more)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert err.startswith("mmlsm: there is no file")
    assert not path.exists()


@pytest.mark.parametrize("command", ["info", "levels", "map", "free", "verify", "keys", "scan", "dump", "compact"])
def test_another_kind_of_file_is_refused_and_kept(run: Run, path: Path, command: str) -> None:
    path.write_bytes(b"something else\n" * 1000)
    code, out, err = run(command, path)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert path.read_bytes() == b"something else\n" * 1000


def test_a_locked_file_is_one_line(run: Run, filled: Path) -> None:
    with mmlsm.open(filled):
        code, out, err = run("put", filled, "a", "b")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "open for writing" in err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["get", "FILE"],
        ["put", "FILE", "key"],
        ["put", "FILE", "key", "value", "--from", "x"],
        ["put", "FILE", "zz", "00", "--hex"],
        ["page", "FILE", "-1"],
        ["page", "FILE", "x"],
        ["page", "FILE", "99999"],
        ["load", "FILE", "no such file"],
        ["load", "FILE", "--batch", "0"],
        ["put", "FILE", "key", "--from", "no such file"],
        ["put", "FILE", "k" * 65536, "value"],
        ["dump", "FILE", "--json"],
        ["demo", "--threads", "0"],
        ["demo", "--memtable-mib", "1048577"],
        ["demo", "no such folder"],
        ["demo", "--data", "no such file"],
        ["demo", ".", "--data", "x"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, filled: Path, argv: list[str]) -> None:
    code, out, err = run(*[str(filled) if part == "FILE" else part for part in argv])
    assert code == 2
    assert not [line for line in out.splitlines() if "Traceback" in line]
    assert err.count("\n") == 1
    assert err.startswith("mmlsm")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_names_the_exit_codes(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "exit codes:" in out


def test_a_reader_that_goes_away_is_no_error(filled: Path) -> None:
    script = "import sys; from mmlsm.cli import main; sys.exit(main())"
    with mmlsm.open(filled) as database:
        database.put_many([(b"many %06d" % i, b"v" * 50) for i in range(20_000)])
    with subprocess.Popen(
        [sys.executable, "-c", script, "dump", str(filled), "--prefix", "many"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"many 000000\t")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_module_runs_as_a_program(filled: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmlsm", "get", str(filled), "key 001"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("value 1\n", "")


# ---- how bytes are shown


@pytest.mark.parametrize(
    ("data", "text", "in_json"),
    [
        (b"plain", "plain", "plain"),
        ("Grüße".encode(), "Grüße", "Grüße"),
        (b"\xff\x00", "\\xff\\x00", {"hex": "ff00"}),
        (b"tab\tline\n", "tab\\tline\\n", "tab\tline\n"),
        (b"back\\slash", "back\\\\slash", "back\\slash"),
        ("\u202e".encode(), "\\u202e", "\u202e"),
    ],
)
def test_bytes_as_text(data: bytes, text: str, in_json: object) -> None:
    assert text_of(data) == text
    assert json_of(data) == in_json
    assert text_of(data, True) == json_of(data, True) == data.hex()


def test_sizes() -> None:
    assert [size_of(n) for n in (0, 1023, 1536, 5 << 20, 1 << 50)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB", "1024.0 TiB",
    ]  # fmt: skip


def test_a_dump_of_bytes_folds_equal_rows() -> None:
    lines = dump_of(bytes(range(65, 81)) + bytes(64), 0x1000)
    assert [line[:10] for line in lines] == ["0000001000", "0000001010", "*"]
    assert lines[0].endswith("ABCDEFGHIJKLMNOP")
