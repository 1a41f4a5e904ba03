"""The panels of a fidelity result: error by layer, over β, points and sweeps; the GDU check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bpeq.report import colours, figures
from bpeq.report.error_lines import ErrorLine, guide, line_panel
from bpeq.report.numbers import format_number, setting
from bpeq.runs.fidelity_results import Fidelity, Gdu, RuleFidelity
from bpeq.runs.results import Floats

RUNAWAY = 1e4  # above this relative error a nudged phase has diverged
_MOST_TICKS = 24

_Key = tuple[str, str, float]  # rule, estimator, β: constant along a line


def layer_panel(rules: Mapping[str, RuleFidelity]) -> figures.Panel | None:
    """Draws the relative error by layer, from input to output, then of all parameters together.

    An error of exactly 0 is at the lower edge. An error that is not finite is at the upper edge.

    Args:
      rules: the fidelity of each rule.

    Returns:
      The panel; None without rules.
    """
    if not rules:
        return None
    # The errors of every rule at every layer, and the limits of the axes.
    rows = {
        name: {k: m.relative_error for k, m in r.layers.items()} | {"all": r.relative_error}
        for name, r in rules.items()
    }
    layers = list(dict.fromkeys(name for r in rules.values() for name in r.layers))
    ticks = [*layers, "all"]
    # [rules, layers + 1]; −1 if the rule has no such layer
    errors = np.asarray([[row.get(tick, -1.0) for tick in ticks] for row in rows.values()])
    shown = errors[np.isfinite(errors) & (errors > 0)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (1e-3, 1.0)
    bottom = low / 4 if (errors == 0).any() else low
    places = np.append(np.arange(len(layers)), len(layers) + max(0.5, 0.12 * len(layers)))

    def draw(axes: figures.Axes) -> None:
        figures.log_axis(axes.yaxis, np.asarray([bottom, high]))
        axes.set_xlim(-0.5, places[-1] + 0.5)
        # Labels of layers, turned if they need more room.
        every = math.ceil(len(ticks) / _MOST_TICKS)
        kept = sorted({*range(0, len(layers), every), len(layers)})
        room = figures.WIDTH - 1.2 - 0.08 * max(map(len, rules))  # inches, beside the legend
        turned = 0.09 * max(map(len, ticks)) * len(ticks) > room
        labels = [figures.abbreviate(ticks[i], 12 if turned else 30) for i in kept]
        axes.set_xticks(places[kept], labels, parse_math=False)
        axes.tick_params(axis="x", length=0)
        if turned:
            for label in axes.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        # One line for each rule, with its dots moved apart.
        names = []
        for i, (name, values) in enumerate(zip(rules, errors, strict=True)):
            x = places + (i - (len(rules) - 1) / 2) * min(0.12, 0.5 / len(rules))
            y = np.where(values > 0, values, np.where(values == 0, bottom, np.nan))
            y = np.where(np.isfinite(values), y, high)
            style: dict[str, Any] = {"color": colours.series(i), "clip_on": False}
            (line,) = axes.plot(x[:-1], y[:-1], colours.dash(i), lw=1, alpha=0.45, **style)
            # A log axis has no place for 0 and ∞, which get other marks. The last dot is the total.
            for mark, which in (("o", values > 0), ("v", values == 0), ("x", ~np.isfinite(values))):
                face = colours.PAPER if mark == "v" else style["color"]
                for at in np.flatnonzero(which & np.isfinite(y)):
                    size = 8 if at == len(layers) else 5
                    axes.plot(x[at], y[at], mark, ms=size, mfc=face, mew=1.4, **style)
            names.append((name, line, float(y[-1])))
        figures.label_axes(axes, "", "relative error (log scale)")
        figures.name_lines(axes, names)

    caption = "Layers from input to output; larger dots: all parameters together."
    caption += " ▽ at the lower edge: exactly 0." if (errors == 0).any() else ""
    caption += " × at the upper edge: not finite." if not np.isfinite(errors).all() else ""
    texts = [", ".join(f"{k} {format_number(v)}" for k, v in row.items()) for row in rows.values()]
    alt = "; ".join(f"{name}: {text}" for name, text in zip(rows, texts, strict=True))
    return figures.Panel(draw, f"Relative error by layer. {alt}.", caption, 3.1)


def grid_panels(result: Fidelity) -> list[figures.Panel | None]:
    """Draws the error over β, over N and over sweeps.

    Args:
      result: the fidelity result.

    Returns:
      The three panels; None for a grid that was not measured.
    """
    return [_beta_panel(result), _points_panel(result), _sweeps_panel(result)]


def grid_lines(result: Fidelity, varied: str) -> dict[_Key, list[ErrorLine]]:
    """Turns a grid into coloured lines. float64 is dashed if float32 was also measured.

    Args:
      result: the fidelity result.
      varied: the varied setting, "beta", "points" or "sweeps".

    Returns:
      (rule, estimator, β) -> its lines, one for each precision.
    """
    groups: dict[_Key, dict[str, list[tuple[float, float, float]]]] = {}
    for p in result.grid:
        if p.varied == varied:  # over N each point is another estimator
            estimator = "" if varied == "points" else p.estimator
            key = (p.rule, estimator, 0.0 if varied == "beta" else p.beta or 0.0)
            row = (p.x, p.relative_error, p.converged)
            groups.setdefault(key, {}).setdefault(p.precision, []).append(row)
    lines: dict[_Key, list[ErrorLine]] = {}
    for place, (key, parts) in enumerate(groups.items()):
        for precision in sorted(parts):  # float32, then float64
            x, y, settled = np.asarray(sorted(parts[precision]), dtype=np.float64).T
            y = np.where(y > RUNAWAY, np.nan, y)  # it would compress the scale of all others
            dash = "--" if precision == "float64" and len(parts) > 1 else "-"
            label, colour = _label(key, list(groups)), colours.series(place)
            line = ErrorLine(label, x, y, settled, colour, dash, precision, key[2])
            lines.setdefault(key, []).append(line)
    return lines


def gdu_panel(gdu: Mapping[str, Gdu]) -> figures.Panel | None:
    """Draws the mismatch of EP's updates and BPTT's gradients over β, with slopes of 1 and 2.

    Args:
      gdu: the GDU check of each nudging.

    Returns:
      The panel; None without a check.
    """
    lines = []
    for place, (name, one) in enumerate(gdu.items()):
        order = np.argsort(one.betas)
        x, y = np.asarray(one.betas)[order], np.asarray(one.mismatch)[order]
        lines.append(ErrorLine(name, x, y, np.ones(len(x)), colours.series(place)))

    def guides(axes: figures.Axes) -> None:
        for order in (1, 2):  # below the line that should have this slope
            along = [a for a in lines if (1 if a.label == "one-sided" else 2) == order]
            for line in [a for a in along if a.drawn.any()][:1]:
                last = np.flatnonzero(line.drawn)[-1]
                x, scale = float(line.x[last]), float(line.y[last] / line.x[last] ** order) / 3
                guide(axes, partial(_power, scale, order), x, f"slope {order}")

    texts = {name: format_number(g.slope, decimals=2) for name, g in gdu.items()}
    holds = {name: math.isfinite(g.slope) for name, g in gdu.items()}
    slopes = ", ".join(f"{k} {text if holds[k] else 'no fit holds'}" for k, text in texts.items())
    caption = (
        "EP's update in every nudged sweep against BPTT's gradient in that time step. Fitted "
        f"slopes: {slopes}. Dotted: the slopes of theory."
    )
    return line_panel(lines, "mismatch", "β", caption, more=guides)


def _beta_panel(result: Fidelity) -> figures.Panel | None:
    by_key = grid_lines(result, "beta")
    lines = [line for part in by_key.values() for line in part]
    names = {rule for rule, _, _ in by_key}
    in_use = {k: r for k, r in result.measured.items() if k in names and _is_positive(r.beta)}
    orders = {name: order for name, order in result.bias_order.items() if math.isfinite(order)}
    # The name of a fit is its estimator or rule. The first line of this name was fitted.
    fitted = {(key[1] or key[0]): part[0] for key, part in reversed(by_key.items())}

    def more(axes: figures.Axes) -> None:
        for name in result.bias_order:
            if name in fitted:
                _draw_bias(axes, result, name, fitted[name].colour)
        _draw_beta_in_use(axes, in_use)

    caption = "Towards large β the bias of the nudge grows, towards small β the round-off."
    if any(fit.intercept is not None for name, fit in result.fit.items() if name in orders):
        caption += " Broad lines: the fitted bias; its slope is its order."
    caption += " Ring: the β in use." if in_use else ""
    fits = {name: format_number(order, decimals=2) for name, order in orders.items()}
    alt = "; ".join(f"{name} {text}" for name, text in fits.items())
    alt = alt and f"Fitted orders: {alt}."
    caption += _precisions(lines)
    extra = [(r.beta or 0.0, r.relative_error) for r in in_use.values()]
    slopes = {fitted[k].label: f"slope {text}" for k, text in fits.items() if k in fitted}
    texts = (lines, "relative error", "β", caption, alt)
    return line_panel(*texts, more=more, extra=extra, slopes=slopes)


def _points_panel(result: Fidelity) -> figures.Panel | None:
    lines = [line for part in grid_lines(result, "points").values() for line in part]
    radius = result.radius if result.radius is not None and math.isfinite(result.radius) else None

    def more(axes: figures.Axes) -> None:
        line = next((a for a in lines if a.drawn.any()), None)
        if line is None or radius is None or not 0 < line.beta < radius:
            return
        falling = line.drawn & (line.y > 30 * line.y[line.drawn].min())  # above round-off
        kept = falling if falling.any() else line.drawn
        rate = math.log(line.beta / radius)
        at = float(np.mean(np.log(line.y[kept]) - rate * line.x[kept]))
        guide(axes, lambda x: np.exp(at + rate * x), math.inf, f"(β / {format_number(radius)})ᴺ")

    caption = f"N nudges on a circle of radius {_betas(lines)}."
    if radius is not None:
        caption += f" Dotted: the fall for the fitted pole at |β| = {format_number(radius)}."
    caption += _precisions(lines)
    return line_panel(lines, "relative error", "points N", caption, log_x=False, more=more)


def _sweeps_panel(result: Fidelity) -> figures.Panel | None:
    lines = [line for part in grid_lines(result, "sweeps").values() for line in part]
    xs = np.concatenate([line.x for line in lines]) if lines else np.empty(0)
    caption = f"How the error falls with the number of sweeps, at {_betas(lines)}."
    caption, log_x = caption + _precisions(lines), figures.is_logarithmic(xs)
    return line_panel(lines, "relative error", "sweeps", caption, log_x=log_x)


def _draw_bias(axes: figures.Axes, result: Fidelity, name: str, colour: str) -> None:
    """Draws the fitted bias: a broad line over the fitted range, a dotted line below it."""
    fit, order = result.fit.get(name), result.bias_order[name]
    betas = [beta for beta in fit.betas if _is_positive(beta)] if fit else []
    if (
        fit is None
        or fit.intercept is None
        or not betas
        or not math.isfinite(fit.intercept + order)
    ):
        return
    low, high = min(betas), max(betas)
    x = np.asarray([min(axes.get_xlim()[0], low), low, high])  # straight, both axes being log
    y = 10 ** (fit.intercept + order * np.log10(x))
    axes.plot(x[:2], y[:2], ":", color=colour, lw=1.2, alpha=0.7, zorder=1)
    axes.plot(x[1:], y[1:], color=colour, lw=8, alpha=0.2, zorder=1, solid_capstyle="butt")


def _draw_beta_in_use(axes: figures.Axes, rules: Mapping[str, RuleFidelity]) -> None:
    """Draws a ring around each rule's error at its own β, and a vertical line at this β."""
    for r in rules.values():
        axes.plot(r.beta or 0.0, r.relative_error, "o", mfc="none", color=colours.INK, ms=10)
    for beta in sorted({r.beta or 0.0 for r in rules.values()}):
        axes.axvline(beta, color=colours.CONTROL, lw=0.8, ls=(0, (2, 3)), zorder=0)
        left, right = np.log(axes.get_xlim())
        late = (math.log(beta) - left) / (right - left) > 0.6
        axes.annotate(
            f"β = {setting(beta)}", (beta, 0.02), xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, 0), textcoords="offset points", size=9,
            ha="right" if late else "left", color=colours.INK, parse_math=False,
        )  # fmt: skip


def _label(key: _Key, keys: Sequence[_Key]) -> str:
    """The name of a line: what distinguishes it from the others, else its estimator or rule."""
    rule, estimator, beta = key
    parts = [rule] if len({k[0] for k in keys}) > 1 else []
    parts += [estimator] if len({k[1] for k in keys}) > 1 and estimator else []
    parts += [f"β = {setting(beta)}"] if len({k[2] for k in keys if k[0] == rule}) > 1 else []
    return " ".join(parts) or estimator or rule


def _betas(lines: Sequence[ErrorLine]) -> str:
    values = sorted({line.beta for line in lines} - {0.0})
    return "β = " + ", ".join(map(setting, values)) if values else "its own settings"


def _precisions(lines: Sequence[ErrorLine]) -> str:
    if any(line.dash != "-" for line in lines):
        return " Solid: float32, dashed: float64."
    alone = {line.precision for line in lines} - {""}
    return f" In {alone.pop()}." if len(alone) == 1 else ""


def _power(scale: float, order: int, beta: Floats) -> Floats:
    return scale * beta**order


def _is_positive(value: float | None) -> bool:
    return value is not None and 0 < value < math.inf
