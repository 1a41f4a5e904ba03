"""Draws panels: one as SVG in the colours of the page, or several as one PNG.

It uses matplotlib's object API: no pyplot, no global figure, and it restores the settings. The
constrained layout of matplotlib makes room for labels and legends.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpeq.report import colours
from bpeq.report.numbers import setting
from bpeq.runs import run_folder
from bpeq.runs.results import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes  # for all modules that draw

WIDTH = 4.9  # inches: two panels in a row fill the page, one fills a phone
TEXT = 10.0  # points
LOG_DECADES = 1.5  # values that span more decades get a log axis
_CAPTION, _LEADING = 66, 0.165  # a caption in a PNG: characters and inches of a line
_LEAST_DECADES = 0.7  # the smallest span of a log axis, so that it has ticks


class Panel(NamedTuple):
    """One set of axes, with the texts that belong to it.

    Args:
      draw: draws into the axes.
      alt: what the picture shows, for readers who do not see it.
      caption: how to read the picture.
      height: in inches.
    """

    draw: Callable[[Axes], None]
    alt: str
    caption: str
    height: float = 2.9


def png(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Writes panels to one PNG, two in a row, each above its caption.

    Args:
      panels: the panels, at least one.
      path: the file.
      title: the title of the picture.

    Raises:
      DataError: the disk is full or the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    captions = {id(panel): textwrap.wrap(panel.caption, _CAPTION) for panel in panels}
    heights = [max(p.height + _LEADING * len(captions[id(p)]) for p in row) + 0.3 for row in rows]
    with _style():
        size = (columns * (WIDTH + 0.3), sum(heights) + 0.5)
        figure = Figure(size, dpi=150, facecolor=colours.PAPER, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(
            abbreviate(title, 55 * columns), x=0.02, ha="left", weight="bold", parse_math=False
        )
        grid = figure.subfigures(len(rows), columns, height_ratios=heights, squeeze=False)
        for row, parts, height in zip(rows, grid, heights, strict=True):
            for panel, part in zip(row, parts, strict=False):
                # a panel keeps its own height, at the top of its row
                ratios = [panel.height, height - panel.height]
                upper, lower = part.subfigures(2, 1, height_ratios=ratios)
                _draw(upper, panel)
                lower.text(
                    0.02, 1, "\n".join(captions[id(panel)]), va="top", size=9, linespacing=1.3,
                    color=colours.MUTED, parse_math=False,
                )  # fmt: skip
        buffer = io.BytesIO()
        canvas.print_png(buffer, metadata={"Software": "bpeq"})  # savefig would draw it twice
    run_folder.write_bytes(path, buffer.getvalue())


def svg(panel: Panel, key: str) -> str:
    """Draws a panel as inline SVG: text stays text, and colours are variables of the page.

    Args:
      panel: the panel.
      key: the beginning of every id, so that one page can hold several figures.

    Returns:
      The SVG text.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(key):
        figure = Figure((WIDTH, panel.height), dpi=72, facecolor="none", layout="constrained")
        canvas = FigureCanvasSVG(figure)
        _draw(figure, panel)
        buffer = io.StringIO()
        canvas.print_svg(buffer)
    return _inline(buffer.getvalue(), panel, key)


def abbreviate(text: str, most: int) -> str:
    """Shortens a text: one line, with the middle left out if the text is too long.

    Args:
      text: the text.
      most: the largest number of characters.

    Returns:
      The shortened text.
    """
    text = re.sub(r"[\r\n\t]+", " ", text)
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Writes the label of x below the axes, and that of y horizontally above their left corner.

    Args:
      axes: the axes.
      x: the label of x.
      y: the label of y.
    """
    axes.set_xlabel(x, parse_math=False)
    axes.set_title(y, loc="left", size=TEXT, parse_math=False)


def name_lines(axes: Axes, names: Sequence[tuple[str, Any, float]]) -> None:
    """Adds a legend at the right, in the order of the line ends from top to bottom.

    Args:
      axes: the axes.
      names: (label, handle, y of the line's end) of each line.
    """
    ranked = sorted(names, key=lambda entry: -entry[2])
    legend(
        axes.figure, [handle for _, handle, _ in ranked],
        [abbreviate(label, 28) for label, _, _ in ranked], loc="outside right upper",
        labelcolor="linecolor", handlelength=1.5, borderaxespad=0.2, labelspacing=0.25,
    )  # fmt: skip


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str], **style: Any) -> None:
    """Adds a legend beside the axes, in small type and without a frame.

    Args:
      figure: the figure.
      handles: the lines or marks.
      labels: their labels.
      style: settings of matplotlib's legend.
    """
    for text in figure.legend(handles, labels, fontsize=9, frameon=False, **style).get_texts():
        text.set_parse_math(False)


def is_logarithmic(values: Floats, decades: float = LOG_DECADES) -> bool:
    """Whether values need a log axis: all are positive, and they span many decades.

    Args:
      values: the values.
      decades: the span above which a log axis is used.

    Returns:
      True for a log axis.
    """
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and np.ptp(np.log10(finite)) > decades)


def log_axis(axis: Any, values: Floats) -> None:
    """Makes an axis logarithmic, with limits around the values and ticks such as 0.1, 1, 1e5.

    Args:
      axis: an axis of matplotlib.
      values: the values, all positive.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = math.log10(float(values.min())), math.log10(float(values.max()))
    edge = max(0.04 * (high - low), (_LEAST_DECADES - (high - low)) / 2)
    name = axis.axis_name
    axis.axes.set(
        **{f"{name}scale": "log", f"{name}lim": (10 ** (low - edge), 10 ** (high + edge))}
    )
    subs = (1.0, 2.0, 5.0) if high - low < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: setting(value)))
    axis.set_minor_formatter(NullFormatter())


def whole_axis(axis: Any) -> None:
    """Puts the ticks of an axis at whole numbers only.

    Args:
      axis: an axis of matplotlib.
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _draw(figure: Any, panel: Panel) -> None:
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=colours.LINE, lw=0.8)
    axes.set_axisbelow(True)
    panel.draw(axes)


@contextmanager
def _style(salt: str = "bpeq") -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a report
        matplotlib.rcParams.update(
            {
                "font.size": TEXT,
                "text.color": colours.INK,
                "axes.labelcolor": colours.INK,
                "axes.labelsize": TEXT,
                "axes.edgecolor": colours.CONTROL,
                "axes.facecolor": "none",
                "axes.linewidth": 0.8,
                "xtick.color": colours.CONTROL,
                "ytick.color": colours.CONTROL,
                "xtick.labelcolor": colours.MUTED,
                "ytick.labelcolor": colours.MUTED,
                "svg.fonttype": "none",
                "svg.hashsalt": salt,
            }
        )
        yield


def _inline(text: str, panel: Panel, key: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib wrote an svg without a viewBox"
    text = text[text.index(">") + 1 :]
    # Keep font sizes and weights, but use the font family of the page.
    text = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", _font, text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = text.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    for colour in colours.VARIABLES:
        text = text.replace(colour, colours.variable(colour))
    label = escape(panel.alt, quote=True)
    return f'<svg {view[0]} role="img" aria-label="{label}">{text.strip()}'


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
