"""The report of a comparison folder: comparison.csv, two pictures and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bpeq.report import curves
from bpeq.report.comparison_tables import (
    Rules,
    base_of,
    costs_table,
    csv_table,
    differences_table,
    leading_metric,
    notes_of,
    results_table,
    rules_of,
)
from bpeq.report.dots import colour_of, final_values, paired
from bpeq.report.fidelity_tables import training_table
from bpeq.report.figures import png
from bpeq.report.folders import config_text, environment_of, name_of, plural, title_of
from bpeq.report.metrics import Metric, each_seed, metric, spread, with_unit
from bpeq.report.page import Detail, Page, Section, Tile, folded, write
from bpeq.report.pairs import FROZEN, Pair, omitted, pairs_of
from bpeq.report.tables import Table, to_csv
from bpeq.report.tradeoff import tradeoffs
from bpeq.report.tuning import every_trial, tuning_section
from bpeq.runs import run_folder
from bpeq.runs.results import Comparison, History, read, read_history
from bpeq.types import DataError

_MOST_TILES, _MOST_PAIRS = 4, 12


def write_comparison_report(folder: Path) -> Path:
    """Writes comparison.csv, two pictures and report.html into the folder of a comparison.

    It reads comparison.json, the metrics.jsonl of each rule's folder NAME/, config.toml and
    environment.json. comparison.csv has one row for each rule: rule, control, METRIC_mean and
    METRIC_std as in comparison.json (fractions, not percent), cost_NAME, and the gradient's
    relative error and cosine before and after training. A missing number is an empty field.
    comparison.png shows final values, learning curves and paired differences. accuracy_cost.png
    shows the error against the cost.

    Args:
      folder: the folder of the comparison.

    Returns:
      The path of report.html. If no rule has a result there are no pictures.

    Raises:
      DataError: a file is absent, truncated or corrupt. The message names the file, and the line of
        metrics.jsonl.
    """
    # 1. Read the files.
    folder = Path(folder)
    path = folder / "comparison.json"
    comparison = read(Comparison, path)
    if comparison.interrupted:
        raise DataError(f"{path}: was interrupted ({comparison.interrupted}); it has no report")
    rules = rules_of(comparison)
    places = {name: _folder_of(folder, name) for name in rules}
    histories = {
        name: History() if place is None else read_history(place / "metrics.jsonl")
        for name, place in places.items()
    }
    environment = environment_of(folder, comparison)
    for place in places.values():
        if not environment and place is not None:
            environment = environment_of(place, Comparison(rules=comparison.rules))
    m, pairs = leading_metric(rules), pairs_of(comparison, rules)
    # 2. Draw the pictures.
    plotted = _plotted(rules, m)
    finals = [] if plotted is None else [final_values(rules, plotted)]
    results = [p for p in (*finals, paired(_shown(pairs))) if p is not None]
    against_cost = [] if m is None else tradeoffs(rules, m)
    controls = [name for name, row in rules.items() if row.control]
    learning = curves.rule_panels(histories, controls, _logged(histories, m))
    title = name_of(folder, comparison)
    subject = title_of(comparison, title)
    run_folder.write_text(folder / "comparison.csv", to_csv(csv_table(rules)))
    if results or learning:
        png([*results[:1], *learning, *results[1:]], folder / "comparison.png", subject)
    if against_cost:
        png(against_cost, folder / "accuracy_cost.png", subject)
    # 3. Write the page.
    sections = [
        Section("Results", _RESULTS, results, results_table(rules, m) if m else Table([], [])),
        _differences(pairs),
        Section("Notes", notes=notes_of(comparison, rules, pairs)),
        Section("Accuracy against cost", figures=against_cost),
        Section("Learning curves", figures=learning),
        _fidelity(rules),
        _costs(rules),
        tuning_section(comparison),
    ]
    details = [
        *([] if m is None else [_values(rules, m)]),
        every_trial(comparison),
        *folded(config_text(folder, comparison), environment, comparison.data),
    ]
    tiles = [] if m is None else _tiles(rules, m)
    page = Page("comparison", title, _subtitle(comparison, rules), tiles, sections, details)
    return write(page, folder / "report.html")


_RESULTS = (
    "Mean ± standard deviation over seeds, at the end of training; all metrics are in "
    "comparison.csv."
)


def _folder_of(folder: Path, name: str) -> Path | None:
    """The run folder of a rule; None without one. A dot replaces the colon of a dotted path."""
    names = [inside for inside in (name, name.replace(":", ".")) if Path(inside).name == inside]
    return next((folder / inside for inside in names if (folder / inside).is_dir()), None)


def _subtitle(comparison: Comparison, rules: Rules) -> str:
    controls = sum(row.control for row in rules.values())
    parts = [plural(len(rules) - controls, "rule")]
    parts += [plural(controls, "null control")] if controls else []
    if isinstance(comparison.seeds, int):
        parts.append(plural(comparison.seeds, "seed") + " each" * (comparison.seeds > 1))
    return " · ".join(parts)


def _tiles(rules: Rules, m: Metric) -> list[Tile]:
    """Tiles of the best rules, and a grey one of the best null control."""

    def rank(name: str) -> float:
        mean = rules[name].metrics[m.name].mean
        return -m.better * mean if math.isfinite(mean) else math.inf

    ranked = sorted((name for name, row in rules.items() if m.name in row.metrics), key=rank)
    best = [name for name in ranked if not rules[name].control][:_MOST_TILES]
    shown = [name for name in rules if name in best]
    tiles = []
    for name in [*shown, *[k for k in ranked if rules[k].control][:1]]:
        row = rules[name]
        stat = row.metrics[m.name]
        figure, _, std = spread(m, stat).partition(" ± ")
        figure += m.after if math.isfinite(stat.mean) else ""
        detail = f"{m.label}{f', ± {std}' if std else ''}"
        if "solved" in row.metrics:  # then the share of solved seeds comes first
            figure, _, of = spread(metric("solved"), row.metrics["solved"]).partition(" (")
            solved = f"solved{f', {of[:-1]} seeds' if of else ''}"
            detail = f"{solved}; {m.label} {with_unit(m, stat)}"
        label = f"{name} (best null control)" if row.control else name
        colour = "" if row.control else colour_of(rules, name)
        tiles.append(Tile(label, figure, detail, colour, quiet=row.control))
    return tiles


def _plotted(rules: Rules, m: Metric | None) -> Metric | None:
    """The metric whose final values are drawn: the leading one, or the loss for XOR and its like.

    If a seed either solves its task or does not (XOR), errors have few values and say less.
    """
    names = {name for row in rules.values() for name in row.metrics}
    losses = [name for name in ("test_loss", "train_loss") if name in names]
    return metric(losses[0]) if "solved" in names and losses else m


def _logged(histories: Mapping[str, History], m: Metric | None) -> list[str]:
    """The metrics whose curves are drawn: the solved share or the leading one; the loss."""
    logged = {name for history in histories.values() for name in history.series}
    leading = "solved" if "solved" in logged else "" if m is None else m.name
    return [name for name in dict.fromkeys((leading, "train_loss")) if name in logged]


def _shown(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The first pairs, as many as a page holds, and all pairs with the frozen control."""
    return pairs[: max(_MOST_PAIRS, sum(FROZEN in (p.first, p.second) for p in pairs))]


def _differences(pairs: Sequence[Pair]) -> Section:
    shown = _shown(pairs)
    units = {f"{p.metric.label} in {p.unit}".removesuffix(" in ") for p in pairs}
    lead = f"The mean difference of {' or '.join(sorted(units))}; each pair shares its seed."
    if len(shown) > 1:
        lead += " Each interval stands for itself: of twenty, one is expected to miss."
    lead = f"{lead} {omitted(len(shown), len(pairs))}".strip()
    return Section("Paired differences", lead, table=differences_table(shown))


def _fidelity(rules: Rules) -> Section:
    lead = (
        "Each rule's gradient against the exact gradient, in float64, of the rule's own function, "
        "with the first seed's initial and trained parameters: all together, and layer by layer. "
        "A relative error of 0 is exact, of 1 as far off as no gradient at all; a negative cosine "
        "points uphill."
    )
    looks = {name: colour_of(rules, name) for name in rules}
    table = training_table({k: r.fidelity for k, r in rules.items() if r.fidelity}, looks)
    return Section("Gradient fidelity", lead, table=table)


def _costs(rules: Rules) -> Section:
    lead = f"Of one gradient; × is relative to {base_of(rules)}."
    if any(math.isfinite(row.seconds.get("train", math.nan)) for row in rules.values()):
        lead += " Training: all updates of all seeds side by side."
    return Section("Cost", lead, table=costs_table(rules))


def _values(rules: Rules, m: Metric) -> Detail:
    stats = {k: (m, row.metrics[m.name]) for k, row in rules.items() if m.name in row.metrics}
    return Detail(f"Each seed's {m.axis}", pairs=each_seed(stats))
