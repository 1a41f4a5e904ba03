"""Reads a user's own table from a .csv file."""

from __future__ import annotations

import csv as files
import re
from typing import NamedTuple

import numpy as np

from bpeq.core.paths import user_path
from bpeq.data._checks import Name, reading
from bpeq.data._dataset import Dataset
from bpeq.data._npz import TEST, VALIDATION, Classes, Part, TaskChoice, table, warn_of_labels
from bpeq.settings import Count, DataError, Fraction, SettingError, checked

_WHOLE = re.compile(r"[+-]?[0-9]+")


class Sheet(NamedTuple):
    """The cells of a file, without spaces around them.

    Args:
      path: the file.
      columns: the names of the columns.
      rows: the cells of each row.
      lines: the line number of each row.
    """

    path: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def place(self, row: int, column: int) -> str:
        """Names a cell for an error message.

        Args:
          row: the index of the row.
          column: the index of the column.

        Returns:
          The file, the line and the name of the column.
        """
        return f"{self.path}: line {self.lines[row]}, column {self.columns[column]!r}"


@checked
def csv(
    path: str,
    target: str = "",
    *,
    task: TaskChoice = "auto",
    classes: Classes | None = None,
    validation: Fraction = VALIDATION,
    test: Fraction = TEST,
    splits: Count = 1,
) -> Dataset:
    """Your own table: UTF-8, commas, a header row, one example per line, one target column.

    Every other column is an input and must be numeric. Class labels are whole numbers 0 … K − 1, or
    names. Names are numbered in sorted order (by code point: "B" before "a"). Spaces around cells
    and empty lines are ignored. Inputs are converted to float32 and not scaled.

    Args:
      path: the file.
      target: the name of the target column; "" is the last column.
      task: "classification", "binary" or "regression"; "auto" is classification if the targets are
        whole numbers (1, not 1.0) or names, and regression for other numbers. A Caution says so
        if the numbers are 0.0, 1.0, 2.0, …
      classes: the number of classes, >= 2; None: the highest label + 1, and every class must have
        an example.
      validation: the fraction of the examples outside the test set, in [0, 1).
      test: the fraction of all examples, in [0, 1).
      splits: the number of independent splits, >= 1. They are stratified as in `npz`.

    Returns:
      x `[n, columns − 1]` float32, in the file's order; y `[n]` int32, or `[n, 1]` float32.

    Raises:
      ValueError: a setting is out of range, or `target` is not a column of the file.
      DataError: the file is absent or not CSV, or has no header or no rows; a line has another
        number of cells; a cell is empty, not a number, NaN or infinite; labels are partly numbers
        and partly names; or an error of `npz`.
    """
    sheet = _read(path)
    if target and target not in sheet.columns:
        allowed = ", ".join(map(repr, sheet.columns))
        raise SettingError("csv", "target", target, f"the columns of {path} are {allowed}")
    aim = sheet.columns.index(target) if target else len(sheet.columns) - 1
    inputs = [column for column in range(len(sheet.columns)) if column != aim]
    resolved, y = _target(sheet, aim, task)
    x = np.array([_numbers(sheet, column) for column in inputs], np.float64).T
    part = Part(x, y, _name(sheet, inputs), _name(sheet, [aim]))
    return table("csv", path, {"all": part}, resolved, classes, validation, test, splits)


def _read(path: str) -> Sheet:
    rows, lines = [], []
    try:
        with reading(path), open(user_path(path), newline="", encoding="utf-8-sig") as file:
            reader = files.reader(file, strict=True)
            for cells in reader:
                if cells:
                    rows.append([cell.strip() for cell in cells])
                    lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason}") from None
    except files.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not CSV: {error}") from None
    if not rows:
        raise DataError(f"{path}: the file is empty")
    _check_header(path, rows[0])
    sheet = Sheet(path, rows[0], rows[1:], lines[1:])
    if not sheet.rows:
        raise DataError(f"{path}: a header but no rows")
    for line, row in zip(sheet.lines, sheet.rows, strict=True):
        if len(row) != len(sheet.columns):
            raise DataError(
                f"{path}: line {line} has {len(row)} cells, the header {len(sheet.columns)}"
            )
    return sheet


def _check_header(path: str, columns: list[str]) -> None:
    if len(columns) < 2:
        raise DataError(f"{path}: one column, {columns[0]!r}: an input and a target are needed")
    if all(_number(cell) is not None for cell in columns):
        raise DataError(f"{path}: line 1 is all numbers: a header with column names is needed")
    for position, column in enumerate(columns):
        if not column:
            raise DataError(f"{path}: column {position + 1} has no name in the header")
        if column in columns[:position]:
            raise DataError(f"{path}: two columns are named {column!r}")


def _target(sheet: Sheet, aim: int, task: TaskChoice) -> tuple[TaskChoice, np.ndarray]:
    """The task, with "auto" resolved, and the target column as numbers."""
    cells = [row[aim] for row in sheet.rows]
    numeric = [_number(cell) is not None for cell in cells]
    if "" in cells:
        raise DataError(f"{sheet.place(cells.index(''), aim)} is empty")
    if task in ("auto", "classification") and not all(numeric):
        if any(numeric):  # the rarer kind is probably the mistake
            names_are_rare = 2 * sum(numeric) >= len(numeric)
            row = numeric.index(not names_are_rare)
            kind, others = ("name", "numbers") if names_are_rare else ("number", "names")
            problem = f"is {cells[row]!r}, a {kind}, where others are {others}"
            raise DataError(f"{sheet.place(row, aim)} {problem}")
        numbers = {name: number for number, name in enumerate(sorted(set(cells)))}
        return "classification", np.array([numbers[cell] for cell in cells])
    if task == "auto":
        whole = all(_WHOLE.fullmatch(cell) for cell in cells)
        if whole:
            return "classification", _numbers(sheet, aim)
        warn_of_labels(_name(sheet, [aim])(()), [_numbers(sheet, aim)])
        task = "regression"
    return task, _numbers(sheet, aim)


def _numbers(sheet: Sheet, column: int) -> np.ndarray:
    values = [_number(cells[column]) for cells in sheet.rows]
    if None in values:
        row = values.index(None)
        cell = sheet.rows[row][column]
        problem = f"is {cell!r}, not a number" if cell else "is empty"
        raise DataError(f"{sheet.place(row, column)} {problem}")
    return np.array(values, np.float64)


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python accepts "1_000" as a number
    except ValueError:
        return None


def _name(sheet: Sheet, columns: list[int]) -> Name:
    def name(index: tuple[int, ...]) -> str:
        if not index:
            return f"{sheet.path}: column {', '.join(repr(sheet.columns[c]) for c in columns)}"
        return sheet.place(index[0], columns[index[1] if len(index) > 1 else 0])

    return name
