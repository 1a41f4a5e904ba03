"""What a sweep found: in the terminal, as sweep.csv, on a page with the metric over the grid."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpeq.report import _canvas as canvas
from bpeq.report import _colours as colours
from bpeq.report._metrics import Metric, Stat, metric, ordered, primary, spread, stats
from bpeq.report._page import Cell, Group, Page, Section, Tile, folded, write
from bpeq.report._read import config_text, mapping, read_json
from bpeq.report._rows import unit_after
from bpeq.report._tables import blank, title_of, words
from bpeq.runs import run_folder
from bpeq.types import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

_MOST_LINES = 8


class Row(NamedTuple):
    """One run: its folder's name, what varies, how it stands, its metrics, why it failed."""

    run: str
    settings: dict[str, Any]
    state: str
    stats: dict[str, Stat]
    failed: str

    def value(self, name: str | None) -> float:
        return self.stats[name].mean if name in self.stats else math.nan


def sweep_rows(sweep: dict[str, Any]) -> list[Row]:
    """`runs` of sweep.json. Raises DataError where an entry is not as it must be."""
    found, listed = [], sweep.get("runs") or []
    if not isinstance(listed, list):
        raise DataError("runs: must be a list")
    for i, entry in enumerate(listed):
        row = mapping(entry, f"runs.{i}")
        settings = mapping(row.get("settings"), f"runs.{i}.settings")
        known = stats(row.get("metrics"), f"runs.{i}.metrics")
        told = (str(row.get(key) or "") for key in ("run", "state", "failed"))
        run, state, failed = told
        found.append(Row(run, settings, state, known, failed))
    return found


def sweep_table(sweep: dict[str, Any]) -> Table:
    """A row a run: what varies, the leading metric on validation and test data, how it stands.

    The caption names the run that is best by validation, where there is such a split.
    """
    rows = sweep_rows(sweep)
    shown = _shown(rows)
    table = blank(f"{title_of(sweep)} · sweep", _lead(rows))
    table.add_column("run", no_wrap=True)
    for key in _keys(rows):
        table.add_column(_short(key), justify="right", overflow="fold")
    for m in shown:
        table.add_column(m.axis.replace(", ", ",\n"), justify="right", no_wrap=True)
    for row in rows:
        line = _cells(row, shown)
        if row.state != "finished" and shown:  # in place of the figures
            line[-len(shown)] = row.state
        table.add_row(*map(words, line))
    return table


def write_sweep_report(folder: Path) -> Path:
    """Writes sweep.csv, sweep.png and report.html from a sweep's folder.

    Raises:
      DataError: sweep.json is truncated or corrupt.
    """
    folder = Path(folder)
    sweep = read_json(folder / "sweep.json")
    rows = sweep_rows(sweep)
    write_csv(rows, folder / "sweep.csv")
    shown, panels = _shown(rows), []
    leading = primary(_names(rows))
    if leading and (panel := _panel(rows, metric(leading))):
        panels = [panel]
        canvas.png(panels, folder / "sweep.png", title_of(sweep))
    columns = ["run", *_keys(rows), *(m.axis for m in shown), "state"]
    lines = [[Cell(text) for text in (*_cells(row, shown), row.state)] for row in rows]
    failed = [f"{row.run}: {row.failed}" for row in rows if row.failed]
    sections = [Section("Over the grid", figures=panels)] if panels else []
    sections.append(Section("Runs", _lead(rows), columns=columns, groups=[Group(lines)]))
    if failed:
        sections.append(Section("Failed", notes=failed))
    page = Page(
        "sweep",
        str(sweep.get("name") or folder.resolve().name),
        title_of({**sweep, "name": ""}),
        _tiles(rows),
        sections,
        folded(config_text(folder, sweep), {}),
    )
    return write(page, folder / "report.html")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """A line a run: its name, state and settings; METRIC_mean and METRIC_std, empty where none."""
    keys, names = _keys(rows), _names(rows)
    head = [f"{name}_{part}" for name in names for part in ("mean", "std")]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "state", *keys, *head])
    for row in rows:
        line = [row.run, row.state, *(row.settings.get(key, "") for key in keys)]
        for name in names:
            stat = row.stats.get(name)
            line += ["", ""] if stat is None else [stat.mean, stat.std]
        writer.writerow(line)
    run_folder.write_text(path, text.getvalue())


def best(rows: Sequence[Row]) -> Row | None:
    """The run with the best validation metric: selected without a look at the test set."""
    name = primary([n for n in _names(rows) if n.startswith("validation_")])
    there = [row for row in rows if name and math.isfinite(row.value(name))]
    if name is None or not there:
        return None
    sign = -1.0 if metric(name).better > 0 else 1.0
    return min(there, key=lambda row: sign * row.value(name))


def _names(rows: Sequence[Row]) -> list[str]:
    return ordered(name for row in rows for name in row.stats)


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.settings))


def _shown(rows: Sequence[Row]) -> list[Metric]:
    """The leading metric, on validation data first."""
    leading = primary(_names(rows))
    if leading is None:
        return []
    twin = f"validation_{metric(leading).family}"
    names = [twin, leading] if twin in _names(rows) and twin != leading else [leading]
    return [metric(name) for name in names]


def _cells(row: Row, shown: Sequence[Metric]) -> list[str]:
    """The run, its settings, its metrics; an empty cell where it has none."""
    figures = [spread(m, row.stats[m.name]) if m.name in row.stats else "" for m in shown]
    return [row.run, *(str(v) for v in row.settings.values()), *figures]


def _lead(rows: Sequence[Row]) -> str:
    count = {state: sum(row.state == state for row in rows) for state in ("finished", "failed")}
    said = f"{count['finished']} of {len(rows)} runs finished"
    said += f", {count['failed']} failed" if count["failed"] else ""
    chosen = best(rows)
    if chosen is not None:
        settings = ", ".join(f"{k} = {v}" for k, v in chosen.settings.items())
        said += f". Best by validation: {chosen.run}, {settings}"
    return f"{said}."


def _tiles(rows: Sequence[Row]) -> list[Tile]:
    finished = sum(row.state == "finished" for row in rows)
    tiles = [Tile("finished", f"{finished}", f"of {len(rows)} runs")]
    chosen = best(rows)
    if chosen is not None:
        for m in _shown(rows):
            figure = m.show(chosen.value(m.name)) + unit_after(m)
            tiles.append(Tile(m.label, figure, "of the best by validation", quiet=len(tiles) > 1))
    return tiles


def _panel(rows: Sequence[Row], m: Metric) -> canvas.Panel | None:
    """The metric over the first setting that is a number, a line for each choice of the others."""
    keys = _keys(rows)
    over = next((k for k in keys if _numeric(rows, k)), keys[0] if keys else None)
    there = [row for row in rows if over in row.settings and math.isfinite(row.value(m.name))]
    if over is None or not there:
        return None
    groups: dict[str, list[Row]] = {}
    for row in there:
        others = (f"{_short(k)} {v}" for k, v in row.settings.items() if k != over)
        groups.setdefault(", ".join(others), []).append(row)
    drawn = dict(list(groups.items())[:_MOST_LINES])
    numeric = _numeric(rows, over)
    places = list(dict.fromkeys(str(row.settings[over]) for row in rows))

    def draw(axes: Axes) -> None:
        for i, (label, own) in enumerate(drawn.items()):
            x = [r.settings[over] if numeric else places.index(str(r.settings[over])) for r in own]
            order = np.argsort(x, kind="stable")
            y = np.array([m.scale * r.value(m.name) for r in own])[order]
            std = np.array([m.scale * r.stats[m.name].std for r in own])[order]
            bars = np.where(np.isfinite(std), std, 0.0)
            style: Any = {"marker": "o", "ms": 4, "lw": 1.2, "capsize": 2, "label": label}
            xs = np.array(x, float)[order]
            axes.errorbar(xs, y, yerr=bars, color=colours.series(i), **style)
        all_x = [row.settings[over] for row in there] if numeric else []
        if numeric and min(all_x) > 0 and max(all_x) >= 10 * min(all_x):
            axes.set_xscale("log")
        if not numeric:
            axes.set_xticks(range(len(places)), [canvas.abbreviate(p, 14) for p in places])
        axes.set_xlabel(over)
        axes.set_ylabel(m.axis)
        if len(drawn) > 1:
            axes.legend(fontsize=8, frameon=False)

    caption = "Bars: standard deviation over seeds."
    if len(groups) > len(drawn):
        caption += f" The first {len(drawn)} of {len(groups)} combinations; sweep.csv has all."
    return canvas.Panel(draw, f"{m.label} over {over}", caption)


def _short(key: str) -> str:
    """`beta` of rule.beta, `layers.0` of network.layers.0."""
    *_, before, last = ["", *key.split(".")]
    return f"{before}.{last}" if last.isdecimal() else last


def _numeric(rows: Sequence[Row], key: str) -> bool:
    values = [row.settings[key] for row in rows if key in row.settings]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) and len(set(numbers)) > 1
