"""`mmlsm map`: each page has one owner, as `verify()` counts; pictures are whole and need nothing else."""

from __future__ import annotations

import json
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import mmlsm
from mmlsm.check import Report
from mmlsm.cli.map import colours, drawing
from mmlsm.cli.pages_by_owner import IN_SEGMENT, KINDS, Pages, layout_of, nodes_of, walk
from mmlsm.format.manifest import Retirement

Run = Callable[..., tuple[int, str, str]]
OpenDb = Callable[..., mmlsm.Database]
PAGE = 4096
SVG = "{http://www.w3.org/2000/svg}"


def write_much(database: mmlsm.Database, chance: random.Random, rounds: int = 3) -> None:
    """Small and long values, long keys, deletes; a segment for each round."""
    for _ in range(rounds):
        with database.batch() as batch:
            for _ in range(1500):
                key = b"key %05d" % chance.randrange(4000)
                draw = chance.random()
                if draw < 0.1:
                    batch.delete(key)
                elif draw < 0.97:
                    batch.put(key, b"some value " * chance.randrange(12))
                else:
                    batch.put(key, chance.randbytes(chance.choice([9000, 30_000, 90_000])))
            batch.put(b"%d" % chance.randrange(10) * 5000, b"of a long key")
        database._engine.flush()


def looked_at(path: Path) -> tuple[Pages, Report]:
    """What the walk and what the proof say of a file."""
    with mmlsm.open(path, readonly=True) as database:
        return walk(layout_of(database._engine)), database.verify()


def assert_each_page_once(pages: Pages) -> None:
    """I1 of the walk."""
    at = 0
    for owner, first, count in pages.stretches:
        assert first == at
        assert count > 0
        assert owner.kind in KINDS
        assert (owner.place is not None) == (owner.kind in IN_SEGMENT)
        at += count
    assert at == pages.total
    assert all(one.owner != other.owner for one, other in zip(pages.stretches, pages.stretches[1:], strict=False))


def assert_as_verified(pages: Pages, report: Report) -> None:
    """The counts of the walk are those of the proof."""
    assert_each_page_once(pages)
    assert pages.problems == report.problems == []
    counts = {kind: pages.count(kind) for kind in KINDS}
    assert counts["unknown"] == 0
    assert sum(counts[kind] for kind in IN_SEGMENT) == report.live
    assert counts["log value"] == report.reserved
    for kind in ("header", "manifest", "bitmap", "log", "retired", "free"):
        assert counts[kind] == getattr(report, kind), kind


# ---- whose each page is


def test_the_owners_are_those_of_the_proof(open_db: OpenDb, path: Path, seed: int) -> None:
    """Closed, and as a crash would leave it: with a log, values that only the log names, and what a snapshot holds."""
    chance, copy = random.Random(seed), path.with_name("copy.db")
    seen: set[str] = set()
    database = open_db(memtable_bytes=1 << 20, leaf_bytes=4096, auto_merge=False)
    write_much(database, chance)
    with database.snapshot():
        database.compact()
        write_much(database, chance, 1)
        database.put(b"only in the log", bytes(1 << 20))
        database.sync()
        shutil.copy(path, copy)
        pages, report = looked_at(copy)
    assert_as_verified(pages, report)
    seen |= {owner.kind for owner, _, _ in pages.stretches}
    assert pages.count("retired")
    database.close()
    pages, report = looked_at(path)
    assert_as_verified(pages, report)
    seen |= {owner.kind for owner, _, _ in pages.stretches}
    assert set(KINDS) - seen <= {"unknown"}


def test_a_segments_pages_are_those_of_its_record(open_db: OpenDb, path: Path) -> None:
    database = open_db(memtable_bytes=1 << 20, leaf_bytes=4096, auto_merge=False)
    write_much(database, random.Random(1))
    segments = database.stats().segments
    database.close()
    pages, _ = looked_at(path)
    held: dict[int, int] = {}
    for owner, _, count in pages.stretches:
        if owner.place is not None:
            held[owner.place.segment] = held.get(owner.place.segment, 0) + count
    assert held == {segment.id: segment.pages for segment in segments}
    places = {owner.place.segment: owner.place for owner, _, _ in pages.stretches if owner.place is not None}
    assert {(place.segment, place.level, place.run) for place in places.values()} == {
        (segment.id, segment.level, segment.run) for segment in segments
    }


def test_levels_have_their_names(open_db: OpenDb, path: Path) -> None:
    """The manifest's levels as drained merges leave them: the last is the bottom, the one before drains into it."""
    database = open_db(auto_merge=False)
    write_much(database, random.Random(7), 4)
    database.close()
    with mmlsm.open(path, readonly=True) as reader:
        layout = layout_of(reader._engine)
        assert layout.manifest is not None
        newest, one, other, oldest = [(record,) for record in layout.manifest.segments()][:4]
        layout.manifest = replace(layout.manifest, levels=((newest,), (), (one, other), (oldest,)))
        pages = walk(layout)
    assert pages.levels == ["tier 0", "tier 1", "draining", "bottom"]
    levels, _ = drawing.rows_of(pages)
    assert [(row.name, row.runs, row.segments) for row in levels] == [
        ("tier 0", 1, 1), ("tier 1", 0, 0), ("draining", 2, 2), ("bottom", 1, 1),
    ]  # fmt: skip
    assert [row.pages for row in levels] == [
        newest[0].pages, 0, one[0].pages + other[0].pages, oldest[0].pages,
    ]  # fmt: skip
    texts = [text.text for text in ElementTree.fromstring(drawing.svg(pages, "name")).iter(f"{SVG}text")]
    assert {"tier 0", "tier 1", "draining", "bottom"} <= set(texts)


def test_an_empty_database_has_no_segments(open_db: OpenDb, path: Path, run: Run) -> None:
    open_db().close()
    pages, report = looked_at(path)
    assert_as_verified(pages, report)
    code, out, _ = run("map", path, "-o", path.with_name("map.svg"))
    assert code == 0
    assert "header" in out
    assert ElementTree.parse(path.with_name("map.svg"))
    assert run("levels", path) == (0, "no segments\n", "")


def test_a_page_that_two_claim_goes_to_the_first(open_db: OpenDb, path: Path) -> None:
    database = open_db(auto_merge=False)
    write_much(database, random.Random(6), 1)
    database.close()
    sound, _ = looked_at(path)
    leaves, other = (next(one for one in sound.stretches if one.owner.kind == kind) for kind in ("leaf", "overflow"))
    with mmlsm.open(path, readonly=True) as reader:
        layout = layout_of(reader._engine)
        layout.log = [(leaves.first + 1, 1), (sound.total - 1, 9)]
        layout.retired = (Retirement(1, 2, ((other.first, 1), (sound.total + 5, 1))),)
        pages = walk(layout)
    assert_each_page_once(pages)
    assert pages.count("log") == 2
    assert pages.count("leaf") + pages.count("overflow") >= sound.count("leaf") + sound.count("overflow") - 2
    assert pages.count("retired") == 0
    assert len(pages.problems) >= 4


# ---- damage


def damage(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE + 60)
        file.write(b"damage")


@pytest.mark.unproved
@pytest.mark.parametrize("height", [0, 1, 2])
def test_what_is_behind_a_damaged_page_is_unknown(open_db: OpenDb, path: Path, run: Run, height: int) -> None:
    database = open_db(leaf_bytes=4096, auto_merge=False)
    with database.batch() as batch:
        for i in range(3000):
            key = b"%05d" % (i // 10) + b" and so on" * 40 + b"%d" % (i % 10)
            batch.put(key, b"v" * (9000 if i % 50 == 0 else 700))
    database.compact()
    database.close()
    sound, _ = looked_at(path)
    with mmlsm.open(path, readonly=True) as reader:
        (record,) = reader._engine.root.manifest.segments()
        nodes = list(nodes_of(reader._engine.file, record, pytest.fail))
    victim = next(number for number, _, at, references in nodes if at == height and (height or references))
    damage(path, victim)
    pages, report = looked_at(path)
    assert_each_page_once(pages)
    assert len(pages.problems) == 1
    assert f"page {victim}: the checksum differs" in pages.problems[0]
    assert pages.count("unknown") > 0
    assert pages.count("free") == sound.count("free"), "what is hidden is not free: the bitmap knows"
    assert sum(pages.count(kind) for kind in IN_SEGMENT) == report.live
    picture = path.with_name("map.html")
    code, out, err = run("map", path, "-o", picture)
    assert (code, err) == (1, "")
    assert f"page {victim}: the checksum differs" in out
    assert "unknown" in out
    assert f"page {victim}: the checksum differs" in picture.read_text()


@pytest.mark.unproved
@pytest.mark.parametrize("what", ["superblocks", "manifest", "bitmap"])
def test_a_damaged_root_is_drawn_too(open_db: OpenDb, path: Path, run: Run, what: str) -> None:
    database = open_db(auto_merge=False)
    write_much(database, random.Random(2))
    database.close()
    sound, _ = looked_at(path)
    kinds = {owner.kind: first for owner, first, _ in sound.stretches}
    for page in [0, 1] if what == "superblocks" else [kinds[what]]:
        damage(path, page)
    code, out, err = run("map", path, "--json", "-o", path.with_name("map.svg"))
    assert (code, err) == (1, "")
    told = json.loads(out)
    counts: dict[str, int] = {}
    for row in told["owners"]:
        counts[row["kind"]] = counts.get(row["kind"], 0) + row["pages"]
    assert sum(counts.values()) == sound.total
    assert told["problems"]
    assert counts["header"] == 3
    assert counts["unknown"]
    assert "free" not in counts, "nobody knows what is free"
    assert (counts.get("leaf") == sound.count("leaf")) == (what == "bitmap")
    assert (counts.get("manifest") == sound.count("manifest")) == (what != "superblocks")
    assert ElementTree.parse(path.with_name("map.svg"))


@pytest.mark.unproved
def test_a_file_that_was_cut_is_drawn(open_db: OpenDb, path: Path, run: Run) -> None:
    database = open_db(auto_merge=False)
    write_much(database, random.Random(3))
    database.close()
    sound, _ = looked_at(path)
    last = max(first + count for owner, first, count in sound.stretches if owner.kind == "leaf")
    with path.open("r+b") as file:
        file.truncate(last // 2 * PAGE)
    code, out, err = run("map", path, "--json")
    assert (code, err) == (1, "")
    told = json.loads(out)
    assert sum(row["pages"] for row in told["owners"]) == told["pages"] == last // 2


# ---- the text of the picture


class Tags(HTMLParser):
    """Whether tags are closed in order, and what they have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def drawn(open_db: OpenDb, path: Path, run: Run) -> dict[str, str]:
    """The pictures of a database, by form."""
    database = open_db(memtable_bytes=1 << 20, leaf_bytes=4096, auto_merge=False)
    write_much(database, random.Random(4))
    database.close()
    texts = {}
    for form in ("svg", "html"):
        picture = path.with_name(f"map.{form}")
        code, out, err = run("map", path, "-o", picture)
        assert (code, err) == (0, "")
        assert out.endswith(f"drawn into {picture}\n")
        texts[form] = picture.read_text()
    return texts


def test_the_pictures_are_well_formed(drawn: dict[str, str]) -> None:
    root = ElementTree.fromstring(drawn["svg"])
    assert root.tag == f"{SVG}svg"
    tags = Tags(drawn["html"])
    assert tags.open == []
    assert tags.seen.count("svg") == tags.seen.count("main") == tags.seen.count("table") == 1
    inner = drawn["html"][drawn["html"].index("<svg") : drawn["html"].index("</svg>") + 6]
    assert ElementTree.fromstring(inner).tag == "svg"


def test_the_pictures_need_nothing_else(drawn: dict[str, str]) -> None:
    for text in drawn.values():
        assert "//" not in text.replace(drawing.NAMESPACE, "", text.count("xmlns"))
        assert not re.search(r"@import|@font-face|\bsrc=|\bhref=|javascript|<script|<link|\bon[a-z]+=", text)
        assert {target[0] for target in re.findall(r"url\((.)", text)} == {"#"}


def test_the_pictures_suit_light_and_dark(drawn: dict[str, str]) -> None:
    for form, text in drawn.items():
        style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
        light, dark = style.split("@media (prefers-color-scheme:dark)")[-2:]
        for selector in re.findall(r"(?m)^(\S+)\{(?:fill|stroke):#", light):
            assert f"{selector}{{" in dark, (form, selector)
        for one, other in (colours.GROUND, colours.INK):
            assert one in light
            assert other in dark
    used = set(re.findall(r"\bf-[\w-]+", re.sub(r"<style>.*?</style>", "", drawn["svg"], flags=re.DOTALL)))
    assert used
    for name in used:
        assert f".{name}{{" in drawn["svg"], name


def test_the_titles_tell_of_each_page_and_the_legend_of_all(drawn: dict[str, str], path: Path) -> None:
    pages, _ = looked_at(path)
    root = ElementTree.fromstring(drawn["svg"])
    told: list[tuple[int, int]] = []
    for title in root.iter(f"{SVG}title"):
        if match := re.match(r"pages? ([\d,]+)(?: to ([\d,]+))?(?::|$)", title.text or "", re.MULTILINE):
            first = int(match[1].replace(",", ""))
            told.append((first, int((match[2] or match[1]).replace(",", "")) + 1 - first))
    assert sum(count for _, count in told) == pages.total
    assert [first for first, _ in told] == [sum(count for _, count in told[:i]) for i in range(len(told))]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    levels, others = drawing.rows_of(pages)
    assert sum(row.pages for row in [*levels, *others]) == pages.total
    for row in [*levels, *others]:
        assert row.name in texts
        assert f"{row.pages:,}" in texts
        assert drawing.percent(row.pages, pages.total) in texts
    assert "One square is one page, 4 KiB; a row is 512.0 KiB." in texts or pages.total <= 2048


@pytest.mark.parametrize("form", ["svg", "html"])
def test_names_and_keys_are_escaped(open_db: OpenDb, tmp_path: Path, run: Run, form: str) -> None:
    nasty = '<script>alert("x")</script>&amp;\x01\x1b\udcff'
    path = tmp_path / nasty.replace("/", "_")
    database = open_db(path)
    database.put_many([(b"</td><b>&\x00\xff" + b"%d" % i, b"") for i in range(10)])
    database.close()
    picture = tmp_path / f"map.{form}"
    assert run("map", path, "-o", picture)[0] == 0
    text = picture.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert text.isascii() or all(character.isprintable() or character == "\n" for character in text)
    if form == "svg":
        ElementTree.fromstring(text)
    else:
        tags = Tags(text)
        assert tags.open == []
        assert "</td><b>&\\x00\\xff0" in "".join(tags.texts)


# ---- the command


def test_the_ending_decides_and_databases_are_kept(open_db: OpenDb, path: Path, run: Run) -> None:
    database = open_db()
    database.put(b"key", b"value")
    database.close()
    before = path.read_bytes()
    other = Path(shutil.copy(path, path.with_name("other.svg")))
    named = path.with_name("link.html")
    named.symlink_to(path)
    for target in (path.with_name("map.png"), path.with_name("map"), other, named, path):
        code, out, err = run("map", path, "-o", target)
        assert (code, out, err.count("\n")) == (2, "", 1), target
        assert err.startswith("mmlsm: ")
    assert path.read_bytes() == other.read_bytes() == before
    picture = path.with_name("map.SVG")
    for _ in range(2):
        assert run("map", path, "-o", picture)[0] == 0, "a picture may be drawn anew"
    ElementTree.parse(picture)


@pytest.mark.unproved
def test_a_database_that_does_not_look_like_one_is_kept(open_db: OpenDb, path: Path, run: Run) -> None:
    open_db().close()
    with path.open("r+b") as file:
        file.write(b"damage")
    before = path.read_bytes()
    named = path.with_name("link.html")
    named.symlink_to(path)
    assert run("map", path, "-o", named) == (2, "", f"mmlsm: {named} is the database itself\n")
    assert path.read_bytes() == before


def test_the_totals_as_json(drawn: dict[str, str], path: Path, run: Run) -> None:
    pages, _ = looked_at(path)
    code, out, _ = run("map", path, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["picture"] is None
    assert told["problems"] == []
    assert told["pages"] * told["page_bytes"] == path.stat().st_size
    assert sum(row["pages"] for row in told["owners"]) == told["pages"]
    assert sum(row["share"] for row in told["owners"]) == pytest.approx(1, abs=1e-4)
    leaves = [row["pages"] for row in told["owners"] if row["kind"] == "leaf"]
    assert sum(leaves) == pages.count("leaf") > 0
