"""What the command line and the demo print: results to stdout, progress to stderr, beautiful on a terminal, else plain.

One thread. On a terminal tables and bars are rich's; in a pipe or file they are aligned columns of plain text, without
colour and without bars. With `as_json` a command prints JSON alone.

I1. Keys and values are shown without loss: printable UTF-8 as it is, any other byte and the backslash escaped.
I2. rich is imported only where there is a terminal, so that scripts do not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from mmlsm.cli.streams import can_print

Tell = Callable[[int, int], object]
"""`tell(done, total)`, as the database's long calls take it."""

REDRAW_S: Final = 0.1
UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


def text_of(data: bytes, as_hex: bool = False) -> str:
    """Bytes for a human: printable UTF-8 as it is, all else escaped as in Python; or hexadecimal."""
    if as_hex:
        return data.hex()
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode()


def json_of(data: bytes, as_hex: bool = False) -> str | dict[str, str]:
    """Bytes in JSON: a string where they are UTF-8, otherwise {"hex": "..."}; with `as_hex` always hexadecimal."""
    if as_hex:
        return data.hex()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def size_of(count: float) -> str:
    """A number of bytes with a unit that suits it."""
    for unit in UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {UNITS[-1]}"


def duration_of(seconds: float) -> str:
    """A time with a unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


class Output:
    """Where a command's answers go."""

    def __init__(self, *, as_json: bool = False, as_hex: bool = False) -> None:
        self.as_json = as_json
        self.as_hex = as_hex
        self.terminal = not as_json and sys.stdout.isatty()
        self.more = "…" if can_print("…") else "..."
        """Stands for what is cut off."""
        self.none = "–" if can_print("–") else "-"
        """Stands in a table for nothing."""

    def text(self, data: bytes) -> str:
        """A key or value for a human."""
        return text_of(data, self.as_hex)

    def cut(self, text: str, most: int) -> str:
        """Text of at most so many characters, which shows where it was cut."""
        return text if len(text) <= most else text[: most - len(self.more)] + self.more

    def line(self, text: str = "") -> None:
        """One line of plain text."""
        print(text)

    def json(self, value: object) -> None:
        """One JSON value on a line of its own."""
        text = json.dumps(value, ensure_ascii=False)
        print(text if can_print(text) else json.dumps(value))

    def title(self, text: str) -> None:
        """A heading, with a blank line before it."""
        self.line()
        if self.terminal:
            self._console().print(text, style="bold cyan", markup=False, highlight=False)
        else:
            self.line(text)

    def pairs(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and their values, aligned."""
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            if self.terminal:
                self._console().print(
                    f"  [dim]{name:<{width}}[/]  ", _plain(value), sep="", markup=True, highlight=False, soft_wrap=True
                )
            else:
                self.line(f"  {name:<{width}}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; numbers stand to the right."""
        cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
        right = [bool(rows) and all(isinstance(row[i], int) for row in rows) for i in range(len(columns))]
        if self.terminal:
            self._rich_table(columns, cells, right)
            return
        widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
        for row in [list(columns), *cells]:
            aligned = [
                f"{cell:>{width}}" if at_right else f"{cell:<{width}}"
                for cell, width, at_right in zip(row, widths, right, strict=True)
            ]
            self.line(("  " + "  ".join(aligned)).rstrip())

    def _rich_table(self, columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name, at_right in zip(columns, right, strict=True):
            table.add_column(name, justify="right" if at_right else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        self._console().print(table)

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """One check's result."""
        tail = f"  ({detail})" if detail else ""
        if self.terminal:
            self._console().print(
                "  [green]✓[/] " if ok else "  [bold red]✗ FAILED[/] ", _plain(name + tail), sep="", highlight=False
            )
        else:
            self.line(f"  {'ok    ' if ok else 'FAILED'}  {name}{tail}")

    def _console(self) -> Any:
        from rich.console import Console

        return Console(file=sys.stdout)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Tell]:
        """A bar on stderr while the block runs, where that is a terminal; what it yields is told (done, total)."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        with progress_bar() as bar:
            task = bar.add_task(what, total=None, note="")
            last = 0.0

            def tell(done: int, total: int) -> None:
                nonlocal last
                now = time.monotonic()
                if now - last >= REDRAW_S or done == total:
                    last = now
                    bar.update(task, completed=done, total=total or None)

            yield tell


def progress_bar() -> Any:
    """rich's bar on stderr: what, bar, share, how many, a note, times. It goes when it is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}", justify="right"),
        TextColumn("[dim]{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _plain(value: object) -> Any:
    """Text that rich does not read as markup."""
    from rich.text import Text

    return Text(str(value))
