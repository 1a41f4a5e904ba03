"""A user's own arrays, from one .npz file."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from bpeq.data._checks import data_error, named, reading
from bpeq.data._table import TEST, VALIDATION, Choices, Classes, Part, TaskChoice, table
from bpeq.data._types import Dataset
from bpeq.settings import Count, Fraction, checked

_ORDER = ("train", "validation", "test")


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

    The file holds either `x` and `y`, which are then split here (stratified for classification and
    for a single binary target, fixed whatever a run's seed), or `x_train`, `y_train`, `x_test`,
    `y_test` and perhaps `x_validation`, `y_validation`. Any other array is an error. Inputs
    are cast to float32, not scaled: images of bytes 0 … 255 should be divided before.

    Shapes: x `[n, ...]` of real numbers (images `[n, height, width, channels]`). y `[n]` of labels
    0 … K − 1 for classification, `[n]` or `[n, outputs]` of numbers for regression, and of 0 and 1
    for binary.

    Args:
      path: the file.
      task: "auto" takes whole numbers y `[n]` for labels and floats for regression targets.
      classes: number of classes, >= 2. None: the highest label + 1, and each must have an example.
      validation: fraction of the examples outside the test set, in [0, 1).
      test: fraction of all examples, in [0, 1).
      splits: how many independent splits to draw, >= 1.

    Raises:
      ValueError: a setting is out of range, or does not go with what the file holds.
      DataError: the file is absent, damaged, or holds objects (nothing is ever unpickled); an array
        is missing, empty, of another length than its partner, or has NaN or infinite entries; a
        label is negative, not whole, too high, or a class has no example; too few examples.
    """
    arrays = _load(path)
    choices = Choices(task, classes, validation, test, splits)
    return table("npz", path, _parts(path, arrays), choices)


def _load(path: str) -> dict[str, np.ndarray]:
    with reading(path), open(os.path.expanduser(path), "rb") as file:
        return _arrays(path, file)


def _arrays(path: str, file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
    except Exception:  # zipfile and NumPy raise a dozen kinds on what is not theirs
        raise data_error(f"{path}: not an .npz file") from None
    if isinstance(loaded, np.ndarray):
        raise data_error(f"{path}: a single .npy array, not an .npz file")
    with loaded:
        return {name: _member(path, loaded, name) for name in loaded.files}


def _member(path: str, loaded: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = loaded[name]
    except Exception as error:  # likewise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise data_error(f"{path}: {name} cannot be read: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise data_error(f"{path}: {name} is not an array")
    return array


def _parts(path: str, arrays: dict[str, np.ndarray]) -> dict[str, Part]:
    if {"x", "y"} & set(arrays):
        pairs = {"all": ("x", "y")}
    else:
        held = {"x_validation", "y_validation"} & set(arrays)
        wanted = [part for part in _ORDER if part != "validation" or held]
        pairs = {part: (f"x_{part}", f"y_{part}") for part in wanted}
    names = {name for pair in pairs.values() for name in pair}
    found = ", ".join(sorted(arrays)) or "nothing"
    if missing := sorted(names - set(arrays)):
        either = "" if "all" in pairs else " (or x and y)"
        raise data_error(f"{path}: missing {', '.join(missing)}{either}; it holds {found}")
    if extra := sorted(set(arrays) - names):
        wanted_names = ", ".join(sorted(names))
        raise data_error(f"{path}: unexpected {', '.join(extra)} beside {wanted_names}")
    return {
        part: Part(arrays[x], arrays[y], named(path, x), named(path, y))
        for part, (x, y) in pairs.items()
    }
