"""Shapes that a layer's or a system's `init` leads to, without computing anything."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bpeq.types import Key, Layer, Params, Shape


def init_shapes(
    init: Callable[[Key, Shape], tuple[Params, Shape]], shape: Shape
) -> tuple[Params, Shape]:
    """What an `init` gives, with shapes and dtypes in place of the parameters' numbers.

    Args:
      init: a layer's, a system's, or one of your own.
      shape: the shape of one example, without the batch axis.

    Returns:
      The tree of parameters, a `jax.ShapeDtypeStruct` for each leaf, and the shape of one output.

    Raises:
      ValueError: what `init` itself refuses.

    Example:
      >>> from bpeq.layers import dense
      >>> params, shape = init_shapes(dense(3).init, (5,))
      >>> params["w"].shape, shape
      ((5, 3), (3,))
    """

    def traced(key: Key) -> tuple[Params, jax.Array]:
        params, end = init(key, shape)
        return params, jnp.empty(end)  # an array carries its shape out of the trace

    params, like = jax.eval_shape(traced, jax.random.key(0))
    return params, like.shape


def output_shape(layer: Layer, shape: Shape) -> Shape:
    """The shape of a layer's output for one example of shape `shape`.

    Args:
      layer: any layer.
      shape: the shape of one example, without the batch axis.

    Returns:
      The shape of one output, without the batch axis.

    Raises:
      ValueError: the layer does not take examples of this shape.

    Example:
      >>> from bpeq.layers import chain, conv, flatten
      >>> output_shape(chain(conv(4, kernel=3), flatten()), (8, 8, 1))
      (256,)
    """
    return init_shapes(layer.init, shape)[1]
