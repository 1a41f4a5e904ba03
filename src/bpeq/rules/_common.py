"""What rules share: the mean loss, running statistics, traced settings, rules without a state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import trees
from bpeq.layers import trained_leaves
from bpeq.types import Batch, Caution, Cost, Estimate, Key, Layer, LearningRule, Params, State


def mean_loss(cost: Cost, output: Array, y: Array) -> Float[Array, ""]:
    """The mean cost over the batch.

    Args:
      cost: C.
      output: `[batch, ...]`.
      y: `[batch]` labels or `[batch, ...]` targets.

    Returns:
      A scalar.
    """
    return jnp.mean(cost.value(output, y))


def recorded_statistics(network: Layer, params: Params, residuals: Any) -> dict[str, Any]:
    """The running statistics of an estimate, for its info; `statistics_of` reads them.

    Args:
      network: the network of the estimate.
      params: its parameters, before the update.
      residuals: the residuals of its `forward`.

    Returns:
      {"statistics": [...]}, with the leaves that are not trained, as the network's `absorb` writes
      them. Empty if the network has no running statistics.
    """
    if network.absorb is None:
        return {}
    written = network.absorb(params, residuals)
    return {"statistics": trees.pick(written, _untrained(network, params))}


def statistics_of(network: Layer) -> Callable[[Params, dict[str, Any]], Params] | None:
    """A rule's `absorb`, which writes the running statistics of an estimate into params.

    The rule's estimate puts them into its info with `recorded_statistics`.

    Args:
      network: the network of the rule.

    Returns:
      absorb(params, info) -> params; None if the network has no running statistics.
    """
    if network.absorb is None:
        return None

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        return trees.fill(params, _untrained(network, params), info["statistics"])

    return absorb


def _untrained(network: Layer, params: Params) -> list[bool]:
    """For each leaf, whether it is not trained."""
    return [not trained for trained in jax.tree.leaves(trained_leaves(network, params))]


def no_state(key: Key, params: Params) -> tuple[Params, State]:
    """The `init` of a rule that trains the network's params and has no state.

    Args:
      key: not used.
      params: the network's parameters.

    Returns:
      (params, ()).
    """
    return params, ()


def traced_settings(
    owner: str, params: Params, divides: str | None = None, **settings: float
) -> dict[str, Array]:
    """Numeric settings as a rule's state, in the dtype of params: a new value compiles nothing.

    Args:
      owner: the rule's name, for the warning.
      params: give the dtype.
      divides: name of the setting that divides a contrast; None: there is none. If this setting is
        below 1,000 ε, a warning says that round-off in the states alone is a thousandth of the
        nudge or more.
      settings: the values, by name.

    Returns:
      {name: scalar array}.
    """
    dtype = jnp.result_type(*jax.tree.leaves(params))
    floor = 1000.0 * float(jnp.finfo(dtype).eps)
    if divides is not None and settings[divides] < floor:
        message = f"{owner}: {divides} = {settings[divides]:g} is below {floor:.1g}, "
        message += f"where round-off in {jnp.dtype(dtype).name} buries the contrast"
        warnings.warn(message, Caution, stacklevel=3)
    return {name: jnp.asarray(value, dtype) for name, value in settings.items()}


def settings_init(
    owner: str, divides: str | None = None, **settings: float
) -> Callable[[Key, Params], tuple[Params, State]]:
    """The `init` of a rule whose state is its numeric settings.

    Args:
      owner: the rule's name, for a warning.
      divides: as in `traced_settings`.
      settings: the values, by name.

    Returns:
      (key, params) -> (params, {name: scalar array}).
    """
    return lambda key, params: (params, traced_settings(owner, params, divides, **settings))


def on_network(
    name: str,
    network: Layer,
    estimate: Callable[..., tuple[Estimate, State]],
    init: Callable[[Key, Params], tuple[Params, State]] = no_state,
) -> LearningRule:
    """A rule whose inference is a network's forward pass.

    Args:
      name: the rule's name.
      network: gives `apply`, the trained leaves and the running statistics.
      estimate: as in `LearningRule`.
      init: as in `LearningRule`; the default has no state.

    Returns:
      A LearningRule.
    """

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return network.forward(params, x, key)[0]

    absorb = statistics_of(network)
    return LearningRule(name, init, apply, estimate, absorb, trained=network.trained)


def stateless(
    apply: Callable[..., Array],
    fn: Callable[[Params, Batch, Key], Estimate],
    name: str = "stateless",
    trained: Callable[[Params], Any] | None = None,
) -> LearningRule:
    """A rule without a state, from one function (params, batch, key) -> Estimate.

    Args:
      apply: (params, x, key=None) -> output.
      fn: (params, batch, key) -> Estimate. Its grads are batch means in the shape of params.
      name: the rule's name.
      trained: tells which leaves training may change, such as a network's `trained`; None: all.

    Returns:
      The LearningRule. Its state is ().

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.types import Batch, Estimate
      >>> rule = stateless(lambda p, x, key=None: p * x,
      ...                  lambda p, batch, key: Estimate(p, jnp.zeros(()), batch.x, {}))
      >>> rule.estimate(2.0, Batch(jnp.ones(1), jnp.ones(1)), (), jax.random.key(0))[0].grads
      2.0
    """

    def estimate(params: Params, batch: Batch, state: Any, key: Key) -> tuple[Estimate, State]:
        return fn(params, batch, key), state

    return LearningRule(name, no_state, apply, estimate, trained=trained)
