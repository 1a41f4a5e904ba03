"""Tables of gradients against exact ones: of a fidelity result, and before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bpeq.report.numbers import cosine, format_number, percent, setting
from bpeq.report.tables import Column, Group, Table, TableCell
from bpeq.runs.fidelity_results import Fidelity, Measures, RuleFidelity, TrainingFidelity

_MEASURES = (
    Column("relative error"),
    Column("cosine", format=cosine),
    Column("norm ratio", format=partial(format_number, digits=4)),
    Column("signs agree", "%", format=percent),
)
_ENDS = (
    Column("settled", "%", format=percent),
    Column("sweeps"),
    Column("β", format=setting),
    Column("error bar"),
)


def measures_table(result: Fidelity, looks: Mapping[str, str], own: bool) -> Table:
    """A table with one row for each rule and one for each of its layers, and how the phases ended.

    Args:
      result: the fidelity result.
      looks: the colour of each rule.
      own: whether to add rows against the rule's own objective.

    Returns:
      The table.
    """
    rows: list[list[Any]] = []
    for name, r in result.measured.items():
        settled = [r.converged, r.sweeps] if r.relaxes else [None, None]
        for part, m in r.parts.items():
            if part == ():
                first = TableCell(name, looks.get(name, ""), style="bold")
                rows.append([first, *_measures(m), *settled, r.beta, r.error_bar])
            elif own or part[0] in r.layers:
                rows.append([TableCell(part[-1], indent=len(part)), *_measures(m), *[""] * 4])
    return Table([Column("rule"), *_MEASURES, *_ENDS], [Group(rows)]).without_empty_columns()


def own_objectives_table(result: Fidelity, looks: Mapping[str, str]) -> Table:
    """A table of the rules with another objective than the cost, against this objective.

    Args:
      result: the fidelity result.
      looks: the colour of each rule.

    Returns:
      The table.
    """
    rows: list[list[Any]] = []
    for name, r in result.measured.items():
        if (own := r.own_objective) is not None:
            rows.append([TableCell(name, looks.get(name, ""), own.objective), *_measures(own)])
            rows += [[TableCell(k, indent=1), *_measures(m)] for k, m in own.layers.items()]
    return Table([Column("rule"), *_MEASURES], [Group(rows)])


def training_table(rules: Mapping[str, TrainingFidelity], looks: Mapping[str, str]) -> Table:
    """A table of errors and cosines at initial and trained parameters, in total and by layer.

    Args:
      rules: the fidelity of each rule before and after training.
      looks: the colour of each rule.

    Returns:
      The table.
    """
    ends = [e for e in ("initial", "trained") if any(e in t.ends for t in rules.values())]
    columns = [Column("rule"), *(Column(f"relative error, {end}") for end in ends)]
    columns += [Column(f"cosine, {end}", format=cosine) for end in ends]
    columns.append(Column("settled", "%", format=percent))
    rows: list[list[Any]] = []
    for name, training in rules.items():
        measured = {end: r.parts for end, r in training.ends.items()}
        last = training.ends.get("trained")
        settled = last.converged if last is not None and last.relaxes else None
        for part in dict.fromkeys(part for parts in measured.values() for part in parts):
            title = part[-1] if part else name
            title = "of its own objective" if title == "own objective" else title
            first = TableCell(title, "" if part else looks.get(name, ""), indent=len(part))
            measures = [measured.get(end, {}).get(part) for end in ends]
            errors = [m and m.relative_error for m in measures]
            cosines = [m and m.cosine for m in measures]
            rows.append([first, *errors, *cosines, "" if part else settled])
    return Table(columns, [Group(rows)])


def nudge_table(result: Fidelity, looks: Mapping[str, str]) -> Table:
    """A table of how far the nudge moves each state, and of the solver's residual.

    Args:
      result: the fidelity result.
      looks: the colour of each rule.

    Returns:
      The table.
    """
    rows: list[list[Any]] = []
    for name, r in result.measured.items():
        if r.nudge is not None and r.nudge.amplitude:
            rows.append([TableCell(name, looks[name]), "", r.nudge.residual])
            rows += [[TableCell(k, indent=1), v, ""] for k, v in r.nudge.amplitude.items()]
    return Table([Column("state"), Column("moved by"), Column("residual")], [Group(rows)])


def references_table(result: Fidelity, looks: Mapping[str, str]) -> Table:
    """A table of how each exact gradient was computed and how well it settled.

    Args:
      result: the fidelity result.
      looks: the colour of each rule.

    Returns:
      The table.
    """
    rows: list[list[Any]] = []
    for name, r in result.measured.items():
        if not r.reference:
            continue
        first = TableCell(name, looks[name])
        rows.append([first, r.reference, r.reference_settled, r.reference_residual])
        if (own := r.own_objective) is not None:
            inset = TableCell("own objective", indent=1)
            rows.append([inset, own.objective, own.reference_settled, own.reference_residual])
    columns = [Column("rule"), Column("exact gradient by", align="left")]
    columns += [Column("settled", "%", format=percent), Column("largest residual")]
    return Table(columns, [Group(rows)])


def fits_table(result: Fidelity) -> Table:
    """A table of the fits: the fitted value, its error bar, the theory, the range, the residuals.

    Args:
      result: the fidelity result.

    Returns:
      The table, with one row for each order of a bias, each slope of the GDU check, and the pole.
    """
    powers = [(f"bias order, {k}", v, result.fit.get(k)) for k, v in result.bias_order.items()]
    powers += [(f"GDU slope, {name}", one.slope, one.fit) for name, one in result.gdu.items()]
    rows: list[list[Any]] = []
    for label, order, fit in powers:
        if fit is not None:
            fitted = order if math.isfinite(order) else None
            over = fit.reason
            if fit.betas:
                over = f"β = {setting(min(fit.betas))} to {setting(max(fit.betas))}"
            rows.append([label, fitted, fit.error, fit.theory, over, _largest(fit.residuals)])
    pole = result.pole
    if pole.points or pole.reason:
        over = pole.reason
        if pole.points:
            over = f"N = {setting(min(pole.points))} to {setting(max(pole.points))}"
        residual = _largest(pole.residuals)
        rows.append(["nearest pole in β", result.radius, pole.error, None, over, residual])
    columns = [
        Column("fit"),
        Column("fitted"),
        Column("±", format=partial(format_number, digits=2)),
    ]
    columns += [Column("theory", format=setting), Column("over", align="left")]
    columns.append(Column("largest residual", "%", format=partial(format_number, digits=2)))
    return Table(columns, [Group(rows)])


def _largest(residuals: Sequence[float]) -> float | None:
    """The largest residual of log10 of an error, as a change of the error in percent."""
    return 100.0 * (10.0 ** max(map(abs, residuals)) - 1.0) if residuals else None


def equilibrium_table(result: Fidelity) -> Table:
    """A table of the measurements of the settled states, one row for each.

    Args:
      result: the fidelity result.

    Returns:
      The table.
    """
    at = result.equilibrium
    rows: list[list[Any]] = []
    if at is not None:
        for label, c in (
            ("curvature", at.curvature),
            ("curvature of the outputs", at.output_curvature),
        ):
            if c is not None:
                rows.append([f"{label}, smallest", c.smallest])
                rows.append([f"{label}, median over examples", c.median])
        if at.asymmetry is not None:
            rows.append(["asymmetry of the force's Jacobian", at.asymmetry])
        shares = {f"saturated units of {name}": part for name, part in at.saturated.items()}
        if at.jumped is not None:
            shares[f"examples that jump at β = {setting(at.jumped.beta)}"] = at.jumped.share
        shares |= {f"along the grid, at β = {setting(beta)}": part for beta, part in at.along}
        if at.settled is not None:
            shares["examples that settled"] = at.settled
        rows += [[f"{label}, %", percent(part)] for label, part in shares.items()]
    return Table([Column("quantity"), Column("value")], [Group(rows)])


def _measures(m: Measures) -> list[float | None]:
    ratios = [m.norm_ratio, m.sign_agreement]
    return [m.relative_error, m.cosine, *(v if math.isfinite(v) else None for v in ratios)]


def nearness(rule: RuleFidelity) -> tuple[float, float]:
    """The relative error of the whole gradient, and the cosine of the worst layer.

    Layers whose exact gradient is zero, such as trained inverses, do not count. Their cosine is 0
    and their relative error infinite by definition.

    Args:
      rule: the fidelity of the rule.

    Returns:
      The error and the cosine.
    """
    judged = [m for m in rule.layers.values() if m.cosine or math.isfinite(m.relative_error)]
    cosines = [m.cosine for m in judged or [rule]]
    return rule.relative_error, math.nan if any(map(math.isnan, cosines)) else min(cosines)
