"""What a function needs to know about the whole batch when several devices share it.

`data_parallel` runs a rule's estimate on every device's part of the batch, along a mesh axis
`AXIS`. Most functions treat examples alike and need nothing from here: means over equal parts
average. The functions below are for those that couple examples, or draw numbers for each. With one
device the part is the batch, and they change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.core.compat import axis_size
from bpeq.types import Shape

AXIS = "data"


def count() -> int:
    """How many parts the batch is in; 1 outside a mesh."""
    try:
        return axis_size(AXIS)
    except NameError:  # how JAX says that no such axis is in sight
        return 1


def mean(tree: Any) -> Any:
    """The mean over parts of every leaf: of means over equal parts, the mean over the batch.

    Args:
      tree: arrays that each device has made of its own part.
    """
    return jax.lax.pmean(tree, AXIS) if count() > 1 else tree


def gathered(tree: Any) -> Any:
    """The whole batch: every leaf `[part, ...]` as `[batch, ...]`, the parts in their order.

    Args:
      tree: arrays with examples on axis 0.
    """
    if count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree)


def places(examples: int) -> Int[Array, " part"]:
    """Where in the batch the part's examples are.

    Args:
      examples: how many examples the part has.
    """
    own = jnp.arange(examples)
    return own if count() == 1 else own + examples * jax.lax.axis_index(AXIS)


def drawn(draw: Callable[[Shape], Array], shape: Shape) -> Array:
    """`draw(shape)`, `[part, ...]`, of numbers that the batch would have drawn on one device.

    Each device draws the whole batch's: that is cheaper than to send them.

    Args:
      draw: shape -> random numbers.
      shape: `[part, ...]`, of the numbers that this part needs.
    """
    if count() == 1:
        return draw(shape)
    first = shape[0] * jax.lax.axis_index(AXIS)
    whole = draw((shape[0] * count(), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, first, shape[0])
