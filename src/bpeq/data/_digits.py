"""The 8 × 8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from bpeq.data._finish import finish
from bpeq.data._splits import folded
from bpeq.data._types import Dataset
from bpeq.settings import Fraction, checked


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
