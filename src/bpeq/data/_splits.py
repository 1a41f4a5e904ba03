"""Splits into training, validation and test sets: fixed arrays of rows, the same for every seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

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
