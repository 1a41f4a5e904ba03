"""The report of a comparison folder: comparison.csv, comparison.png and report.html."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from bpeq.report import _canvas as canvas
from bpeq.report import _colours as colours
from bpeq.report import _numbers as n
from bpeq.report._csv import write_csv
from bpeq.report._curves import rule_panels
from bpeq.report._dots import final_values, paired
from bpeq.report._metrics import Metric, best_worst, metric, spread
from bpeq.report._page import Cell, Detail, Group, Page, Section, Tile, each_seed, folded, write
from bpeq.report._read import Comparison, History, read_comparison
from bpeq.report._rows import (
    COSTS,
    Difference,
    Row,
    differences,
    interval,
    lead,
    notes,
    omitted,
    plotted,
    rows,
    tabulated,
    unit_after,
)
from bpeq.report._tables import title_of
from bpeq.types import DataError

_MOST_TILES = 4
_MOST_PAIRS = 12


def write_comparison_report(folder: Path) -> Path:
    """Draws a comparison: writes comparison.csv, comparison.png and report.html into its folder.

    Reads comparison.json, the metrics.jsonl of each rule's folder NAME/, config.toml and
    environment.json. comparison.csv has one row a rule: rule, control, METRIC_mean and METRIC_std
    as in comparison.json (fractions, not percent), cost_NAME; an absent figure is an empty field.

    Args:
      folder: the comparison folder.

    Returns:
      The path of report.html. Where no rule has a figure there is no comparison.png.

    Raises:
      DataError: a file is absent, truncated or corrupt; names it, and for metrics.jsonl the line.
    """
    folder = Path(folder)
    read = read_comparison(folder)
    try:
        found, paired_rows = rows(read.comparison), differences(read.comparison)
    except DataError as error:
        raise DataError(f"{folder / 'comparison.json'}: {error}") from error
    measured = lead(found)
    title = str(read.comparison.get("name") or folder.resolve().name)
    write_csv(found, folder / "comparison.csv")
    drawn = plotted(found, measured)
    finals = None if drawn is None else final_values(found, drawn)
    forest = paired(paired_rows[:_MOST_PAIRS])
    learning = rule_panels(_histories(read, found), _drawn(read, found, measured))
    panels = [p for p in (finals, *learning, forest) if p is not None]
    if panels:
        subject = title_of({**read.comparison, "name": title})
        canvas.png(panels, folder / "comparison.png", subject)
    sections = [
        _results(found, measured, [p for p in (finals, forest) if p is not None]),
        _differences(paired_rows),
        _notes(read, found, measured),
        Section("Learning curves", figures=learning) if learning else None,
        _costs(found),
    ]
    page = Page(
        "comparison",
        title,
        _subtitle(read, found),
        _tiles(found, measured),
        [section for section in sections if section is not None],
        [
            *_values(found, measured),
            *folded(read.config, read.environment, read.comparison.get("data")),
        ],
    )
    return write(page, folder / "report.html")


def _subtitle(read: Comparison, found: Sequence[Row]) -> str:
    controls = sum(row.control for row in found)
    rules, seeds = len(found) - controls, read.comparison.get("seeds")
    parts = [f"{rules} rule{'s' * (rules != 1)}"]
    if controls:
        parts.append(f"{controls} null control{'s' * (controls != 1)}")
    if isinstance(seeds, int):
        parts.append(f"{seeds} seeds each" if seeds > 1 else "1 seed")
    return " · ".join(parts)


def _tiles(found: Sequence[Row], measured: Metric | None) -> list[Tile]:
    """The rules (the best, where there are many) and, quiet, the best null control."""
    if measured is None:
        return []
    ranked = [row for row in found if measured.name in row.stats]
    ranked.sort(
        key=lambda row: -measured.better * _sortable(row.stats[measured.name].mean, measured)
    )
    learners = [row for row in ranked if not row.control]
    best = {row.name for row in learners[:_MOST_TILES]}
    shown = [row for row in found if row.name in best]
    shown += [row for row in ranked if row.control][:1]
    tiles = []
    for row in shown:
        stat = row.stats[measured.name]
        figure, _, std = spread(measured, stat).partition(" ± ")
        figure += unit_after(measured) if math.isfinite(stat.mean) else ""
        detail = f"{measured.label}{f', ± {std}' if std else ''}"
        if "solved" in row.stats:  # then the share of seeds that did comes first
            detail = f"{measured.label} {spread(measured, stat)}{unit_after(measured)}"
            figure, _, of = spread(metric("solved"), row.stats["solved"]).partition(" (")
            detail = f"solved{f', {of[:-1]} seeds' if of else ''}; {detail}"
        label = f"{row.name} (best null control)" if row.control else row.name
        colour = "" if row.control else _colour(found, row)
        tiles.append(Tile(label, figure, detail, colour, quiet=row.control))
    return tiles


def _results(
    found: Sequence[Row], measured: Metric | None, figures: list[canvas.Panel]
) -> Section | None:
    if measured is None:
        return None
    names = tabulated(found, measured)
    columns = ["rule", measured.axis, "best – worst"]
    columns += [m.label if m.family == "solved" else m.axis for m in map(metric, names[1:])]

    def cells(row: Row) -> list[Cell]:
        line = [_name(found, row)]
        for name in names:
            m, stat = metric(name), row.stats.get(name)
            line.append(Cell(n.ABSENT if stat is None else spread(m, stat)))
            if name == measured.name:
                several = stat is not None and len(stat.values) > 1
                line.append(Cell(" – ".join(best_worst(m, stat)) if several and stat else ""))
        return line

    return Section(
        "Results",
        "Mean ± standard deviation over seeds, at the end of training; all metrics are in "
        "comparison.csv.",
        figures,
        columns,
        _grouped(found, cells, "Null controls: what any rule must beat"),
    )


def _values(found: Sequence[Row], measured: Metric | None) -> list[Detail]:
    if measured is None:
        return []
    stats = {r.name: (measured, r.stats[measured.name]) for r in found if measured.name in r.stats}
    return each_seed(f"Each seed's {measured.axis}", stats)


def _differences(found: Sequence[Difference]) -> Section | None:
    if not found:
        return None
    table = []
    for d in found[:_MOST_PAIRS]:
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
    text = f"{text} {omitted(_MOST_PAIRS, len(found))}".strip()
    return Section("Paired differences", text, columns=columns, groups=[Group(table)])


def _costs(found: Sequence[Row]) -> Section | None:
    names = list(dict.fromkeys(name for row in found for name in row.cost))
    names = [*(k for k in COSTS if k in names), *(k for k in names if k not in COSTS)]
    if not names:
        return None
    first = next((row for row in found if row.name == "backprop"), found[0])

    def cells(row: Row) -> list[Cell]:
        line = [_name(found, row)]
        for name in names:
            value, base = row.cost.get(name), first.cost.get(name) or 0.0
            text = n.ABSENT if value is None else COSTS.get(name, ("", n.plain))[1](value)
            ratio = value / base if value and base > 0 and name != "sweeps" else 1.0
            line.append(Cell(text, detail=f"×{n.plain(ratio, 2)}" if abs(ratio - 1) > 0.05 else ""))
        return line

    columns = ["rule", *(COSTS.get(name, (name,))[0] for name in names)]
    text = f"Of one gradient; × is relative to {first.name}."
    return Section("Cost", text, columns=columns, groups=_grouped(found, cells))


def _notes(read: Comparison, found: list[Row], measured: Metric | None) -> Section | None:
    said = notes(read.comparison, found, measured)
    said += [f"{row.name}: {row.note}" for row in found if row.note]
    return Section("Notes", notes=said) if said else None


def _drawn(read: Comparison, found: list[Row], measured: Metric | None) -> list[str]:
    """The metrics whose curves are drawn: the share solved, else the leading one; and the loss."""
    logged = {name for history in read.histories.values() for name in history.series}
    leading = "solved" if "solved" in logged else "" if measured is None else measured.name
    wanted = (leading, "train_loss")
    return [name for name in dict.fromkeys(wanted) if name in logged]


def _histories(read: Comparison, found: Sequence[Row]) -> dict[str, tuple[History, bool]]:
    empty = History("epoch", {})
    return {row.name: (read.histories.get(row.name, empty), row.control) for row in found}


def _grouped(
    found: Sequence[Row], cells: Callable[[Row], list[Cell]], label: str = "Null controls"
) -> list[Group]:
    learners = [cells(row) for row in found if not row.control]
    controls = [cells(row) for row in found if row.control]
    return [Group(learners), Group(controls, label)]


def _name(found: Sequence[Row], row: Row) -> Cell:
    return Cell(row.name, colour=_colour(found, row))


def _colour(found: Sequence[Row], row: Row) -> str:
    if row.control:
        return colours.CONTROL
    return colours.series([r.name for r in found].index(row.name))


def _sortable(mean: float, m: Metric) -> float:
    return mean if math.isfinite(mean) else -m.better * math.inf
