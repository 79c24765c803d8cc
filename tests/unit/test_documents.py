"""The documents say what is so: their examples run, their numbers are the code's, their links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import re
import shutil
from pathlib import Path

import pytest

import format_reader
import mmlsm

DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/format.md", "docs/guide.md")


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# -- examples


def test_the_quickstart_runs_and_prints_what_it_says(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (checkout / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,), (expected,) = code_blocks(text, "python"), code_blocks(text, "text")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == expected
    assert (tmp_path / "example.db").stat().st_size


def test_the_examples_of_the_guide_run(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one namespace, as a reader would type them; asserts in them hold."""
    text = (checkout / "docs/guide.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "guide"}
    blocks = code_blocks(text, "python")
    assert len(blocks) > 5
    try:
        for i, block in enumerate(blocks, 1):
            exec(compile(block, f"docs/guide.md, example {i}", "exec"), names)
    finally:
        for value in names.values():
            if isinstance(value, mmlsm.Database):
                value.close()


# -- numbers


def constants(checkout: Path) -> list[tuple[str, int]]:
    text = (checkout / "docs/format.md").read_text()
    return [(name, int(value)) for name, value in re.findall(r"^\| `(mmlsm\.[\w.]+)` \| (\d+) \|", text, re.MULTILINE)]


def test_each_constant_of_the_format_is_the_codes(checkout: Path) -> None:
    table = constants(checkout)
    assert len(table) > 40
    for name, value in table:
        module, constant = name.rsplit(".", 1)
        assert getattr(importlib.import_module(module), constant) == value, name


def test_the_constants_of_the_format_miss_none_that_bounds_a_file(checkout: Path) -> None:
    """Whoever adds a constant to these modules says it in docs/format.md, or here why it is not of the format."""
    of_this_process = {"KEY_BYTES", "LEAF_ENTRIES_AIM", "MEMTABLE_BYTES_MIN", "MEMTABLE_BYTES_DEFAULT",
                       "MEMTABLE_BYTES_MAX", "SLOTS", "KNOWN_INCOMPATIBLE", "KNOWN_READONLY_COMPATIBLE",
                       "NODE_PAGES_MAX", "GROUP_INTERVAL_S_MAX"}  # fmt: skip
    told = {name for name, _ in constants(checkout)}
    for module_name in ("limits", "format.superblock", "format.manifest", "format.page", "write.log_record"):
        source = (checkout / "mmlsm" / f"{module_name.replace('.', '/')}.py").read_text()
        module = importlib.import_module(f"mmlsm.{module_name}")
        for name in re.findall(r"^([A-Z][A-Z_]+)(?:: Final)? = ", source, re.MULTILINE):
            if not isinstance(getattr(module, name), int) or name in of_this_process:
                continue
            homes = (module_name, "format.page", "limits")
            assert any(f"mmlsm.{home}.{name}" in told for home in homes), f"{module_name}.{name}"


# -- the format, read by its document alone


def copied(path: Path, name: str) -> Path:
    """The file as a crash of the process would leave it just now, the writes of its threads done."""
    return Path(shutil.copy(path, path.with_name(name)))


@pytest.mark.parametrize("leaf_bytes", [4096, 32768])
def test_a_reader_written_from_the_format_document_reads_a_database(tmp_path: Path, leaf_bytes: int) -> None:
    chance = random.Random(7)
    path = tmp_path / "documented.db"
    expected: dict[bytes, bytes] = {}
    seen: set[str] = set()
    with mmlsm.open(path, leaf_bytes=leaf_bytes, durability="off", auto_merge=False, memtable_bytes=1 << 20) as db:

        def write(count: int) -> None:
            with db.batch() as batch:
                for _ in range(count):
                    key = b"prefix/%d/" % chance.randrange(1500) + b"k" * chance.choice([0, 1, 2, 40, 200])
                    if chance.random() < 0.1:
                        batch.delete(key)
                        expected.pop(key, None)
                        continue
                    sizes = [0, 1, 30, 300] if chance.random() < 0.98 else [9000, 70_000, 200_001]
                    expected[key] = chance.randbytes(chance.choice(sizes))
                    batch.put(key, expected[key])
                for i in range(250):  # a leaf begins among them: its separator is longer than a node takes
                    key = b"same" * 2100 + b"%03d" % i
                    batch.put(key, b"long")
                    expected[key] = b"long"
            large = chance.randbytes((1 << 20) + 77)
            db.put(b"large", large)
            expected[b"large"] = large

        for _ in range(2):
            write(1500)
            db._engine.flush()
            write(300)
            db.sync()
            reader = format_reader.Reader(copied(path, "crashed.db"))
            assert reader.everything() == expected == dict(db.items())
            assert reader.seq_ceiling > db.seq
            seen |= reader.seen
        db.compact()
        write(40)
    reader = format_reader.Reader(path)
    assert reader.everything() == expected
    assert reader.flags & 1
    assert reader.seq == reader.seq_ceiling
    assert not any(reader.log_position)
    assert os.path.getsize(path) == 4096 * max(reader.owned) + 4096
    seen |= reader.seen
    assert seen >= {"parent", "filter", "overflow key", "overflow value", "several chunks", "overflow separator",
                    "link", "overflow in the log"}  # fmt: skip


# -- links, and what the documents claim of the sources


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
        names = [plain, *(f"{plain}-{i}" for i in range(1, 99))]
        found.add(next(name for name in names if name not in found))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_links_of_the_documents_lead_somewhere(checkout: Path, document: str) -> None:
    path = checkout / document
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        there = path if not name else path.parent / name
        assert there.exists(), f"{document}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{document}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_the_documents_name_are_there(checkout: Path, document: str) -> None:
    for name in re.findall(r"`((?:mmlsm|tests|docs|benchmarks)/[\w/.]*)`", (checkout / document).read_text()):
        assert (checkout / name).exists(), f"{document}: {name}"


def test_the_architecture_is_short_and_names_each_invariant_and_module(checkout: Path) -> None:
    text = (checkout / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 300
    for i in range(1, 17):
        assert re.search(rf"\bR{i}\b", text), f"R{i}"
    parts = [path.relative_to(checkout / "mmlsm").with_suffix("").parts for path in (checkout / "mmlsm").rglob("*.py")]
    names = {part[0] if part[0] in ("cli", "demo") else part[-1] for part in parts} - {"__init__", "__main__"}
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", text))
    assert not missing


def test_the_readme_says_of_each_part_of_the_interface_whether_it_works(checkout: Path) -> None:
    rows = re.findall(r"^\| (.*`.*) \| (works|later)", (checkout / "README.md").read_text(), re.MULTILINE)
    assert {state for _, state in rows} == {"works", "later"}
    for names, state in rows:
        for name in re.findall(r"`([a-z_]+)(?:\(\))?`", names):
            if name in ("open", "in", "shelve"):
                continue
            assert hasattr(mmlsm.Database, name) == (state == "works" or name == "clear"), (
                f"README says of {name}: {state}"
            )
