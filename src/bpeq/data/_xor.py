"""Exclusive or: the smallest problem that no linear network solves."""

from __future__ import annotations

import numpy as np

from bpeq.data._finish import finish
from bpeq.data._splits import single
from bpeq.data._types import Dataset
from bpeq.settings import checked


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
