"""What rules on a network share: the mean loss, and running statistics handed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.types import Cost, Layer, Params


def mean_loss(cost: Cost, output: Array, y: Array) -> Float[Array, ""]:
    """The mean cost over the batch."""
    return jnp.mean(cost.value(output, y))


def statistics_of(network: Layer) -> Callable[[Params, dict[str, Any]], Params] | None:
    """A rule's `absorb` for a network with batch normalisation; None where there is none.

    The rule's estimate puts what `forward` kept in training under info["residuals"].
    """
    if network.absorb is None:
        return None
    absorb = network.absorb
    return lambda params, info: absorb(params, info["residuals"])
