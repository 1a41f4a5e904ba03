"""Costs with their errors ∂C/∂output written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core.numerics import log_softmax, softmax
from bpeq.types import Cost


def squared_error() -> Cost:
    """C = ½ Σ_k (o_k − y_k)², summed over an example's outputs; ∂C/∂o = o − y.

    Shapes: output `[batch, ...]`; y the same, or integer labels `[batch]` for `[batch, classes]`
    outputs, which are then compared with one-hot vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> cost = squared_error()
      >>> cost.value(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]])).tolist()
      [2.5]
    """

    def value(output: Array, y: Array) -> Float[Array, " batch"]:
        error = output - targets(output, y)
        return 0.5 * jnp.sum(error * error, axis=tuple(range(1, output.ndim)))

    def error(output: Array, y: Array) -> Array:
        return output - targets(output, y)

    return Cost("squared_error", value, error)


def softmax_cross_entropy() -> Cost:
    """C = −Σ_k y_k log p_k with p = softmax(o) over the last axis; ∂C/∂o = p Σ_k y_k − y.

    A term with y_k = 0 is 0, also if p_k is 0. So an output may be −∞, if its class is not the
    label.

    Shapes: output `[batch, ..., classes]`; y the same (each row a distribution), or integer labels
    `[batch, ...]`. Sums over the axes between, such as the positions of a sequence.

    Example:
      >>> import jax.numpy as jnp
      >>> cost = softmax_cross_entropy()
      >>> cost.error(jnp.zeros((1, 2)), jnp.array([0])).tolist()
      [[-0.5, 0.5]]
    """

    def value(output: Array, y: Array) -> Float[Array, " batch"]:
        target, log_p = targets(output, y), log_softmax(output)
        # 0 log 0 is 0. The mask is inside the product, so that the derivative has no NaN either.
        terms = target * jnp.where(target == 0, 0.0, log_p)
        return -jnp.sum(terms, axis=tuple(range(1, output.ndim)))

    def error(output: Array, y: Array) -> Array:
        target = targets(output, y)
        return softmax(output) * jnp.sum(target, axis=-1, keepdims=True) - target

    return Cost("softmax_cross_entropy", value, error)


def targets(output: Array, y: Array) -> Array:
    """y in the output's shape and dtype: one-hot where it is integer labels.

    Raises:
      ValueError: y fits the output neither as targets nor as labels, or there is a single class.
    """
    if y.shape == output.shape:
        return y.astype(output.dtype)
    if jnp.issubdtype(y.dtype, jnp.integer) and y.shape == output.shape[:-1]:
        if output.shape[-1] == 1:
            raise ValueError(
                f"labels of shape {y.shape} name classes, and outputs of shape {output.shape} have "
                "only one; give targets of the outputs' own shape"
            )
        return jax.nn.one_hot(y, output.shape[-1], dtype=output.dtype)
    raise ValueError(
        f"targets of shape {y.shape} and type {y.dtype} fit outputs of shape {output.shape} "
        "neither as values nor as integer labels"
    )
