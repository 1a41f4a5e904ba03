"""What a data set is: a table of examples, and index arrays that say which split has which."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Task = Literal["classification", "binary", "regression"]


class Dataset(NamedTuple):
    """Examples in host memory, with S fixed splits. Seed i of a run uses split i mod S.

    x: `[n, ...]` float32 inputs, images as `[n, height, width, channels]` in [0, 1].
    y: `[n]` int32 labels for classification; `[n, outputs]` float32 otherwise.
    train, validation, test: `[S, m]` int32 rows of x, disjoint within a split, and sorted.
    task: "classification"; "binary" (targets 0 or 1, threshold ½); "regression".
    outputs: the width that a network needs: classes, or the targets' last axis.
    checksum: sha256 over x, y and the splits, for the run's record.
    unit: what one unit of y is, for regression (1.0 = as given): errors are reported times this.
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
