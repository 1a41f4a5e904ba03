"""The colours of figures and pages, for light and dark mode, safe for colour-blind readers."""

from __future__ import annotations

INK, MUTED, LINE, PAPER, CONTROL = "#1d2733", "#5a6675", "#e2e6eb", "#fffffe", "#77828e"
"""The colours of text, secondary text, lines and grids, the background, null controls."""

SERIES = ("#0067a8", "#c75000", "#00785a", "#a8508c", "#946a00", "#4b4fb5")
"""The colours of lines and dots, with a contrast of at least 4:1. Later ones repeat, dashed."""

_DARK_SERIES = ("#5fb2ec", "#f2935a", "#3fc39e", "#dc8fc4", "#d9ad45", "#9ea2f5")
VARIABLES = {
    INK: ("ink", "#e6eaef"),
    MUTED: ("muted", "#9aa6b4"),
    LINE: ("line", "#2d3641"),
    PAPER: ("paper", "#12171d"),
    CONTROL: ("control", "#8a95a1"),
}
VARIABLES |= {SERIES[i]: (f"s{i}", dark) for i, dark in enumerate(_DARK_SERIES)}
"""The CSS variable of each colour, and its value in dark mode."""


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
      colour: a key of `VARIABLES`.

    Returns:
      The CSS text.
    """
    return f"var(--{VARIABLES[colour][0]})"


def stylesheet() -> str:
    """The CSS variables of all colours, for light and dark mode.

    Returns:
      The CSS text.
    """
    light = ";".join(f"--{name}:{colour}" for colour, (name, _) in VARIABLES.items())
    dark = ";".join(f"--{name}:{colour}" for name, colour in VARIABLES.values())
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
