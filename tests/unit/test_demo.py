"""The demo: it ends well on sound work, says so in figures, and each of its checks goes red on a wrong answer."""

from __future__ import annotations

import json
import lzma
import random
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.cli import main
from mmlsm.demo.crawl import FACTS, Crawl, listing, without_nested
from mmlsm.demo.crew import Crew, Fault, Plan, Tally
from mmlsm.demo.lines import COUNTERS, BadData, Lines, Source


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree: 12 folders, 10 files each, one empty folder, a link."""
    root = tmp_path / "tree"
    for i in range(12):
        folder = root / f"folder {i % 3}" / f"sub-{i}"
        folder.mkdir(parents=True)
        for j in range(10):
            (folder / f"file {j}").write_bytes(b"x" * (i * j))
    (root / "empty").mkdir()
    (root / "link").symlink_to("/nowhere")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "lines.tsv.xz"
    lines = [b"usr/share/%04d/%04d\tsection/%d" % (i % 50, i, i * 7) for i in range(5000)]
    random.Random(5).shuffle(lines)
    path.write_bytes(lzma.compress(b"\n".join(lines)))
    return path


def demo(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    code = main(["demo", "--json", *map(str, argv)])
    return code, json.loads(capsys.readouterr().out)


def quiet(done: int, total: int) -> None:
    pass


def source_of(path: Path, text: bytes, most: int | None = None) -> Source:
    path.write_bytes(text)
    return Source(path, most, quiet)


# ---- whole runs


def test_files_are_indexed_and_proved(capsys: pytest.CaptureFixture[str], tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "demo.mmlsm"
    code, report = demo(capsys, tree, tree / "empty", "--db", path, "--batch", 7, "--threads", 3)
    assert code == 0
    assert report["ok"] is True
    assert report["entries"] == 121
    assert {check["ok"] for check in report["checks"]} == {True}
    with mmlsm.open(path, readonly=True) as database:
        size, _, _ = FACTS.unpack(database[b"f/" + bytes(tree / "folder 2" / "sub-5" / "file 4")])
        assert size == 20
        assert database.count(prefix=b"t/") == 1 + 3 + 12 + 1


def test_the_crawl_ends_at_max_files(capsys: pytest.CaptureFixture[str], tree: Path) -> None:
    code, report = demo(capsys, tree, "--max-files", 45)
    assert (code, report["entries"]) == (0, 45)


def test_lines_are_loaded_and_compared(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    path = tmp_path / "demo.mmlsm"
    code, report = demo(capsys, "--data", data, "--db", path, "--batch", 50, "--memtable-mib", 1)
    assert code == 0
    assert report["entries"] == 5000
    assert {check["ok"] for check in report["checks"]} == {True}
    assert any("a whole snapshot adds up" in check["name"] for check in report["checks"])
    with mmlsm.open(path, readonly=True) as database:
        assert len(database) == 5000, "the counters are gone"
        assert database[b"usr/share/0007/0057"] == b"section/399"
    assert main(["demo", "--data", str(data), "--db", str(path)]) == 2, "a file that is there is not touched"


def test_the_report_for_people(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert main(["demo", "--data", str(data), "--max-lines", "300", "--readers", "1", "--durability", "off"]) == 0
    out = capsys.readouterr().out
    assert "300 lines" in out
    assert "every line is there, and nothing else" in out
    assert "FAILED" not in out


# ---- each check goes red


def failing(capsys: pytest.CaptureFixture[str], argv: list[object]) -> str:
    code, report = demo(capsys, *argv)
    assert code == 1
    assert report["ok"] is False
    return "; ".join(check["detail"] for check in report["checks"] if not check["ok"])


def test_a_lost_line_is_found(capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Lines.finish

    def losing(self: Lines, database: mmlsm.Database) -> None:
        finish(self, database)
        database.delete(b"usr/share/0007/0057")

    monkeypatch.setattr(Lines, "finish", losing)
    assert "usr/share/0007/0057" in failing(capsys, ["--data", data])


def test_a_changed_file_is_found(
    capsys: pytest.CaptureFixture[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(self: Crawl, database: mmlsm.Database) -> None:
        database.put(b"f/" + bytes(tree / "folder 2" / "sub-5" / "file 4"), FACTS.pack(20, 0, 0))

    monkeypatch.setattr(Crawl, "finish", changing)
    assert "hash of all entries" in failing(capsys, [tree])


def test_a_thread_that_fails_ends_the_demo(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise mmlsm.CorruptionError("page 7: planted")

    monkeypatch.setattr(Lines, "ask", broken)
    monkeypatch.setattr(Lines, "sweep", broken)
    assert "CorruptionError: page 7: planted" in failing(capsys, ["--data", data])


@pytest.fixture
def crawled(tree: Path, tmp_path: Path) -> tuple[Crawl, mmlsm.Database]:
    """A finished crawl and its open database, for tampering."""
    database = mmlsm.open(":memory:")
    crawl = Crawl((tree,), None, 20)
    crew = Crew(crawl, database, Plan(threads=1, readers=0))
    crew.run(lambda crew: None)
    assert crew.faults == []
    return crawl, database


Tamper = Callable[[mmlsm.Database, bytes], None]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda database, folder: database.delete(b"f/" + folder + b"/file 3"),
        lambda database, folder: database.put(b"f/" + folder + b"/extra", FACTS.pack(1, 2, 3)),
        lambda database, folder: database.put(b"f/" + folder + b"/file 3", FACTS.pack(12345, 2, 3)),
        lambda database, folder: database.delete(b"t/" + folder),
        lambda database, folder: database.delete(b"w/0"),
    ],
    ids=["lost", "extra", "changed", "total", "writer"],
)
def test_live_checks_find_what_is_wrong(crawled: tuple[Crawl, mmlsm.Database], tree: Path, tamper: Tamper) -> None:
    crawl, database = crawled
    with database:
        crawl.sweep(database, Tally())
        for seed in range(50):
            crawl.ask(database, random.Random(seed), Tally())
        tamper(database, bytes(tree / "folder 1" / "sub-7"))
        with pytest.raises(Fault):
            crawl.sweep(database, Tally())
        with pytest.raises(Fault):
            crawl.prove(database, quiet)
        crawl.finish(database)


@pytest.mark.parametrize("tamper", ["lost", "extra", "changed"])
def test_questions_about_lines_find_what_is_wrong(tmp_path: Path, tamper: str) -> None:
    text = b"".join(b"dir/%05d\t%d\n" % (i, i) for i in range(2000))
    work = Lines(source_of(tmp_path / "lines", text), 1, 100)
    with mmlsm.open(":memory:") as database:
        crew = Crew(work, database, Plan(threads=2, readers=0))
        crew.run(lambda crew: None)
        tally = Tally()
        for seed in range(100):
            work.ask(database, random.Random(seed), tally)
        work.sweep(database, tally)
        assert len(tally.checks) == 4
        key = work.bounds[0]
        if tamper == "extra":
            database.put(key + b"!", b"1")
        elif tamper == "lost":
            database.delete(key)
        else:
            database.put(key, b"other")
        with database.snapshot() as snapshot, pytest.raises(Fault):
            work.ask_range(snapshot, 0, tally)
        with pytest.raises(Fault):
            work.sweep(database, tally)
        with database.snapshot() as snapshot:
            whole = (b"dir/%05d" % i for i in range(0, 2000, 400))
            ask = {
                "lost": lambda: work.ask_neighbours(snapshot, (key, b"%d" % int(key[4:])), tally),
                "extra": lambda: [work.ask_listing(snapshot, asked, tally) for asked in whole],
                "changed": lambda: work.ask_neighbours(snapshot, (key, b"%d" % int(key[4:])), tally),
            }[tamper]
            with pytest.raises(Fault):
                ask()
        work.finish(database)
        with pytest.raises(Fault):
            work.prove(database, quiet)


# ---- the source


def test_lines_in_any_order_the_last_of_a_key_counts(tmp_path: Path) -> None:
    source = source_of(tmp_path / "lines", b"c\t3\na\t1\nb\t2\t2\na\t\n")
    assert [source.pair(start) for start in source.starts] == [(b"a", b""), (b"b", b"2\t2"), (b"c", b"3")]
    assert source.repeated == 1
    assert [source.rank(key) for key in (b"a", b"aa", b"c", b"d")] == [0, 1, 2, 3]


def test_only_the_first_lines(tmp_path: Path) -> None:
    source = source_of(tmp_path / "lines", b"".join(b"%06d\tx\n" % i for i in range(200_000)), 150_000)
    assert len(source) == 150_000
    assert source.pair(source.starts[-1]) == (b"149999", b"x")


@pytest.mark.parametrize("text", [b"", b"a\t1\nb\n", COUNTERS + b"x\t1\n", b"k" * 65536 + b"\t1\n"])
def test_data_that_cannot_be_loaded(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(BadData):
        source_of(tmp_path / "lines", text)


def test_the_seed_fixes_the_order(tmp_path: Path) -> None:
    source = source_of(tmp_path / "lines", b"".join(b"%06d\tx\n" % i for i in range(1000)))
    orders = [Lines(source, seed, 10).order for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert array("Q", sorted(orders[2])) == source.starts


def test_nested_roots_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "ab").mkdir()
    roots = (tmp_path / "a" / "b", tmp_path / "a", tmp_path / "ab", tmp_path / "a" / ".." / "a")
    assert without_nested(roots) == [tmp_path / "a", tmp_path / "ab"]


def test_a_listing_leaps_over_folders() -> None:
    with mmlsm.open(":memory:") as database:
        for name in (b"d/a", b"d/b/1", b"d/b/2", b"d/b-c", b"d/b0", b"d", b"d/", b"e/a", b"d/z/z/z"):
            database.put(b"f/" + name, b"")
        assert [key for key, _ in listing(database, b"d")] == [b"f/d/", b"f/d/a", b"f/d/b-c", b"f/d/b0"]
