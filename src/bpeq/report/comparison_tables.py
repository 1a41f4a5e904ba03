"""The tables of a comparison: in the terminal, on its page, and comparison.csv."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bpeq.report import pairs
from bpeq.report.comparison_plots import colour_of
from bpeq.report.fidelity_tables import nearness
from bpeq.report.metrics import Metric, best_worst, csv_cells, metric, ordered, primary
from bpeq.report.numbers import duration, format_number, magnitude, memory
from bpeq.report.page import title_of
from bpeq.report.pairs import Rules
from bpeq.report.tables import Column, Group, Table, TableCell, of_records
from bpeq.runs.results import Comparison, ComparisonRow, Difference, Statistic

COSTS = {
    "sweeps": Column("sweeps"),
    "macs": Column("MACs", format=magnitude),
    "seconds": Column("time", format=duration),
    "bytes": Column("memory", format=memory),
}


def comparison_table(comparison: dict[str, Any] | Comparison) -> Table:
    """A table of the rules of a comparison: the leading metric, fidelity, the cost of one gradient.

    Null controls stand below the rules, under their own heading. The caption holds the comparison's
    notes. A known fidelity replaces the best and the worst seed, because a table is 80 columns
    wide.

    Args:
      comparison: the content of comparison.json.

    Returns:
      The table for a terminal.

    Raises:
      DataError: a metric or a cost is not a number.
    """
    comparison = Comparison.parse(comparison)
    rules = comparison.rules
    m = leading_metric(rules)
    near = any(row.ends for row in rules.values())
    solved = any("solved" in row.metrics for row in rules.values())
    columns = [Column("rule"), Column("") if m is None else m.column]
    columns += [metric("solved").column._replace(header="solved")]
    columns += [Column("best\u00a0–\u00a0worst")]
    columns += [Column("grad. error", format=partial(format_number, digits=2))]
    columns += [Column("worst cosine", format=partial(format_number, decimals=4))]

    def cells(name: str, row: ComparisonRow) -> list[Any]:
        absent = ("", "") if row.control or not near else (None, None)
        return [
            TableCell(name, style="bold"),
            "" if m is None else _value(row, m, "no result"),
            row.metrics.get("solved", ""),
            "" if solved or near else _extremes(row, m),
            *(nearness(row.ends["trained"]) if "trained" in row.ends else absent),
            *(row.cost.get(key) for key in COSTS),
        ]

    table = Table([*columns, *COSTS.values()], _grouped(rules, cells))
    title = title_of(comparison, comparison.name)
    return table.without_empty_columns()._replace(title=title, caption=_caption(comparison))


def leading_metric(rules: Rules) -> Metric | None:
    """The metric that a comparison leads with: `primary` of the metrics that most rules have.

    Args:
      rules: the rows by name.

    Returns:
      The metric; None if no rule has a metric.
    """
    names = [name for row in rules.values() for name in row.metrics]
    most = max(map(names.count, names), default=0)
    return primary(name for name in dict.fromkeys(names) if names.count(name) == most)


def notes_of(comparison: Comparison) -> list[str]:
    """The notes of a comparison: rules against null controls, missing results, notes of rows.

    Args:
      comparison: the comparison, whose own notes come last.

    Returns:
      The notes.
    """
    rules = comparison.rules
    m = leading_metric(rules)
    if m is None:
        notes = ["No rule has any result: none of the runs finished."]
    else:
        notes = pairs.against_controls(comparison.paired, rules, m)
    for name, row in rules.items():
        stat = None if m is None else row.metrics.get(m.name)
        if row.diverged:
            notes.append(f"{name} diverged and has no result: {row.diverged}.")
        elif m is not None and stat is None:
            notes.append(f"{name} has no {m.label}: its run did not finish.")
        elif m is not None and stat is not None and stat.lost:
            lost = f"{stat.lost} of {len(stat.values)} seeds"
            notes.append(f"{name}: the {m.label} of {lost} is not finite.")
    notes += [f"{name}: {row.note}" for name, row in rules.items() if row.note]
    return notes + comparison.notes


def results_table(rules: Rules, m: Metric) -> Table:
    """The metrics of a page: the leading one, others of its family, then others.

    A page has room for five metrics. comparison.csv has all. Test and validation losses are left
    out.

    Args:
      rules: the rows by name.
      m: the leading metric.

    Returns:
      The table.
    """
    others = [metric(name) for name in ordered(k for row in rules.values() for k in row.metrics)]
    others = [o for o in others if o.family != "loss" or o.split not in ("test", "validation")]
    others.sort(key=lambda other: other.family != m.family)
    shown = [m, *(other for other in others if other != m)][:5]

    def cells(name: str, row: ComparisonRow) -> list[Any]:
        first = [TableCell(name, colour_of(rules, name)), _value(row, m, None)]
        return [*first, _extremes(row, m), *(row.metrics.get(other.name) for other in shown[1:])]

    columns = [Column("rule"), m.column, Column("best – worst"), *(o.column for o in shown[1:])]
    return Table(columns, _grouped(rules, cells, "Null controls: what any rule must beat"))


def pairs_table(comparison: dict[str, Any] | Comparison) -> Table:
    """A table of each rule less each null control, and less the best rule.

    Args:
      comparison: the content of comparison.json.

    Returns:
      The table for a terminal; empty without such a pair.

    Raises:
      DataError: an entry has the wrong type.
    """
    comparison = Comparison.parse(comparison)
    groups = pairs.groups_of(comparison)
    shown = [group for group in groups if group.label != pairs.OTHERS]
    number, of = sum(len(group.pairs) for group in shown), len(comparison.paired)
    rest = f"{number} of {of} pairs; report.html and comparison.json have all." * (number < of)
    caption = " ".join(filter(None, [pairs.correction(comparison.paired), rest]))
    table = differences_table(shown, lambda pair: pair.a)
    measured = " and ".join(sorted(pairs.units(comparison.paired)))
    return table._replace(title=f"Paired differences of {measured}", caption=caption)


def differences_table(
    groups: Sequence[pairs.PairGroup], name: Callable[[Difference], str] = lambda pair: pair.title
) -> Table:
    """A table with one row for each pair: the mean difference, its interval, the verdict.

    Args:
      groups: the paired differences.
      name: the text of the first column of a pair; the default is "a − b".

    Returns:
      The table.
    """
    rows = [
        Group(
            [
                [
                    name(pair),
                    metric(pair.metric).show(pair.mean, signed=True),
                    pairs.interval(pair) or None,
                    pair.number,
                    pairs.verdict(pair),
                ]
                for pair in group.pairs
            ],
            group.label,
        )
        for group in groups
    ]
    first = next((pair for group in groups for pair in group.pairs), Difference())
    level = f"{100 * first.level:g} % interval"
    columns = [Column("difference"), Column("mean"), Column(level), Column("pairs", format=str)]
    return Table([*columns, Column("the first is", align="left")], rows)


def costs_table(rules: Rules) -> Table:
    """The cost of one gradient of each rule, and the time of its training.

    Args:
      rules: the rows by name.

    Returns:
      The table.
    """
    names = list(dict.fromkeys(name for row in rules.values() for name in row.cost))
    names.sort(key=lambda name: [*COSTS].index(name) if name in COSTS else len(COSTS))
    first = rules[base_of(rules)]

    def cells(name: str, row: ComparisonRow) -> list[Any]:
        line = [TableCell(name, colour_of(rules, name))]
        for key in names:
            value, base = row.cost.get(key), first.cost.get(key, 0.0)
            ratio = value / base if value and base > 0 and key != "sweeps" else 1.0
            times = f"×{format_number(ratio, 2)}" if abs(ratio - 1) > 0.05 else ""
            line.append(TableCell(value, detail=times))
        seconds = row.seconds.get("train", math.nan)
        return [*line, seconds if math.isfinite(seconds) else None]

    columns = [COSTS.get(name, Column(name)) for name in names]
    columns = [Column("rule"), *columns, Column("training", format=duration)]
    return Table(columns, _grouped(rules, cells) if names else []).without_empty_columns()


def base_of(rules: Rules) -> str:
    """The rule with which the costs of the others are compared: backprop, else the first.

    Args:
      rules: the rows by name.

    Returns:
      The name of the rule.
    """
    return "backprop" if "backprop" in rules else next(iter(rules))


def csv_table(rules: Rules) -> Table:
    """The table of comparison.csv: rule, control, seeds, metrics, costs and fidelity.

    The columns are METRIC_mean, METRIC_std, cost_NAME, and END_relative_error and END_cosine for
    the whole gradient before and after training. Numbers are as in comparison.json: shares are
    fractions, numbers that are not finite are nan or inf, and missing numbers are empty.

    Args:
      rules: the rows by name.

    Returns:
      The table.
    """
    metrics = ordered(name for row in rules.values() for name in row.metrics)
    costs = dict.fromkeys(name for row in rules.values() for name in row.cost)
    ends = [e for e in ("initial", "trained") if any(e in row.ends for row in rules.values())]
    records = []
    for name, row in rules.items():
        seeds = max((len(stat.values) for stat in row.metrics.values()), default=0)
        record: dict[str, Any] = {"rule": name, "control": row.control, "seeds": seeds}
        record |= csv_cells(metrics, row.metrics)
        record |= {f"cost_{cost}": row.cost.get(cost) for cost in costs}
        for end in ends:
            for part in ("relative_error", "cosine"):
                record[f"{end}_{part}"] = getattr(row.ends.get(end), part, None)
        records.append(record)
    return of_records(records)


def _value(row: ComparisonRow, m: Metric, absent: str | None) -> Statistic | str | None:
    """The statistic of a rule's metric, "diverged", or `absent`."""
    return row.metrics.get(m.name, "diverged" if row.diverged else absent)


def _extremes(row: ComparisonRow, m: Metric | None) -> str:
    stat = None if m is None else row.metrics.get(m.name)
    if m is None or stat is None or len(stat.values) < 2:
        return ""
    return " – ".join(best_worst(m, stat))


def _grouped(
    rules: Rules, cells: Callable[[str, ComparisonRow], list[Any]], label: str = "Null controls"
) -> list[Group]:
    """The rules, and the null controls as a separate group."""
    parts = [[cells(k, row) for k, row in rules.items() if row.control == c] for c in (False, True)]
    return [Group(parts[0]), Group(parts[1], label, quiet=True)]


def _caption(comparison: Comparison) -> str:
    lines, rows = [], comparison.rules.values()
    if any(row.cost for row in rows):
        lines.append("Cost is of one gradient.")
    if any(row.ends for row in rows):
        lines.append(
            "grad. error: of the gradient, relative to the exact one of the rule's own function, "
            "with trained parameters; worst cosine: of the layer that is furthest off."
        )
    return "\n".join([*lines, *notes_of(comparison)])
