"""Data sets that need no file: exclusive or, and two that come with scikit-learn."""

from __future__ import annotations

import math

import numpy as np

from bpeq.data._finish import finish
from bpeq.data._splits import folded, single
from bpeq.data._types import Dataset
from bpeq.settings import Fraction, checked

_CENTRE, _UNIT = 150.0, 75.0


@checked
def xor() -> Dataset:
    """The truth table of exclusive or: 4 rows, 2 inputs, 1 binary target.

    It is a truth table, not a sample: train, validation and test are all the same four rows. It is
    the one data set here whose parts are not disjoint.

    Shapes: x `[4, 2]`, y `[4, 1]`, both float32 and 0 or 1; one split.

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

    Five fixed stratified splits of equal size, the folds of a 5-fold cross-validation: every test
    set has 359 images, and no image is in two test sets (the two that are left over always train).
    They do not depend on the seed of a run. Nearly solved by a linear null: logistic regression on
    these splits has 3.2 % test error, and 2.2 to 4.5 % on a single one.

    Shapes: x `[1797, 8, 8, 1]` float32, the 17 grey levels 0/16 … 16/16; y `[1797]` int32. With
    the default: train `[5, 1294]`, validation `[5, 144]`, test `[5, 359]`.

    Args:
      validation: fraction of the 1438 images outside the test set, in [0, 1).

    Raises:
      ValueError: a fraction that leaves validation or training fewer images than classes.

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

    The inputs come centred with columns of norm 1; they are multiplied by √442, so that each has
    mean 0 and variance 1 over all rows. The targets are (y − 150)/75: fixed round numbers, not
    statistics of the data, near the mean 152.1 and standard deviation 77.0; `unit = 75` turns an
    error back into the score's own units. Predicting the mean leaves a root mean square of 77.

    Five fixed splits of equal size, the folds of a shuffled 5-fold cross-validation: every test set
    has 88 patients, and none is in two test sets.

    Shapes: x `[442, 10]`, y `[442, 1]`, both float32. With the default: train `[5, 319]`,
    validation `[5, 35]`, test `[5, 88]`.

    Args:
      validation: fraction of the 354 patients outside the test set, in [0, 1).

    Raises:
      ValueError: a fraction that leaves no patient to train on.

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
