"""From a user's arrays to a Dataset: types, labels, splits. It is shared by .npz and .csv files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Interval

from bpeq.data._checks import (
    LABEL_LIMIT,
    Name,
    as_bits,
    as_float32,
    as_labels,
    count_classes,
    data_error,
    named,
)
from bpeq.data._finish import finish
from bpeq.data._splits import Splits, TooFew, carve, shuffled, single
from bpeq.data._types import Dataset, Task
from bpeq.settings import SettingError

TaskChoice = Literal["auto", "classification", "binary", "regression"]
Classes = Annotated[int, Interval(ge=2, lt=LABEL_LIMIT)]
VALIDATION, TEST = 0.1, 0.2


class Part(NamedTuple):
    """Examples from a file.

    Args:
      x: the inputs.
      y: the targets.
      x_name: names an entry of x in error messages.
      y_name: names an entry of y in error messages.
    """

    x: np.ndarray
    y: np.ndarray
    x_name: Name
    y_name: Name


class Choices(NamedTuple):
    """The settings that `npz` and `csv` share. `npz` describes them."""

    task: TaskChoice
    classes: int | None
    validation: float
    test: float
    splits: int


def table(factory: str, path: str, parts: dict[str, Part], choices: Choices) -> Dataset:
    """Makes a Dataset from one part "all", or from "train", "test" and perhaps "validation".

    Args:
      factory: the name of the data set's factory, for error messages.
      path: the file, for error messages.
      parts: the examples of the file.
      choices: the settings of the factory.

    Returns:
      The data set.

    Raises:
      ValueError: a setting does not suit the file.
      DataError: the content of the file is wrong.
    """
    _check_choices(factory, path, parts, choices)
    for part in parts.values():
        _check_shape(part)
    inputs = [as_float32(part.x, part.x_name) for part in parts.values()]
    if len({x.shape[1:] for x in inputs}) > 1:
        shapes = ", ".join(f"{part} {x.shape}" for part, x in zip(parts, inputs, strict=True))
        raise data_error(f"{path}: examples of different shapes: {shapes}")
    task = choices.task if choices.task != "auto" else _guess(path, list(parts.values()))
    y, outputs = _targets(factory, path, list(parts.values()), task, choices.classes)
    labels = y if task == "classification" else None
    if task == "binary" and outputs == 1:
        labels = y[:, 0].astype(np.int32)
    try:
        splits = _split(parts, choices, labels)
    except TooFew as error:
        raise data_error(f"{path}: {error}") from None
    return finish(Path(path).stem, np.concatenate(inputs), y, splits, task=task, outputs=outputs)


def _check_choices(factory: str, path: str, parts: dict[str, Part], choices: Choices) -> None:
    if "all" in parts:
        return
    left = {"splits": (choices.splits, 1), "test": (choices.test, TEST)}
    if "validation" in parts:
        left["validation"] = (choices.validation, VALIDATION)
    for setting, (value, default) in left.items():
        if value != default:
            remedy = f"{path} brings its own split; leave it out"
            raise SettingError(factory, setting, value, remedy)


def _check_shape(part: Part) -> None:
    for array, name, least, form in (
        (part.x, part.x_name, 2, "[n, ...]"),
        (part.y, part.y_name, 1, "[n] or [n, outputs]"),
    ):
        if array.ndim < least:
            raise data_error(f"{name(())} has shape {array.shape}, {form} is needed")
        if array.size == 0:
            raise data_error(f"{name(())} has shape {array.shape}: it is empty")
    if len(part.x) != len(part.y):
        raise data_error(f"{part.y_name(())} has {len(part.y)} rows, x has {len(part.x)}")


def _guess(path: str, parts: list[Part]) -> Task:
    """Resolves "auto": whole numbers `[n]` are labels, floats are regression targets."""
    found: set[Task] = set()
    for part in parts:
        if part.y.dtype.kind in "biu" and part.y.ndim == 1:
            found.add("classification")
        elif part.y.dtype.kind == "f":
            found.add("regression")
        else:
            raise data_error(
                f"{part.y_name(())} holds {part.y.dtype} of shape {part.y.shape}: labels are whole "
                "numbers [n], regression targets floats; else set task"
            )
    if len(found) > 1:
        raise data_error(f"{path}: y is whole numbers in one part and floats in another: set task")
    return found.pop()


def _targets(
    factory: str, path: str, parts: list[Part], task: Task, classes: int | None
) -> tuple[np.ndarray, int]:
    if task == "classification":
        labels = np.concatenate([as_labels(part.y, part.y_name, classes) for part in parts])
        return labels, count_classes(labels, named(path, "labels"), classes)
    if classes is not None:
        remedy = f"only for classification, not {task}"
        raise SettingError(factory, "classes", classes, remedy)
    convert = as_bits if task == "binary" else as_float32
    values = [convert(part.y, part.y_name) for part in parts]
    columns = [value[:, None] if value.ndim == 1 else value for value in values]
    shapes = {column.shape[1:] for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 2:
        raise data_error(f"{path}: targets of shapes {sorted(shapes)} a row, [outputs] is needed")
    return np.concatenate(columns), columns[0].shape[1]


def _split(parts: dict[str, Part], choices: Choices, labels: np.ndarray | None) -> Splits:
    if "all" in parts:
        n = len(parts["all"].y)
        return shuffled(n, choices.splits, choices.validation, choices.test, labels)
    rows, start = {}, 0
    for part, examples in parts.items():
        rows[part] = np.arange(start, start + len(examples.y))
        start += len(examples.y)
    train, held = rows["train"], rows.get("validation")
    if held is None:
        train, held = carve(train, choices.validation, labels, 0, "validation")
    return single(train, held, rows["test"])
