"""Points with error bars that stay legible when they are many: names or numbers, and a key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report._canvas import CHARACTER, TEXT, WIDTH, Margins, abbreviate
from bpeq.report._read import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOT, _LINE = 0.06, 1.15 * TEXT / 72  # inches: half a dot, a line of text
_APART = 0.12  # inches, between bars side by side
_KEY_TEXT, _KEY_LINE, _KEY_ROOM = 9.0, 0.175, 0.12  # points; inches
_KEY_START = 0.42  # inches, of a name in the key, behind its mark and its number

Box = tuple[float, float, float, float]
"""left, bottom, right, top, in inches from the lower left corner of the axes."""


class Point(NamedTuple):
    """One rule: its cost x, its error y ± std, how it is drawn, its number among all."""

    name: str
    x: float
    y: float
    std: float
    colour: str
    mark: str
    number: int


def draw_point(axes: Axes, p: Point, move: float = 0.0) -> None:
    """A dot and its bar, `move` inches to the right of their place; a thin line leads there."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = axes.figure
    at = axes.transData + ScaledTranslation(move, 0.0, figure.dpi_scale_trans)
    if move:
        (x, y), inches = _place(axes, p), _inches(axes)
        xs, ys = (x / inches[0], (x + move) / inches[0]), (y / inches[1], y / inches[1])
        axes.plot(xs, ys, color=colours.CONTROL, lw=0.5, transform=axes.transAxes, zorder=1.5)
    axes.errorbar(
        p.x, p.y, yerr=p.std or None, fmt=p.mark, ms=6, lw=1.2, color=p.colour, transform=at,
        markeredgecolor=colours.PAPER, markeredgewidth=0.6,
    )  # fmt: skip


def side_by_side(axes: Axes, points: Sequence[Point]) -> list[float]:
    """How far each point moves to the right, in inches, so that no bar lies upon another."""
    inches = _inches(axes)
    moves, placed = dict[int, float](), list[Box]()
    steps = [0.0, *(sign * k * _APART for k in range(1, 6) for sign in (1, -1))]
    for i in sorted(range(len(points)), key=lambda i: (points[i].x, points[i].y)):
        (x, _), (low, high) = _place(axes, points[i]), _bar(axes, points[i])
        half, tried = 0.04, []
        for rank, move in enumerate(steps):
            own = (x + move - half, low - _DOT, x + move + half, high + _DOT)
            beyond = max(0.0, -own[0], own[2] - float(inches[0]))
            over = sum(_overlap(own, other) for other in placed)
            tried.append((over + beyond + 1e-6 * rank, move, own))
        _, moves[i], own = min(tried)
        placed.append(own)
    return [moves[i] for i in range(len(points))]


def label_points(
    axes: Axes,
    points: Sequence[Point],
    moves: Sequence[float],
    lines: Sequence[float],
    numbered: bool,
) -> None:
    """Names, or numbers, beside their points, where they cover no other, no point, bar or line.

    Args:
      moves: as `side_by_side` gives them. lines: the y of lines through the whole axes.
    """
    inches = _inches(axes)
    at = [(x + m, y) for (x, y), m in zip((_place(axes, p) for p in points), moves, strict=True)]
    taken = 3 * [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in at]
    for p, (x, y), m in zip(points, at, moves, strict=True):
        low, high = _bar(axes, p)
        taken.append((x - 0.02, low, x + 0.02, high))
        if m:  # the line to its place
            taken.append((min(x, x - m), y - 0.03, max(x, x - m), y + 0.03))
    for line in lines:
        y = _up(axes, line)
        taken += 3 * [(0.0, y - 0.04, float(inches[0]), y + 0.04)]
    names: list[Box] = []
    for p, (x, y) in sorted(zip(points, at, strict=True), key=lambda pair: pair[1][1]):
        text, tried = str(p.number) if numbered else p.name, []
        for rank, (side, own) in enumerate(_places(x, y, CHARACTER * len(text))):
            over = sum(_overlap(own, other) for other in [*taken, *20 * names])
            outside = (-own[0], own[2] - inches[0], -own[1], own[3] - inches[1])
            over += sum(max(0.0, float(part)) for part in outside)
            tried.append((over + 3e-4 * rank, side, own))
        _, side, own = min(tried)
        names.append(own)
        _label(axes, text, p.colour, (x, y), side, own)


def key_height(names: Sequence[str]) -> float:
    """Inches that `draw_key` needs below the axes."""
    return _KEY_ROOM + _KEY_LINE * math.ceil(len(names) / _columns(names))


def draw_key(axes: Axes, points: Sequence[Point], margins: Margins) -> None:
    """Mark, number and name of every point, below the axes, over the panel's whole width."""
    inches, names = _inches(axes), [p.name for p in points]
    columns = _columns(names)
    rows, width = math.ceil(len(points) / columns), WIDTH / columns
    most = int((width - _KEY_START) / _character())
    for i, p in enumerate(sorted(points, key=lambda p: p.number)):
        x = i // rows * width - margins.left + 0.08
        y = key_height(names) - margins.bottom - _KEY_ROOM - (i % rows) * _KEY_LINE

        def put(text: str, right: float, x: float = x, y: float = y, **how: Any) -> None:
            axes.text(
                (x + right) / inches[0], y / inches[1], text, transform=axes.transAxes,
                va="center", size=_KEY_TEXT, parse_math=False, **how,
            )  # fmt: skip

        axes.plot(
            [x / inches[0]], [y / inches[1]], p.mark, ms=6, color=p.colour, clip_on=False,
            transform=axes.transAxes,
        )  # fmt: skip
        put(str(p.number), 0.3, color=p.colour, ha="right")
        put(abbreviate(p.name, most), 0.36, color=colours.INK)


def _columns(names: Sequence[str]) -> int:
    return 2 if _KEY_START + _character() * max(map(len, names)) <= WIDTH / 2 else 1


def _character() -> float:
    return CHARACTER * _KEY_TEXT / TEXT


def _inches(axes: Axes) -> Floats:
    """Width and height of the axes."""
    figure: Any = axes.figure
    box, size = axes.get_position(), figure.get_size_inches()
    return np.asarray((box.width * size[0], box.height * size[1]))


def _place(axes: Axes, p: Point) -> tuple[float, float]:
    to_axes = axes.transData + axes.transAxes.inverted()
    right, up = to_axes.transform((p.x, p.y)) * _inches(axes)
    return float(right), float(up)


def _up(axes: Axes, y: float) -> float:
    to_axes = axes.transData + axes.transAxes.inverted()
    return float(to_axes.transform((axes.get_xlim()[0], y))[1] * _inches(axes)[1])


def _bar(axes: Axes, p: Point) -> tuple[float, float]:
    """Where a point's bar begins and ends, in inches from the foot of the axes."""
    low = max(p.y - p.std, axes.get_ylim()[0])
    return _up(axes, low), _up(axes, p.y + p.std)


def _label(
    axes: Axes, text: str, colour: str, at: tuple[float, float], side: str, own: Box
) -> None:
    """The text in its box, with a line to its point where that is not beside it."""
    left, bottom, right, top = own
    inches = _inches(axes)
    start = {"left": left, "right": right, "center": (left + right) / 2}[side]
    axes.text(
        start / inches[0], (bottom + top) / 2 / inches[1], text, color=colour, ha=side,
        va="center", transform=axes.transAxes, parse_math=False,
    )  # fmt: skip
    if bottom - _LINE / 2 < at[1] < top + _LINE / 2:
        return
    foot = (min(max(at[0], left), right), top if top < at[1] else bottom)
    xs, ys = np.asarray([at, foot]).T / inches[:, None]
    axes.plot(xs, ys, color=colour, lw=0.6, transform=axes.transAxes)


def _places(x: float, y: float, width: float) -> list[tuple[str, Box]]:
    """Boxes for a text around a point, and how it stands in them: the best first, then farther."""
    found = []
    for step in range(10):
        for middle in dict.fromkeys((y + step * _LINE, y - step * _LINE)):
            starts = {"left": x + 0.1, "right": x - 0.1 - width, "center": x - width / 2}
            for side, left in starts.items():
                if step or side != "center":
                    box = (left, middle - _LINE / 2, left + width, middle + _LINE / 2)
                    found.append((side, box))
    return found


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
