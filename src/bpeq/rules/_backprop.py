"""Backpropagation by the layers' hand-written backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpeq.rules._autodiff import autodiff
from bpeq.rules._common import mean_loss, no_state, on_network, recorded_statistics
from bpeq.settings import checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, RuleInfo, State


@checked
def backprop(network: Layer, cost: Cost) -> LearningRule:
    """Backpropagation: ∂C/∂θ by the chain rule, with hand-written backward passes.

        ∂C/∂θ = network.backward(params, feedback=params, residuals, ∂C/∂y), as a batch mean

    The pull-backs inside the network are the δ's; `layers.deltas` returns them. The gradient is
    exact up to round-off.

    Args:
      network: any layer.
      cost: compares the network's output with y.

    Returns:
      A LearningRule without a state.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.types import Batch
      >>> rule = backprop(chain(dense(1)), squared_error())
      >>> params = ({"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)},)
      >>> batch = Batch(jnp.array([[1.0, 2.0]]), jnp.array([[1.0]]))
      >>> estimate, _ = rule.estimate(params, batch, (), jax.random.key(0))
      >>> estimate.grads[0]["w"].ravel().tolist()
      [-1.0, -2.0]

    Source: Rumelhart, Hinton & Williams 1986, Learning representations by back-propagating errors.
    """

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        return passed_back(network, cost, params, params, batch, key), state

    return network_rule("backprop", network, cost, estimate)


def network_rule(
    name: str,
    network: Layer,
    cost: Cost,
    estimate: Callable[..., tuple[Estimate, State]],
    init: Callable[[Key, Params], tuple[Params, State]] = no_state,
    **about: Any,
) -> LearningRule:
    """A rule whose inference is the network's forward pass; `autodiff` is its exact reference.

    Args:
      name: the rule's name.
      network: as in `on_network`.
      cost: cost of the reference.
      estimate: as in `LearningRule`.
      init: as in `LearningRule`; the default has no state.
      about: further fields of `RuleInfo`.

    Returns:
      A LearningRule.
    """

    info = RuleInfo(autodiff(network, cost), **about)
    return on_network(name, network, estimate, init)._replace(info=info)


def passed_back(
    network: Layer, cost: Cost, params: Params, feedback: Params, batch: Batch, key: Key
) -> Estimate:
    """One forward pass by `params`, then the output error back by `feedback`.

    Args:
      network: any layer.
      cost: compares its output with y; ∂C/∂output starts the backward pass.
      params: weights of the forward pass.
      feedback: weights that errors pass backward through, a tree like params.
      batch: inputs and targets.
      key: key of the forward pass in training.

    Returns:
      An Estimate.
    """
    output, residuals = network.forward(params, batch.x, key)
    delta = cost.error(output, batch.y) / output.shape[0]
    grads, _ = network.backward(params, feedback, residuals, delta)
    info = recorded_statistics(network, params, residuals)
    return Estimate(grads, mean_loss(cost, output, batch.y), output, info)
