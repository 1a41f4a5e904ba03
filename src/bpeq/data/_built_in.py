"""Built-in data sets that need no file: exclusive or, and two of scikit-learn."""

from __future__ import annotations

import math

import numpy as np

from bpeq.data._dataset import Dataset, finish, folded, single
from bpeq.settings import Fraction, checked

_CENTRE, _UNIT = 150.0, 75.0


@checked
def xor() -> Dataset:
    """The truth table of exclusive or: 4 rows, 2 inputs, 1 binary target.

    Train, validation and test are all the same four rows, because this is a truth table and not a
    sample. In all other data sets of bpeq these parts are disjoint.

    Returns:
      x `[4, 2]` and y `[4, 1]`, both float32 and 0 or 1; one split.

    Example:
      >>> data = xor()
      >>> data.x.tolist()
      [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
      >>> data.y[:, 0].tolist()
      [0.0, 1.0, 1.0, 0.0]

    Source: Minsky & Papert 1969, Perceptrons; solved by backpropagation in Rumelhart, Hinton &
    Williams 1986, Learning internal representations by error propagation.
    """
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([[0], [1], [1], [0]], np.float32)
    rows = np.arange(4)
    splits = single(rows, rows, rows)
    return finish("xor", x, y, splits, task="binary", outputs=1, disjoint=False)


@checked
def digits(validation: Fraction = 0.1) -> Dataset:
    """1797 handwritten digits, 8 × 8 grey images, 10 classes of 174 to 183 examples.

    The data set has five fixed stratified splits of equal size, the folds of a 5-fold
    cross-validation. Every test set has 359 images, and no image is in two test sets. The two
    remaining images are always in the training set. The splits do not depend on the seed of a run.
    A linear null control nearly solves the task: logistic regression on these splits has 3.2 % test
    error, and 2.2 to 4.5 % on single splits.

    Args:
      validation: the fraction of the 1438 images outside the test set, in [0, 1).

    Returns:
      x `[1797, 8, 8, 1]` float32, the 17 grey levels 0/16 … 16/16; y `[1797]` int32. With the
      default: train `[5, 1294]`, validation `[5, 144]`, test `[5, 359]`.

    Raises:
      ValueError: validation or training would have fewer images than classes.

    Example:
      >>> data = digits()
      >>> data.x.shape, data.outputs, data.test.shape
      ((1797, 8, 8, 1), 10, (5, 359))

    Source: Alpaydin & Kaynak 1998, Optical recognition of handwritten digits, UCI; the test part,
    as `sklearn.datasets.load_digits` ships it.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels.astype(np.int32)
    splits = folded(len(x), 5, validation, y)
    return finish("digits", x, y, splits, task="classification", outputs=10)


@checked
def diabetes(validation: Fraction = 0.1) -> Dataset:
    """Disease progression after a year from 10 measurements of 442 patients: regression.

    scikit-learn gives inputs that are centred, with columns of norm 1. bpeq multiplies them by
    √442. So each input has mean 0 and variance 1 over all rows. The targets are (y − 150)/75. These
    are fixed round numbers near the mean 152.1 and the standard deviation 77.0, not statistics of
    the data. `unit = 75` converts an error to the units of the score. A constant prediction of the
    mean has a root mean square error of 77.

    The data set has five fixed splits of equal size, the folds of a shuffled 5-fold
    cross-validation. Every test set has 88 patients, and no patient is in two test sets.

    Args:
      validation: the fraction of the 354 patients outside the test set, in [0, 1).

    Returns:
      x `[442, 10]` and y `[442, 1]`, both float32. With the default: train `[5, 319]`, validation
      `[5, 35]`, test `[5, 88]`.

    Raises:
      ValueError: the training set would be empty.

    Example:
      >>> data = diabetes()
      >>> data.x.shape, data.y.shape, data.unit
      ((442, 10), (442, 1), 75.0)

    Source: Efron, Hastie, Johnstone & Tibshirani 2004, Least angle regression; as
    `sklearn.datasets.load_diabetes` ships it.
    """
    from sklearn.datasets import load_diabetes

    inputs, score = load_diabetes(return_X_y=True)
    x = (inputs * math.sqrt(len(inputs))).astype(np.float32)
    y = ((score - _CENTRE) / _UNIT).astype(np.float32)[:, None]
    splits = folded(len(x), 5, validation)
    return finish("diabetes", x, y, splits, task="regression", outputs=1, unit=_UNIT)
