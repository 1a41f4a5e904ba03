"""The tables of a comparison's page: paired differences, gradient fidelity, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bpeq.report import _colours as colours
from bpeq.report import _fidelity_words as say
from bpeq.report import _numbers as n
from bpeq.report._fidelity_read import Rule
from bpeq.report._page import Cell, Group, Section
from bpeq.report._rows import COSTS, FROZEN, Difference, Row, interval, omitted

_MOST_PAIRS = 12


def differences_section(found: Sequence[Difference]) -> Section | None:
    """Rules against the frozen control first, then rules against each other."""
    if not found:
        return None
    table, shown = [], shown_pairs(found)
    for d in shown:
        table.append(
            [
                Cell(d.title),
                Cell(d.metric.difference(d.mean)),
                Cell(interval(d) or n.ABSENT),
                Cell(str(d.n)),
                Cell(d.verdict),
            ]
        )
    level = f"{100 * found[0].level:g} % interval"
    columns = ["difference", "mean", level, "pairs", "the first is"]
    units = {f"{d.metric.label} in {d.unit}".removesuffix(" in ") for d in found}
    text = f"The mean difference of {' or '.join(sorted(units))}; each pair shares its seed."
    if len(shown) > 1:
        text += " Each interval stands for itself: of twenty, one is expected to miss."
    text = f"{text} {omitted(len(shown), len(found))}".strip()
    return Section("Paired differences", text, columns=columns, groups=[Group(table)])


def shown_pairs(found: Sequence[Difference]) -> Sequence[Difference]:
    """The head of `differences`: as many as a page holds, and all against the frozen control."""
    return found[: max(_MOST_PAIRS, sum(FROZEN in (d.a, d.b) for d in found))]


def fidelity_section(found: Sequence[Row]) -> Section | None:
    """Each rule's gradient against the exact one, before and after training, layer by layer."""
    table = []
    for row in found:
        if not row.fidelity:
            continue
        table.append([name_cell(found, row), *_near(row.fidelity, "")])
        for layer in dict.fromkeys(name for r in row.fidelity.values() for name in r.layers):
            table.append([Cell(layer, inset=True), *_near(row.fidelity, layer)])
        if row.own:
            table.append([Cell("of its own objective", inset=True), *_near(row.own, "")])
    if not table:
        return None
    lead = (
        "Each rule's gradient against the exact gradient, in float64, of the rule's own function, "
        "with the first seed's initial and trained parameters: all together, and layer by layer. "
        "A relative error of 0 is exact, of 1 as far off as no gradient at all; a negative cosine "
        "points uphill."
    )
    columns = ["rule", *(f"{what}, {end}" for what in ("error", "cosine") for end in _ENDS)]
    columns.append("settled, %")
    return Section("Gradient fidelity", lead, columns=columns, groups=[Group(table)])


_ENDS = ("initial", "trained")


def _near(ends: dict[str, Rule], layer: str) -> list[Cell]:
    """Relative errors, cosines and what settled, of one layer or (empty) of all together."""
    of = [ends.get(end) for end in _ENDS]
    measures = [r and (r.layers.get(layer) if layer else r.total) for r in of]
    texts = [n.ABSENT if m is None else n.plain(m.relative_error) for m in measures]
    texts += [n.ABSENT if m is None else say.cosine(m.cosine) for m in measures]
    last = ends.get("trained")
    texts.append("" if layer or last is None else say.settling(last)[0])
    return [Cell(text) for text in texts]


def costs_section(found: Sequence[Row]) -> Section | None:
    """What one gradient costs each rule, and what training took."""
    names = list(dict.fromkeys(name for row in found for name in row.cost))
    names = [*(k for k in COSTS if k in names), *(k for k in names if k not in COSTS)]
    if not names:
        return None
    first = next((row for row in found if row.name == "backprop"), found[0])

    def cells(row: Row) -> list[Cell]:
        line = [name_cell(found, row)]
        for name in names:
            value, base = row.cost.get(name), first.cost.get(name) or 0.0
            text = n.ABSENT if value is None else COSTS.get(name, ("", n.plain))[1](value)
            ratio = value / base if value and base > 0 and name != "sweeps" else 1.0
            line.append(Cell(text, detail=f"×{n.plain(ratio, 2)}" if abs(ratio - 1) > 0.05 else ""))
        if timed:
            line.append(Cell(n.duration(row.training) if math.isfinite(row.training) else n.ABSENT))
        return line

    timed = any(math.isfinite(row.training) for row in found)
    columns = ["rule", *(COSTS.get(name, (name,))[0] for name in names)]
    columns += ["training"] if timed else []
    text = f"Of one gradient; × is relative to {first.name}."
    text += " Training: all updates of all seeds side by side." if timed else ""
    return Section("Cost", text, columns=columns, groups=grouped(found, cells))


def grouped(
    found: Sequence[Row], cells: Callable[[Row], list[Cell]], label: str = "Null controls"
) -> list[Group]:
    learners = [cells(row) for row in found if not row.control]
    controls = [cells(row) for row in found if row.control]
    return [Group(learners), Group(controls, label)]


def name_cell(found: Sequence[Row], row: Row) -> Cell:
    return Cell(row.name, colour=colour_of(found, row))


def colour_of(found: Sequence[Row], row: Row) -> str:
    if row.control:
        return colours.CONTROL
    return colours.series([r.name for r in found].index(row.name))
