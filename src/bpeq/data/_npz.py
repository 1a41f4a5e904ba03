"""From a user's arrays to a Dataset: types, labels, splits. `npz` reads arrays from a file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Interval

from bpeq.core.paths import user_path
from bpeq.data import _checks as checks
from bpeq.data._dataset import Dataset, Splits, Task, TooFew, carve, finish, shuffled, single
from bpeq.settings import Caution, Count, DataError, Fraction, SettingError, checked

TaskChoice = Literal["auto", "classification", "binary", "regression"]
Classes = Annotated[int, Interval(ge=2, lt=checks.LABEL_LIMIT)]
VALIDATION, TEST = 0.1, 0.2
_LOOK_LIKE_LABELS = 1000
"""Whole floats below this look like labels of classes."""


@checked
def npz(
    path: str,
    *,
    task: TaskChoice = "auto",
    classes: Classes | None = None,
    validation: Fraction = VALIDATION,
    test: Fraction = TEST,
    splits: Count = 1,
) -> Dataset:
    """Your own data: arrays as `numpy.savez(path, x=x, y=y)` writes them.

    The file holds `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test` and perhaps
    `x_validation`, `y_validation`. Any other array is an error. `x` and `y` are split here:
    stratified for classification and for a single binary target, and independent of a run's seed.
    Inputs are converted to float32 and not scaled. Divide images of bytes 0 … 255 before.

    The file's x is `[n, ...]` of real numbers (images `[n, height, width, channels]`). Its y is
    `[n]` or `[n, 1]` of labels 0 … K − 1 for classification, or one-hot rows `[n, K]` with `task =
    "classification"`. It is `[n]` or `[n, outputs]` of numbers for regression, and of 0 and 1 for
    binary.

    Args:
      path: the file.
      task: "classification", "binary" or "regression"; "auto" is classification for whole numbers
        y `[n]` or `[n, 1]`, and regression for floats. A Caution says so if the floats look like
        labels: 0.0, 1.0, 2.0, …, or one-hot rows.
      classes: the number of classes, >= 2; None: the highest label + 1, and every class must have
        an example.
      validation: the fraction of the examples outside the test set, in [0, 1).
      test: the fraction of all examples, in [0, 1).
      splits: the number of independent splits, >= 1.

    Returns:
      The data set.

    Raises:
      ValueError: a setting is out of range, or does not suit the content of the file.
      DataError: the file is absent or damaged, or holds objects (bpeq never unpickles); an array is
        missing or empty, has another length than its partner, or has NaN or infinite entries; a
        label is negative, not whole or too high; a class has no example; or there are too few
        examples.
    """
    parts = _parts(path, _load(path))
    return table("npz", path, parts, task, classes, validation, test, splits)


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
    x_name: checks.Name
    y_name: checks.Name


def table(
    factory: str,
    path: str,
    parts: dict[str, Part],
    task: TaskChoice,
    classes: int | None,
    validation: float,
    test: float,
    splits: int,
) -> Dataset:
    """Makes a Dataset from one part "all", or from "train", "test" and perhaps "validation".

    Args:
      factory: the name of the data set's factory, for error messages.
      path: the file, for error messages.
      parts: the examples of the file.
      task, classes, validation, test, splits: the settings of the factory, as in `npz`.

    Returns:
      The data set.

    Raises:
      ValueError: a setting does not suit the file.
      DataError: the content of the file is wrong.
    """
    # The settings must suit the file.
    if "all" not in parts:
        left = {"splits": (splits, 1), "test": (test, TEST)}
        if "validation" in parts:
            left["validation"] = (validation, VALIDATION)
        for setting, (value, default) in left.items():
            if value != default:
                remedy = f"{path} brings its own split; leave it out"
                raise SettingError(factory, setting, value, remedy)
    # Check and convert the inputs and the targets.
    for part in parts.values():
        _check_shape(part)
    x = [checks.as_float32(part.x, part.x_name) for part in parts.values()]
    if len({inputs.shape[1:] for inputs in x}) > 1:
        shapes = ", ".join(f"{part} {inputs.shape}" for part, inputs in zip(parts, x, strict=True))
        raise DataError(f"{path}: examples of different shapes: {shapes}")
    known = task if task != "auto" else _guess(path, list(parts.values()))
    y, outputs = _targets(factory, path, list(parts.values()), known, classes)
    # Split, with the same share of each label in every part.
    labels = y if known == "classification" else None
    if known == "binary" and outputs == 1:
        labels = y[:, 0].astype(np.int32)
    try:
        if "all" in parts:
            rows = shuffled(len(y), splits, validation, test, labels)
        else:
            rows = _splits_of_file(parts, labels, validation)
    except TooFew as error:
        raise DataError(f"{path}: {error}") from None
    return finish(Path(path).stem, np.concatenate(x), y, rows, task=known, outputs=outputs)


def _load(path: str) -> dict[str, np.ndarray]:
    with checks.reading(path), open(user_path(path), "rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
        except Exception:  # zipfile and NumPy raise many types of errors
            raise DataError(f"{path}: not an .npz file") from None
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path}: a single .npy array, not an .npz file")
        with loaded:
            return {name: _member(path, loaded, name) for name in loaded.files}


def _member(path: str, loaded: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = loaded[name]
    except Exception as error:  # many types of errors here too
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: {name} cannot be read: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name} is not an array")
    return array


def _parts(path: str, arrays: dict[str, np.ndarray]) -> dict[str, Part]:
    if {"x", "y"} & set(arrays):
        endings = {"all": ""}
    else:
        held = {"x_validation", "y_validation"} & set(arrays)
        order = ("train", "validation", "test") if held else ("train", "test")
        endings = {part: f"_{part}" for part in order}
    names = {f"{letter}{ending}" for letter in "xy" for ending in endings.values()}
    if missing := sorted(names - set(arrays)):
        either = "" if "all" in endings else " (or x and y)"
        present = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path}: missing {', '.join(missing)}{either}; it holds {present}")
    if extra := sorted(set(arrays) - names):
        beside = ", ".join(sorted(names))
        raise DataError(f"{path}: unexpected {', '.join(extra)} beside {beside}")
    parts = {}
    for part, ending in endings.items():
        x, y = f"x{ending}", f"y{ending}"
        parts[part] = Part(arrays[x], arrays[y], checks.named(path, x), checks.named(path, y))
    return parts


def _check_shape(part: Part) -> None:
    for array, name, least, form in (
        (part.x, part.x_name, 2, "[n, ...]"),
        (part.y, part.y_name, 1, "[n] or [n, outputs]"),
    ):
        if array.ndim < least:
            raise DataError(f"{name(())} has shape {array.shape}, {form} is needed")
        if array.size == 0:
            raise DataError(f"{name(())} has shape {array.shape}: it is empty")
    if len(part.x) != len(part.y):
        raise DataError(f"{part.y_name(())} has {len(part.y)} rows, x has {len(part.x)}")


def _guess(path: str, parts: list[Part]) -> Task:
    """Resolves "auto": whole numbers `[n]` are labels, floats are regression targets."""
    kinds: set[Task] = set()
    for part in parts:
        if part.y.dtype.kind in "biu" and part.y.size == len(part.y):
            kinds.add("classification")
        elif part.y.dtype.kind == "f":
            kinds.add("regression")
        else:
            raise DataError(
                f"{part.y_name(())} holds {part.y.dtype} of shape {part.y.shape}: labels are whole "
                "numbers [n], regression targets floats; else set task, such as 'classification' "
                "for one-hot rows"
            )
    if len(kinds) > 1:
        raise DataError(f"{path}: y is whole numbers in one part and floats in another: set task")
    task = kinds.pop()
    if task == "regression":
        warn_of_labels(f"{path}: y", [part.y for part in parts])
    return task


def warn_of_labels(name: str, targets: Sequence[np.ndarray]) -> None:
    """Warns if floats that "auto" reads as regression targets look like labels.

    Args:
      name: the name of the targets.
      targets: the targets of each part.

    Warns:
      Caution: all are whole numbers 0, 1, 2, …, in one column; or all rows are one-hot.
    """
    whole = all(np.isin(y, np.arange(_LOOK_LIKE_LABELS)).all() for y in targets)
    if whole and all(y.size == len(y) for y in targets):
        kind = "0.0, 1.0, 2.0, …"
    elif all(_one_hot(y) for y in targets):
        kind = "one-hot rows"
    else:
        return
    remedy = "set task = 'classification' if they are labels, or task = 'regression'"
    warnings.warn(f"{name} holds {kind} as floats, read as a regression: {remedy}", Caution, 2)


def _one_hot(y: np.ndarray) -> bool:
    """Whether each row holds a single 1, and zeros."""
    table = y.dtype.kind in "biuf" and y.ndim == 2 and y.shape[1] > 1
    rows = table and np.isin(y, (0, 1)).all()
    return bool(rows and (y.sum(axis=1) == 1).all())


def _labels(part: Part) -> Part:
    """The part with labels `[n]` in place of `[n, 1]` or one-hot rows."""
    if part.y.dtype.kind in "biuf" and part.y.ndim == 2:
        if part.y.shape[1] == 1:
            return part._replace(y=part.y[:, 0])
        if _one_hot(part.y):
            return part._replace(y=part.y.argmax(axis=1))
    return part


def _targets(
    factory: str, path: str, parts: list[Part], task: Task, classes: int | None
) -> tuple[np.ndarray, int]:
    if task == "classification":
        widths = {part.y.shape[1] for part in parts if _one_hot(part.y)}
        if classes is None and len(widths) == 1:  # a class may have no example
            classes = widths.pop()
        parts = [_labels(part) for part in parts]
        labels = np.concatenate([checks.as_labels(part.y, part.y_name, classes) for part in parts])
        return labels, checks.count_classes(labels, checks.named(path, "labels"), classes)
    if classes is not None:
        remedy = f"only for classification, not {task}"
        raise SettingError(factory, "classes", classes, remedy)
    convert = checks.as_bits if task == "binary" else checks.as_float32
    values = [convert(part.y, part.y_name) for part in parts]
    columns = [value[:, None] if value.ndim == 1 else value for value in values]
    shapes = {column.shape[1:] for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 2:
        raise DataError(f"{path}: targets of shapes {sorted(shapes)} a row, [outputs] is needed")
    return np.concatenate(columns), columns[0].shape[1]


def _splits_of_file(parts: dict[str, Part], labels: np.ndarray | None, validation: float) -> Splits:
    ends = np.cumsum([len(part.y) for part in parts.values()])
    rows = dict(zip(parts, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
    train, held = rows["train"], rows.get("validation")
    if held is None:
        train, held = carve(train, validation, labels, 0, "validation")
    return single(train, held, rows["test"])
