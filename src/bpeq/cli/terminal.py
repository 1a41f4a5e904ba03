"""Terminal output: results go to stdout, progress to stderr."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from bpeq.analysis.energy_contract import EnergyContract
from bpeq.analysis.locality.rows import COLUMNS, Locality, cells, notes, overall
from bpeq.experiment.verify import Finding
from bpeq.layers import CheckRow

console = Console()


Track = Callable[[str], Callable[[int, int, dict[str, Any]], None]]


@contextmanager
def bar(unit: str = "epochs") -> Iterator[Track]:
    """Shows progress bars on stderr until the block ends.

    Args:
      unit: the noun for a turn, such as "epochs".

    Returns:
      A context manager that gives `track`. `track(name)` adds a bar and returns its callback. The
      callback takes (turns done, total turns, the last row).
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(stderr=True),
    )

    def track(name: str) -> Callable[[int, int, dict[str, Any]], None]:
        tasks: list[Any] = []

        def move(done: int, total: int, row: dict[str, Any]) -> None:
            if not tasks:  # at the first call, so that a refused run shows no bar
                progress.start()
                tasks.append(progress.add_task(name, total=total, said="compiling"))
            said = row.get("said", _headline(row) or "compiling")
            progress.update(tasks[0], completed=done, total=total, said=said)

        return move

    try:
        yield track
    finally:
        if progress.live.is_started:
            progress.stop()


def check_table(rows: list[CheckRow]) -> Table:
    """A table with one row for each layer: its largest gradient error, the tolerance, the verdict.

    Args:
      rows: the rows of `check_problem`.

    Returns:
      The table.
    """
    table = Table("layer", "error", "tolerance", "", title="hand-written backward against autodiff")
    for row in rows:
        verdict = "[green]ok[/green]" if row.passed else "[bold red]FAILS[/bold red]"
        table.add_row(row.name, f"{row.error:.1e}", f"{row.tolerance:.0e}", verdict)
    return table


def contract_table(contract: EnergyContract) -> Table:
    """A table with one row for each finding: its verdict or "note", its figure, its explanation.

    Args:
      contract: the findings of `check_system`.

    Returns:
      The table.
    """
    verdicts = {True: "[green]ok[/green]", False: "[bold red]FAILS[/bold red]", None: "note"}
    table = Table(
        "finding", "", "figure", "", title="the energy's contract, at the initial weights"
    )
    for finding in contract:
        figure = "" if math.isnan(finding.figure) else f"{finding.figure:.2g}"
        table.add_row(finding.name, verdicts[finding.passed], figure, escape(finding.words))
    return table


def audit_tables(found: list[Locality]) -> list[Table | str]:
    """A table of rules, then a table of weights for each rule, then notes on operations left out.

    Args:
      found: one Locality for each rule.

    Returns:
      Tables and notes, in the order to print.
    """
    short = [column.split()[0] for column in COLUMNS]
    rules = Table(Column("rule", no_wrap=True), *short, title="what the updates take")
    tables: list[Table | str] = [rules]
    for each in found:
        rules.add_row(each.rule, *cells(overall(each.rows)))
        weights = Table(Column("weight", no_wrap=True), *short, title=each.rule)
        for row in each.rows:
            weights.add_row(row.weight, *cells(row))
        tables.append(weights)
    return [*tables, *notes(found)]


def verified_table(findings: list[Finding]) -> Table:
    """A table with one row for each file: what was compared, and the first difference.

    Args:
      findings: the findings of `verify`.

    Returns:
      The table.
    """
    table = Table("file", "compared", "", title="a repeat of the run, bit by bit")
    for each in findings:
        verdict = escape(each.difference) or "[green]equal[/green]"
        table.add_row(escape(each.file), each.compared, verdict)
    return table


def _headline(row: dict[str, Any]) -> str:
    """The main test metric of a row, for the progress bar."""
    if "solved" in row:
        return f"solved {row['solved']:.0%}"
    if "test_error" in row:
        return f"test error {100 * row['test_error']:.2f} %"
    return f"test rmse {row['test_rmse']:.4g}" if "test_rmse" in row else ""
