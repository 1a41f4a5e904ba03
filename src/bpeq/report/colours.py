"""The colours of figures and page: one list, safe for colour-blind readers, light and dark."""

from __future__ import annotations

INK, MUTED, LINE, PAPER, CONTROL = "#1d2733", "#5a6675", "#e2e6eb", "#fffffe", "#77828e"
"""Text, secondary text, rules and grids, the background, null controls."""

SERIES = ("#0067a8", "#c75000", "#00785a", "#a8508c", "#946a00", "#4b4fb5")
"""Lines and dots, each at least 4:1 against the paper; after the last they repeat, dashed."""

_DARK = {
    INK: "#e6eaef",
    MUTED: "#9aa6b4",
    LINE: "#2d3641",
    PAPER: "#12171d",
    CONTROL: "#8a95a1",
}
_DARK_SERIES = ("#5fb2ec", "#f2935a", "#3fc39e", "#dc8fc4", "#d9ad45", "#9ea2f5")
_NAMES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper", CONTROL: "control"}


def series(index: int) -> str:
    """The colour of the series with this number, from 0."""
    return SERIES[index % len(SERIES)]


def dash(index: int) -> str:
    """The line style of the series with this number: solid until the colours run out."""
    return ("-", "--", ":", "-.")[index // len(SERIES) % 4]


def variable(colour: str) -> str:
    """The CSS variable that stands for a colour of this page: "var(--ink)"."""
    return f"var(--{_NAMES.get(colour) or f's{SERIES.index(colour)}'})"


def known() -> tuple[str, ...]:
    """Every colour that has a CSS variable."""
    return (*_NAMES, *SERIES)


def stylesheet() -> str:
    """The CSS variables, for light and for dark mode."""
    light = {variable(c)[4:-1]: c for c in known()}
    dark = {
        variable(c)[4:-1]: v
        for c, v in {**_DARK, **dict(zip(SERIES, _DARK_SERIES, strict=True))}.items()
    }
    return (
        f":root{{{_block(light)}}}\n"
        f"@media (prefers-color-scheme: dark){{:root{{{_block(dark)}}}}}\n"
    )


def _block(variables: dict[str, str]) -> str:
    return ";".join(f"{name}:{value}" for name, value in variables.items())
