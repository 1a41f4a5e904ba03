"""The last step of every data set: checks the arrays, and computes the checksum."""

from __future__ import annotations

import hashlib

import numpy as np

from bpeq.data._checks import as_bits, as_float32, as_labels, data_error, named
from bpeq.data._splits import Splits
from bpeq.data._types import Dataset, Task


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
        raise data_error(f"{name}: x is {x.dtype} {x.shape}: float32 [n, ...] is needed")
    if (y.shape, y.dtype) != wanted:
        raise data_error(
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


def _check_splits(name: str, splits: Splits, n: int, disjoint: bool) -> None:
    if len({len(part) for part in splits}) != 1 or splits.train.size == 0:
        shapes = ", ".join(str(part.shape) for part in splits)
        raise data_error(f"{name}: splits of shapes {shapes}: as many of each, and train not empty")
    for number, parts in enumerate(zip(*splits, strict=True)):
        for part in parts if not disjoint else [np.concatenate(parts)]:
            if not np.array_equal(np.sort(part), np.arange(n)):
                raise data_error(f"{name}: split {number} does not have each of {n} rows just once")
