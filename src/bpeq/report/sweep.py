"""The report of a sweep: its terminal table, sweep.csv, and a page with a plot over the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.report import colours, figures
from bpeq.report.metrics import Metric, csv_cells, mean_of, metric, ordered, primary
from bpeq.report.page import Page, Section, Tile, origin, title_of
from bpeq.report.tables import Column, Group, Table, of_records
from bpeq.runs.results import Sweep, SweepRow

_MOST_LINES = 8


def sweep_table(sweep: dict[str, Any] | Sweep) -> Table:
    """A table with one row for each run: its settings, the leading metric, its state.

    The metric is shown for validation and test data. The caption names the best run by validation,
    if there is a validation split.

    Args:
      sweep: the content of sweep.json.

    Returns:
      The table for a terminal.

    Raises:
      DataError: an entry has the wrong type.
    """
    sweep = Sweep.parse(sweep)
    title = f"{title_of(sweep, sweep.name)} · sweep"
    return _table(sweep.runs)._replace(title=title, caption=_lead(sweep.runs))


def sweep_page(folder: Path) -> Page:
    """The page of a sweep, sweep.csv and sweep.png.

    Args:
      folder: the folder of the sweep.

    Returns:
      The page.

    Raises:
      DataError: sweep.json is truncated or corrupt.
    """
    sweep = Sweep.read(folder / "sweep.json")
    rows, leading = sweep.runs, primary(_names(sweep.runs))
    panel = _panel(rows, leading) if leading else None
    return Page(
        "sweep",
        sweep.name or folder.resolve().name,
        title_of(sweep, ""),
        _tiles(rows),
        [
            Section("Over the grid", figures=[panel]),
            Section("Runs", _lead(rows), table=_table(rows)),
            Section("Failed", notes=[f"{row.run}: {row.failed}" for row in rows if row.failed]),
        ],
        origin(folder, sweep),
        title_of(sweep, sweep.name),
        {"sweep.png": [panel]},
        {"sweep.csv": _csv_table(rows)},
    )


def best_run(rows: Sequence[SweepRow]) -> SweepRow | None:
    """The run with the best validation metric. The test set plays no part in the selection.

    Args:
      rows: the runs.

    Returns:
      The run; None without a validation metric.
    """
    m = primary([name for name in _names(rows) if name.startswith("validation_")])
    judged = [row for row in rows if m and math.isfinite(mean_of(row.metrics, m))]
    if m is None or not judged:
        return None
    return min(
        judged,
        key=lambda row: -mean_of(row.metrics, m) if m.better > 0 else mean_of(row.metrics, m),
    )


def _table(rows: Sequence[SweepRow]) -> Table:
    keys, shown = _keys(rows), _shown(rows)
    columns = [Column("run"), *(Column(_short(key), format=str) for key in keys)]
    columns += [*(m.column for m in shown), Column("state", align="left")]
    cells = []
    for row in rows:
        settings = [row.settings.get(key) for key in keys]
        statistics = [row.metrics.get(m.name, "") for m in shown]
        cells.append([row.run, *settings, *statistics, row.state])
    return Table(columns, [Group(cells)])


def _csv_table(rows: Sequence[SweepRow]) -> Table:
    """The table of sweep.csv: run, state, settings, METRIC_mean, METRIC_std; empty if missing."""
    keys, names = _keys(rows), _names(rows)
    return of_records(
        [
            {"run": row.run, "state": row.state}
            | {key: row.settings.get(key) for key in keys}
            | csv_cells(names, row.metrics)
            for row in rows
        ]
    )


def _names(rows: Sequence[SweepRow]) -> list[str]:
    return ordered(name for row in rows for name in row.metrics)


def _keys(rows: Sequence[SweepRow]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.settings))


def _shown(rows: Sequence[SweepRow]) -> list[Metric]:
    """The leading metric on validation data, then on test data."""
    leading = primary(_names(rows))
    if leading is None:
        return []
    twin = f"validation_{leading.family}"
    return [*([metric(twin)] if twin in _names(rows) and twin != leading.name else []), leading]


def _lead(rows: Sequence[SweepRow]) -> str:
    count = {state: sum(row.state == state for row in rows) for state in ("finished", "failed")}
    text = f"{count['finished']} of {len(rows)} runs finished"
    text += f", {count['failed']} failed" if count["failed"] else ""
    if (best := best_run(rows)) is not None:
        settings = ", ".join(f"{key} = {value}" for key, value in best.settings.items())
        text += f". Best by validation: {best.run}, {settings}"
    return f"{text}."


def _tiles(rows: Sequence[SweepRow]) -> list[Tile]:
    finished = sum(row.state == "finished" for row in rows)
    tiles = [Tile("finished", f"{finished}", f"of {len(rows)} runs")]
    if (best := best_run(rows)) is not None:
        for m in _shown(rows):
            figure = m.show(mean_of(best.metrics, m)) + m.after
            tiles.append(Tile(m.label, figure, "of the best by validation", quiet=len(tiles) > 1))
    return tiles


def _panel(rows: Sequence[SweepRow], m: Metric) -> figures.Panel | None:
    """Draws the metric over the first numeric setting, one line for each choice of the others.

    The validation metric of the same family is a dashed line. A ring marks the run that validation
    selects.
    """
    keys = _keys(rows)
    over = next((k for k in keys if _is_numeric(rows, k)), keys[0] if keys else None)
    drawn = [row for row in rows if over in row.settings and math.isfinite(mean_of(row.metrics, m))]
    if over is None or not drawn:
        return None
    numeric = _is_numeric(rows, over)
    places = list(dict.fromkeys(str(row.settings[over]) for row in drawn))
    twin = next((other for other in _shown(rows) if other != m), None)
    best = best_run(rows)

    def place(row: SweepRow) -> float:
        return float(row.settings[over]) if numeric else places.index(str(row.settings[over]))

    # the other settings -> the runs of a line
    lines: dict[str, list[SweepRow]] = {}
    for row in sorted(drawn, key=place):
        label = ", ".join(f"{_short(k)} {v}" for k, v in row.settings.items() if k != over)
        lines.setdefault(label, []).append(row)
    shown = dict([*lines.items()][:_MOST_LINES])

    def draw(axes: figures.Axes) -> None:
        names = []
        for i, (label, line) in enumerate(shown.items()):
            x = [place(row) for row in line]
            style: dict[str, Any] = {"color": colours.series(i), "marker": "o", "ms": 4, "lw": 1.2}
            if twin is not None:
                y, std = _means(line, twin)
                axes.errorbar(x, y, yerr=std, ls="--", capsize=2, **style)
            y, std = _means(line, m)
            bars = axes.errorbar(x, y, yerr=std, capsize=2, **style)
            names.append((label, bars[0], float(y[-1])))
            for at, height, row in zip(x, y, line, strict=True):
                if row is best:
                    axes.plot(at, height, "o", mfc="none", color=colours.INK, ms=10)
        xs = np.asarray([place(row) for line in shown.values() for row in line])
        if numeric and xs.min() > 0 and xs.max() >= 10 * xs.min():
            figures.log_axis(axes.xaxis, xs)
        if not numeric:
            axes.set_xticks(range(len(places)), [figures.abbreviate(p, 14) for p in places])
        figures.label_axes(axes, over, m.axis)
        if len(shown) > 1:
            figures.name_lines(axes, names)

    caption, alt = "Bars: standard deviation over seeds.", f"{m.label} over {over}"
    caption += f" Dashed: {twin.label}." if twin is not None else ""
    if best is not None and any(row is best for line in shown.values() for row in line):
        caption += f" Ring: {best.run}, the run that validation selects."
        alt += f"; validation selects {best.run}"
    if len(lines) > len(shown):
        caption += f" The first {len(shown)} of {len(lines)} combinations; sweep.csv has all."
    return figures.Panel(draw, alt, caption)


def _means(rows: Sequence[SweepRow], m: Metric) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of a metric, in its unit; NaN and 0 where absent."""
    means = [mean_of(row.metrics, m) for row in rows]
    stds = [row.metrics[m.name].std if m.name in row.metrics else 0.0 for row in rows]
    return m.scale * np.asarray(means), m.scale * np.nan_to_num(stds)


def _short(key: str) -> str:
    """The end of a key: `beta` for rule.beta, `layers.0` for network.layers.0."""
    *_, before, last = ["", *key.split(".")]
    return f"{before}.{last}" if last.isdecimal() else last


def _is_numeric(rows: Sequence[SweepRow], key: str) -> bool:
    values = [row.settings[key] for row in rows if key in row.settings]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) and len(set(numbers)) > 1
