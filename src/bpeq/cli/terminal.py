"""Terminal output: results go to stdout, progress to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bpeq.experiment.runner import Interrupted
from bpeq.report.tables import Column, Group, Table, TableCell

LEAST_WIDTH = 80
"""Columns. A narrower terminal breaks the lines itself, so that no figure is cut off."""


class Terminal(Console):
    """A console that is never too narrow for its texts. COLUMNS=0 counts as an unknown width."""

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        """The size of the terminal, at least `LEAST_WIDTH` columns wide."""
        width, height = super().size
        return ConsoleDimensions(max(width, LEAST_WIDTH), height)


console = Terminal()

Track = Callable[[str], Callable[[int, int, dict[str, Any]], None]]
EQUAL = TableCell("equal", style="green")
"""The verdict on a file whose repeat has the same bits."""


@contextmanager
def bar(unit: str, advice: str = "") -> Iterator[Track]:
    """Shows progress bars on stderr until the block ends.

    Args:
      unit: the noun for a turn, such as "epochs".
      advice: how to continue after an interruption, which the message then ends with; empty: the
        message stays as it is.

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
            words = row.get("said", _headline(row) or "compiling")
            progress.update(tasks[0], completed=done, total=total, said=words)

        return move

    try:
        yield track
    except Interrupted as stopped:
        message = "; ".join(filter(None, (str(stopped), advice)))
        raise Interrupted(stopped.signal, message) from stopped
    finally:
        if progress.live.is_started:
            progress.stop()


def print_text(text: object) -> None:
    """Prints a text as it is, without colours and line breaks.

    Args:
      text: the text.
    """
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table of texts.

    Args:
      title: the text above the table.
      headers: the headers of the columns.
      rows: the cells of each row, texts or TableCells.
    """
    columns = [Column(header, align="left") for header in headers]
    console.print(Table(columns, [Group(rows)], title))


def verdict(passed: bool | None) -> TableCell:
    """The verdict of a check as a cell of a table.

    Args:
      passed: whether the check passed; None: it is a note.

    Returns:
      "ok", "FAILS" or "note", in a colour.
    """
    if passed is None:
        return TableCell("note")
    return TableCell("ok", style="green") if passed else TableCell("FAILS", style="bold red")


def _headline(row: dict[str, Any]) -> str:
    """The main test metric of a row, for the progress bar."""
    if "solved" in row:
        return f"solved {row['solved']:.0%}"
    if "test_error" in row:
        return f"test error {100 * row['test_error']:.2f} %"
    return f"test rmse {row['test_rmse']:.4g}" if "test_rmse" in row else ""
