# ruff: noqa: RUF012 (pydantic copies the defaults of its fields)
"""Reads metrics.jsonl as arrays over training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpeq.runs.json_models import (
    MaybeNumber,
    Objects,
    Result,
    Values,
    parse,
    read_object,
    read_text,
    to_number,
)

Floats = NDArray[np.float64]


class MetricsRow(Result):
    """One line of metrics.jsonl: `values` maps a metric to `[seeds]`; other keys are means."""

    __pydantic_extra__: dict[str, Values]
    epoch: MaybeNumber = None
    step: MaybeNumber = None
    values: Objects[Values] = {}


class Series(NamedTuple):
    """One metric over training.

    Args:
      x: `[k]`, epochs or steps.
      values: `[k, seeds]`, NaN if absent.
    """

    x: Floats
    values: Floats


class History(NamedTuple):
    """The content of metrics.jsonl.

    Args:
      axis: the meaning of x: "epoch", "step" or "record".
      series: metric -> its values over training.
    """

    axis: str = "epoch"
    series: Mapping[str, Series] = {}


def read_history(path: Path) -> History:
    """Reads metrics.jsonl as arrays.

    If two lines have the same epoch, the later one counts. Timings are left out. A metric without
    an entry in `values` counts as one seed.

    Args:
      path: the file.

    Returns:
      All metrics; empty if there is no such file.

    Raises:
      DataError: a line is not a JSON object, or a number is wrong. The message names file and line.
    """
    if not path.exists():
        return History()
    rows = []
    for i, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{i}"
            rows.append(parse(MetricsRow, read_object(line, where), where))
    axis = next((a for a in ("epoch", "step") if all(a in r.model_fields_set for r in rows)), "")
    # metric -> x -> the values of its seeds
    table: dict[str, dict[float, list[float]]] = {}
    for i, row in enumerate(rows):
        x = to_number(getattr(row, axis)) if axis else i + 1.0
        for name, seeds in {**(row.model_extra or {}), **row.values}.items():
            if "seconds" not in name:
                table.setdefault(name, {})[x] = seeds
    return History(axis or "record", {name: _series(points) for name, points in table.items()})


def _series(points: dict[float, list[float]]) -> Series:
    """One metric as arrays, in rising order of x."""
    xs = sorted(points)
    values = np.full((len(xs), max(len(points[x]) for x in xs)), np.nan)
    for row, x in zip(values, xs, strict=True):
        row[: len(points[x])] = points[x]
    return Series(np.asarray(xs, dtype=np.float64), values)
