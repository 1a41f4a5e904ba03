"""Layers as plain functions of (params, x)."""

from __future__ import annotations

from typing import Any

from bpeq.types import Key, Layer, Params


def apply(layer: Layer, params: Params, x: Any, key: Key | None = None) -> Any:
    """The layer's output alone: what `jax.grad` differentiates when it checks `backward`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import relu
      >>> apply(relu(), (), jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    return layer.forward(params, x, key)[0]
