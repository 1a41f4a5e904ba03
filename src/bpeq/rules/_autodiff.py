"""The gradient by JAX's own reverse mode: the reference for rules on a feed-forward network."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from bpeq.rules._common import mean_loss, on_network, recorded_statistics
from bpeq.settings import checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, RuleInfo, State


@checked
def autodiff(network: Layer, cost: Cost) -> LearningRule:
    """The gradient by JAX's reverse mode through the forward pass; no hand-written backward.

        grads = jax.grad(mean cost of network.forward(params, x)) with respect to params

    Args:
      network: any layer.
      cost: compares the network's output with y.

    Returns:
      A LearningRule without a state. It is its own reference.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.types import Batch
      >>> rule = autodiff(chain(dense(1)), squared_error())
      >>> params = ({"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)},)
      >>> batch = Batch(jnp.array([[1.0, 2.0]]), jnp.array([[1.0]]))
      >>> float(rule.estimate(params, batch, (), jax.random.key(0))[0].loss)
      0.5

    Source: Linnainmaa 1976; Bradbury et al. 2018, JAX.
    """

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        def loss(params: Params) -> tuple[Array, Any]:
            output, residuals = network.forward(params, batch.x, key)
            return mean_loss(cost, output, batch.y), (output, residuals)

        (value, (output, residuals)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        info = recorded_statistics(network, params, residuals)
        return Estimate(grads, value, output, info), state

    rule = on_network("autodiff", network, estimate)
    return rule._replace(info=RuleInfo(reference=rule))
