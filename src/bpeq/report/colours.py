"""The colours of figures and pages, for light and dark mode, safe for colour-blind readers."""

from __future__ import annotations

INK, MUTED, LINE, PAPER, CONTROL = "#1d2733", "#5a6675", "#e2e6eb", "#fffffe", "#77828e"
"""The colours of text, secondary text, lines and grids, the background, null controls."""

SERIES = ("#0067a8", "#c75000", "#00785a", "#a8508c", "#946a00", "#4b4fb5")
"""The colours of lines and dots, with a contrast of at least 4:1. Later ones repeat, dashed."""

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
    """The colour of a series.

    Args:
      index: the number of the series, from 0.

    Returns:
      The colour, such as "#0067a8".
    """
    return SERIES[index % len(SERIES)]


def dash(index: int) -> str:
    """The line style of a series: solid until the colours repeat.

    Args:
      index: the number of the series, from 0.

    Returns:
      The line style of matplotlib.
    """
    return ("-", "--", ":", "-.")[index // len(SERIES) % 4]


def variable(colour: str) -> str:
    """The CSS variable of a colour, such as "var(--ink)".

    Args:
      colour: a colour of `known`.

    Returns:
      The CSS text.
    """
    return f"var(--{_NAMES.get(colour) or f's{SERIES.index(colour)}'})"


def known() -> tuple[str, ...]:
    """Every colour that has a CSS variable.

    Returns:
      The colours.
    """
    return (*_NAMES, *SERIES)


def stylesheet() -> str:
    """The CSS variables of all colours, for light and dark mode.

    Returns:
      The CSS text.
    """
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
