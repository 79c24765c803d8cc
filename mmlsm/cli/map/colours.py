"""The colours of a picture of a file, for light and for dark, as the rules of a style sheet.

Pure functions. Levels differ in hue, older ones colder, and in lightness, so that they can be told apart without seeing
red and green; what a level's pages are for differs in shade or hatching, and neighbouring segments slightly in shade.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mmlsm.cli.pages_by_owner import Owner

TIERS: Final = (
    ("#dd5a30", "#ec6136"),
    ("#f3bb3b", "#f7c95c"),
    ("#22a88a", "#1fb38f"),
    ("#981664", "#b03a8b"),
    ("#2d93b8", "#a6e4f5"),
    ("#8cb82a", "#d9e488"),
)
BOTTOM: Final = ("#2c67ad", "#4b8fe0")
DRAINING: Final = ("#d88bdc", "#e0a0f0")
"""(light, dark) each; a seventh tier begins the colours of tiers anew, a shade off."""

PLAIN: Final = {
    "header": ("#3f4a55", "#d5dde5"),
    "manifest": ("#74818d", "#9aa7b4"),
    "bitmap": ("#a7b3be", "#6b7885"),
    "log": ("#14181d", "#ffffff"),
    "free": ("#e9edf1", "#222a33"),
}
HATCHED: Final = {
    "log value": (("#c9d0d7", "#14181d"), ("#46515c", "#ffffff")),
    "retired": (("#e9e2d5", "#cdc0a8"), ("#332e26", "#5f5645")),
    "unknown": (("#ff2d87", "#ff7ab3"), ("#ff4f9b", "#c93377")),
}
"""(ground, lines) for light and for dark."""

GROUND: Final = ("#ffffff", "#10151b")
INK: Final = ("#1c232b", "#e8edf2")
DIM: Final = ("#5d6975", "#97a4b1")
RULE: Final = ("#d5dbe1", "#303a45")
ALARM: Final = ("#b0004e", "#ff78b0")


def level_colours(index: int, count: int) -> tuple[str, str]:
    """(light, dark) of a level's leaves, by its place: the oldest is always blue."""
    if index == count - 1:
        return BOTTOM
    if index == count - 2 and count > 2:
        return DRAINING
    light, dark = TIERS[index % len(TIERS)]
    off = min(0.3 * (index // len(TIERS)), 0.75)
    return mix(light, "#000000", off), mix(dark, "#ffffff", off)


def mix(one: str, other: str, share: float) -> str:
    """A colour between two, with so much of the other."""
    pairs = zip(channels(one), channels(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1, as contrast is reckoned."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """How well one is read upon the other: 1 not at all, 21 black upon white."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better."""
    return max(("#ffffff", "#10151b"), key=lambda ink: contrast(colour, ink))


def group_of(owner: Owner) -> str:
    """The class of all that belongs to one row of the legend: a level, or a kind outside the tree."""
    return f"L{owner.place.level}" if owner.place is not None else owner.kind.replace(" ", "-")


def class_of(owner: Owner) -> str:
    """The classes of what is drawn of an owner: its group, its fill, and "o" for the odd one of two neighbours."""
    group = group_of(owner)
    if owner.place is None:
        return f"{group} f-{group}"
    odd = " o" if owner.place.order % 2 else ""
    return f"{group} f-{group}-{owner.kind}{odd}"


def fills(levels: int) -> dict[str, tuple[str, str]]:
    """Selector -> (light, dark) of all that is filled plainly."""
    found = {f".f-{kind}": pair for kind, pair in PLAIN.items()}
    for i in range(levels):
        light, dark = level_colours(i, levels)
        found[f".f-L{i}-leaf"] = light, dark
        found[f".f-L{i}-leaf.o"] = mix(light, "#ffffff", 0.17), mix(dark, "#000000", 0.2)
        found[f".f-L{i}-parent"] = mix(light, "#000000", 0.5), mix(dark, "#ffffff", 0.65)
        found[f".f-L{i}-overflow"] = mix(light, "#ffffff", 0.46), mix(dark, "#000000", 0.42)
        found[f".f-L{i}-overflow.o"] = mix(light, "#ffffff", 0.57), mix(dark, "#000000", 0.52)
    return found


def hatchings(levels: int) -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """Name of a fill -> (ground, lines) for light and for dark, of all that is hatched."""
    found = {kind.replace(" ", "-"): pairs for kind, pairs in HATCHED.items()}
    for i in range(levels):
        light, dark = level_colours(i, levels)
        found[f"L{i}-filter"] = (mix(light, "#ffffff", 0.66), light), (mix(dark, "#000000", 0.62), dark)
    return found


def style(levels: int, groups: Iterable[str]) -> str:
    """The style sheet: shapes and text for light, what differs for dark, and the dimming while a legend row is met."""
    light: list[str] = []
    dark: list[str] = []

    def rule(selector: str, pair: tuple[str, str], what: str = "fill") -> None:
        light.append(f"{selector}{{{what}:{pair[0]}}}")
        dark.append(f"{selector}{{{what}:{pair[1]}}}")

    for selector, pair in (("text", INK), (".dim", DIM), (".ground", GROUND), (".alarm", ALARM)):
        rule(selector, pair)
    rule(".rule", RULE, "stroke")
    rule(".grid", GROUND, "stroke")
    for selector, pair in fills(levels).items():
        rule(selector, pair)
    for name, ((ground, lines), (dark_ground, dark_lines)) in hatchings(levels).items():
        light.append(f".f-{name}{{fill:url(#h-{name})}}")
        rule(f"#h-{name} rect", (ground, dark_ground))
        rule(f"#h-{name} path", (lines, dark_lines), "stroke")
    for i in range(levels):
        one, other = level_colours(i, levels)
        rule(f".on-L{i}", (ink_on(one), ink_on(other)))
    for kind, (one, other) in PLAIN.items():
        rule(f".on-{kind}", (ink_on(one), ink_on(other)))
    for kind, ((one, _), (other, _)) in HATCHED.items():
        rule(f".on-{kind.replace(' ', '-')}", (ink_on(one), ink_on(other)))
    light += [f"svg:has(.k-{group}:hover) .map [class]:not(.{group}){{opacity:.1}}" for group in groups]
    return "\n".join([*light, "@media (prefers-color-scheme:dark){", *dark, "}"])
