"""The relative error layer by layer, a colour a rule: what a total hides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report._canvas import CHARACTER, WIDTH, Margins, Panel, abbreviate, label_ends, room
from bpeq.report._fidelity_rule import Rule
from bpeq.report._logplot import fold, wide
from bpeq.report._numbers import plain
from bpeq.report._scales import log_limits, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALL = "all"
_GAP = 0.12  # before the column of all together, in parts of the width of the layers
_TURNED = 12  # characters of a layer's name that is written aslant


def layer_panel(rules: Sequence[Rule]) -> Panel:
    """Relative error by layer, from input to output, then of all together.

    An error of exactly 0 lies on the lower edge, one that is not finite on the upper one.
    """
    layers = list(dict.fromkeys(name for r in rules for name in r.layers))
    errors = [_errors(r, layers) for r in rules]
    there = np.concatenate(errors)
    shown = there[np.isfinite(there) & (there > 0)]
    low, high = wide(float(shown.min()), float(shown.max())) if len(shown) else (1e-3, 1.0)
    bottom, top = (low / 4 if (there == 0).any() else low), high
    places = np.append(np.arange(len(layers)), len(layers) + max(0.5, _GAP * len(layers)))
    names = fold([r.name for r in rules])
    right = room(names)
    slot = (WIDTH - 0.6 - right) / (places[-1] + 1.0)
    turned = CHARACTER * max(map(len, [*layers, _ALL])) > 0.95 * slot
    ticks = [abbreviate(name, _TURNED) if turned else name for name in [*layers, _ALL]]
    longest = CHARACTER * max(map(len, ticks))
    margins = Margins(right=right, bottom=0.12 + 0.74 * longest if turned else 0.35)

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        axes.set_ylim(*log_limits(bottom, top))
        log_ticks(axes.yaxis, bottom, top)
        axes.set_xlim(-0.5, places[-1] + 0.5)
        every = max(1, math.ceil(0.22 / slot))
        kept = [i for i in range(len(ticks)) if i % every == 0 and i < len(layers) - every / 2]
        kept += list(range(len(ticks)))[-1 - (bool(layers) and every > 1) :]
        turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(places[kept], [ticks[i] for i in kept], **(turn if turned else {}))
        axes.tick_params(axis="x", length=0)
        for label in axes.get_xticklabels():
            label.set_parse_math(False)
        ends = []
        for i, (name, values) in enumerate(zip(names, errors, strict=True)):
            x = places + (i - (len(rules) - 1) / 2) * min(0.12, 0.5 / len(rules))
            y = np.where(values > 0, values, np.where(values == 0, bottom, np.nan))
            y = np.where(np.isfinite(values), y, top)
            axes.plot(x[:-1], y[:-1], colours.dash(i), color=colours.series(i), lw=1, alpha=0.45)
            _dots(axes, x, y, values, colours.series(i))
            ends.append((name, colours.series(i), float(y[-1])))
        axes.set_ylabel("relative error (log scale)", rotation=0, ha="left", va="bottom")
        axes.yaxis.set_label_coords(-margins.left / (WIDTH - margins.left - margins.right), 1.04)
        label_ends(axes, ends)

    caption = "Layers from input to output; larger dots: all parameters together."
    if (there == 0).any():
        caption += " ▽ at the lower edge: exactly 0."
    if not np.isfinite(there).all():
        caption += " × at the upper edge: not finite."
    told = "; ".join(
        f"{r.name}: " + ", ".join(f"{k} {plain(m.relative_error)}" for k, m in r.layers.items())
        + f"{', ' if r.layers else ''}{_ALL} {plain(r.total.relative_error)}"
        for r in rules
    )  # fmt: skip
    height = 2.75 + margins.bottom
    return Panel(draw, f"Relative error by layer. {told}.", caption, height, margins)


def _errors(r: Rule, layers: Sequence[str]) -> np.ndarray:
    """`[layers + 1]`, all of them last; −1 where the rule has no such layer."""
    found = [r.layers[name].relative_error if name in r.layers else -1.0 for name in layers]
    return np.asarray([*found, r.total.relative_error], dtype=np.float64)


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, colour: str) -> None:
    """A dot each, the last one larger; other marks where a log axis has no place."""
    for i, value in enumerate(values.tolist()):
        size = 8 if i == len(values) - 1 else 5
        if not math.isfinite(value):
            axes.plot(x[i], y[i], "x", color=colour, ms=size + 1, mew=1.6, clip_on=False)
        elif value > 0:
            axes.plot(x[i], y[i], "o", color=colour, ms=size)
        elif value == 0:
            axes.plot(x[i], y[i], "v", color=colour, mfc=colours.PAPER, ms=size + 1, clip_on=False)
