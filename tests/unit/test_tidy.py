"""The house rules that a reader relies on, held by walking the sources: layers, I/O in one place, names, lengths.

Each rule is a function from sources to faults, so that a planted breach of each can be shown to be found.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# A module imports only from its own layer and from those above it here. Of one layer's parts none imports another
# where the line says "apart".
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "limits", "settings", "headroom", "latch", "locks", "register"),
    ("memory",),
    ("descriptor", "channel", "handle", "forks", "file"),
    ("format",),
    ("space", "read"),  # apart
    ("write",),
    ("check", "stats"),
    ("closing", "engine"),
    ("database",),
    ("rescue",),
    ("",),  # the package itself: the names that programs import
    ("dbm", "cli", "demo", "bench", "__main__"),
)
APART = {"space", "read"}

IO_MODULES = {"os", "mmap", "fcntl"}
IO_PLACE = "mmlsm/file.py"
CLOCKS = {"monotonic", "perf_counter", "sleep"}
NAMES_THAT_SAY_NOTHING = re.compile(r"(^|_)(utils?|common|helpers?|misc|stuff)(_|$)")
LINE_MOST = 120
FILE_LINES_MOST = 450
FUNCTION_LINES_MOST = 80


@dataclass(frozen=True)
class Source:
    """One file of the checkout, by its name from the top."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def python(self) -> bool:
        return self.name.endswith(".py")

    @property
    def ours(self) -> bool:
        return self.name.startswith("mmlsm/")

    @property
    def module(self) -> str:
        """Dotted, without the leading package: `read.cursor`; "" for the package itself."""
        parts = self.name.rsplit(".", 1)[0].split("/")[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def compiled(self) -> bool:
        return self.text.startswith("# cython:")


def imported(source: Source) -> Iterator[tuple[str, bool]]:
    """Each module that the source names in an import, and whether only for types. Cython's `cimport` counts too."""
    if not source.python:
        for match in re.finditer(r"^\s*(?:from|cimport|import)\s+([\w.]+)", source.text, re.MULTILINE):
            yield match[1], False
        return
    for_types = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.removeprefix("cython.cimports."), id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            name = name.removeprefix("cython.cimports.")
            for alias in node.names:
                yield f"{name}.{alias.name}", id(node) in for_types


def ours_imported(source: Source, modules: set[str]) -> Iterator[tuple[str, bool]]:
    """The project's modules among them; `from mmlsm.read import cursor` is `read.cursor`, an object its module."""
    for name, for_types in imported(source):
        parts = name.split(".")
        if parts[0] != "mmlsm":
            continue
        parts = parts[1:]
        while parts and ".".join(parts) not in modules:
            parts.pop()
        yield ".".join(parts), for_types


def layer_of(module: str) -> int:
    part = module.split(".")[0]
    return next((depth for depth, parts in enumerate(LAYERS) if part in parts), -1)


def faults_of_layers(sources: list[Source]) -> list[str]:
    modules = {source.module for source in sources if source.ours}
    faults = []
    for source in sources:
        if not source.ours:
            continue
        if layer_of(source.module) < 0:
            faults.append(f"{source.name}: has no layer; give it one in LAYERS")
        for target, _ in ours_imported(source, modules):
            parts = source.module.split(".")[0], target.split(".")[0]
            if layer_of(target) > layer_of(source.module) or (set(parts) == APART):
                faults.append(f"{source.name}: imports mmlsm.{target}, which is not below it")
    return faults


def faults_of_cycles(sources: list[Source]) -> list[str]:
    modules = {source.module for source in sources if source.ours}
    graph: dict[str, set[str]] = {}
    for source in sources:
        if source.ours and source.python:
            targets = {target for target, for_types in ours_imported(source, modules) if not for_types}
            graph[source.module] = targets - {source.module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"modules import each other: {' -> '.join(error.args[1])}"]
    return []


def faults_of_io(sources: list[Source]) -> list[str]:
    return [
        f"{source.name}: imports {name.split('.')[0]}; I/O is file.py's"
        for source in sources
        if source.ours and source.name != IO_PLACE
        for name, _ in imported(source)
        if name.split(".")[0] in IO_MODULES
    ]


def faults_of_clocks(sources: list[Source]) -> list[str]:
    """Nothing hangs on the wall clock (promise 12), so nothing asks it: ages are of the monotonic clock too."""
    faults = []
    for source in sources:
        if not (source.ours and source.python):
            continue
        for name, _ in imported(source):
            if name.startswith(("time.", "datetime")):
                faults.append(f"{source.name}: imports {name}; write time.monotonic()")
        for node in ast.walk(source.tree):
            match node:
                case ast.Import(names=names) if any(a.name == "time" and a.asname for a in names):
                    faults.append(f"{source.name}:{node.lineno}: time by another name")
                case ast.Attribute(value=ast.Name(id="time"), attr=name) if name not in CLOCKS:
                    faults.append(f"{source.name}:{node.lineno}: time.{name}, which may be set at any time")
    return faults


def faults_of_names(sources: list[Source]) -> list[str]:
    return [
        f"{source.name}: {part!r} says nothing"
        for source in sources
        for part in source.name.rsplit(".", 1)[0].split("/")
        if NAMES_THAT_SAY_NOTHING.search(part)
    ]


def faults_of_lengths(sources: list[Source]) -> list[str]:
    faults = []
    for source in sources:
        lines = source.text.splitlines()
        if len(lines) > FILE_LINES_MOST:
            faults.append(f"{source.name}: {len(lines)} lines; two ideas, two files")
        faults += [f"{source.name}:{at}: {len(line)} wide" for at, line in enumerate(lines, 1) if len(line) > LINE_MOST]
        for node in ast.walk(source.tree) if source.python else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > FUNCTION_LINES_MOST:
                    faults.append(f"{source.name}:{node.lineno}: {node.name} has {count} lines")
    return faults


def faults_of_docstrings(sources: list[Source]) -> list[str]:
    return [
        f"{source.name}: no docstring"
        for source in sources
        if source.python and not (ast.get_docstring(source.tree) or "").strip()
    ]


def faults_of_compiled_pairs(sources: list[Source]) -> list[str]:
    """A .pxd belongs to a compiled module, and a constant in it has the same value there, where it also stands."""
    by_name = {source.name: source for source in sources}
    faults = []
    for pxd in sources:
        if not pxd.name.endswith(".pxd"):
            continue
        module = by_name.get(pxd.name.removesuffix("pxd") + "py")
        if module is None or not module.compiled:
            faults.append(f"{pxd.name}: its module is not compiled (no `# cython:` on the first line)")
            continue
        for block in re.finditer(r"^( *)c(?:p?def) enum\b.*:\n((?:\1 +.*\n|\s*\n)*)", pxd.text, re.MULTILINE):
            for line in block[2].splitlines():
                name, _, value = (part.strip() for part in line.partition("#")[0].partition("="))
                if not name:
                    continue
                found = constant(name, module, by_name)
                if not value or found is None or found != number(value):
                    faults.append(f"{pxd.name}: {name} = {value or '?'}, but {found} in {module.name}")
    return faults


def faults_of_cython(sources: list[Source]) -> list[str]:
    """What Cython 3.3 compiles into code that crashes where memory fails: comprehensions, `with` of an object."""
    faults = []
    for source in sources:
        if not (source.ours and source.python and source.compiled):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp):
                faults.append(f"{source.name}:{node.lineno}: a comprehension in a compiled module; write the loop")
            elif isinstance(node, ast.With) and ast.unparse(node.items[0]) != "cython.nogil":
                faults.append(f"{source.name}:{node.lineno}: `with` in a compiled module; call locks.within")
    return faults


def constant(name: str, source: Source, by_name: dict[str, Source]) -> int | None:
    """What a module gives a name, itself or by importing it."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return number(ast.unparse(value))
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return number(ast.unparse(value))
            case ast.ImportFrom(module=str(module), names=names) if any(name == alias.name for alias in names):
                origin = by_name.get(module.replace(".", "/") + ".py")
                if origin is not None:
                    return constant(name, origin, by_name)
    return None


def number(expression: str) -> int | None:
    """The value of a literal, or of one made from literals only."""
    try:
        return int(eval(expression, {"__builtins__": {}}))
    except NameError:
        return None


RULES: tuple[Callable[[list[Source]], list[str]], ...] = (
    faults_of_layers,
    faults_of_cycles,
    faults_of_io,
    faults_of_clocks,
    faults_of_names,
    faults_of_lengths,
    faults_of_docstrings,
    faults_of_compiled_pairs,
    faults_of_cython,
)


@pytest.fixture(scope="module")
def sources(checkout: Path) -> list[Source]:
    return [
        Source(path.relative_to(checkout).as_posix(), path.read_text())
        for folder in ("mmlsm", "tests", "benchmarks")
        for path in sorted((checkout / folder).rglob("*"))
        if path.suffix in (".py", ".pxd")
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_sources_keep_the_rule(rule: Callable[[list[Source]], list[str]], sources: list[Source]) -> None:
    faults = rule(sources)
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def test_mypy_is_told_exactly_which_modules_are_compiled(sources: list[Source], checkout: Path) -> None:
    overrides = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    (relaxed,) = (entry["module"] for entry in overrides if "disallow_untyped_defs" in entry)
    assert relaxed == sorted(f"mmlsm.{source.module}" for source in sources if source.ours and source.compiled)


DOC = '"""."""\n'
ENUM = "cdef enum:\n    MOST = 8\n"
HOT = "# cython: boundscheck=False\n" + DOC


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        (faults_of_layers, {"mmlsm/read/cursor.py": "import mmlsm.write.log", "mmlsm/write/log.py": ""}),
        (faults_of_layers, {"mmlsm/read/cursor.py": "from mmlsm.space import bitmap", "mmlsm/space/bitmap.py": ""}),
        (faults_of_layers, {"mmlsm/space/bitmap.py": "from mmlsm.read.view import View", "mmlsm/read/view.py": ""}),
        (faults_of_layers, {"mmlsm/locks.py": "def f():\n    from mmlsm import file", "mmlsm/file.py": ""}),
        (faults_of_layers, {"mmlsm/read/a.pxd": "from mmlsm.write.b cimport B", "mmlsm/write/b.py": ""}),
        (faults_of_layers, {"mmlsm/read/a.py": "from cython.cimports.mmlsm.write.b import B", "mmlsm/write/b.py": ""}),
        (faults_of_layers, {"mmlsm/database.py": "import mmlsm", "mmlsm/__init__.py": ""}),
        (faults_of_layers, {"mmlsm/novelty.py": ""}),
        (faults_of_cycles, {"mmlsm/read/a.py": "import mmlsm.read.b", "mmlsm/read/b.py": "import mmlsm.read.a"}),
        (faults_of_cython, {"mmlsm/read/a.py": HOT + "b = [i for i in range(3)]"}),
        (faults_of_cython, {"mmlsm/read/a.py": HOT + "def f(lock):\n    with lock:\n        pass"}),
        (faults_of_io, {"mmlsm/check.py": "import os.path"}),
        (faults_of_io, {"mmlsm/check.py": "from mmap import mmap"}),
        (faults_of_clocks, {"mmlsm/stats.py": "import time\nnow = time.time()"}),
        (faults_of_clocks, {"mmlsm/stats.py": "import time as clock\nnow = clock.time()"}),
        (faults_of_clocks, {"mmlsm/stats.py": "from time import time"}),
        (faults_of_clocks, {"mmlsm/stats.py": "import datetime"}),
        (faults_of_clocks, {"mmlsm/stats.py": "from datetime import datetime"}),
        (faults_of_names, {"mmlsm/read/cursor_utils.py": ""}),
        (faults_of_names, {"tests/helpers/disk.py": ""}),
        (faults_of_lengths, {"mmlsm/a.py": "\n" * (FILE_LINES_MOST + 1)}),
        (faults_of_lengths, {"mmlsm/a.pxd": "#" * (LINE_MOST + 1)}),
        (faults_of_lengths, {"tests/a.py": "def f():\n" + "    pass\n" * FUNCTION_LINES_MOST}),
        (faults_of_docstrings, {"mmlsm/a.py": "import re"}),
        (faults_of_compiled_pairs, {"mmlsm/a.pxd": ENUM, "mmlsm/a.py": "MOST = 8"}),
        (faults_of_compiled_pairs, {"mmlsm/a.pxd": ENUM, "mmlsm/a.py": HOT + "MOST = 9"}),
        (faults_of_compiled_pairs, {"mmlsm/a.pxd": ENUM, "mmlsm/a.py": HOT}),
        (faults_of_compiled_pairs, {"mmlsm/a.pxd": "cdef enum:\n    MOST\n", "mmlsm/a.py": HOT + "MOST = 8"}),
    ],
)
def test_a_planted_breach_is_found(rule: Callable[[list[Source]], list[str]], planted: dict[str, str]) -> None:
    assert len(rule([Source(name, text) for name, text in planted.items()])) == 1


def test_what_is_right_is_let_be() -> None:
    good = {
        "mmlsm/__init__.py": DOC + "from mmlsm.database import Database",
        "mmlsm/limits.py": DOC + "MOST: Final = 1 << 3",
        "mmlsm/memory.py": DOC,
        "mmlsm/file.py": DOC + "import os, mmap, fcntl\nfrom mmlsm import limits",
        "mmlsm/read/cursor.pxd": "from mmlsm.memory cimport u8s\n" + ENUM,
        "mmlsm/read/cursor.py": HOT + "if cython.compiled:\n    pass\nelse:\n    from mmlsm.limits import MOST",
        "mmlsm/database.py": DOC + "from mmlsm.read import cursor\nimport time\nnow = time.monotonic()",
        "mmlsm/cli.py": DOC + "import mmlsm",
    }
    assert [fault for rule in RULES for fault in rule([Source(*pair) for pair in good.items()])] == []
