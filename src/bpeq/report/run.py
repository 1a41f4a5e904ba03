"""The report of one run folder, with learning_curves.png, and its terminal table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.report import curves
from bpeq.report.fidelity import training_section
from bpeq.report.metrics import Metric, best_worst, each_seed, metric, ordered, primary, spread
from bpeq.report.numbers import count, duration, format_number, plural
from bpeq.report.page import Detail, Page, Section, Tile, origin, title_of
from bpeq.report.tables import Column, Group, Table
from bpeq.runs.results import History, Statistic, Summary, read_history

Metrics = Mapping[str, Statistic]


def run_table(summary: dict[str, Any] | Summary) -> Table:
    """A table of the metrics of one run: mean ± std over seeds, best and worst seed; timings below.

    Args:
      summary: the content of summary.json. `name`, `rule`, `seeds`, `seconds` and each metric may
        be absent.

    Returns:
      The table for a terminal.

    Raises:
      DataError: a metric or a timing is not a number.
    """
    summary = Summary.parse(summary)
    timings = [f"{name} {text}" for name, text in _timings(summary).items()]
    table, title = _table(_ordered(summary.metrics)), title_of(summary, summary.name)
    return table._replace(title=title, caption=" · ".join(timings))


def run_page(folder: Path) -> Page:
    """The page of a run folder, and learning_curves.png.

    It reads summary.json, metrics.jsonl, config.toml and environment.json, if they exist. A run
    without summary.json did not finish. Its report says so and shows the last logged values.
    Without a logged value there is no learning_curves.png.

    Args:
      folder: the run folder.

    Returns:
      The page.

    Raises:
      DataError: a file is truncated or corrupt. The message names the file, and the line of
        metrics.jsonl.
    """
    path = folder / "summary.json"
    finished = path.exists()
    summary = Summary.read(path) if finished else Summary()
    history = read_history(folder / "metrics.jsonl")
    metrics = _ordered(summary.metrics) if finished else _last_logged(history)
    panels, title = curves.run_panels(history), summary.name or folder.resolve().name
    several = max((len(stat.values) for stat in metrics.values()), default=0)
    lead = f"Mean ± standard deviation over {several} seeds." if several > 1 else ""
    named = {metric(name).axis: (metric(name), stat) for name, stat in metrics.items()}
    return Page(
        "run",
        title,
        _subtitle(summary, metrics, history),
        _tiles(summary, finished, metrics),
        [
            Section("Pictures", pictures=[folder / Path(name).name for name in summary.pictures]),
            Section("Learning curves", figures=panels),
            Section("Results", lead, table=_table(metrics)),
            training_section(summary.fidelity),
            _network(summary),
            Section("Notes", notes=_notes(summary, finished, metrics, history)),
        ],
        [Detail("Each seed", pairs=each_seed(named)), *origin(folder, summary)],
        title_of(summary, title),
        {"learning_curves.png": [*filter(None, panels)][:4]},
    )


def _ordered(metrics: Metrics) -> Metrics:
    return {name: metrics[name] for name in ordered(metrics)}


def _last_logged(history: History) -> Metrics:
    """The values of the last logged line, by metric."""
    rows = {name: history.series[name].values[-1] for name in ordered(history.series)}
    return {
        name: Statistic.model_validate((row if np.isfinite(row).any() else row[:1]).tolist())
        for name, row in rows.items()
    }


def _table(metrics: Metrics) -> Table:
    several = any(len(stat.values) > 1 for stat in metrics.values())
    rows = []
    for name, stat in metrics.items():
        m = metric(name)
        solved = m.family == "solved"
        ends = ("", "") if solved or not several else best_worst(m, stat)
        rows.append([m.label if solved else m.axis, spread(m, stat), *ends])
    columns = [Column("metric"), Column("mean\u00a0±\u00a0std" if several else "value")]
    columns += [Column("best seed"), Column("worst seed")]
    return Table(columns, [Group(rows)]).without_empty_columns()


def _timings(summary: Summary) -> dict[str, str]:
    """`seconds` by name, as text, without those that are not finite."""
    return {k: duration(value) for k, value in summary.seconds.items() if math.isfinite(value)}


def _subtitle(summary: Summary, metrics: Metrics, history: History) -> str:
    seeds = summary.seeds or max((len(s.values) for s in metrics.values()), default=0)
    parts = [summary.rule]
    parts += [plural(seeds, "seed")] if isinstance(seeds, int) and seeds else []
    lasts = [series.x[-1] for series in history.series.values()]
    parts += [f"{history.axis} {max(lasts):g}"] if lasts else []
    return " · ".join(filter(None, parts))


def _tiles(summary: Summary, finished: bool, metrics: Metrics) -> list[Tile]:
    tiles = [] if finished else [Tile("unfinished", "no summary", "figures as last logged")]
    leading = primary(metrics)
    names = ["solved", *([leading.name, f"train_{leading.family}"] if leading else [])]
    names = [name for name in dict.fromkeys(names) if name in metrics]
    tiles += [_tile(metric(name), metrics[name], quiet=i > 0) for i, name in enumerate(names)]
    times = _timings(summary)
    if "train" in times:
        rest = f"and {times['compile']} compiling" if "compile" in times else ""
        tiles.append(Tile("training", times["train"], rest, quiet=True))
    return tiles


def _tile(m: Metric, stat: Statistic, quiet: bool) -> Tile:
    if m.family == "solved":
        figure, _, rest = spread(m, stat).partition(" (")
        return Tile(m.label, figure, rest.removesuffix(")"), quiet=quiet)
    best, worst = best_worst(m, stat)
    detail = m.unit if m.unit != "%" else ""
    if stat.lost:
        detail = f"finite in {len(stat.finite)} of {len(stat.values)} seeds, best {best}"
    elif len(stat.values) > 1:
        std = f"± {m.show(stat.std)}" if math.isfinite(stat.std) else ""
        detail = f"{std} over {len(stat.values)} seeds, {best} – {worst}".strip()
    unit = m.after if math.isfinite(stat.mean) else ""
    return Tile(m.label, m.show(stat.mean) + unit, detail, quiet=quiet)


def _network(summary: Summary) -> Section:
    total = sum(layer.parameters for layer in summary.layers)
    rows = [[layer.name or str(i), layer.parameters] for i, layer in enumerate(summary.layers)]
    table = Table([Column("layer"), Column("parameters", format=count)], [Group(rows)])
    return Section("Network", f"{count(total)} parameters in all.", table=table)


def _notes(summary: Summary, finished: bool, metrics: Metrics, history: History) -> list[str]:
    notes = []
    if not finished:
        notes.append(
            "This folder holds no summary.json: the run did not finish, or has not yet. All "
            "figures here are those that it logged last."
        )
    notes += summary.notes
    lost: dict[str, list[str]] = {}
    for name, stat in metrics.items():
        if stat.lost:
            seeds = f"{stat.lost} of {len(stat.values)} seeds"
            lost.setdefault(seeds, []).append(metric(name).label)
    notes += [f"Not finite in {seeds}: {', '.join(labels)}." for seeds, labels in lost.items()]
    last = _last_logged(history).get("unsettled")
    if last is not None and last.mean > 0:
        notes.append(
            f"In the last logged {history.axis} {format_number(100 * last.mean, decimals=2)} % of "
            "the examples' phases had not settled to the solver's tolerance."
        )
    return notes
