"""Who trains, who validates, who tests: fixed index arrays, the same for every user seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Rows = Int[np.ndarray, " m"]


class Splits(NamedTuple):
    """S splits: `[S, m]` int32 row numbers each, sorted within a split."""

    train: Int[np.ndarray, "splits train"]
    validation: Int[np.ndarray, "splits validation"]
    test: Int[np.ndarray, "splits test"]


class TooFew(ValueError):
    """There are not enough examples for the split that was asked for."""


def single(train: Rows, validation: Rows, test: Rows) -> Splits:
    """One split out of three row lists.

    Args:
      train: row numbers of the training examples.
      validation: of the validation examples.
      test: of the test examples.
    """
    return _stack([(train, validation, test)])


def folded(n: int, count: int, validation: float, labels: Rows | None = None) -> Splits:
    """`count` folds, each the test set of one split: a row is in at most one test set.

    All test sets have the size of the smallest fold, so that splits can be vmapped; what a larger
    fold has too much goes to its split's training part. `validation` is the fraction of the rows
    outside the test set. Stratified by `labels` where they are given.

    Args:
      n: how many rows there are.
      count: how many folds, >= 2.
      validation: fraction of the rows outside the test set, in [0, 1).
      labels: `[n]`, to stratify by; None: not stratified.

    Raises:
      ValueError: too few rows for the folds or the fraction.

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
    """`count` independent draws: test is a fraction of all rows, validation of those left.

    Stratified by `labels` where they are given.

    Args:
      n: how many rows there are.
      count: how many splits, >= 1.
      validation: fraction of the rows outside the test set, in [0, 1).
      test: fraction of all rows, in [0, 1).
      labels: `[n]`, to stratify by; None: not stratified.

    Raises:
      ValueError: too few rows for a fraction.
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
    """(the rest, round(fraction · rows) of the rows, at least one); fraction 0 takes none.

    Args:
      rows: row numbers to divide.
      fraction: of the rows to take out, in [0, 1).
      labels: of all rows of the table, to stratify by; None: not stratified.
      state: sklearn's random_state.
      part: what the fraction is called, for errors.

    Raises:
      ValueError: nothing would be left, or too few rows to stratify.
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
    """The fold without its last rows; with labels, without the last of its commonest class."""
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
