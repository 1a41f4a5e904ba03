"""A data set: a table of examples, and the rows of each split, the same for every seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bpeq.data._checks import as_bits, as_float32, as_labels, named
from bpeq.settings import DataError

Task = Literal["classification", "binary", "regression"]
Rows = Int[np.ndarray, " m"]


class Splits(NamedTuple):
    """S splits. Each array has sorted int32 row numbers.

    Args:
      train: `[S, m]`, the training rows.
      validation: `[S, m]`, the validation rows.
      test: `[S, m]`, the test rows.
    """

    train: Int[np.ndarray, "splits train"]
    validation: Int[np.ndarray, "splits validation"]
    test: Int[np.ndarray, "splits test"]


class TooFew(ValueError):
    """There are not enough examples for the requested split."""


class Dataset(NamedTuple):
    """Examples in host memory, with S fixed splits. Seed i of a run uses split i mod S.

    Args:
      name: the name of the data set.
      x: `[n, ...]` float32 inputs, images as `[n, height, width, channels]` in [0, 1].
      y: `[n]` int32 labels for classification; `[n, outputs]` float32 otherwise.
      train: `[S, m]` int32 training rows of x, sorted.
      validation: `[S, m]` int32 validation rows, sorted.
      test: `[S, m]` int32 test rows, sorted. The three parts of a split are disjoint.
      task: "classification"; "binary" (targets 0 or 1, threshold ½); "regression".
      outputs: the number of outputs of a network: classes, or the length of the targets' last axis.
      checksum: the SHA-256 of x, y and the splits, for the record of a run.
      unit: the value of one unit of y, for regression; errors are multiplied by it. The default 1.0
        leaves them unchanged.
    """

    name: str
    x: Float[np.ndarray, "n ..."]
    y: Any
    train: Int[np.ndarray, "splits train"]
    validation: Int[np.ndarray, "splits validation"]
    test: Int[np.ndarray, "splits test"]
    task: Task
    outputs: int
    checksum: str
    unit: float = 1.0


def finish(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    splits: Splits,
    *,
    task: Task,
    outputs: int,
    unit: float = 1.0,
    disjoint: bool = True,
) -> Dataset:
    """Makes a Dataset from arrays, and checks them. Use it for your own data set too.

    Args:
      name: the data set's name.
      x: `[n, ...]` float32 inputs.
      y: `[n]` int32 labels for classification, else `[n, outputs]` float32 targets.
      splits: the splits from `single`, `shuffled` or `folded`.
      task: "classification", "binary" or "regression".
      outputs: the number of classes, or the length of the targets' last axis.
      unit: the value of one unit of y; errors of a regression are multiplied by it.
      disjoint: False only if train, validation and test overlap on purpose (a truth table).

    Returns:
      The data set.

    Raises:
      DataError: a shape, a type or an entry is not allowed; a split does not have each row exactly
        once; or the training set is empty.

    Example:
      >>> import numpy as np
      >>> from bpeq.data import shuffled
      >>> x = np.linspace(0, 1, 20, dtype=np.float32)[:, None]
      >>> finish("line", x, 2 * x, shuffled(20, 1, 0.1, 0.2), task="regression", outputs=1).unit
      1.0
    """
    n = len(x)
    wanted = ((n,), np.int32) if task == "classification" else ((n, outputs), np.float32)
    if x.dtype != np.float32 or x.ndim < 2 or x.size == 0:
        raise DataError(f"{name}: x is {x.dtype} {x.shape}: float32 [n, ...] is needed")
    if (y.shape, y.dtype) != wanted:
        raise DataError(
            f"{name}: y is {y.dtype} {y.shape}: {wanted[1].__name__} {wanted[0]} is needed"
        )
    as_float32(x, named(name, "x"))
    if task == "classification":
        as_labels(y, named(name, "y"), outputs)
    else:
        check = as_bits if task == "binary" else as_float32
        check(y, named(name, "y"))
    _check_splits(name, splits, n, disjoint)
    return Dataset(name, x, y, *splits, task, outputs, checksum(x, y, *splits), unit)


def checksum(*arrays: np.ndarray) -> str:
    """Computes a SHA-256 over dtypes, shapes and little-endian bytes.

    Args:
      arrays: the arrays, in order.

    Returns:
      The checksum in hexadecimal.
    """
    digest = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(little.data)
    return digest.hexdigest()


def single(train: Rows, validation: Rows, test: Rows) -> Splits:
    """Makes one split from three lists of rows.

    Args:
      train: `[m]`, the training rows.
      validation: `[m]`, the validation rows.
      test: `[m]`, the test rows.

    Returns:
      The split.
    """
    return _stack([(train, validation, test)])


def folded(n: int, count: int, validation: float, labels: Rows | None = None) -> Splits:
    """Makes the splits of a cross-validation: each fold is the test set of one split.

    So a row is in at most one test set. All test sets have the size of the smallest fold, so that
    splits can be vmapped. The other rows of a larger fold go to the training set of its split.

    Args:
      n: the number of rows.
      count: the number of folds, >= 2.
      validation: the fraction of the rows outside the test set, in [0, 1).
      labels: `[n]` labels, for stratified splits; None: not stratified.

    Returns:
      The splits.

    Raises:
      ValueError: there are too few rows for the folds or the fraction.

    Example:
      >>> splits = folded(11, 5, validation=0.25)
      >>> splits.train.shape, splits.validation.shape, splits.test.shape
      ((5, 7), (5, 2), (5, 2))
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    fewest = n if labels is None else np.unique(labels, return_counts=True)[1].min()
    if fewest < count:
        raise TooFew(f"{count} folds of {n} examples: some fold has none, or lacks a class")
    kind = KFold if labels is None else StratifiedKFold
    cut = kind(count, shuffle=True, random_state=0).split(np.zeros(n), labels)
    folds = [fold for _, fold in cut]
    size = min(map(len, folds))
    parts = []
    for state, fold in enumerate(folds):
        test = _trim(fold, size, labels)
        rest = np.setdiff1d(np.arange(n), test)
        train, held = carve(rest, validation, labels, state, "validation")
        parts.append((train, held, test))
    return _stack(parts)


def shuffled(
    n: int, count: int, validation: float, test: float, labels: Rows | None = None
) -> Splits:
    """Makes `count` independent random splits.

    Args:
      n: the number of rows.
      count: the number of splits, >= 1.
      validation: the fraction of the rows outside the test set, in [0, 1).
      test: the fraction of all rows, in [0, 1).
      labels: `[n]` labels, for stratified splits; None: not stratified.

    Returns:
      The splits.

    Raises:
      ValueError: there are too few rows for a fraction.
    """
    parts = []
    for state in range(count):
        rest, tested = carve(np.arange(n), test, labels, state, "test")
        train, held = carve(rest, validation, labels, state, "validation")
        parts.append((train, held, tested))
    return _stack(parts)


def carve(
    rows: Rows, fraction: float, labels: Rows | None, state: int, part: str
) -> tuple[Rows, Rows]:
    """Divides rows into two parts: the second has round(fraction · rows) rows, at least one.

    Args:
      rows: the rows to divide.
      fraction: the fraction of the second part, in [0, 1); 0 gives an empty part.
      labels: the labels of all rows of the table, for a stratified split; None: not stratified.
      state: the random_state of scikit-learn.
      part: the name of the second part, for error messages.

    Returns:
      The remaining rows, and the rows of the second part.

    Raises:
      ValueError: no row would remain, or there are too few rows for a stratified split.
    """
    from sklearn.model_selection import train_test_split

    if fraction == 0:
        return rows, rows[:0]
    size = max(1, round(fraction * len(rows)))
    left = len(rows) - size
    problem = f"{part} = {fraction:g} splits {len(rows)} examples into {left} and {size}"
    if left < 1:
        raise TooFew(f"{problem}: none are left to train on")
    strata = None if labels is None else labels[rows]
    if strata is not None:
        present, counts = np.unique(strata, return_counts=True)
        if counts.min() < 2:
            rare = present[counts.argmin()]
            raise TooFew(f"{problem}: class {rare} has one example, a stratified split needs two")
        if min(left, size) < len(present):
            raise TooFew(f"{problem}: fewer than the {len(present)} classes")
    rest, held = train_test_split(rows, test_size=size, random_state=state, stratify=strata)
    return rest, held


def _check_splits(name: str, splits: Splits, n: int, disjoint: bool) -> None:
    if len({len(part) for part in splits}) != 1 or splits.train.size == 0:
        shapes = ", ".join(str(part.shape) for part in splits)
        raise DataError(f"{name}: splits of shapes {shapes}: as many of each, and train not empty")
    for number, parts in enumerate(zip(*splits, strict=True)):
        for part in parts if not disjoint else [np.concatenate(parts)]:
            if not np.array_equal(np.sort(part), np.arange(n)):
                raise DataError(f"{name}: split {number} does not have each of {n} rows just once")


def _trim(fold: Rows, size: int, labels: Rows | None) -> Rows:
    """Drops the last rows of a fold beyond `size`; with labels, those of the commonest class."""
    while len(fold) > size:
        last = len(fold) - 1
        if labels is not None:
            commonest = np.bincount(labels[fold]).argmax()
            last = int(np.flatnonzero(labels[fold] == commonest)[-1])
        fold = np.delete(fold, last)
    return fold


def _stack(parts: Sequence[tuple[Rows, Rows, Rows]]) -> Splits:
    columns = zip(*parts, strict=True)
    return Splits(*(np.sort(np.stack(part), axis=-1).astype(np.int32) for part in columns))
