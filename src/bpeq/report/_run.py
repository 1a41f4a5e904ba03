"""The report of one run folder: learning_curves.png and report.html."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.report import _canvas as canvas
from bpeq.report import _curves as curves
from bpeq.report import _numbers as n
from bpeq.report._fidelity import training_section
from bpeq.report._metrics import (
    Metric,
    Stat,
    best_worst,
    from_values,
    metric,
    ordered,
    primary,
    spread,
    stats,
)
from bpeq.report._page import (
    Cell,
    Group,
    Page,
    Section,
    Tile,
    each_seed,
    folded,
    picture,
    write,
)
from bpeq.report._read import History, Run, mapping, number, read_run
from bpeq.report._rows import unit_after
from bpeq.report._tables import timings, title_of


def write_run_report(folder: Path) -> Path:
    """Draws a run: writes learning_curves.png and report.html into its folder.

    Reads summary.json, metrics.jsonl, config.toml and environment.json, as far as they are there. A
    run without summary.json did not finish: its report says so and shows the last logged figures.
    Without any logged figure there is nothing to draw and no learning_curves.png.

    Args:
      folder: the run folder.

    Returns:
      The path of report.html.

    Raises:
      DataError: a file is truncated or corrupt; names it, and for metrics.jsonl the line.
    """
    folder = Path(folder)
    run = read_run(folder)
    path = folder / "summary.json"
    found = stats(run.summary.get("metrics"), f"{path}: metrics")
    if not run.summary:
        found = _last(run.history)
    panels = curves.run_panels(run.history)
    title = str(run.summary.get("name") or folder.resolve().name)
    sections = [
        _pictures(run),
        _curves(panels),
        _results(found),
        training_section(run.summary.get("fidelity"), f"{path}: fidelity"),
        _layers(run),
        _notes(run, found),
    ]
    page = Page(
        "run",
        title,
        _subtitle(run, found),
        _tiles(run, found),
        [section for section in sections if section is not None],
        [
            *each_seed("Each seed", {m.axis: (m, found[m.name]) for m in map(metric, found)}),
            *folded(run.config, run.environment, run.summary.get("data")),
        ],
    )
    if panels:  # what is wrong with the files has been found by now
        subject = title_of({**run.summary, "name": title})
        canvas.png(panels[:4], folder / "learning_curves.png", subject)
    return write(page, folder / "report.html")


def _subtitle(run: Run, found: dict[str, Stat]) -> str:
    seeds = run.summary.get("seeds") or max((len(s.values) for s in found.values()), default=0)
    parts = [str(run.summary.get("rule") or "")]
    if isinstance(seeds, int) and seeds:
        parts.append("1 seed" if seeds == 1 else f"{seeds} seeds")
    lasts = [s.x[-1] for s in run.history.series.values()]
    if lasts:
        parts.append(f"{run.history.axis} {max(lasts):g}")
    return " · ".join(part for part in parts if part)


def _tiles(run: Run, found: dict[str, Stat]) -> list[Tile]:
    tiles = [] if run.summary else [Tile("unfinished", "no summary", "figures as last logged")]
    leading = primary(found)
    names = [name for name in ("solved", leading) if name in found]
    trained = f"train_{metric(leading).family}" if leading else ""
    if trained in found and trained != leading:
        names.append(trained)
    for i, name in enumerate(names):
        tiles.append(_tile(metric(name), found[name], quiet=i > 0))
    times = timings(run.summary, f"{run.folder / 'summary.json'}: seconds")
    if "train" in times:
        rest = f"and {times['compile']} compiling" if "compile" in times else ""
        tiles.append(Tile("training", times["train"], rest, quiet=True))
    return tiles


def _tile(m: Metric, stat: Stat, quiet: bool) -> Tile:
    if m.family == "solved":
        figure, _, rest = spread(m, stat).partition(" (")
        return Tile(m.label, figure, rest.removesuffix(")"), quiet=quiet)
    detail = m.unit if m.unit != "%" else ""
    if len(stat.values) > 1:
        best, worst = best_worst(m, stat)
        std = f"± {m.show(stat.std)}" if math.isfinite(stat.std) else ""
        detail = f"{std} over {len(stat.values)} seeds, {best} – {worst}".strip()
    if stat.lost:
        best, _ = best_worst(m, stat)
        detail = f"finite in {len(stat.finite)} of {len(stat.values)} seeds, best {best}"
    unit = unit_after(m) if math.isfinite(stat.mean) else ""
    return Tile(m.label, m.show(stat.mean) + unit, detail, quiet=quiet)


def _curves(panels: list[canvas.Panel]) -> Section | None:
    return Section("Learning curves", figures=panels) if panels else None


def _pictures(run: Run) -> Section | None:
    """What a study drew."""
    named = run.summary.get("pictures")
    listed = named if isinstance(named, list) else []
    drawn = [picture(run.folder / Path(str(name)).name) for name in listed]
    return Section("Pictures", pictures=drawn) if drawn else None


def _results(found: dict[str, Stat]) -> Section | None:
    if not found:
        return None
    several = max(len(stat.values) for stat in found.values())
    columns = ["metric", "mean ± std" if several > 1 else "value"]
    columns += ["best seed", "worst seed"] if several > 1 else []
    rows = []
    for name, stat in found.items():
        m = metric(name)
        row = [Cell(m.label if m.family == "solved" else m.axis), Cell(spread(m, stat))]
        if several > 1:
            ends = best_worst(m, stat) if m.family != "solved" else ("", "")
            row += [Cell(text) for text in ends]
        rows.append(row)
    lead = f"Mean ± standard deviation over {several} seeds." if several > 1 else ""
    return Section("Results", lead, columns=columns, groups=[Group(rows)])


def _layers(run: Run) -> Section | None:
    layers: Any = run.summary.get("layers")
    if not isinstance(layers, list) or not layers:
        return None
    rows, total = [], 0.0
    for i, layer in enumerate(layers):
        where = f"{run.folder / 'summary.json'}: layers.{i}"
        fields = mapping(layer, where)
        size = number(fields.get("parameters", 0), f"{where}.parameters")
        total += size
        rows.append([Cell(str(fields.get("name", i))), Cell(n.count(size))])
    lead = f"{n.count(total)} parameters in all."
    return Section("Network", lead, columns=["layer", "parameters"], groups=[Group(rows)])


def _notes(run: Run, found: dict[str, Stat]) -> Section | None:
    said = []
    if not run.summary:
        said.append(
            "This folder holds no summary.json: the run did not finish, or has not yet. All "
            "figures here are those that it logged last."
        )
    listed = run.summary.get("notes")
    said += [str(note) for note in listed] if isinstance(listed, list) else []
    lost: dict[str, list[str]] = {}
    for name, stat in found.items():
        if stat.lost:
            seeds = f"{stat.lost} of {len(stat.values)} seeds"
            lost.setdefault(seeds, []).append(metric(name).label)
    said += [f"Not finite in {seeds}: {', '.join(labels)}." for seeds, labels in lost.items()]
    unsettled = run.history.series.get("unsettled")
    if unsettled is not None:
        last = from_values(unsettled.values[-1]).mean
        if last > 0:
            said.append(
                f"In the last logged {run.history.axis} {n.fixed(100 * last)} % of the examples' "
                "phases had not settled to the solver's tolerance."
            )
    return Section("Notes", notes=said) if said else None


def _last(history: History) -> dict[str, Stat]:
    """The figures of the last logged line, by metric."""
    found = {}
    for name in ordered(history.series):
        values = history.series[name].values[-1]
        kept = values if np.isfinite(values).any() else values[:1]
        found[name] = from_values(kept)
    return found
