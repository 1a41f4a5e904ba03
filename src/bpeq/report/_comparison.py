"""The report of a comparison folder: comparison.csv, comparison.png and report.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bpeq.report import _canvas as canvas
from bpeq.report import _numbers as n
from bpeq.report._comparison_notes import notes
from bpeq.report._comparison_tables import (
    colour_of,
    costs_section,
    differences_section,
    fidelity_section,
    grouped,
    name_cell,
    shown_pairs,
)
from bpeq.report._csv import write_csv
from bpeq.report._curves import rule_panels
from bpeq.report._dots import final_values, paired
from bpeq.report._metrics import Metric, best_worst, metric, spread
from bpeq.report._page import Cell, Detail, Page, Section, Tile, each_seed, folded, write
from bpeq.report._read import Comparison, History, read_comparison
from bpeq.report._rows import Row, differences, lead, plotted, rows, tabulated, unit_after
from bpeq.report._tables import title_of
from bpeq.report._tradeoff import tradeoffs
from bpeq.report._tuning import every_trial, tuned_rows, tuning_section
from bpeq.types import DataError

_MOST_TILES = 4


def write_comparison_report(folder: Path) -> Path:
    """Draws a comparison: writes comparison.csv, two pictures and report.html into its folder.

    Reads comparison.json, the metrics.jsonl of each rule's folder NAME/, config.toml and
    environment.json. comparison.csv has one row a rule: rule, control, METRIC_mean and METRIC_std
    as in comparison.json (fractions, not percent), cost_NAME, and the gradient's relative error and
    cosine before and after training; an absent figure is an empty field. comparison.png holds final
    values, learning curves and paired differences, accuracy_cost.png the error against the cost.

    Args:
      folder: the comparison folder.

    Returns:
      The path of report.html. Where no rule has a figure there are no pictures.

    Raises:
      DataError: a file is absent, truncated or corrupt; names it, and for metrics.jsonl the line.
    """
    folder = Path(folder)
    read = read_comparison(folder)
    try:
        found, paired_rows = rows(read.comparison), differences(read.comparison)
        tuned = tuned_rows(read.comparison)
    except DataError as error:
        raise DataError(f"{folder / 'comparison.json'}: {error}") from error
    measured = lead(found)
    title = str(read.comparison.get("name") or folder.resolve().name)
    write_csv(found, folder / "comparison.csv")
    drawn = plotted(found, measured)
    finals = None if drawn is None else final_values(found, drawn)
    forest = paired(shown_pairs(paired_rows))
    against_cost = tradeoffs(found, measured) if measured is not None else []
    learning = rule_panels(_histories(read, found), _drawn(read, found, measured))
    panels = [p for p in (finals, *learning, forest) if p is not None]
    subject = title_of({**read.comparison, "name": title})
    if panels:
        canvas.png(panels, folder / "comparison.png", subject)
    if against_cost:
        canvas.png(against_cost, folder / "accuracy_cost.png", subject)
    sections = [
        _results(found, measured, [p for p in (finals, forest) if p is not None]),
        differences_section(paired_rows),
        _notes(read, found, measured),
        Section("Accuracy against cost", figures=against_cost) if against_cost else None,
        Section("Learning curves", figures=learning) if learning else None,
        fidelity_section(found),
        costs_section(found),
        tuning_section(tuned),
    ]
    page = Page(
        "comparison",
        title,
        _subtitle(read, found),
        _tiles(found, measured),
        [section for section in sections if section is not None],
        [
            *_values(found, measured),
            *every_trial(tuned),
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
        colour = "" if row.control else colour_of(found, row)
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
        line = [name_cell(found, row)]
        for name in names:
            m, stat = metric(name), row.stats.get(name)
            absent = "diverged" if row.diverged and name == measured.name else n.ABSENT
            line.append(Cell(absent if stat is None else spread(m, stat)))
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
        grouped(found, cells, "Null controls: what any rule must beat"),
    )


def _values(found: Sequence[Row], measured: Metric | None) -> list[Detail]:
    if measured is None:
        return []
    stats = {r.name: (measured, r.stats[measured.name]) for r in found if measured.name in r.stats}
    return each_seed(f"Each seed's {measured.axis}", stats)


def _notes(read: Comparison, found: list[Row], measured: Metric | None) -> Section | None:
    said = notes(read.comparison, found, measured)
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


def _sortable(mean: float, m: Metric) -> float:
    return mean if math.isfinite(mean) else -m.better * math.inf
