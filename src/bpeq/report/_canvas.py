"""Panels onto paper: one SVG that follows the page's colours, or one PNG of several panels.

matplotlib's object API throughout: no pyplot, no global figure, and its settings are put back.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bpeq.report import _colours as colours
from bpeq.runs import run_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

WIDTH = 4.9  # inches: two panels beside each other fill the page, one fills a phone
TEXT = 10.0  # points
CHARACTER = 0.086  # inches, of a character of TEXT size


_EDGE = 0.3  # inches, around and between the panels of a PNG
_CAPTION, _LEADING = 66, 0.165  # characters of a PNG's caption's lines, and inches between them


class Margins(NamedTuple):
    """Room around the axes of a panel, in inches."""

    left: float = 0.6
    right: float = 0.25
    bottom: float = 0.5
    top: float = 0.35


class Panel(NamedTuple):
    """One set of axes: how to draw into them, and the words that go with them.

    alt: what the picture shows, for those who do not see it. caption: how to read it.
    """

    draw: Callable[[Axes], None]
    alt: str
    caption: str
    height: float = 2.9
    margins: Margins = Margins()


def png(panels: Sequence[Panel], path: Path, title: str) -> Path:
    """Writes the panels, two to a row, each above its caption, to a PNG with `title` on top.

    Returns `path`. A PNG stands alone, so that its marks must be told in it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    keys = {id(panel): textwrap.wrap(panel.caption, _CAPTION) for panel in panels}
    heights = [max(p.height + _LEADING * len(keys[id(p)]) for p in row) + 0.3 for row in rows]
    wide = _EDGE + columns * (WIDTH + _EDGE)
    high = 0.55 + sum(heights)
    with _style():
        figure = Figure(figsize=(wide, high), facecolor=colours.PAPER)
        FigureCanvasAgg(figure)
        figure.text(
            _EDGE / wide, 1 - 0.2 / high, abbreviate(title, 55 * columns),
            va="top", weight="bold", size=12, parse_math=False,
        )  # fmt: skip
        top = high - 0.55
        for row, height in zip(rows, heights, strict=True):
            for column, panel in enumerate(row):  # of its own height, at the top of its row
                left, bottom = _EDGE + column * (WIDTH + _EDGE), top - panel.height
                box = (left / wide, bottom / high, WIDTH / wide, panel.height / high)
                _axes(figure, panel, box)
                figure.text(
                    box[0], (bottom - 0.05) / high, "\n".join(keys[id(panel)]), va="top", size=9,
                    color=colours.MUTED, linespacing=1.3, parse_math=False,
                )  # fmt: skip
            top -= height
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, format="png", metadata={"Software": "bpeq"})
    run_folder.write_bytes(path, buffer.getvalue())
    return path


def svg(panel: Panel, key: str) -> str:
    """The panel as inline SVG: text stays text, colours are the page's variables.

    `key` begins every id, so that several figures may stand on one page.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(key):
        figure = Figure(figsize=(WIDTH, panel.height), facecolor="none")
        FigureCanvasSVG(figure)
        _axes(figure, panel, (0.0, 0.0, 1.0, 1.0))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), panel, key)


def abbreviate(text: str, most: int) -> str:
    """`text` on one line, its middle left out where it is longer than `most` characters."""
    text = re.sub(r"[\r\n\t]+", " ", text)
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def room(labels: Sequence[str]) -> float:
    """The right margin, in inches, that direct labels need; a label may have several lines."""
    lines = [line for label in labels for line in label.split("\n")]
    return 0.3 + CHARACTER * max(map(len, lines), default=0)


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Names lines at the right edge, as (text, colour, y of the line's end), pushed apart.

    Call it when the limits of the axes are final.
    """
    if not ends:
        return
    figure: Any = axes.figure
    box = axes.get_position()
    inches = box.height * figure.get_size_inches()[1]
    lines = max(text.count("\n") + 1 for text, _, _ in ends)
    gap = min((1.2 * lines + 0.05) * TEXT / 72 / inches, 1.0 / len(ends))
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = sorted((float(to_axes.transform((0.0, y))[1]), t, c) for t, c, y in ends)
    wanted = [(min(max(at, 0.0), 1.0), t, c) for at, t, c in wanted]
    placed: list[float] = []
    for at, _, _ in wanted:
        placed.append(max(at, placed[-1] + gap) if placed else at)
    ceiling = 1.0 + gap / 2
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    for (at, text, colour), y in zip(wanted, placed, strict=True):
        axes.plot(
            [1.005, 1.03], [at, y], color=colour, lw=0.8, transform=axes.transAxes, clip_on=False
        )
        axes.text(
            1.04, y, text, color=colour, va="center", transform=axes.transAxes, parse_math=False
        )  # fmt: skip


def _axes(figure: FigureBase, panel: Panel, box: tuple[float, float, float, float]) -> None:
    """Axes inside `box` (left, bottom, width, height, in parts of the figure), then drawn into."""
    left, bottom, width, height = box
    m, x, y = panel.margins, width / WIDTH, height / panel.height
    inside = (
        left + m.left * x,
        bottom + m.bottom * y,
        width - (m.left + m.right) * x,
        height - (m.bottom + m.top) * y,
    )
    axes = figure.add_axes(inside)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=colours.LINE, lw=0.8)
    axes.set_axisbelow(True)
    panel.draw(axes)


@contextmanager
def _style(salt: str = "bpeq") -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()  # a user's matplotlibrc does not reach a report
        matplotlib.rcParams.update(
            {
                "font.size": TEXT,
                "text.color": colours.INK,
                "axes.labelcolor": colours.INK,
                "axes.labelsize": TEXT,
                "axes.edgecolor": colours.CONTROL,
                "axes.facecolor": "none",
                "axes.linewidth": 0.8,
                "axes.unicode_minus": True,
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
    from html import escape

    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib wrote an svg without a viewBox"
    text = text[text.index(">") + 1 :]
    # the page's own font: sizes stay, families go
    text = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", _font, text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = text.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    for colour in colours.known():
        text = text.replace(colour, colours.variable(colour))
    label = escape(panel.alt, quote=True)
    return f'<svg {view[0]} role="img" aria-label="{label}">{text.strip()}'


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
