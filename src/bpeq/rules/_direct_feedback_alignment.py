"""Direct feedback alignment: the output error goes straight to every hidden block."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import Block, cut, output_shape
from bpeq.rules._backprop import network_rule
from bpeq.rules._common import mean_loss, recorded_statistics
from bpeq.settings import checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, Shape, State


@checked
def direct_feedback_alignment(network: Layer, cost: Cost) -> LearningRule:
    """Direct feedback alignment: fixed random B_l bring the output error to every hidden block.

        e = δ_L = ∂C/∂z_L      δ_l = (B_lᵀ e) ⊙ σ′(z_l)      ∂C/∂W_l ≈ a_{l−1} δ_l

    for the blocks l = 1 … L of `layers.cut`. Only the errors between blocks differ from backprop.
    σ′ is the activation's own, and δ_l enters the block's own backward pass. In a block of several
    layers (convolution, pooling, normalisation) the error passes them by their own weights. A
    hidden block does not wait for another one. The last block's gradient is backprop's. With one
    hidden dense block the rule is feedback alignment.

    B_l has the shape of e followed by that of the activation of block l, also for images. So every
    unit has its own weights, even if a convolution shares its kernel. The entries are Gaussian with
    variance 2/(size of e + size of the activation).

    Args:
      network: a chain that can be cut at its activations.
      cost: compares the network's output with y.

    Returns:
      A LearningRule with the state {"feedback": key}. Each estimate draws the same matrices from
        this
      key, since only a batch shows how large the activations are. To use your own matrices, put a
      tuple of them, input side first, in the place of the key.

    Raises:
      ValueError: the network cannot be cut, for example because a residual hides an activation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, relu
      >>> from bpeq.types import Batch
      >>> network = chain(dense(2, bias=False), relu(), dense(1, bias=False))
      >>> rule = direct_feedback_alignment(network, squared_error())
      >>> params = ({"w": jnp.ones((1, 2))}, (), {"w": jnp.ones((2, 1))})
      >>> state = {"feedback": (jnp.array([[10.0, -20.0]]),)}
      >>> batch = Batch(jnp.array([[1.0]]), jnp.array([[1.0]]))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(0))
      >>> estimate.grads[0]["w"].tolist()  # backprop: 1 and 1
      [[10.0, -20.0]]

    Source: Nøkland 2016, Direct feedback alignment provides learning in deep neural networks.
    """
    try:
        *hidden, last = cut(network)
    except ValueError as error:
        remedy = "feedback_alignment takes any network"
        raise ValueError(f"direct_feedback_alignment: {error}; {remedy}") from None

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, {"feedback": key}

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        output, residuals = network.forward(params, batch.x, key)
        grads = list(trees.zeros(params))  # activations have no weights

        def through(block: Block, sent: Array) -> Array:
            """Send an error through σ′ into a block's gradients, and return δ_l."""
            end = block.slice.stop
            if end < len(network.parts):
                _, sent = network.parts[end].backward((), (), residuals[end], sent)
            grads[block.slice], _ = block.backward(params, residuals[block.slice], sent)
            return sent

        error = through(last, cost.error(output, batch.y) / output.shape[0])
        matrices = state["feedback"]
        if not isinstance(matrices, tuple):
            shapes = _shapes(network, batch.x.shape[1:])
            at = [shapes[block.slice.stop] for block in hidden]
            matrices = _drawn(matrices, error.shape[1:], at, error.dtype)
        for block, matrix in zip(hidden, matrices, strict=True):
            through(block, jnp.tensordot(error, matrix, axes=error.ndim - 1))
        info = recorded_statistics(network, params, residuals)
        return Estimate(tuple(grads), mean_loss(cost, output, batch.y), output, info), state

    return network_rule("direct_feedback_alignment", network, cost, estimate, init)


def _shapes(network: Layer, shape: Shape) -> list[Shape]:
    """The shape of each part's output, for one example."""
    shapes = [shape]
    for part in network.parts:
        shapes.append(output_shape(part, shapes[-1]))
    return shapes[1:]


def _drawn(key: Key, out: Shape, shapes: list[Shape], dtype: Any) -> tuple[Array, ...]:
    """B_l `[*out, *shape]` for each hidden block."""
    matrices = []
    for i, shape in enumerate(shapes):
        drawn = jax.random.normal(jax.random.fold_in(key, i), (*out, *shape), dtype)
        matrices.append(math.sqrt(2 / (math.prod(out) + math.prod(shape))) * drawn)
    return tuple(matrices)
