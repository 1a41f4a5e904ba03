"""The report of a comparison folder: comparison.csv, two pictures, the page, the tuning table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpeq.report import comparison_plots, comparison_tables, curves, pairs
from bpeq.report.comparison_plots import colour_of
from bpeq.report.fidelity_tables import training_table
from bpeq.report.metrics import Metric, each_seed, mean_of, metric, spread, with_unit
from bpeq.report.numbers import plural, setting
from bpeq.report.page import Detail, Page, Section, Tile, origin, title_of
from bpeq.report.pairs import Rules
from bpeq.report.tables import Column, Group, Table, TableCell
from bpeq.runs.results import Comparison, History, Trial, read_history
from bpeq.types import DataError

_MOST_TILES, _MOST_PAIRS = 4, 12


def comparison_page(folder: Path) -> Page:
    """The page of a comparison folder, comparison.csv and two pictures.

    It reads comparison.json, the metrics.jsonl of each rule's folder NAME/, config.toml and
    environment.json. comparison.csv has one row for each rule: rule, control, METRIC_mean and
    METRIC_std as in comparison.json (fractions, not percent), cost_NAME, and the gradient's
    relative error and cosine before and after training. A missing number is an empty field.
    comparison.png shows final values, learning curves and paired differences. accuracy_cost.png
    shows the error against the cost.

    Args:
      folder: the folder of the comparison.

    Returns:
      The page. If no rule has a result there are no pictures.

    Raises:
      DataError: a file is absent, truncated or corrupt. The message names the file, and the line of
        metrics.jsonl.
    """
    # 1. Read the files.
    path = folder / "comparison.json"
    comparison = Comparison.read(path)
    if comparison.interrupted:
        raise DataError(f"{path}: was interrupted ({comparison.interrupted}); it has no report")
    rules = comparison.rules
    places = {name: _folder_of(folder, name) for name in rules}
    histories = {name: read_history(place / "metrics.jsonl") for name, place in places.items()}
    m = comparison_tables.leading_metric(rules)
    groups = pairs.groups_of(comparison)
    drawn = [pair for group in groups for pair in group.pairs]
    drawn = drawn[: max(_MOST_PAIRS, len(groups[0].pairs))] if groups else []
    # 2. Draw the pictures.
    plotted = _plotted(rules, m)
    finals = None if plotted is None else comparison_plots.final_values(rules, plotted)
    differences = comparison_plots.paired(drawn)
    against_cost = [] if m is None else comparison_plots.tradeoffs(rules, m)
    controls = [name for name, row in rules.items() if row.control]
    learning = curves.rule_panels(histories, controls, _logged(histories, m))
    # 3. Make the page.
    title = comparison.name or folder.resolve().name
    table = comparison_tables.results_table(rules, m) if m else Table([], [])
    seeds = {k: (m, row.metrics[m.name]) for k, row in rules.items() if m and m.name in row.metrics}
    return Page(
        "comparison",
        title,
        _subtitle(comparison),
        [] if m is None else _tiles(rules, m),
        [
            Section("Results", _RESULTS, [finals, differences], table),
            _differences(comparison, groups, len(drawn)),
            Section("Notes", notes=comparison_tables.notes_of(comparison)),
            Section("Accuracy against cost", figures=against_cost),
            Section("Learning curves", figures=learning),
            _fidelity(rules),
            _costs(rules),
            Section("Tuning", _tuning_lead(comparison), table=_tuning_table(comparison)),
        ],
        [
            Detail(f"Each seed's {m.axis}" if m else "", pairs=each_seed(seeds)),
            Detail("Every trial of the tuning", pairs=_every_trial(comparison)),
            *origin(folder, comparison, [*places.values()]),
        ],
        title_of(comparison, title),
        {
            "comparison.png": [finals, *learning, differences],
            "accuracy_cost.png": against_cost,
        },
        {"comparison.csv": comparison_tables.csv_table(rules)},
    )


def tuning_table(comparison: dict[str, Any] | Comparison) -> Table:
    """A table of each rule's chosen settings, with their validation error and the config's own.

    Args:
      comparison: the content of comparison.json.

    Returns:
      The table, for a terminal of 80 columns.

    Raises:
      DataError: an entry has the wrong type.
    """
    comparison = Comparison.parse(comparison)
    title = f"{title_of(comparison, comparison.name)} · tuned"
    return _tuning_table(comparison)._replace(title=title, caption=_tuning_lead(comparison))


_RESULTS = (
    "Mean ± standard deviation over seeds, at the end of training; all metrics are in "
    "comparison.csv."
)


def _folder_of(folder: Path, name: str) -> Path:
    """The run folder of a rule, which may not exist. A dot replaces the colon of a dotted path."""
    names = [inside for inside in (name, name.replace(":", ".")) if Path(inside).name == inside]
    places = [folder / inside for inside in names]
    return next((place for place in places if place.is_dir()), folder / "no such folder")


def _subtitle(comparison: Comparison) -> str:
    controls = sum(row.control for row in comparison.rules.values())
    parts = [plural(len(comparison.rules) - controls, "rule")]
    parts += [plural(controls, "null control")] if controls else []
    if isinstance(comparison.seeds, int):
        parts.append(plural(comparison.seeds, "seed") + " each" * (comparison.seeds > 1))
    return " · ".join(parts)


def _tiles(rules: Rules, m: Metric) -> list[Tile]:
    """Tiles of the best rules, and a grey one of the best null control."""

    def rank(name: str) -> float:
        mean = mean_of(rules[name].metrics, m)
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
    """The metrics whose curves are drawn: the solved share or the leading one; on training data."""
    logged = {name for history in histories.values() for name in history.series}
    leading = "solved" if "solved" in logged else "" if m is None else m.name
    train = "" if m is None else f"train_{m.family}"
    return [name for name in dict.fromkeys((leading, train, "train_loss")) if name in logged]


def _differences(comparison: Comparison, groups: Sequence[pairs.PairGroup], drawn: int) -> Section:
    """The table of all pairs. The picture above it has the first `drawn` of them."""
    units, of = " or ".join(sorted(pairs.units(comparison.paired))), len(comparison.paired)
    lead = f"The mean difference of {units}; each pair shares its seed. "
    lead += pairs.correction(comparison.paired)
    lead += f" The picture shows the first {drawn} of {of} pairs." if drawn < of else ""
    return Section("Paired differences", lead, table=comparison_tables.differences_table(groups))


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
    lead = f"Of one gradient; × is relative to {comparison_tables.base_of(rules)}."
    if any(math.isfinite(row.seconds.get("train", math.nan)) for row in rules.values()):
        lead += " Training: all updates of all seeds side by side."
    return Section("Cost", lead, table=comparison_tables.costs_table(rules))


def _tuning_table(comparison: Comparison) -> Table:
    rows: list[list[Any]] = []
    m = metric("validation_error")
    for name, tuning in comparison.tuning.items():
        m = metric(tuning.metric)
        trials = (tuning.best, tuning.trials[0])
        values = [m.show(t.value) if math.isfinite(t.value) else None for t in trials]
        failed = sum(not math.isfinite(trial.value) for trial in tuning.trials)
        rows.append([TableCell(name, style="bold"), _settings(tuning.best), *values, str(failed)])
    columns = [Column("rule"), Column("chosen settings", align="left"), Column(m.label, m.unit)]
    return Table([*columns, Column("as configured"), Column("failed trials")], [Group(rows)])


def _every_trial(comparison: Comparison) -> list[tuple[str, str]]:
    texts = []
    for name, tuning in comparison.tuning.items():
        m = metric(tuning.metric)
        for i, trial in enumerate(tuning.trials):
            text = trial.failed or f"{m.show(trial.value)}{m.after}"
            texts.append((f"{name} {i}", f"{_settings(trial)}: {text}"))
    return texts


def _settings(trial: Trial) -> str:
    """ "learning_rate 0.01, beta 0.2"."""
    return ", ".join(f"{k.rpartition('.')[2]} {setting(v)}" for k, v in trial.settings.items())


def _tuning_lead(comparison: Comparison) -> str:
    counts = [len(tuning.trials) for tuning in comparison.tuning.values()]
    trials = plural(min(counts), "trial") if counts else "no trials"
    return (
        f"{trials} for every rule and null control, chosen by the validation split alone; the "
        "first trial is the config as it stands."
    )
