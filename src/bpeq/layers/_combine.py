"""What a combinator takes over from its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bpeq.types import Layer, Params


def trained_leaves(layer: Layer, params: Params) -> Any:
    """Which leaves of a layer's parameters training may change.

    Args:
      layer: any layer.
      params: its parameters; entries that a rule has appended to a chain's count as trained.

    Returns:
      A tree of the structure of `params` with True or False for each leaf.

    Raises:
      ValueError: a layer has `absorb` and does not declare which leaves that writes.

    Example:
      >>> import jax
      >>> from bpeq.layers import batch_norm
      >>> params, _ = batch_norm().init(jax.random.key(0), (2,))
      >>> sorted(trained_leaves(batch_norm(), params).items())
      [('bias', True), ('gain', True), ('mean', False), ('variance', False)]
    """
    if layer.trained is not None:
        return layer.trained(params)
    if layer.absorb is not None:
        raise ValueError(
            f"{layer.name}: has `absorb`, which writes leaves that are not trained; it must "
            "declare them by `trained`"
        )
    return jax.tree.map(lambda leaf: True, params)


def combined(
    name: str,
    parts: tuple[Layer, ...],
    init: Callable[..., Any],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    absorb: Callable[[Params, Any], Params],
    trained: Callable[[Params], Any],
) -> Layer:
    """A layer made of others, with everything that they declare.

    Args:
      name, init, forward, backward: as `Layer` has them.
      parts: the layers that it is made of.
      absorb: the combinator's; left out if no part has one.
      trained: the combinator's; left out if no part has one.
    """
    return Layer(
        name,
        init,
        forward,
        backward,
        parts,
        absorb=absorb if any(part.absorb for part in parts) else None,
        no_energy=next((part.no_energy for part in parts if part.no_energy), ""),
        not_holomorphic=next((part.not_holomorphic for part in parts if part.not_holomorphic), ""),
        trained=trained if any(part.trained for part in parts) else None,
    )
