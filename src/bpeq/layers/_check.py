"""A layer checked against autodiff: one generic check for the tests and for `bpeq check` alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.types import Key, Layer, Params


class CheckRow(NamedTuple):
    """One layer's largest gradient error in units of its tolerance: it passes at 1 or below.

    name: the layer. error: max |a−b| / max(|leaf|, |tree|·share) over all leaves, plain fraction.
    tolerance: what `error` may be. passed: error <= tolerance, NaN fails.
    """

    name: str
    error: float
    tolerance: float
    passed: bool


def tolerance(dtype: Any, deep: bool = False, normalised: bool = False) -> float:
    """Single layers: 1e-12 in float64, 2e-6 in float32; whole nets: 1e-11 and 2e-5.

    Deep nets with batch normalisation: 1e-10 and 1e-4.

    Args:
      dtype: of the parameters.
      deep: whether a whole network is checked.
      normalised: whether batch normalisation is in it.
    """
    double = jnp.finfo(dtype).bits == 64
    if deep and normalised:
        return 1e-10 if double else 1e-4
    if deep:
        return 1e-11 if double else 2e-5
    return 1e-12 if double else 2e-6


def gradient_error(ours: Any, reference: Any) -> float:
    """max over leaves of max|a−b| / (max|b| of that leaf + max|b| of the tree).

    A leaf whose gradient is exactly zero, such as a bias in front of batch normalisation, is so
    measured against its tree: against itself correct code would show errors up to 1e9.

    Args:
      ours: a tree of gradients.
      reference: the exact one, of the same structure.

    Returns:
      A plain fraction; NaN if there is one.

    Raises:
      ValueError: two leaves have different shapes.
    """
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in leaves]
    sizes = [np.abs(b).max() for _, b in pairs if b.size]
    tree = float(np.max(sizes)) if sizes else 0.0  # NumPy's maximum, which keeps a NaN
    ratios = [0.0]
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"gradient of shape {a.shape}, should be {b.shape}")
        if a.size:
            with np.errstate(invalid="ignore"):  # inf − inf is a NaN, and counts as one
                gap, size = float(np.abs(a - b).max()), float(np.abs(b).max()) + tree
            ratio = gap / size if size > 0 else (0.0 if gap == 0 else float("inf"))
            ratios.append(ratio)
    return float(np.max(ratios))  # likewise


def check(
    layer: Layer, params: Params, x: Array, *, key: Key, train: bool = False, deep: bool = False
) -> CheckRow:
    """`layer.backward` against `jax.vjp` of `layer.forward`, at a random output error.

    Args:
      layer: any layer.
      params: its parameters, in the dtype to check in.
      x: `[batch, ...]`, where to check.
      key: draws the output error and, with `train`, the layer's own random numbers.
      train: whether to check the training pass.
      deep: use the tolerance of whole nets.

    Raises:
      ValueError: `backward` returns gradients of the wrong structure or shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import dense
      >>> params, _ = dense(3).init(jax.random.key(0), (5,))
      >>> check(dense(3), params, jnp.ones((2, 5)), key=jax.random.key(1)).passed
      True
    """
    dy_key, layer_key = jax.random.split(key)
    own_key = layer_key if train else None

    def both(params: Params, x: Array) -> tuple[Any, Any, Array]:
        y, residuals = layer.forward(params, x, own_key)
        dy = jax.random.normal(dy_key, y.shape, y.dtype)
        dparams, dx = layer.backward(params, params, residuals, dy)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            _, pull = jax.vjp(lambda p: layer.forward(p, x, own_key)[0], params)
            return (dparams,), pull(dy), y
        _, pull = jax.vjp(lambda p, x: layer.forward(p, x, own_key)[0], params, x)
        return (dparams, dx), pull(dy), y

    ours, reference, y = jax.jit(both)(params, x)
    if str(jax.tree.structure(ours)) != str(jax.tree.structure(reference)):
        raise ValueError(f"{layer.name}: backward's gradient has another structure than the params")
    error = gradient_error(ours, reference)
    limit = tolerance(y.dtype, deep, normalised=layer.absorb is not None)
    return CheckRow(layer.name, error, limit, error <= limit)


def check_network(network: Layer, params: Params, x: Array, *, key: Key) -> list[CheckRow]:
    """A row for every part of a chain, each at the input that it gets, and a row for the whole.

    What batch normalisation or dropout makes another function in training has a second row there.

    Args:
      network: a chain.
      params: its parameters.
      x: `[batch, ...]`.
      key: random key of all checks.

    Returns:
      The rows; `passed` says of each whether it is within its tolerance.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import chain, dense, tanh
      >>> network = chain(dense(3), tanh())
      >>> params, _ = network.init(jax.random.key(0), (5,))
      >>> rows = check_network(network, params, jnp.ones((2, 5)), key=jax.random.key(1))
      >>> [(row.name, row.passed) for row in rows]
      [('0: dense', True), ('1: tanh', True), ('whole network', True)]
    """
    rows, at = [], x
    for i, (part, part_params) in enumerate(zip(network.parts, params, strict=True)):
        own_key, deep = jax.random.fold_in(key, i), bool(part.parts)
        rows += _modes(f"{i}: {part.name}", part, part_params, at, own_key, deep)
        at = part.forward(part_params, at)[0]
    return [*rows, *_modes("whole network", network, params, x, key, deep=True)]


def _modes(
    name: str, layer: Layer, params: Params, x: Array, key: Key, deep: bool
) -> list[CheckRow]:
    """In evaluation, and in training where that is another function."""
    rows = [check(layer, params, x, key=key, deep=deep)._replace(name=name)]
    if _differs_in_training(layer):
        row = check(layer, params, x, key=key, train=True, deep=deep)
        rows.append(row._replace(name=f"{name}, training"))
    return rows


def _differs_in_training(layer: Layer) -> bool:
    own = layer.absorb is not None or layer.name == "dropout"
    return own or any(map(_differs_in_training, layer.parts))
