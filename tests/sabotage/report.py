"""What came out of the planted bugs, on the terminal, as markdown and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sabotage import Sabotage
from sabotage.runner import Outcome

CONSOLE = Console(width=None if sys.stdout.isatty() else 180)


def say(name: str, outcome: Outcome) -> None:
    """One run has ended."""
    CONSOLE.print(f"{escape(name)}: {verdict(outcome)} ({outcome.seconds:.1f} s) {escape(outcome.message[:200])}",
                  highlight=False)  # fmt: skip


def verdict(outcome: Outcome) -> str:
    """In a word or two."""
    return {"passed": "passed", "red": "caught", "hung": "caught, hung", "crashed": "caught, crashed"}.get(
        outcome.kind, "BROKEN"
    )


def show(chosen: list[Sabotage], outcomes: list[Outcome], sound: dict[str, Outcome], seconds: float) -> bool:
    """Print the table, and the output of each run that is not as it should be; whether there is one."""
    table = Table(title="planted bugs", show_lines=False)
    for heading in ("bug", "promises", "what is wrong then", "verdict", "by", "s"):
        table.add_column(heading, overflow="fold")
    for one, outcome in zip(chosen, outcomes, strict=True):
        word = verdict(outcome) if outcome.caught else "NOT CAUGHT" if outcome.kind == "passed" else "BROKEN"
        style = "green" if outcome.caught else "red"
        table.add_row(one.name, one.promises, escape(one.what), f"[{style}]{word}[/]", escape(outcome.test),
                      f"{outcome.seconds:.1f}")  # fmt: skip
    red_without = {file: outcome for file, outcome in sound.items() if outcome.kind != "passed"}
    escaped = {one.name: outcome for one, outcome in zip(chosen, outcomes, strict=True) if not outcome.caught}
    for name, outcome in {**red_without, **escaped}.items():
        CONSOLE.rule(f"{name}: {outcome.kind}")
        CONSOLE.print(outcome.output[-6000:], markup=False, highlight=False)
    CONSOLE.print(table)
    caught = sum(outcome.caught for outcome in outcomes)
    CONSOLE.print(f"{caught} of {len(chosen)} planted bugs caught, in {seconds:.0f} s; not caught: "
                  f"{', '.join(escaped) or 'none'}; red without any: {', '.join(red_without) or 'none'}")  # fmt: skip
    return bool(escaped or red_without)


def write(folder: Path, chosen: list[Sabotage], outcomes: list[Outcome]) -> None:
    """The table as markdown, for docs/reliability.md, and all figures as JSON."""
    rows = ["| planted bug | breaks promise | caught by |", "|---|---|---|"]
    found = []
    for one, outcome in zip(chosen, outcomes, strict=True):
        by = f"`{outcome.test.replace('|', chr(92) + '|')}`" if outcome.caught else "**nothing**"
        how = {"hung": ", which hung", "crashed": ", which crashed"}.get(outcome.kind, "")
        rows.append(f"| {one.what} (`{one.name}`) | {one.promises} | {by}{how} |")
        found.append(
            {
                "name": one.name, "promises": one.promises, "what": one.what, "file": one.file,
                "compiled": one.compiled, "outcome": outcome.kind, "test": outcome.test,
                "message": outcome.message[:500], "seconds": round(outcome.seconds, 1),
            }
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sabotage.md").write_text("\n".join(rows) + "\n")
    (folder / "sabotage.json").write_text(json.dumps(found, indent=1) + "\n")
