"""Checks numbers and labels. An error is one line that names the entry."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from bpeq.core.paths import user_path
from bpeq.settings import DataError

Name = Callable[[tuple[int, ...]], str]
"""Index of an entry -> its name in an error message; () is the whole array."""

LABEL_LIMIT = 2**31
_LARGEST = np.float64(np.finfo(np.float32).max)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns errors of the operating system in the block into a DataError of one line.

    Args:
      path: the file. A pipe or a device is refused, because reading it may never end.

    Raises:
      DataError: the file is absent, cannot be read, or is not a file.
    """
    try:
        _refuse_endless(str(user_path(path)) if path else "")
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _refuse_endless(path: str) -> None:
    try:
        mode = os.stat(path or "\0").st_mode
    except ValueError:
        raise DataError(f"{path!r}: is no file's name") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: is a pipe or a device, not a file")


def named(source: str, array: str) -> Name:
    """Makes names as NumPy writes them: `source: x[3, 1]`.

    Args:
      source: the file or the data set.
      array: the array's name.

    Returns:
      A function from an index to a name.
    """

    def name(index: tuple[int, ...]) -> str:
        return f"{source}: {array}" + (f"[{', '.join(map(str, index))}]" if index else "")

    return name


def as_float32(array: np.ndarray, name: Name) -> Float[np.ndarray, "n ..."]:
    """Converts numbers to float32.

    Args:
      array: the numbers from a file.
      name: names an entry in error messages.

    Returns:
      The numbers in float32.

    Raises:
      DataError: the array does not hold real numbers, or an entry is NaN, infinite or too large.
    """
    _require_numbers(array, name)
    _refuse(array, ~np.isfinite(array), name, ", not a finite number")
    _refuse(array, np.abs(array) > _LARGEST, name, ", too large for float32")
    return array.astype(np.float32, order="C")


def as_labels(array: np.ndarray, name: Name, classes: int | None) -> Int[np.ndarray, " n"]:
    """Converts labels to int32. Whole numbers in a float array are allowed.

    Args:
      array: the labels from a file.
      name: names an entry in error messages.
      classes: the number of classes; None: no upper limit.

    Returns:
      The labels in int32.

    Raises:
      DataError: the array does not hold one label for each row, or a label is not whole, negative,
        or >= `classes`.
    """
    if array.ndim != 1:
        form = "labels are one a row, [n] or [n, 1], or one-hot, [n, classes]"
        raise DataError(f"{name(())} has shape {array.shape}: {form}")
    _require_numbers(array, name)
    whole = np.isfinite(array) & (array == np.floor(array))
    top = LABEL_LIMIT if classes is None else classes
    limit = f", not below {top}" + ("" if classes is None else ", the number of classes")
    _refuse(array, ~whole, name, ", not a whole number: labels are 0, 1, 2, …")
    _refuse(array, array < 0, name, ", negative: labels are 0, 1, 2, …")
    _refuse(array, array >= top, name, limit)
    return array.astype(np.int32)


def count_classes(labels: Int[np.ndarray, " n"], name: Name, classes: int | None) -> int:
    """Counts the classes: the highest label plus one, unless the user gives the number.

    Args:
      labels: `[n]` labels.
      name: names the labels in error messages.
      classes: the number from the user; None: it is counted.

    Returns:
      The number of classes.

    Raises:
      DataError: `classes` is None, and a class has no example or there is only one class.
    """
    if classes is not None:
        return classes
    present = np.unique(labels)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise DataError(
            f"{name(())}: class {gaps[0]} has no examples though labels run up to {present[-1]}; "
            f"set classes = {present[-1] + 1} if that is meant, or task = 'regression'"
        )
    if len(present) < 2:
        raise DataError(f"{name(())}: every label is 0; a classification needs two classes")
    return len(present)


def as_bits(array: np.ndarray, name: Name) -> Float[np.ndarray, "n ..."]:
    """Converts binary targets to float32.

    Args:
      array: the targets from a file.
      name: names an entry in error messages.

    Returns:
      The targets in float32.

    Raises:
      DataError: an entry is neither 0 nor 1.
    """
    values = as_float32(array, name)
    _refuse(array, (values != 0) & (values != 1), name, ": a binary target is 0 or 1")
    return values


def _require_numbers(array: np.ndarray, name: Name) -> None:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name(())} holds {array.dtype}, not real numbers")


def _refuse(array: np.ndarray, bad: np.ndarray, name: Name, reason: str) -> None:
    """Raises DataError for the first entry that is bad."""
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
        raise DataError(f"{name(index)} is {array[index]}{reason}")
