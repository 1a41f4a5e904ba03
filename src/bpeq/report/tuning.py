"""The settings that `bpeq compare --tune` chose, for the terminal and the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bpeq.report.folders import plural, title_of
from bpeq.report.metrics import Metric, metric
from bpeq.report.numbers import setting
from bpeq.report.page import Detail, Section
from bpeq.report.tables import Column, Group, Table, TableCell, to_rich
from bpeq.runs.results import Comparison, Trial, parse

if TYPE_CHECKING:
    import rich.table


def tuning_table(comparison: dict[str, Any] | Comparison) -> rich.table.Table:
    """A table of each rule's chosen settings, with their validation error and the config's own.

    Args:
      comparison: the content of comparison.json.

    Returns:
      The table, for a terminal of 80 columns.

    Raises:
      DataError: an entry has the wrong type.
    """
    comparison = parse(Comparison, comparison)
    title = f"{title_of(comparison)} · tuned"
    return to_rich(_table(comparison)._replace(title=title, caption=_lead(comparison)))


def tuning_section(comparison: Comparison) -> Section:
    """The section of a page with the chosen settings.

    Args:
      comparison: the comparison.

    Returns:
      The section; empty without tuning.
    """
    return Section("Tuning", _lead(comparison), table=_table(comparison))


def every_trial(comparison: Comparison) -> Detail:
    """A folded part of the page with all trials.

    Args:
      comparison: the comparison.

    Returns:
      The part.
    """
    pairs = []
    for name, tuning in comparison.tuning.items():
        m = metric(tuning.metric)
        for i, trial in enumerate(tuning.trials):
            text = trial.failed or f"{m.show(trial.value)}{m.after}"
            pairs.append((f"{name} {i}", f"{_settings(trial)}: {text}"))
    return Detail("Every trial of the tuning", pairs=pairs)


def _table(comparison: Comparison) -> Table:
    rows: list[list[Any]] = []
    m = metric("validation_error")
    for name, tuning in comparison.tuning.items():
        m = metric(tuning.metric)
        values = [_known(tuning.best, m), _known(tuning.trials[0], m)]
        failed = sum(not math.isfinite(trial.value) for trial in tuning.trials)
        rows.append([TableCell(name, style="bold"), _settings(tuning.best), *values, str(failed)])
    columns = [Column("rule"), Column("chosen settings", align="left"), Column(m.label, m.unit)]
    return Table([*columns, Column("as configured"), Column("failed trials")], [Group(rows)])


def _known(trial: Trial, m: Metric) -> str | None:
    return m.show(trial.value) if math.isfinite(trial.value) else None


def _settings(trial: Trial) -> str:
    """ "learning_rate 0.01, beta 0.2"."""
    return ", ".join(f"{k.rpartition('.')[2]} {setting(v)}" for k, v in trial.settings.items())


def _lead(comparison: Comparison) -> str:
    counts = [len(tuning.trials) for tuning in comparison.tuning.values()]
    trials = plural(min(counts), "trial") if counts else "no trials"
    return (
        f"{trials} for every rule and null control, chosen by the validation split alone; the "
        "first trial is the config as it stands."
    )
