"""Panels of the page: horizontal bars, and lines on log axes in the reports' own style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bpeq.report import colours
from bpeq.report.error_lines import ErrorLine, line_panel
from bpeq.report.figures import Panel, log_axis
from bpeq.report.numbers import format_number

Rows = Sequence[dict[str, Any]]
_BAR = 0.24  # inches


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    axis: str,
    caption: str,
    log: bool = False,
    texts: Sequence[str] | None = None,
) -> Panel | None:
    """A bar a label, its value written at its end; None where there are none.

    log: from a tenth of the least value on, for values over several decades.
    """
    if not labels:
        return None
    texts = [format_number(v) for v in values] if texts is None else texts

    def draw(axes: Any) -> None:
        places = np.arange(len(labels))
        axes.barh(places, values, height=0.62, color=colours.series(0), left=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_yticks(places, labels, color=colours.INK)
        axes.tick_params(axis="y", length=0)
        if log:
            log_axis(axes.xaxis, np.asarray([min(values) / 3, max(values)]))
        else:
            axes.set_xlim(0, max(values))
        axes.grid(False)
        axes.grid(axis="x", color=colours.LINE, lw=0.8)
        axes.set_xlabel(axis)
        for y, value, text in zip(places, values, texts, strict=True):
            axes.annotate(
                text, (value, y), xytext=(4, 0), textcoords="offset points", va="center",
                color=colours.INK, annotation_clip=False,
            )  # fmt: skip

    told = "; ".join(f"{a} {b}" for a, b in zip(labels, texts, strict=True))
    return Panel(draw, f"{axis}: {told}.", caption, _BAR * len(labels) + 0.65)


def lines(
    rows: Rows, x: str, y: str, scale: float, quantity: str, axis: str, caption: str
) -> Panel | None:
    """A line a `series` of the rows, y · scale over x, both on log axes; None without rows."""
    names = list(dict.fromkeys(r["series"] for r in rows))
    drawn = []
    for i, name in enumerate(names):
        own = sorted((r for r in rows if r["series"] == name), key=lambda r: r[x])
        xs = np.asarray([r[x] for r in own], float)
        ys = scale * np.asarray([r[y] for r in own], float)
        look = (np.ones(len(xs)), colours.series(i), colours.dash(i))
        drawn.append(ErrorLine(name, xs, ys, *look))
    return line_panel(drawn, quantity, axis, caption)
