"""comparison.csv: one row a rule, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from bpeq.report._metrics import ordered
from bpeq.report._rows import Row
from bpeq.runs import run_folder


def write_csv(found: Sequence[Row], path: Path) -> None:
    """Writes rule, control, seeds, metrics, costs and fidelity; absent figures are empty.

    Their columns: METRIC_mean, METRIC_std; cost_NAME; and of the whole gradient, before and after
    training, END_relative_error and END_cosine.

    Figures are as in comparison.json: shares are fractions, and what is not finite is nan or inf.
    """
    metrics = ordered(name for row in found for name in row.stats)
    costs = list(dict.fromkeys(name for row in found for name in row.cost))
    ends = [end for end in ("initial", "trained") if any(end in row.fidelity for row in found)]
    near = [(end, part) for end in ends for part in ("relative_error", "cosine")]
    head = ["rule", "control", "seeds"]
    head += [f"{name}_{part}" for name in metrics for part in ("mean", "std")]
    text = io.StringIO()
    writer = csv.writer(text)
    head += [f"cost_{name}" for name in costs]
    writer.writerow(head + [f"{end}_{part}" for end, part in near])
    for row in found:
        seeds = max((len(stat.values) for stat in row.stats.values()), default=0)
        line: list[str | int | float] = [row.name, str(row.control).lower(), seeds]
        for name in metrics:
            stat = row.stats.get(name)
            line += ["", ""] if stat is None else [stat.mean, stat.std]
        line += [row.cost.get(name, "") for name in costs]
        for end, part in near:
            known = row.fidelity.get(end)
            line.append("" if known is None else getattr(known.total, part))
        writer.writerow(line)
    run_folder.write_text(path, text.getvalue())
