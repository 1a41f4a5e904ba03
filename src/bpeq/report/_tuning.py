"""What `bpeq compare --tune` chose: in the terminal, and on the page with every trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bpeq.report import _numbers as n
from bpeq.report._fidelity_words import setting
from bpeq.report._metrics import Metric, metric
from bpeq.report._page import Cell, Detail, Group, Section
from bpeq.report._read import mapping, number
from bpeq.report._rows import unit_after
from bpeq.report._tables import blank, folded_name, title_of, words
from bpeq.types import DataError

if TYPE_CHECKING:
    from rich.table import Table


class Trial(NamedTuple):
    """Settings by their keys in the config, what they led to (NaN where they failed), and why."""

    settings: dict[str, float]
    value: float
    failed: str

    @property
    def said(self) -> str:
        """ "learning_rate 0.01, beta 0.2"."""
        named = (f"{key.rpartition('.')[2]} {setting(v)}" for key, v in self.settings.items())
        return ", ".join(named)


class Tuned(NamedTuple):
    """A row's trials, the first with the config's own settings, and which one was chosen."""

    name: str
    metric: Metric
    trials: list[Trial]
    chosen: int

    @property
    def best(self) -> Trial:
        return self.trials[self.chosen]


def tuned_rows(comparison: dict[str, Any]) -> list[Tuned]:
    """`tuning` of comparison.json; empty where nothing was tuned.

    Raises:
      DataError: an entry is not as it must be.
    """
    found = []
    for name, entry in mapping(comparison.get("tuning"), "tuning").items():
        where = f"tuning.{name}"
        fields = mapping(entry, where)
        measured, trials = metric(str(fields.get("metric", "?"))), []
        listed = fields.get("trials")
        if not isinstance(listed, list):
            raise DataError(f"{where}.trials: must be a list")
        for i, each in enumerate(listed):
            at = f"{where}.trials.{i}"
            trial = mapping(each, at)
            given = mapping(trial.get("settings"), f"{at}.settings")
            settings = {key: number(v, f"{at}.settings.{key}") for key, v in given.items()}
            value = number(trial.get(measured.name), f"{at}.{measured.name}")
            trials.append(Trial(settings, value, str(trial.get("failed") or "")))
        chosen = number(fields.get("chosen"), f"{where}.chosen")
        if chosen not in range(len(trials)):
            raise DataError(f"{where}.chosen: must be the number of a trial")
        found.append(Tuned(name, measured, trials, int(chosen)))
    return found


def tuning_table(comparison: dict[str, Any]) -> Table:
    """What each rule's trials chose, with the validation error that it had, and the config's own.

    Raises:
      DataError: as `tuned_rows`.
    """
    found = tuned_rows(comparison)
    table = blank(f"{title_of(comparison)} · tuned", _lead(found))
    table.add_column("rule", overflow="fold", min_width=20)
    table.add_column("chosen settings", overflow="fold")
    for head in _heads(found):
        table.add_column(head.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            words(folded_name(row.name, 20), "bold"), words(row.best.said), *_figures(row)
        )
    return table


def tuning_section(found: Sequence[Tuned]) -> Section | None:
    """The same on a page; None where nothing was tuned."""
    if not found:
        return None
    lines = [[Cell(r.name), *map(Cell, (r.best.said, *_figures(r)))] for r in found]
    columns = ["rule", "chosen settings", *_heads(found)]
    return Section("Tuning", _lead(found), columns=columns, groups=[Group(lines)])


def every_trial(found: Sequence[Tuned]) -> list[Detail]:
    """All trials, folded away."""
    pairs = []
    for row in found:
        for i, trial in enumerate(row.trials):
            shown = trial.failed or f"{row.metric.show(trial.value)}{unit_after(row.metric)}"
            pairs.append((f"{row.name} {i}", f"{trial.said}: {shown}"))
    return [Detail("Every trial of the tuning", pairs=pairs)] if pairs else []


def _lead(found: Sequence[Tuned]) -> str:
    counts = sorted({len(row.trials) for row in found})
    trials = f"{counts[0]} trial{'s' * (counts[0] != 1)}" if counts else "no trials"
    return (
        f"{trials} for every rule and null control, chosen by the validation split alone; the "
        "first trial is the config as it stands."
    )


def _heads(found: Sequence[Tuned]) -> list[str]:
    axis = found[0].metric.axis if found else "validation error"
    return [axis, "as configured", "failed trials"]


def _figures(row: Tuned) -> list[str]:
    failed = sum(1 for trial in row.trials if not math.isfinite(trial.value))
    values = (row.best.value, row.trials[0].value)
    return [*(row.metric.show(v) if math.isfinite(v) else n.ABSENT for v in values), str(failed)]
