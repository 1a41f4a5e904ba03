"""The diabetes progression data that come with scikit-learn."""

from __future__ import annotations

import math

import numpy as np

from bpeq.data._finish import finish
from bpeq.data._splits import folded
from bpeq.data._types import Dataset
from bpeq.settings import Fraction, checked

_CENTRE, _UNIT = 150.0, 75.0


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
      ValueError: a fraction that leaves nobody to train on.

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
