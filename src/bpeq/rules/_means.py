"""What rules on a network share: the mean loss, and running statistics handed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.layers import trained_leaves
from bpeq.types import Cost, Layer, Params


def mean_loss(cost: Cost, output: Array, y: Array) -> Float[Array, ""]:
    """The mean cost over the batch."""
    return jnp.mean(cost.value(output, y))


def recorded_statistics(network: Layer, params: Params, residuals: Any) -> dict[str, Any]:
    """The part of an estimate's info that `statistics_of` reads; empty without running statistics.

    Args:
      network: what the estimate ran.
      params: its parameters, before the update.
      residuals: what its `forward` kept.

    Returns:
      {"statistics": [...]}: the leaves that are not trained, as the network's `absorb` writes them.
    """
    if network.absorb is None:
        return {}
    trained = jax.tree.leaves(trained_leaves(network, params))
    written = jax.tree.leaves(network.absorb(params, residuals))
    pairs = zip(written, trained, strict=True)
    return {"statistics": [leaf for leaf, is_trained in pairs if not is_trained]}


def statistics_of(network: Layer) -> Callable[[Params, dict[str, Any]], Params] | None:
    """A rule's `absorb` for a network with running statistics; None for other networks.

    The rule's estimate puts them into its info by `recorded_statistics`.
    """
    if network.absorb is None:
        return None

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        leaves, structure = jax.tree.flatten(params)
        trained = jax.tree.leaves(trained_leaves(network, params))
        statistics = iter(info["statistics"])
        pairs = zip(leaves, trained, strict=True)
        written = [leaf if is_trained else next(statistics) for leaf, is_trained in pairs]
        return jax.tree.unflatten(structure, written)

    return absorb
