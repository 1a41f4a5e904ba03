"""Batch means that every rule reports alike."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.types import Cost


def mean_loss(cost: Cost, output: Array, y: Array) -> Float[Array, ""]:
    """The mean cost over the batch."""
    return jnp.mean(cost.value(output, y))
