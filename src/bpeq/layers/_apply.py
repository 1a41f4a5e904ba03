"""Layers as plain functions of (params, x), by autodiff or by the layers' own `backward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bpeq.types import Key, Layer, Params


def apply(layer: Layer, params: Params, x: Any, key: Key | None = None) -> Any:
    """The layer's output alone: what `jax.grad` differentiates when it checks `backward`.

    Args:
      layer: any layer.
      params: its parameters.
      x: `[batch, ...]`.
      key: random key of a training pass; None evaluates.

    Returns:
      y, `[batch, ...]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import relu
      >>> apply(relu(), (), jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    return layer.forward(params, x, key)[0]


def with_custom_vjp(layer: Layer) -> Callable[..., Any]:
    """f(params, x, key=None) -> y, whose reverse-mode derivative is the layer's own `backward`.

    For code outside of bpeq: `jax.grad`, `jax.vjp` and `jax.vmap` work as ever; forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) does not, JAX forbids it for such functions. Inside
    bpeq nothing uses this wrapper.

    Args:
      layer: any layer.

    Returns:
      f(params, x, key=None) -> y.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import dense
      >>> params, _ = dense(2).init(jax.random.key(0), (3,))
      >>> f = with_custom_vjp(dense(2))
      >>> jax.grad(lambda p: f(p, jnp.ones((4, 3))).sum())(params)["b"].tolist()
      [4.0, 4.0]
    """

    @jax.custom_vjp
    def run(params: Params, x: Any, key: Key | None) -> Any:
        return layer.forward(params, x, key)[0]

    def forward(params: Params, x: Any, key: Key | None) -> tuple[Any, Any]:
        y, residuals = layer.forward(params, x, key)
        return y, (params, residuals)

    def backward(kept: Any, dy: Any) -> tuple[Params, Any, None]:
        params, residuals = kept
        dparams, dx = layer.backward(params, params, residuals, dy)
        return dparams, dx, None

    run.defvjp(forward, backward)

    def f(params: Params, x: Any, key: Key | None = None) -> Any:
        return run(params, x, key)

    return f
