"""Reads a user's own arrays from a .npz file."""

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

    The file holds `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test` and perhaps
    `x_validation`, `y_validation`. Any other array is an error. `x` and `y` are split here:
    stratified for classification and for a single binary target, and independent of a run's seed.
    Inputs are converted to float32 and not scaled. Divide images of bytes 0 … 255 before.

    The file's x is `[n, ...]` of real numbers (images `[n, height, width, channels]`). Its y is
    `[n]` of labels 0 … K − 1 for classification, `[n]` or `[n, outputs]` of numbers for regression,
    and of 0 and 1 for binary.

    Args:
      path: the file.
      task: "classification", "binary" or "regression"; "auto" is classification for whole numbers
        y `[n]`, and regression for floats.
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
    arrays = _load(path)
    choices = Choices(task, classes, validation, test, splits)
    return table("npz", path, _parts(path, arrays), choices)


def _load(path: str) -> dict[str, np.ndarray]:
    with reading(path), open(os.path.expanduser(path), "rb") as file:
        return _arrays(path, file)


def _arrays(path: str, file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
    except Exception:  # zipfile and NumPy raise many types of errors
        raise data_error(f"{path}: not an .npz file") from None
    if isinstance(loaded, np.ndarray):
        raise data_error(f"{path}: a single .npy array, not an .npz file")
    with loaded:
        return {name: _member(path, loaded, name) for name in loaded.files}


def _member(path: str, loaded: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = loaded[name]
    except Exception as error:  # many types of errors here too
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
