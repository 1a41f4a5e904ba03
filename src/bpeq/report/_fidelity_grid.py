"""The panels of a fidelity grid: error over β, over points on the circle, over sweeps; and GDU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report import _numbers as n
from bpeq.report._canvas import Panel
from bpeq.report._fidelity_read import Fit, Gdu, Microscope
from bpeq.report._fidelity_rule import Rule
from bpeq.report._fidelity_words import RUNAWAY, setting
from bpeq.report._logplot import Line, Words, guide, line_panel
from bpeq.report._scales import logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Key = tuple[str, str, float]  # rule, estimator, β: what a line holds fixed


def grid_panels(found: Microscope) -> list[Panel]:
    """Error over β, over N and over sweeps: those that the grid has."""
    made = [
        _beta_panel(found, grid_lines(found, "beta")),
        _points_panel(found, grid_lines(found, "points")),
        _sweeps_panel(grid_lines(found, "sweeps")),
    ]
    return [panel for panel in made if panel is not None]


def grid_lines(found: Microscope, varied: str) -> list[Line]:
    """The grid over `varied` as lines, a colour each; float64 dashed where float32 is there too."""
    groups: dict[_Key, dict[str, list[tuple[float, float, float]]]] = {}
    for p in found.grid:
        if p.varied == varied:  # over N each point is an estimator of its own
            estimator = "" if varied == "points" else p.estimator
            key = (p.rule, estimator, 0.0 if varied == "beta" else p.beta)
            groups.setdefault(key, {}).setdefault(p.precision, []).append((p.x, p.error, p.settled))
    made = []
    for place, (key, parts) in enumerate(groups.items()):
        label = _label(key, list(groups))
        for precision in sorted(parts):  # float32, then float64
            x, y, settled = np.asarray(sorted(parts[precision]), dtype=np.float64).T
            y = np.where(y > RUNAWAY, np.nan, y)  # it would squeeze all others into a line
            dash = "--" if precision == "float64" and len(parts) > 1 else "-"
            colour = colours.series(place)
            rule, estimator, beta = key
            made.append(Line(label, rule, estimator, precision, beta, x, y, settled, colour, dash))
    return made


def gdu_panel(gdu: dict[str, Gdu]) -> Panel | None:
    """The mismatch of EP's updates and BPTT's gradients over β, beside slopes of 1 and 2."""
    lines = []
    for place, (name, one) in enumerate(gdu.items()):
        order = np.argsort(one.betas)
        x, y = np.asarray(one.betas)[order], np.asarray(one.mismatch)[order]
        settled, colour = np.ones(len(x)), colours.series(place)
        lines.append(Line(name, "", name, "", 0.0, x, y, settled, colour))
    lines = [line for line in lines if line.drawn.any()]

    def guides(axes: Axes) -> None:
        for order in (1, 2):  # below the line that should run along it
            near = [a for a in lines if (1 if a.estimator == "one-sided" else 2) == order]
            if near:
                _slope(axes, near[0], order)

    slopes = ", ".join(f"{name} {n.fixed(one.slope)}" for name, one in gdu.items())
    caption = (
        "EP's update in every nudged sweep against BPTT's gradient in that time step. Fitted "
        f"slopes: {slopes}; dotted: what theory gives."
    )
    return line_panel(lines, Words("mismatch", "β", caption), log_x=True, more=guides)


def _beta_panel(found: Microscope, lines: list[Line]) -> Panel | None:
    rules = {line.rule for line in lines}
    chosen = [r for r in found.rules if 0 < (r.beta or 0.0) < math.inf and r.name in rules]
    orders = {name: fit.order for name, fit in found.fits.items() if math.isfinite(fit.order)}

    def more(axes: Axes) -> None:
        for name, fit in found.fits.items():
            line = next((a for a in lines if (a.estimator or a.rule) == name), None)
            if line is not None:
                _draw_bias(axes, fit, line)
        _draw_chosen(axes, chosen)

    caption = "Towards large β the bias of the nudge, towards small β round-off."
    if any(fit.intercept is not None for fit in found.fits.values()):
        caption += " Broad lines: the fitted bias; its slope is its order."
    if chosen:
        caption += " Ring: the β in use."
    says = "; ".join(f"{name} {n.fixed(order)}" for name, order in orders.items())
    words = Words(
        "relative error",
        "β",
        caption + _dashes(lines),
        f"Fitted orders: {says}." if says else "",
    )
    extra = [(r.beta or 0.0, r.total.relative_error) for r in chosen]
    fitted = {
        a.estimator or a.rule: a.label for a in reversed(lines)
    }  # the first of each is what was fitted
    slopes = {fitted[k]: f"slope {n.fixed(order)}" for k, order in orders.items() if k in fitted}
    return line_panel(lines, words, log_x=True, more=more, extra=extra, tails=slopes)


def _points_panel(found: Microscope, lines: list[Line]) -> Panel | None:
    radius = found.radius if found.radius is not None and math.isfinite(found.radius) else None

    def more(axes: Axes) -> None:
        line = next((a for a in lines if a.drawn.any()), None)
        if line is None or radius is None or not 0 < line.beta < radius:
            return
        falling = line.drawn & (line.y > 30 * line.y[line.drawn].min())  # above round-off
        kept = falling if falling.any() else line.drawn
        rate = math.log(line.beta / radius)
        at = float(np.mean(np.log(line.y[kept]) - rate * line.x[kept]))
        guide(axes, lambda x: np.exp(at + rate * x), math.inf, f"(β / {n.plain(radius)})ᴺ")

    caption = f"N nudges on a circle of radius {_betas(lines)}."
    if radius is not None:
        caption += f" Dotted: the fall that a pole at |β| = {n.plain(radius)}, fitted, sets."
    words = Words("relative error", "points N", caption + _dashes(lines))
    return line_panel(lines, words, log_x=False, more=more)


def _sweeps_panel(lines: list[Line]) -> Panel | None:
    xs = np.concatenate([line.x for line in lines]) if lines else np.empty(0)
    caption = f"What the sweeps of an estimate buy, at {_betas(lines)}." + _dashes(lines)
    return line_panel(lines, Words("relative error", "sweeps", caption), logarithmic(xs))


def _slope(axes: Axes, line: Line, order: int) -> None:
    """A guide of this slope, below the line and up to its last point."""
    top = np.flatnonzero(line.drawn)[-1]
    x, y = float(line.x[top]), float(line.y[top]) / 3
    guide(axes, lambda beta: y * (beta / x) ** order, x, f"slope {order}")


def _draw_bias(axes: Axes, fit: Fit, line: Line) -> None:
    """The fitted bias, broad and faint where it was fitted, dotted below."""
    betas = [beta for beta in fit.betas if 0 < beta < math.inf]
    if fit.intercept is None or not betas or not math.isfinite(fit.intercept + fit.order):
        return
    low, high = min(betas), max(betas)
    x = np.asarray([min(axes.get_xlim()[0], low), low, high])  # straight, both axes being log
    y = 10 ** (fit.intercept + fit.order * np.log10(x))
    axes.plot(x[:2], y[:2], ":", color=line.colour, lw=1.2, alpha=0.7, zorder=1)
    axes.plot(x[1:], y[1:], color=line.colour, lw=8, alpha=0.2, zorder=1, solid_capstyle="butt")


def _draw_chosen(axes: Axes, chosen: Sequence[Rule]) -> None:
    for i, r in enumerate(chosen):
        assert r.beta is not None
        axes.plot(r.beta, r.total.relative_error, "o", mfc="none", color=colours.INK, ms=10)
        if r.beta in [other.beta for other in chosen[:i]]:
            continue
        axes.axvline(r.beta, color=colours.CONTROL, lw=0.8, ls=(0, (2, 3)), zorder=0)
        left, right = np.log(axes.get_xlim())
        late = (math.log(r.beta) - left) / (right - left) > 0.6
        axes.annotate(
            f"β = {setting(r.beta)}", (r.beta, 0.02), xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, 0), textcoords="offset points", size=9,
            ha="right" if late else "left", color=colours.INK, parse_math=False,
        )  # fmt: skip


def _label(key: _Key, keys: Sequence[_Key]) -> str:
    """What sets a line apart from the others, else its estimator or rule."""
    rule, estimator, beta = key
    several = [len({k[i] for k in keys}) > 1 for i in range(2)]
    several.append(len({k[2] for k in keys if k[0] == rule}) > 1)
    named = [rule] if several[0] else []
    named += [estimator] if several[1] and estimator else []
    named += [f"β = {setting(beta)}"] if several[2] else []
    return " ".join(named) or estimator or rule


def _betas(lines: Sequence[Line]) -> str:
    values = sorted({line.beta for line in lines} - {0.0})
    if not values:
        return "its own settings"
    return "β = " + ", ".join(setting(value) for value in values)


def _dashes(lines: Sequence[Line]) -> str:
    both = any(line.dash != "-" for line in lines)
    alone = {line.precision for line in lines} - {""}
    if both:
        return " Solid: float32, dashed: float64."
    return f" In {alone.pop()}." if len(alone) == 1 else ""
