"""The type of a data set: a table of examples, and the rows of each split."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Task = Literal["classification", "binary", "regression"]


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
